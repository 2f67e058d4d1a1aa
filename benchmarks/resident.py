"""Resident memory of this process, now and at its peak. No benchmark by itself."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path


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
