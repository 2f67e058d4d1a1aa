"""What `import interp` adds to `import torch`: timed after torch, in fresh processes, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Annotated

import typer
from report import ROOT, machine, report
from timing import set_threads

LIMIT = 0.3
PROGRAM = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import interp
{}
print(middle - start, time.perf_counter() - middle)
"""
STATEMENTS = {
    "import interp": "",
    **{f"import interp, and {x}": x for x in ("interp.load", "interp.patch", "interp.trace")},
}


def main(repeats: Annotated[int, typer.Option(help="processes per statement")] = 7) -> None:
    """Print the table; the exit status says whether the limit holds."""
    set_threads(1)
    where = machine()
    torch_alone: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for number in range(repeats + 1):
        for name, statement in STATEMENTS.items():
            command = [sys.executable, "-c", PROGRAM.format(statement)]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            if number:  # the first round warms the disk's cache
                before, after = map(float, out.split())
                torch_alone.append(before)
                added[name].append(after)
    rows = [
        {"what": what, "seconds": min(times), "median": statistics.median(times), "allowed": limit}
        for what, times, limit in [
            ("import torch", torch_alone, None),
            *((f"then {name}", times, LIMIT if name == "import interp" else None) for name, times in added.items()),
        ]
    ]
    report(
        "imports", "Import times", rows, where=where,
        notes=[f"Best and median of {repeats} fresh processes each. Names of interp are loaded at their first use."],
    )  # fmt: skip
    if min(added["import interp"]) >= LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
