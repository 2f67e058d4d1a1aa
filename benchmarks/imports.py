"""What `import interp` adds to `import torch`, in fresh processes, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Annotated

import typer
from common import ROOT, machine, report, set_threads

LIMIT = 0.3
PROGRAM = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
STATEMENTS = {
    "import torch": "import torch",
    "import torch, interp": "import torch; import interp",
    "… and interp.load": "import torch; import interp; interp.load",
    "… and interp.patch": "import torch; import interp; interp.patch",
    "… and interp.trace": "import torch; import interp; interp.trace",
}


def main(repeats: Annotated[int, typer.Option(help="processes per statement")] = 7) -> None:
    """Print the table; the exit status says whether the limit holds."""
    set_threads(1)
    where = machine()
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats + 1):
        for name, statement in STATEMENTS.items():
            command = [sys.executable, "-c", PROGRAM.format(statement)]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            taken[name].append(float(out))
    taken = {name: times[1:] for name, times in taken.items()}  # the first round warmed the disk's cache
    torch_alone = taken["import torch"]
    rows = [
        {
            "what": name, "seconds": min(times), "median": statistics.median(times),
            "added to torch": min(times) - min(torch_alone),
            "added, of medians": statistics.median(times) - statistics.median(torch_alone),
            "allowed": LIMIT if name == "import torch, interp" else None,
        }
        for name, times in taken.items()
    ]  # fmt: skip
    report(
        "imports", "Import times", rows, where=where,
        notes=[f"Best and median of {repeats} fresh processes each, in turns. Names of interp are loaded at their first use."],
    )  # fmt: skip
    if rows[1]["added to torch"] >= LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
