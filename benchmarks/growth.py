"""Growth: one sweep of resid_pre, at longer prompts and more pairs, beside the naive way.

The clean and corrupted prompts differ in one token, two thirds through, at every length. Where the
whole grid would take longer than `--cap` seconds, cells spread evenly over it are run, and as many pairs
as fit (pairs are independent of each other); the table says which share, and seconds are extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Any

import torch
import typer
from common import machine, matrix_rate, peak, report, reset_peak, resident, seconds, set_threads, spread
from workload import Cell, Hooks

NAMES = " Mary, John, Tom, Anna, James, Lisa, Mark".split(",")
LENGTH, CHANGED = 14, 9
"""Tokens of one sentence, and where its prompts differ."""


def sentence(first: str, second: str, giver: str) -> str:
    return f"When{first} and{second} went to the store,{giver} gave a drink to"


def text_pairs(tokens: int, pairs: int) -> list[Any]:
    """Prompt pairs of this many tokens: the IOI sentence again and again, one name swapped at two thirds."""
    from interp.tasks.pairs import PromptPair

    if tokens % LENGTH:
        raise typer.BadParameter(f"{tokens} tokens: give a multiple of {LENGTH}.")
    copies, out = tokens // LENGTH, []
    changed = copies * CHANGED // LENGTH
    for first, second in list(permutations(NAMES, 2))[:pairs]:
        texts = [sentence(first, second, second)] * copies
        swapped = [*texts[:changed], sentence(first, second, first), *texts[changed + 1 :]]
        out.append(PromptPair(" ".join(texts), " ".join(swapped), first, second))
    return out


def measure(model: Any, tokens: int, pairs: int, skip_noops: bool, cap: float, naive_cells: int, rate: float) -> dict[str, Any]:
    """One line of the table."""
    import interp
    from interp.tasks.metrics import LogitDifference
    from interp.tasks.pairs import Task

    per_token = 2 * sum(p.numel() for p in model.layers[0].block.parameters()) * model.n_layers
    # A row is one cell of one pair; on average half of its tokens live (a sixth after the changed one), for half of
    # the layers.
    rows, live = (tokens / 3, tokens / 6) if skip_noops else (tokens, tokens / 2)
    one_pair = model.n_layers * rows * live * per_token / 2 / rate
    used_pairs = max(1, min(pairs, int(cap / one_pair) or 1, 448 * 4 // tokens))
    grid = [Cell(layer, pos) for layer in range(model.n_layers) for pos in range(tokens)]
    share = min(1.0, cap / (one_pair * used_pairs))
    cells = spread(grid, max(model.n_layers, int(len(grid) * share)))

    task = Task("growth", tuple(text_pairs(tokens, pairs)), "", None).encode(model)
    chosen = range(used_pairs)
    clean, corrupted = task.clean.select(chosen), task.corrupted.select(chosen)
    assert clean.ids.shape[1] == tokens, "a name of several tokens"
    metric = LogitDifference(task.answer[list(chosen)], task.wrong_answer[list(chosen)])
    exact = interp.Savings(skip_noops=skip_noops)

    reset_peak()
    before = resident()

    def sweep(some: Sequence[Cell]) -> Any:
        source = interp.run(model, clean, (), ["resid_pre"], logits=False)
        variants = [[interp.Replace(interp.Site("resid_pre", cell.layer), source, positions=cell.pos)] for cell in some]
        plan = interp.plan_sweep(model, corrupted, variants, metric, exact=exact)
        return plan, plan.run()

    _, fixed = seconds(lambda: sweep([]))
    (plan, swept), took = seconds(lambda: sweep(cells))
    memory = peak() - before
    # What every sweep pays once (source and base run) does not grow with the number of cells.
    ours = (fixed + max(0.0, took - fixed) * len(grid) / len(cells)) * pairs / used_pairs

    # The oracle's cells are among those that the sweep ran, for a check on the way.
    hooks = Hooks(model.network, "resid_pre", model.n_heads, clean.ids, corrupted.ids)
    at = {cell: i for i, cell in enumerate(cells)}
    sample = spread(cells, naive_cells)
    hooks.logits(sample[0])  # warm up
    logits, naive = seconds(lambda: [hooks.logits(cell) for cell in sample])
    rows_of = torch.arange(used_pairs)
    theirs = torch.stack([x[rows_of, metric.answer] - x[rows_of, metric.wrong_answer] for x in logits])
    worst = float((swept.values["logit_difference"][[at[cell] for cell in sample]] - theirs).abs().max())
    naive = naive / len(sample) * len(grid) * pairs / used_pairs
    # What the parts of one's own memory are, for the bytes that the plan had foreseen.
    return {
        "tokens": tokens, "pairs": pairs, "what": "no-ops skipped" if skip_noops else "nothing skipped",
        "cells": len(grid), "cells run": len(cells), "pairs run": used_pairs, "seconds": ours, "hooks, seconds": naive,
        "hooks, cells timed": len(sample), "advantage": naive / ours, "fewer operations": plan.cost.naive_operations / plan.cost.operations,
        "peak above model, MiB": memory / 2**20, "planned, MiB": plan.cost.bytes / 2**20, "largest difference": worst,
    }  # fmt: skip


def main(
    tokens: Annotated[list[int], typer.Option(help="lengths, multiples of 14")] = [14, 56, 224, 896],  # noqa: B006
    pairs: Annotated[list[int], typer.Option()] = [1, 32],  # noqa: B006
    cap: Annotated[float, typer.Option(help="about the most seconds of sweeping per line")] = 15,
    naive_cells: Annotated[int, typer.Option(help="cells of the naive way per line")] = 4,
    nothing_skipped: Annotated[bool, typer.Option(help="also with `skip_noops=False`")] = True,
    threads: int = 2,
) -> None:
    """Print the table."""
    set_threads(threads)
    import interp

    where, rate = machine(), matrix_rate()
    model = interp.load("smollm2-135m")
    measure(model, 14, 1, True, 1, 1, rate)  # warm up
    rows = [
        measure(model, n, p, skip, cap, naive_cells, rate)
        for skip in ([True, False] if nothing_skipped else [True])
        for p in pairs
        for n in tokens
    ]
    report(
        "growth", "resid_pre on SmolLM2-135M, all layers × all positions, as prompts and pairs grow", rows, where=where,
        notes=[
            "Ours: source run, base run, planning and sweep. Where fewer cells or pairs were run than the grid has, seconds "
            "are extrapolated by their number (the source and base run counted once).",
            "Hooks: one forward pass of all pairs run per cell, a sample of cells extrapolated to the grid.",
            "Fewer operations: matrix products of one forward pass per cell, over those that the plan needs.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
