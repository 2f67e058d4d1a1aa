"""Head gating: what 8 masks cost in one batch, against one mask.

    python benchmarks/head_gating.py --prompts 1 --prompts 4

A *step* is what `interp.circuits.head_gating` does per step: gated forward passes of every mask over the same prompts of
the IOI task on SmolLM2-135M, and the gradient of their sum to all gates. Training 8 masks (4 seeds, both signs of λ)
takes as many steps with 4 masks (λ = 0, shared by both signs) as with 8; training one takes as many with one mask, twice:

    ratio = (seconds of a step with 4 + seconds of a step with 8) / (2 · seconds of a step with 1)

The plain step is one mask by hand: hooks on the output projections, all logits, gradients of the weights too.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
import typer
from report import machine, report
from timing import seconds, set_threads

import interp
from interp.circuits.gated import Gated
from interp.models.site import Site
from interp.tasks.metrics import LogProbability

MASKS = (1, 4, 8)


def step(gated: Gated, sites: list[Site], masks: int, rows: torch.Tensor) -> torch.Tensor:
    gates = torch.full((masks, len(sites), gated.model.n_heads), 0.7, requires_grad=True)
    values = gated({site: gates[:, i] for i, site in enumerate(sites)}, rows)
    return torch.autograd.grad(values.mean(1).sum(), gates)[0]


def plain(model: interp.LanguageModel, encoded, rows: torch.Tensor) -> torch.Tensor:
    gates = torch.full((model.n_layers, model.n_heads), 0.7, requires_grad=True)
    prompts = encoded.clean.select(rows)
    handles = []
    for layer, gate in zip(model.layers, gates, strict=True):
        width = gate.repeat_interleave(model.d_head)
        handles.append(layer.o.register_forward_pre_hook(lambda m, a, width=width: (a[0] * width,)))
    model.network.requires_grad_(True)
    logits = model.network(input_ids=prompts.ids, attention_mask=prompts.mask.long(), use_cache=False).logits
    last = logits[torch.arange(len(rows)), prompts.lengths - 1].log_softmax(-1)
    last.gather(1, encoded.answer[rows][:, None]).mean().backward()
    for handle in handles:
        handle.remove()
    for weight in model.network.parameters():
        weight.grad = None
    model.network.requires_grad_(False)
    return gates.grad


def main(prompts: list[int] = [1, 2, 4, 8], repeats: int = 3, threads: int = 2) -> None:  # noqa: B006  typer reads it
    set_threads(threads)
    where = machine()
    model = interp.load("smollm2-135m")
    encoded = interp.tasks.ioi(n=max(prompts), seed=0).encode(model)
    sites = list(model.sites("z"))
    gated = Gated(model, encoded.clean, LogProbability(encoded.answer), sites)
    table = []
    for n in prompts:
        rows = torch.arange(n)
        calls = {masks: partial(step, gated, sites, masks, rows) for masks in MASKS}
        calls[0] = partial(plain, model, encoded, rows)
        taken: dict[int, list[float]] = {name: [] for name in calls}
        values = {}
        for repeat in range(
            repeats + 1
        ):  # in turns, so that all meet the machine in the same moods; the first warms up
            for name, call in calls.items():
                values[name], took = seconds(call)
                taken[name] += [took] if repeat else []
        off = max(float((mask - values[0]).abs().max()) for mask in values[8])
        assert off < 1e-4 * float(values[0].abs().max()) + 1e-6, off
        t = {name: statistics.median(each) for name, each in taken.items()}
        table.append({
            "prompts": n, "tokens of a mask": int(encoded.clean.lengths[:n].max()) * n, "plain, 1 mask (s)": t[0],
            **{f"{masks} mask{'s' * (masks > 1)} (s)": t[masks] for masks in MASKS}, "8 against 1, a step": t[8] / t[1],
            "ratio, training": (t[4] + t[8]) / (2 * t[1]), "against plain": (t[4] + t[8]) / (2 * t[0]),
            "largest difference": off,
        })  # fmt: skip
    report("head_gating", "Head gating on SmolLM2-135M: 8 masks in one batch", table, where=where)


if __name__ == "__main__":
    typer.run(main)
