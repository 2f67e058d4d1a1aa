"""What all launchers ask of their tensors, before a kernel sees a pointer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from triton import knobs

from interp.errors import InterpError, ShapeError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Element types that the kernels load and store; they compute in float32."""

LIMIT = 2**31 - 2**16
"""Tokens, edits and places are counted in 32 bits, up to the end of the last tile. Offsets are computed in 64."""


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, statement by statement (TRITON_INTERPRET=1): for tests."""
    return bool(knobs.runtime.interpret)


def check_tensors(op: str, rows: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None) -> None:
    """Refuse tensors that the kernels cannot read.

    Args:
        rows: by name, those whose last axis a kernel takes to be contiguous.
        others: those of which it knows every stride.

    Raises:
        InterpError: a device without Triton, tensors on several devices, an element type that is not of `DTYPES`.
        ShapeError: neighbours on the last axis that are not neighbours in memory.
    """
    first = next(iter(rows.values()))
    for name, x in {**rows, **(others or {})}.items():
        if x.device != first.device:
            raise InterpError(f"{op}: {name} is on {x.device}, the others on {first.device}; move it there.")
        if x.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise InterpError(f"{op}: {name} is {str(x.dtype).removeprefix('torch.')}; the kernel takes {allowed}.")
        if name in rows and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ShapeError(
                f"{op}: {name} has shape {list(x.shape)} and strides {list(x.stride())}; its last axis must be "
                "contiguous. Call .contiguous() on it."
            )
    if first.device.type != "cuda" and not interpreted():
        raise InterpError(f"{op}: its tensors are on {first.device}; the kernel runs on a GPU.")


def padded(n: int, least: int = 1) -> int:
    """The power of two from n on, as tiles have them; at least `least`."""
    return max(least, 1 << (n - 1).bit_length() if n > 0 else 1)


def check_count(op: str, what: str, n: int) -> None:
    """Refuse a number that does not fit 32 bits.

    Raises:
        ShapeError: it does not.
    """
    if n >= LIMIT:
        raise ShapeError(f"{op}: {n} {what}; the kernel counts up to {LIMIT - 1}. Split the call.")


def check_lengths(op: str, **columns: Tensor | None) -> None:
    """Refuse columns that do not all speak of the same edits.

    Raises:
        ShapeError: they do not.
    """
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ShapeError(f"{op}: {', '.join(f'{n} of {name}' for name, n in lengths.items())}; give one for each edit.")


def check_indices(op: str, what: str, index: np.ndarray, size: int) -> None:
    """Refuse indices outside of an axis: on a GPU they would read or write another tensor's memory.

    Raises:
        ShapeError: one is negative, or not below `size`.
    """
    if len(index) and (index.min() < 0 or index.max() >= size):
        raise ShapeError(f"{op}: {what} {index.min()} to {index.max()} of {size} (0 to {size - 1}).")


def uploaded(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Arrays of 32-bit numbers on the device, in one copy: each copy of its own would cost more than its bytes."""
    flat = np.concatenate([np.ascontiguousarray(array).view(np.int32) for array in arrays])
    whole = torch.from_numpy(flat).to(device)
    parts, begin = [], 0
    for array in arrays:
        part = whole[begin : begin + len(array)]
        parts.append(part.view(torch.float32) if array.dtype == np.float32 else part)
        begin += len(array)
    return parts
