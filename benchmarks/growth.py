"""Growth: one sweep of resid_pre, at longer prompts and more pairs, beside the naive way.

The clean and corrupted prompts differ in one token, two thirds through, at every length. Where the
whole grid would take longer than `--cap` seconds, cells spread evenly over it are run, on some of the
pairs (pairs are independent of each other); the table says how many, and seconds are extrapolated.
Every line has a process of its own, so that its peak memory is its own, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Any

import torch
import typer
from report import ROOT, machine, report
from resident import peak, reset_peak, resident, trim
from timing import matrix_rate, seconds, set_threads, spread
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


def measure(
    model: Any, tokens: int, pairs: int, skip_noops: bool, cap: float, naive_cells: int, rate: float
) -> dict[str, Any]:
    """One line of the table."""
    import interp
    from interp.tasks.metrics import LogitDifference
    from interp.tasks.pairs import Task

    per_token = 2 * sum(p.numel() for p in model.layers[0].block.parameters()) * model.n_layers
    # A row is one cell of one pair; on average half of its tokens live (a sixth after the changed one), for half of
    # the layers.
    rows, live = (tokens / 3, tokens / 6) if skip_noops else (tokens, tokens / 2)
    one_pair = model.n_layers * rows * live * per_token / 2 / rate
    used_pairs = min(pairs, max(1, 1792 // tokens), max(4, int(cap / one_pair)))
    grid = [Cell(layer, pos) for layer in range(model.n_layers) for pos in range(tokens)]
    share = min(1.0, cap / (one_pair * used_pairs))
    cells = spread(grid, max(model.n_layers, int(len(grid) * share)))

    task = Task("growth", tuple(text_pairs(tokens, pairs)), "", None).encode(model)
    chosen = range(used_pairs)
    clean, corrupted = task.clean.select(chosen), task.corrupted.select(chosen)
    assert clean.ids.shape[1] == tokens, "a name of several tokens"
    metric = LogitDifference(task.answer[list(chosen)], task.wrong_answer[list(chosen)])
    exact = interp.Savings(skip_noops=skip_noops)

    trim()
    reset_peak()
    before = resident()

    def sweep(some: Sequence[Cell]) -> Any:
        source = interp.run(model, clean, (), ["resid_pre"], logits=False)
        variants = [[interp.Replace(interp.Site("resid_pre", cell.layer), source, positions=cell.pos)] for cell in some]
        plan = interp.plan_sweep(model, corrupted, variants, metric, exact=exact)
        return plan, plan.run()

    _, fixed = seconds(lambda: sweep([]))
    (plan, swept), took = seconds(lambda: sweep(cells))
    memory, cost = peak() - before, plan.cost
    # What every sweep pays once (source and base run) does not grow with the number of cells.
    ours = (fixed + max(0.0, took - fixed) * len(grid) / len(cells)) * pairs / used_pairs

    # The oracle's cells are among those that the sweep ran, for a check on the way.
    hooks = Hooks(model.network, "resid_pre", model.n_heads, clean.ids, corrupted.ids)
    at = {cell: i for i, cell in enumerate(cells)}
    sample = spread(cells, naive_cells)
    del plan
    trim()
    reset_peak()
    hooks.logits(sample[0])  # warm up
    logits, naive = seconds(lambda: [hooks.logits(cell) for cell in sample])
    naive_memory = peak() - before
    rows_of = torch.arange(used_pairs)
    theirs = torch.stack([x[rows_of, metric.answer] - x[rows_of, metric.wrong_answer] for x in logits])
    worst = float((swept.values["logit_difference"][[at[cell] for cell in sample]] - theirs).abs().max())
    naive = naive / len(sample) * len(grid) * pairs / used_pairs
    return {
        "tokens": tokens, "pairs": pairs, "what": "no-ops skipped" if skip_noops else "nothing skipped",
        "cells": len(grid), "cells run": len(cells), "pairs run": used_pairs, "seconds": ours, "hooks, seconds": naive,
        "hooks, cells timed": len(sample), "advantage": naive / ours,
        "fewer operations": cost.naive_operations / cost.operations,
        "peak, MiB": memory / 2**20, "planned, MiB": cost.bytes / 2**20, "hooks, peak MiB": naive_memory / 2**20,
        "largest difference": worst,
    }  # fmt: skip


def one_line(**line: Any) -> None:
    """Inside the process of one line."""
    import interp

    model = interp.load("smollm2-135m")
    measure(model, **line | {"tokens": 14, "pairs": 1, "cap": 1})  # warm up
    print(json.dumps(measure(model, **line)))


def main(
    tokens: Annotated[list[int], typer.Option(help="lengths, multiples of 14")] = [14, 56, 224, 896],  # noqa: B006
    pairs: Annotated[list[int], typer.Option()] = [1, 32],  # noqa: B006
    cap: Annotated[float, typer.Option(help="about the most seconds of sweeping per line")] = 15,
    naive_cells: Annotated[int, typer.Option(help="cells of the naive way per line")] = 4,
    nothing_skipped: Annotated[bool, typer.Option(help="also with `skip_noops=False`")] = True,
    threads: int = 2,
    inside: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the table."""
    set_threads(threads)
    if inside is not None:
        one_line(**json.loads(inside))
        return
    where, rate = machine(), matrix_rate()
    rows = []
    for skip in [True, False] if nothing_skipped else [True]:
        for p in pairs:
            for n in tokens:
                line = {
                    "tokens": n, "pairs": p, "skip_noops": skip, "cap": cap, "naive_cells": naive_cells, "rate": rate
                }  # fmt: skip
                command = [sys.executable, __file__, "--threads", str(threads), "--inside", json.dumps(line)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr[-2000:])
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    report(
        "growth", "resid_pre on SmolLM2-135M, all layers × all positions, as prompts and pairs grow", rows,
        where=where,
        notes=[
            "Ours: source run, base run, planning and sweep. Where fewer cells or pairs were run than the grid has, "
            "seconds are extrapolated by their number (the source and base run counted once).",
            "Hooks: one forward pass of all pairs run per cell, a sample of cells extrapolated to the grid.",
            "Peaks: resident memory above the loaded model; for the pairs and cells that were run.",
            "Fewer operations: matrix products of one forward pass per cell, over those that the plan needs.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
