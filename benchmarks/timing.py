"""Clocks, samples of cells, and the machine's matrix rate. No benchmark by itself."""

from __future__ import annotations

import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

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


def processor_seconds(call: Callable[[], T]) -> tuple[T, float, float]:
    """A call's value, duration, and processor time over all threads, which others on the machine lengthen less."""
    start = time.process_time()
    value, took = seconds(call)
    return value, took, time.process_time() - start


def timed(call: Callable[[], T], repeats: int) -> tuple[T, Timing]:
    """The last value of some calls, and how long they took; the caller has warmed up."""
    taken = []
    for _ in range(repeats):
        gc.collect()
        value, took = seconds(call)
        taken.append(took)
    return value, Timing(min(taken), statistics.median(taken))


def interleaved(
    naive: Callable[[Sequence[Any]], list], sample: Sequence[Any], calls: Sequence[Callable[[], Any]], repeats: int
) -> tuple[dict[Any, Any], float, list[tuple[Any, Timing]]]:
    """Stretches of naive cells with our calls between them, so that both meet the machine in the same moods.

    Returns:
        the naive values by cell; seconds per naive cell, the median over stretches; each call's last value and times.
    """
    found: dict[Any, Any] = {}
    per_cell: list[float] = []
    taken: list[list[float]] = [[] for _ in calls]
    values: list[Any] = [None] * len(calls)
    for stretch in range(repeats + 1):
        cells = sample[stretch :: repeats + 1]
        some, took = seconds(lambda cells=cells: naive(cells))
        found |= dict(zip(cells, some, strict=True))
        per_cell.append(took / len(cells))
        for number, call in enumerate(calls if stretch < repeats else ()):
            gc.collect()
            values[number], took = seconds(call)
            taken[number].append(took)
    times = [Timing(min(each), statistics.median(each)) for each in taken]
    return found, statistics.median(per_cell), list(zip(values, times, strict=True))


def matrix_rate(repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second, by the clock, of the fastest of some products that a block is made of."""
    import torch

    best = 0.0
    for width, out in MATRICES:
        weight = torch.randn(out, width)
        for rows in ROWS:
            x = torch.randn(rows, width)
            count = max(1, int(4e9 / (2 * rows * width * out)))
            torch.nn.functional.linear(x, weight)
            for _ in range(repeats):
                start = clock()
                for _ in range(count):
                    torch.nn.functional.linear(x, weight)
                best = max(best, count * 2 * rows * width * out / (clock() - start))
    return best


def spread(items: Sequence[T], n: int, seed: int = 0) -> list[T]:
    """A random sample that is spread evenly: one item out of each of `n` equal stretches."""
    if n >= len(items):
        return list(items)
    draw = random.Random(seed)
    bounds = [round(i * len(items) / n) for i in range(n + 1)]
    return [items[draw.randrange(a, b)] for a, b in pairwise(bounds)]
