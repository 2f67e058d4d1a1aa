"""Train a shapes model: `python -m interp.shapes.train --out FOLDER`. An hour of one core; stop it at any time.

Everything random follows from (seed, step), and the checkpoint holds weights, averages and optimiser, so training
that was killed continues exactly as if it had not been. The schedule is warm-up, constant, cooldown: run again
with more `--steps` and the plateau is prolonged. What the recipe owes to what is in docs/shapes.md.
"""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, cast

import torch
import typer
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_unshuffle

from interp.errors import LoadError
from interp.shapes.architecture import architecture_named
from interp.shapes.caption import caption, full_caption, tokenizer
from interp.shapes.optimizer import Muon
from interp.shapes.packing import unpacked
from interp.shapes.pipeline import WEIGHTS, assets, load_into, new_text_encoder, read_weights
from interp.shapes.render import render
from interp.shapes.scene import Scene, sample_scene, sample_scenes, variant_named
from interp.shapes.text import pretrain

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
_HELD_OUT = (999, 949, 899, 799, 649, 449, 249, 49)  # thousandths of the schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, and how.

    Args:
        steps: length of the whole schedule.
        cooldown: last steps, in which the learning rate falls linearly to zero.
        easy: first steps, in which second objects become frequent and captions begin to omit.
        dropout: share of empty captions, for guidance.
        text_steps: of reading before the first picture, where the text encoder learns at all.
        average: of weights, with the power law t^average: its span is about a tenth of the steps so far.
        bfloat16: autocast; twice as fast where the processor multiplies bfloat16, slower where not.
        architecture: a name in `interp.shapes.architecture.ARCHITECTURES`.
    """

    variant: str = "A"
    seed: int = 0
    steps: int = 12_000
    batch: int = 64
    rate: float = 4e-3
    warmup: int = 200
    cooldown: int = 3_000
    easy: int = 1_500
    dropout: float = 0.12
    text_steps: int = 300
    average: float = 8.0
    bfloat16: bool = True
    architecture: str = "unet"


_DEFAULTS = Recipe()


class Training:
    """The state of a run: denoiser, text encoder, their averages, optimiser, step."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.architecture = architecture_named(recipe.architecture)
        self.step = 0
        torch.manual_seed(recipe.seed)
        text_encoder, denoiser = new_text_encoder(), self.architecture.new()
        # PyTorch's fused attention is six times slower backwards in bfloat16 on a CPU than plain products
        cast(Any, denoiser).set_attn_processor(AttnProcessor())
        text_encoder.set_attn_implementation("eager")
        text_encoder.requires_grad_(self.architecture.reads)
        self.model = nn.ModuleDict({"text_encoder": text_encoder, self.architecture.denoiser: denoiser})
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        learning = self.model if self.architecture.reads else {self.architecture.denoiser: denoiser}
        plain = self.architecture.plain
        self.optimizers = {name: Muon(dict(part.named_parameters()), plain) for name, part in learning.items()}
        self._words = tokenizer()

    def start(self) -> dict[str, Any]:
        """Teach the text encoder to read, or take the one that has learned it, before step 0; what to log."""
        recipe = self.recipe
        encoder: Any = self.model["text_encoder"]  # a ModuleDict returns modules of no known kind
        if self.architecture.reads:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # its products are too small to share
            read = pretrain(encoder, variant_named(recipe.variant), recipe.seed, recipe.text_steps)
            torch.set_num_threads(threads)
        else:
            load_into(encoder, "text_encoder", read_weights(assets() / WEIGHTS))
            read = "borrowed"
        self.average.load_state_dict(self.model.state_dict())
        return {"step": 0, "read": read}

    def advance(self) -> float:
        """One step; its loss."""
        recipe = self.recipe
        latents, ids = self._examples()
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        slots = torch.arange(recipe.batch)  # one time in each 64th of the schedule: less noise in the gradient
        u = (slots + torch.rand(recipe.batch, generator=generator)) / recipe.batch
        loss = self._loss(self.model, latents, ids, u, torch.randn(latents.shape, generator=generator))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for part, optimizer in self.optimizers.items():  # a text encoder has learned to read, and should not forget it
            optimizer.step(self._rate() / 4 if part == "text_encoder" else self._rate())
        self.step += 1
        weight = 1 - (1 - 1 / self.step) ** (recipe.average + 1)
        for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), weight)
        return loss.item()

    @torch.no_grad()
    def held_out(self, n: int = 128) -> dict[str, float]:
        """Loss of the average by place in the schedule, for scenes and noise that are always the same."""
        scenes = sample_scenes(n, seed=999_999_937, variant=self.recipe.variant)
        latents, ids = self._tensors(scenes, [full_caption(scene) for scene in scenes])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return {
            f"loss_{place}": self._loss(
                self.average, latents, ids, torch.full((n,), (place + 0.5) / 1000), noise
            ).item()
            for place in _HELD_OUT
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of one."""
        partial = path.with_suffix(".partial")
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, partial, {"state": json.dumps(self.state())})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same kind of run.

        Raises:
            LoadError: the checkpoint was made for another architecture, variant or seed.
        """
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        self.restore(load_file(path), state)

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from the tensors and the state of a checkpoint.

        Raises:
            LoadError: they are of another architecture, variant or seed.
        """
        recipe = asdict(_DEFAULTS) | state["recipe"]  # states older than the second architecture do not name the first
        for name in ("architecture", "variant", "seed"):
            found, wanted = recipe[name], getattr(self.recipe, name)
            if found != wanted:
                raise LoadError(f"The checkpoint has {name}={found!r}, and {wanted!r} is wanted.")
        parts = {"model": self.model.load_state_dict, "average": self.average.load_state_dict}
        parts |= {f"optimizer.{part}": optimizer.load_state for part, optimizer in self.optimizers.items()}
        for part, put in parts.items():
            own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
            put({name.removeprefix(f"{part}."): tensor.float() for name, tensor in own.items()})
        self.step = state["step"]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for part, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{part}.{name}": tensor for name, tensor in optimizer.state().items()}
        return tensors

    def state(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        return {"step": self.step, "recipe": asdict(self.recipe)}

    def _rate(self) -> float:
        recipe = self.recipe
        return recipe.rate * min(1.0, (self.step + 1) / recipe.warmup, (recipe.steps - self.step) / recipe.cooldown)

    def _examples(self) -> tuple[Float[Tensor, "batch 12 16 16"], Int[Tensor, "batch pos"]]:
        recipe, variant = self.recipe, variant_named(self.recipe.variant)
        random = Random(f"{recipe.seed} {self.step}")
        ease = min(1.0, self.step / recipe.easy)  # 0 at first, 1 for the data as they will stay
        scenes = [sample_scene(random, variant, variant.two * (0.2 + 0.8 * ease)) for _ in range(recipe.batch)]
        texts = []
        for scene in scenes:
            keep = 0.8 if random.random() < 0.5 * ease else 1.0
            texts.append("" if random.random() < recipe.dropout else caption(scene, random, keep, variant))
        return self._tensors(scenes, texts)

    def _tensors(self, scenes: list[Scene] | tuple[Scene, ...], texts: list[str]) -> tuple[Tensor, Tensor]:
        pictures = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids = self._words(texts, padding="max_length", return_tensors="pt")["input_ids"]
        return pixel_unshuffle(pictures, 2), ids

    def _loss(
        self, model: nn.ModuleDict, latents: Tensor, ids: Tensor, u: Float[Tensor, " batch"], noise: Tensor
    ) -> Tensor:
        """The mean squared error of what the architecture predicts."""
        given, times, wanted = self.architecture.noised(latents, noise, u)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            states = model["text_encoder"](ids).last_hidden_state
            denoiser = model[self.architecture.denoiser]
            predicted = denoiser(given, timestep=times, encoder_hidden_states=states).sample
        return mse_loss(predicted.float(), wanted)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint and the log; training in it continues.")],
    architecture: Annotated[str, typer.Option(help="unet or dit.")] = _DEFAULTS.architecture,
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes of computing (pauses not counted).")] = 1e9,
    steps: Annotated[int, typer.Option(help="Length of the whole schedule.")] = _DEFAULTS.steps,
    cooldown: Annotated[int, typer.Option(help="Last steps, while the rate falls to zero.")] = _DEFAULTS.cooldown,
    rate: float = _DEFAULTS.rate,
    batch: int = _DEFAULTS.batch,
    variant: str = _DEFAULTS.variant,
    seed: int = _DEFAULTS.seed,
    text_steps: Annotated[int, typer.Option(help="Steps of reading before the first picture.")] = _DEFAULTS.text_steps,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    bfloat16: bool = _DEFAULTS.bfloat16,
    start: Annotated[Path | None, typer.Option(help="Folder with exported weights to continue from.")] = None,
) -> None:
    """Train until the schedule ends, or the minutes do."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        variant, seed, steps, batch, rate, cooldown=cooldown, text_steps=text_steps, bfloat16=bfloat16,
        architecture=architecture,
    )  # fmt: skip
    training, begun = Training(recipe), time.thread_time()
    if (out / CHECKPOINT).exists():
        training.load(out / CHECKPOINT)
    elif start is not None:
        training.restore(*unpacked(start))
    else:
        _log(out, training.start())
    recent = 0.0
    while training.step < steps and time.thread_time() - begun < 60 * minutes:
        loss = training.advance()
        recent = loss if recent == 0 else 0.98 * recent + 0.02 * loss
        if training.step % save_every == 0:
            training.save(out / CHECKPOINT)
        if training.step % 100 == 0:
            spent = {"computed_s": round(time.thread_time() - begun), "clock": time.strftime("%H:%M:%S")}
            _log(out, {"step": training.step, "loss": round(recent, 5)} | spent)
        if training.step % 500 == 0:
            _log(out, {"step": training.step} | {name: round(x, 5) for name, x in training.held_out().items()})
    training.save(out / CHECKPOINT)


def _log(out: Path, entry: dict[str, Any]) -> None:
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    typer.run(train)
