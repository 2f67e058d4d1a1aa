"""Which way an operation goes: PyTorch calls, or one Triton kernel.

The choice follows from the tensors, their device, element type and sizes, and from whether the kernel, tried on this
device once, gave what the PyTorch calls give. Nothing outside the call decides; `SweepPlan.explain` says the outcome.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

OPERATIONS: tuple[str, ...] = ("apply_edits", "swap_subspace", "edit_latents", "prefix_attention")
"""Those that have a kernel."""

FUSED_FROM: dict[str, int] = dict.fromkeys(OPERATIONS, 0)
"""Numbers in the first tensor from which the kernel runs on a GPU.

By the model of docs/kernels.md it wins from the first on: it is one launch in place of several. `benchmarks/gpu.py`
measures where it does; no GPU has been measured yet.
"""

MOST_RANK = 128
"""Columns of a basis whose coordinates a program of `swap_subspace` can keep in registers."""

MOST_LATENTS = 64
"""Latents whose activations a program of `edit_latents` can keep in registers; at 128 an A100 spills."""

MOST_D_HEAD = 256
"""Numbers of a head of which a program of `prefix_attention` can keep a tile of queries on the chip."""

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Path:
    """A choice. `fused`: whether the Triton kernel runs; `why`, in words."""

    fused: bool
    why: str

    def __str__(self) -> str:
        return f"{'a Triton kernel' if self.fused else 'PyTorch calls'} ({self.why})"


_ON_CPU = Path(False, "the tensors are on the CPU")


def choose(
    op: str, x: Tensor, *rows: Tensor, others: Sequence[Tensor] = (), rank: int = 0, n_latents: int = 0, d_head: int = 0
) -> Path:
    """The way of an operation on these tensors.

    Args:
        op: one of `OPERATIONS`.
        x: the states.
        rows: what else the kernel reads with its last axis in one piece, as it reads `x`.
        others: what it reads by any strides.
        rank: of a basis.
        n_latents: latents that are edited.
        d_head: numbers of a head.
    """
    dtypes = [t.dtype for t in (x, *rows, *others)]
    return path_on(
        op, x.device, dtypes, one_piece=in_one_piece(x, *rows), size=x.numel(), rank=rank, n_latents=n_latents,
        d_head=d_head,
    )  # fmt: skip


def in_one_piece(*tensors: Tensor) -> bool:
    """Whether neighbours on the last axis are neighbours in memory."""
    return all(t.stride(-1) == 1 or t.shape[-1] <= 1 for t in tensors)


def path_on(
    op: str,
    device: torch.device,
    dtypes: Iterable[torch.dtype],
    *,
    one_piece: bool = True,
    size: int | None = None,
    rank: int = 0,
    n_latents: int = 0,
    d_head: int = 0,
) -> Path:
    """The way of an operation on tensors of these types; of any `size`, if none is given."""
    if device.type == "cpu":
        return _ON_CPU
    if not one_piece:
        return Path(False, "an axis that the kernel reads in one piece is not in one piece")
    if device.type != "cuda":
        return Path(False, f"no kernel for {device.type}")
    if other := [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in _TYPES]:
        return Path(False, f"no kernel for {other[0]}")
    if rank > MOST_RANK:
        return Path(False, f"rank {rank}; the kernel takes up to {MOST_RANK}")
    if n_latents > MOST_LATENTS:
        return Path(False, f"{n_latents} latents; the kernel takes up to {MOST_LATENTS}")
    if d_head > MOST_D_HEAD:
        return Path(False, f"heads of {d_head}; the kernel takes up to {MOST_D_HEAD}")
    if size is not None and size < FUSED_FROM[op]:
        return Path(False, f"{size} numbers; the kernel pays from {FUSED_FROM[op]}")
    if find_spec("triton") is None:
        return Path(False, "Triton is not installed")
    return _tried(op, device)


@cache
def _tried(op: str, device: torch.device) -> Path:
    """Whether the kernel gives on this device what the reference gives."""
    try:
        from interp.kernels.fused.trial import disagreement
    except ImportError as error:  # a Triton that is too old, or broken
        trouble = f"Triton cannot be used ({error})"
    else:
        trouble = disagreement(op, device)
    if trouble is None:
        return Path(True, "tried on this device, and equal to the PyTorch calls")
    warnings.warn(f"The kernel of {op} is not used on {device}: {trouble}.", stacklevel=2)
    return Path(False, trouble)
