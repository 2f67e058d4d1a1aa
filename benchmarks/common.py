"""What the benchmarks share: the machine and its matrix rate, clocks, peak memory, and tables.

No benchmark by itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OUT = ROOT / "out" / "benchmarks"
T = TypeVar("T")

MATRICES = ((576, 1536), (1536, 576), (576, 576))
"""[in, out] of the products of a SmolLM2-135M block."""
ROWS = (512, 1024, 4096)


class Timing(NamedTuple):
    """Seconds of several calls."""

    best: float
    median: float


def set_threads(threads: int) -> None:
    """Threads of this process's matrix products."""
    import torch

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")  # of the peers' own making; a table should not drown in them


def seconds(call: Callable[[], T]) -> tuple[T, float]:
    """A call's value and duration."""
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


def timed(call: Callable[[], T], repeats: int) -> tuple[T, Timing]:
    """The last value of some calls, and how long they took; the caller has warmed up."""
    taken = []
    for _ in range(repeats):
        gc.collect()
        value, took = seconds(call)
        taken.append(took)
    return value, Timing(min(taken), statistics.median(taken))


def matrix_rate(repeats: int = 5) -> float:
    """Operations per second of the fastest of some products that a block is made of."""
    import torch

    best = 0.0
    for width, out in MATRICES:
        weight = torch.randn(out, width)
        for rows in ROWS:
            x = torch.randn(rows, width)
            count = max(1, int(4e9 / (2 * rows * width * out)))
            torch.nn.functional.linear(x, weight)
            for _ in range(repeats):
                _, took = seconds(lambda x=x, w=weight, n=count: [torch.nn.functional.linear(x, w) for _ in range(n)])
                best = max(best, count * 2 * rows * width * out / took)
    return best


def spread(items: Sequence[T], n: int, seed: int = 0) -> list[T]:
    """A random sample that is spread evenly: one item out of each of `n` equal stretches."""
    if n >= len(items):
        return list(items)
    draw = random.Random(seed)
    bounds = [round(i * len(items) / n) for i in range(n + 1)]
    return [items[draw.randrange(a, b)] for a, b in pairwise(bounds)]


# ---------------------------------------------------------------- memory


def resident() -> int:
    """Bytes of this process in memory now."""
    import psutil

    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Forget the peak of resident memory; False where only Linux could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """Highest resident memory since `reset_peak` (or, where there is none, since the start)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim() -> None:
    """Give freed memory back to the system, so that the next peak is not hidden under an earlier one."""
    import ctypes

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# ---------------------------------------------------------------- reports


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in ("torch", "transformers", "transformer-lens", "nnsight")},
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def package_version(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Short hash of the source, with a mark if it was changed since."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()


def report(
    name: str, title: str, rows: Sequence[dict[str, Any]], *, notes: Sequence[str] = (), where: dict[str, Any]
) -> None:
    """Show a table, append it to out/benchmarks/<name>.json, and print it as Markdown."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows for column in row if not column.startswith("_")))
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("experiment", "way", "what") else "right")
    for row in cells:
        table.add_row(*row)
    console = Console(width=max(160, Console().width))
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False, markup=False)

    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append({"title": title, "machine": where, "rows": list(rows), "notes": list(notes)})
    path.write_text(json.dumps(runs, indent=1, ensure_ascii=False))

    lines = [f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    lines += ["", *(f"- {note}" for note in notes)]
    here = f"{where['cpu']}, {where['threads']} threads, torch {where['versions']['torch']}, commit {where['commit']}"
    print("\n" + "\n".join(lines) + f"\n- {here}, load {where['load_before']} before the run, {where['when']}\n")


def shown(value: Any) -> str:
    """A table's entry."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if value == 0:
            return "0"
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
