"""A sweep in bfloat16, with its metrics in float32, against the same sweep in float32. No speed.

Residual-stream patching of SmolLM2-135M, at every layer (or `--every` so many) and position of some IOI pairs, denoising. Compared are effects of cells
that change anything; the others are 0 in both.

    python benchmarks/half_precision.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import typer
from report import machine, report
from timing import set_threads

METRICS = ("logit_difference", "log_probability", "negative_kl")


def effects(model: Any, pairs: Any, layers: list[int]) -> dict[str, np.ndarray]:
    """Values of every cell and pair, less those of the unedited run, by metric."""
    import interp

    data = interp.patch(model, pairs, "resid_pre", metric=METRICS, layers=layers).data
    return {name: data[name].values - data[f"{name}_corrupted"].values for name in METRICS}


def compared(name: str, found: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """One row of the table."""
    moved = np.isfinite(true) & (true != 0)  # NaN: beyond the end of a prompt
    error = np.abs(found - true)[moved]
    return {
        "metric": name,
        "range of the effects": float(np.ptp(true[moved])),
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "correlation": float(np.corrcoef(found[moved], true[moved])[0, 1]),
        "same largest cell": f"{_same_largest(found, true)} of {true.shape[-1]} pairs",
        "cells that moved": int(moved.sum()),
    }


def _same_largest(found: np.ndarray, true: np.ndarray) -> int:
    flat = [np.nanargmax(np.abs(x.reshape(-1, x.shape[-1])), 0) for x in (found, true)]
    return int((flat[0] == flat[1]).sum())


def main(pairs: int = 4, every: int = 1, threads: int = 2) -> None:
    """Print the table."""
    set_threads(threads)
    import interp

    model = interp.load("smollm2-135m")
    task = interp.tasks.ioi(n=pairs, seed=0)
    layers = list(range(0, model.n_layers, every))
    true = effects(model, task, layers)
    short = interp.load(model.network.to(torch.bfloat16), model.tokenizer, name="smollm2-135m, bf16")
    half = effects(short, task, layers)
    rows = [compared(name, half[name], true[name]) for name in METRICS]
    report("half_precision", f"Sweeps in bfloat16 against float32, {pairs} pairs", rows, where=machine())


if __name__ == "__main__":
    typer.run(main)
