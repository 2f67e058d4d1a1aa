"""Train the judge: `python -m interp.shapes.train_judge --out FOLDER`. Some minutes on one core.

Pictures are put together from exact coverages, so that each can be spoilt in a known way, and labelled by what was
done to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, nll_loss, pad

from interp.shapes.judge import ANSWERS, WEIGHTS, Judge, Verdict
from interp.shapes.packing import write_weights
from interp.shapes.reading import ideal
from interp.shapes.render import BACKGROUND_RGB, COLOUR_RGB, coverage, render
from interp.shapes.scene import CELLS, SHAPES, Scene, sample_scene, sample_scenes

_SPOILT = 0.4  # share of objects that are unclear by shape
_STRANGE = 0.2  # share of objects, and of backgrounds, in a colour that is none
_IGNORED = -100


def spoilt_batch(n: int, seed: int) -> tuple[Float[Tensor, "batch 3 32 32"], dict[str, Tensor]]:
    """Pictures in [-1, 1], clean to ruined, and the number of the right answer to each question."""
    random, rng = Random(f"judge {seed}"), np.random.default_rng([seed, 77])
    scenes = [sample_scene(random) for _ in range(n)]
    labels = {name: torch.zeros(n, len(CELLS), dtype=torch.long) for name in ("shape", "colour", "size")}
    labels["colour"][:], labels["size"][:] = _IGNORED, _IGNORED
    cover, paint = coverage(scenes), np.zeros((n, 2, 3), np.float32)
    for row, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.objects):
            cell, spoilt, strange = CELLS.index(thing.cell), random.random() < _SPOILT, random.random() < _STRANGE
            if spoilt:
                cover[row, slot] = _spoil(cover[row, slot], scene, slot, random, rng)
            paint[row, slot] = _strange_colour(rng) if strange else COLOUR_RGB[thing.colour] + rng.normal(0, 8, 3)
            labels["shape"][row, cell] = 1 if spoilt else ANSWERS["shape"].index(thing.shape)
            labels["colour"][row, cell] = 0 if strange else ANSWERS["colour"].index(thing.colour)
            labels["size"][row, cell] = _IGNORED if spoilt else ANSWERS["size"].index(thing.size)
    ground, labels["background"] = _grounds(scenes, random, rng)
    painted = torch.from_numpy(cover)[:, :, None] * torch.from_numpy(paint)[..., None, None]
    pictures = painted.sum(1) + (1 - torch.from_numpy(cover).sum(1, keepdim=True)) * ground[..., None, None]
    return _weathered(pictures / 127.5 - 1, rng), labels


def _spoil(cover: np.ndarray, scene: Scene, slot: int, random: Random, rng: np.random.Generator) -> np.ndarray:
    """A coverage that no longer is one of the five shapes."""
    kind = random.choice(("cut", "melted", "doubled", "blot", "faint"))
    thing = scene.objects[slot]
    other = random.choice([shape for shape in SHAPES if shape != thing.shape])
    alone = Scene(scene.background, (thing,), scene.seed).counterfactual("shape", other)
    if kind == "cut":
        y, x = np.nonzero(cover > 0.5)
        angle = rng.uniform(0, 2 * np.pi)
        along = (np.arange(32)[None] - x.mean()) * np.cos(angle) + (np.arange(32)[:, None] - y.mean()) * np.sin(angle)
        return cover * (along < rng.uniform(-1.0, 0.5))
    if kind in ("melted", "doubled"):
        second = coverage([alone])[0, 0]
        both = np.maximum(cover, second)
        if kind == "doubled" and both.sum() > 1.15 * max(cover.sum(), second.sum()):
            return both  # a circle over a ring, though, is a circle
        share = rng.uniform(0.4, 0.6)
        return share * cover + (1 - share) * second
    top, left = CELLS.index(thing.cell) // 2 * 16, CELLS.index(thing.cell) % 2 * 16
    blot = np.zeros_like(cover)
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 5, 5))).float()
    smooth = interpolate(coarse, size=16, mode="bicubic", align_corners=False)[0, 0].numpy()
    if kind == "blot":
        blot[top : top + 16, left : left + 16] = np.clip(4 * (smooth - rng.uniform(-0.2, 0.4)), 0, 1)
        return blot if blot.sum() > 20 else cover * (rng.random(cover.shape) < 0.5)
    return cover * np.float32(rng.uniform(0.25, 0.5))


def _strange_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour at least 75 from all six."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if min(np.linalg.norm(colour - rgb) for rgb in COLOUR_RGB.values()) > 75:
            return colour


def _grounds(scenes: list[Scene], random: Random, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    colours, labels = [], []
    for scene in scenes:
        colour, label = BACKGROUND_RGB[scene.background] + rng.normal(0, 5, 3), scene.background
        if random.random() < _STRANGE:
            label, others = None, (*BACKGROUND_RGB.values(), *COLOUR_RGB.values())
            while min(np.linalg.norm(colour - rgb) for rgb in others) < 60:  # nor may an object vanish in it
                colour = rng.uniform(0, 255, 3)
        colours.append(colour)
        labels.append(0 if label is None else ANSWERS["background"].index(label))
    return torch.from_numpy(np.array(colours, np.float32)), torch.tensor(labels)


def _weathered(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise, blur, exposure: what leaves the meaning as it is. A third of the pictures stay as they are."""
    n = len(pictures)
    draw = torch.from_numpy(rng.random((5, n, 1, 1, 1))).float()
    blurred = avg_pool2d(pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    changed = torch.lerp(pictures, blurred, 0.5 * draw[0])
    changed = changed * (0.92 + 0.16 * draw[1]) + 0.12 * (draw[2] - 0.5)
    changed = changed + 0.15 * draw[3] ** 2 * torch.from_numpy(rng.normal(size=tuple(pictures.shape))).float()
    return torch.where(draw[4] < 1 / 3, pictures, changed).clamp(-1, 1)


def _loss(verdict: Verdict, labels: dict[str, Tensor]) -> Tensor:
    losses = [
        nll_loss(getattr(verdict, name).flatten(0, -2), truth.flatten(), ignore_index=_IGNORED)
        for name, truth in labels.items()
    ]
    return torch.stack(losses).sum()


def train_judge(
    out: Annotated[Path, typer.Option(help="Folder of judge.safetensors.")],
    steps: int = 4_000,
    batch: int = 64,
    seed: int = 0,
) -> None:
    """Train, fit the temperature on new spoilt pictures, and write the weights."""
    torch.manual_seed(seed)
    judge = Judge()
    trained = [parameter for parameter in judge.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.02, fused=True)
    for step in range(steps):
        pictures, labels = spoilt_batch(batch, seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100, 1 - step / steps)
        loss = _loss(judge(pictures), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        pictures, labels = spoilt_batch(2_000, seed * 1_000_003 - 1 + 2**30)
        losses = {}
        for temperature in np.linspace(0.7, 2.0, 27):
            judge.temperature.fill_(float(temperature))
            losses[float(temperature)] = _loss(judge(pictures), labels).item()
        judge.temperature.fill_(min(losses, key=lambda t: losses[t]))
    write_weights(out / WEIGHTS, {f"judge.{name}": tensor for name, tensor in judge.state_dict().items()})
    scenes = sample_scenes(2_000, seed=seed + 12_345)
    clean = judge.judge(render(scenes)).readings()
    verdict = judge(pictures)
    report = {"temperature": judge.temperature.item(), "spoilt_nll": min(losses.values())}
    report |= {
        f"spoilt_{name}": (getattr(verdict, name).argmax(-1) == truth)[truth != _IGNORED].float().mean().item()
        for name, truth in labels.items()
    }
    report["clean"] = sum(seen == ideal(scene) for seen, scene in zip(clean, scenes, strict=True)) / len(scenes)
    (out / "judge.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(train_judge)
