"""The machine that numbers come from, and the tables they stand in. No benchmark by itself."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OUT = ROOT / "out" / "benchmarks"


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
