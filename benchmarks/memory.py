"""Memory: the resident size of a sweep never exceeds the model plus the budget that was given.

Every setting has a process of its own: load, one warm-up, then the peak during `interp.patch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated

import typer
from growth import text_pairs
from report import ROOT, machine, report
from resident import peak, reset_peak, resident, trim
from timing import set_threads

MIB = 2**20


def measure(budget: int, tokens: int, pairs: int, part: str, layers: str, threads: int) -> None:
    """Inside the process of one setting."""
    set_threads(threads)
    import interp
    from interp.errors import InterpError
    from interp.tasks.pairs import Task

    model = interp.load("smollm2-135m")
    warm = Task("warm-up", tuple(text_pairs(14, 1)), "", None)
    interp.patch(model, warm, part, layers=[0, model.n_layers - 1])
    task = Task("memory", tuple(text_pairs(tokens, pairs)), "", None)
    trim()
    reset_peak()
    before = resident()
    try:
        result = interp.patch(model, task, part, layers=json.loads(layers), budget=budget)
    except InterpError as error:
        print(json.dumps({"refused": str(error)}))
        return
    print(json.dumps({"model": before, "above": peak() - before, "rows": result.provenance["rows_run"]}))


def main(
    budgets: Annotated[list[int], typer.Option(help="MiB")] = [32, 64, 128, 256, 512],  # noqa: B006
    tokens: Annotated[list[int], typer.Option()] = [14, 224],  # noqa: B006
    pairs: int = 8,
    parts: Annotated[list[str], typer.Option()] = ["resid_pre", "z"],  # noqa: B006
    layers: Annotated[list[int], typer.Option(help="layers of the grid, for time's sake")] = [10, 20, 29],  # noqa: B006
    threads: int = 2,
    inside: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the table; the exit status says whether every peak keeps its budget."""
    if inside is not None:
        measure(**json.loads(inside))
        return
    set_threads(threads)
    where, rows = machine(), []
    for part in parts:
        for n in tokens:
            for budget in budgets:
                setting = {
                    "budget": budget * MIB, "tokens": n, "pairs": pairs, "part": part, "layers": json.dumps(layers),
                    "threads": threads,
                }  # fmt: skip
                command = [sys.executable, __file__, "--inside", json.dumps(setting)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr[-2000:])
                found = json.loads(done.stdout.strip().splitlines()[-1])
                row = {"what": part, "tokens": n, "pairs": pairs, "budget, MiB": budget}
                if "refused" in found:
                    rows.append(row | {"holds": "refused", "_why": found["refused"]})
                    continue
                rows.append(row | {
                    "rows run": found["rows"], "model, MiB": found["model"] / MIB,
                    "peak above it, MiB": found["above"] / MIB,
                    "share of budget": f"{found['above'] / budget / MIB:.0%}",
                    "holds": "yes" if found["above"] <= budget * MIB else "NO",
                })  # fmt: skip
    report(
        "memory", f"Peak resident memory of interp.patch, layers {layers}", rows, where=where,
        notes=[
            "'model': resident size of the process after loading and one tiny warm-up sweep. 'refused': interp.patch "
            "says that a row does not fit into the budget.",
        ],
    )  # fmt: skip
    if any(row["holds"] == "NO" for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
