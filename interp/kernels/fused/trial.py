"""A kernel's trial: a small case on the device at hand, against the PyTorch calls, before its results are trusted."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import SubprocessError

import torch
from torch import Tensor
from triton.errors import TritonError

from interp.kernels import apply_edits, prefix_attention, swap_subspace
from interp.kernels.fused import apply_edits as fused_edits
from interp.kernels.fused import prefix_attention as fused_attention
from interp.kernels.fused import swap_subspace as fused_swap
from interp.kernels.segment_attention import Segment

TOLERANCE = 1e-4
"""Of the largest number: twenty times what float32 has been seen to differ by, far below what a fault makes."""


def disagreement(op: str, device: torch.device) -> str | None:
    """What is wrong with an operation's kernel on this device, or None.

    A kernel that cannot be compiled or launched there is wrong too, whatever Triton and the driver raise then.
    """
    try:
        # Whatever the caller does around its first call, the verdict is for good.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            fused, reference = TRIALS[op](device)
    except (TritonError, RuntimeError, ValueError, OSError, ImportError, SubprocessError) as error:
        said = next(iter(str(error).splitlines()), "")
        return f"it does not run there ({type(error).__name__}: {said})"
    for found, expected in zip(fused, reference, strict=True):
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            return f"it differed from the PyTorch calls by {error:.2g} of the largest number"
    return None


Pair = tuple[list[Tensor], list[Tensor]]


def _gradients(way: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    own = [x.clone().requires_grad_() for x in inputs]
    out = way(*own)
    return [out.detach(), *torch.autograd.grad((out * out).sum(), own)]


def _edits(device: torch.device) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x, operand = (torch.randn(*shape, generator=generator).to(device) for shape in ((9, 3, 70), (5, 70)))
    token, group = torch.tensor([0, 8, 0, 3, 0]), torch.tensor([1, 2, 1, 0, 1])
    keep, row, wave = torch.tensor([1.0, 0.0, -0.5, 1.0, 1.0]), torch.arange(5), torch.tensor([0, 0, 1, 0, 2])

    def call(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, operand: way(x, token, group, keep, operand, row, wave)

    with torch.enable_grad():
        return (
            _gradients(call(fused_edits.apply_edits), [x, operand]),
            _gradients(call(apply_edits.vectorised), [x, operand]),
        )


def _swap(device: torch.device) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x, source = (torch.randn(*shape, generator=generator).to(device) for shape in ((40, 1, 70), (7, 70)))
    basis = torch.linalg.qr(torch.randn(2, 70, 5, generator=generator)).Q.to(device)
    token, group, row = torch.arange(33), torch.zeros(33, dtype=torch.long), torch.arange(33) % 7
    rotation = (torch.arange(33) > 4).long()

    def call(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, source, basis: way(x, token, group, source, basis, row, rotation)

    with torch.enable_grad():
        return (
            _gradients(call(fused_swap.swap_subspace), [x, source, basis]),
            _gradients(call(swap_subspace.vectorised), [x, source, basis]),
        )


def _attention(device: torch.device) -> Pair:
    generator = torch.Generator().manual_seed(0)
    shapes = ((15, 6, 20), (15, 2, 20), (15, 2, 20), (2, 50, 2, 20), (2, 50, 2, 20))
    q, k, v, before_k, before_v = (torch.randn(*shape, generator=generator).to(device) for shape in shapes)
    segments = [Segment(slice(0, 9), 3, 40, 3, 1), Segment(slice(9, 15), 2, 2, 3, 0)]
    rows = prefix_attention.PackedRows.of(segments, device)
    table = torch.zeros(1, 50, device=device)
    table[0, 1] = -torch.inf
    cut = torch.full((15, 6), -1, dtype=torch.int32, device=device)
    cut[::2] = 0
    pairs: Pair = ([], [])
    with torch.no_grad():
        for options in ({}, {"softcap": 3.0, "window": 20, "edges": prefix_attention.EdgeBias(cut, table)}):
            for way, out in zip((fused_attention.prefix_attention, prefix_attention.segmented), pairs, strict=True):
                out.append(way(q, k, v, before_k, before_v, rows, scaling=0.3, **options))
    return pairs


TRIALS = {"apply_edits": _edits, "swap_subspace": _swap, "prefix_attention": _attention}
