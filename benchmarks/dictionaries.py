"""A training step of a TopK dictionary, against SAELens, eai-sparsify and dictionary_learning, and against its floor.

    python benchmarks/dictionaries.py --latents 4608 --latents 36864

All contenders take turns in one process, on the same rows: a batch of 4,096 activations of width 576 (the stream of
SmolLM2-135M), k = 32, float32. A step is forward, backward, Adam, and what each does to its decoder. The *floor* is the
encoder's product and torch's search for the k largest pre-activations, which no TopK step can leave out.

    ours              `train`'s step: standardising, the sparse step, the curve
    SAELens           `TopKTrainingSAE.training_forward_pass` and Adam, dense codes (its default; its sparse
                      ones raise in the backward pass of torch 2.13)
    eai-sparsify      `SparseCoder` and Adam, with its decoder's projection and normalisation; no Triton, as on any CPU
    dictionary_learning   `TopKTrainer.update`

Processor seconds (over all threads) stand beside, for machines that others use too: with one thread they are what the
step takes on an idle one.

No latent is dead, so no auxiliary loss runs anywhere. Peers that are not installed are left out (see README.md for an
environment that has them).
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import unittest.mock
from collections.abc import Callable

import torch
import typer
from report import machine, report
from timing import processor_seconds, set_threads

from interp.dictionaries.activations import InMemory
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Training, _Trainer

WIDTH, K = 576, 32
Step = Callable[[int], object]


def ours(x: torch.Tensor, latents: int) -> Step:
    d = TopK(Standardisation.from_moments(Moments.of(x)), latents, K)
    trainer = _Trainer(d, InMemory(x), Training(steps=10_000, batch=len(x), dead_after=10**9))
    return trainer.step


def floor(x: torch.Tensor, latents: int) -> Step:
    weight, bias = torch.randn(latents, WIDTH) / 24, torch.zeros(latents)

    @torch.no_grad()
    def step(_: int) -> object:
        return torch.nn.functional.linear(x, weight, bias).topk(K, dim=1, sorted=False)

    return step


def saelens(x: torch.Tensor, latents: int) -> Step:
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=WIDTH, d_sae=latents, k=K))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def step(number: int) -> object:
        out = sae.training_forward_pass(TrainStepInput(x, {}, None, number, False))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        return out.loss

    return step


def sparsify(x: torch.Tensor, latents: int) -> Step:
    with contextlib.redirect_stdout(io.StringIO()):  # it announces that it has no Triton
        from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(WIDTH, SparseCoderConfig(num_latents=latents, k=K))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def step(_: int) -> object:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        optimizer.zero_grad()
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        return out.fvu

    return step


def dictionary_learning(x: torch.Tensor, latents: int) -> Step:
    # Its buffers, not used here, import nnsight, which replaces Tensor.backward in the whole process.
    with unittest.mock.patch.dict(sys.modules, {"nnsight": unittest.mock.MagicMock()}):
        from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000, activation_dim=WIDTH, dict_size=latents, k=K, layer=0, lm_name="", lr=1e-4, device="cpu", seed=0
    )
    return lambda number: trainer.update(number, x)


FLOOR = "floor: encoder product and torch.topk"
CONTENDERS: dict[str, Callable[[torch.Tensor, int], Step]] = {
    "interp": ours,
    FLOOR: floor,
    "SAELens": saelens,
    "eai-sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}


def share(medians: dict[str, float], above: str, below: str) -> float | None:
    return medians[above] / medians[below] if {above, below} <= medians.keys() else None


def main(
    latents: list[int] = [4608, 36864],  # noqa: B006  typer reads it
    batch: int = 4096,
    repeats: int = 5,
    threads: int = 2,
    only: list[str] = [],  # noqa: B006  typer reads it
) -> None:
    set_threads(threads)
    where = machine()
    generator = torch.Generator().manual_seed(0)
    # Activations have structure, and unequal rows: sparse sums of directions, and noise.
    directions = torch.randn(2000, WIDTH, generator=generator) / WIDTH**0.5
    codes = torch.rand(batch, 2000, generator=generator) * (torch.rand(batch, 2000, generator=generator) < 0.01)
    x = codes @ directions + 0.1 * torch.randn(batch, WIDTH, generator=generator) / WIDTH**0.5
    x = x / x.norm(dim=1).mean() * WIDTH**0.5
    rows = []
    for width in latents:
        steps: dict[str, Step] = {}
        for name, make in CONTENDERS.items():
            if only and not any(name.startswith(o) for o in only):
                continue
            try:
                steps[name] = make(x, width)
            except ImportError as error:
                typer.echo(f"{name}: not installed ({error})", err=True)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for number in range(repeats + 1):
            for name, step in steps.items():
                _, *took = processor_seconds(lambda step=step, number=number: step(number))
                if number:  # the first one warms up
                    taken[name].append((took[0], took[1]))
        wall, processor = ({n: statistics.median(t[i] for t in times) for n, times in taken.items()} for i in (0, 1))
        for name, times in taken.items():
            rows.append(
                {
                    "latents": width,
                    "step of": name,
                    "seconds, median": round(wall[name], 4),
                    "best": round(min(t[0] for t in times), 4),
                    "times ours": share(wall, name, "interp"),
                    "floor / it": share(wall, FLOOR, name),
                    "processor seconds, median": round(processor[name], 4),
                    "times ours ": share(processor, name, "interp"),
                    "floor / it ": share(processor, FLOOR, name),
                }
            )
    load = os.getloadavg()[0]
    title = f"TopK step, batch {batch}, {WIDTH} → latents, k = {K}"
    report("dictionaries", title, rows, notes=[f"load {load:.1f} at the end"], where=where)


if __name__ == "__main__":
    typer.run(main)
