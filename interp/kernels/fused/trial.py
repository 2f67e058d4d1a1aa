"""A kernel's trial: a small case on the device at hand, against the PyTorch calls, before its results are trusted."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import SubprocessError

import torch
from torch import Tensor
from triton.errors import TritonError

from interp.kernels import apply_edits, edit_latents, prefix_attention, swap_subspace
from interp.kernels.fused import apply_edits as fused_edits
from interp.kernels.fused import edit_latents as fused_latents
from interp.kernels.fused import prefix_attention as fused_attention
from interp.kernels.fused import swap_subspace as fused_swap
from interp.kernels.path import MOST_D_HEAD, MOST_LATENTS, MOST_RANK
from interp.kernels.segment_attention import Segment

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1.6e-2}
"""Of the largest number: twenty times what float32 has been seen to differ by, and two units in the last place of
bfloat16; far below what a fault makes."""

CASES = ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
"""Element type, and whether the tile is as wide as the kernel has them. Not tried: float16, and tiles of many edits."""

Pair = tuple[list[Tensor], list[Tensor]]
Way = Callable[..., Tensor]


def disagreement(op: str, device: torch.device) -> str | None:
    """What is wrong with an operation's kernel on this device, or None.

    A kernel that cannot be compiled or launched there is wrong too, whatever Triton and the driver raise then.
    """
    for dtype, widest in CASES:
        try:
            # Whatever the caller does around its first call, the verdict is for good.
            with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
                fused, reference = TRIALS[op](device, dtype, widest)
        except (TritonError, RuntimeError, ValueError, OSError, ImportError, SubprocessError) as error:
            said = next(iter(str(error).splitlines()), "")
            return f"it does not run there ({type(error).__name__}: {said})"
        for found, expected in zip(fused, reference, strict=True):
            error = float((found.float() - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCE[dtype]:
                name = str(dtype).removeprefix("torch.")
                return f"it differed from the PyTorch calls by {error:.2g} of the largest number, in {name}"
    return None


def _with_gradients(fused: Way, reference: Way, inputs: list[Tensor], dtype: torch.dtype) -> Pair:
    """Results and gradients of the kernel, and of the PyTorch calls in float32 from the same numbers."""
    rounded = [x.to(dtype) for x in inputs]
    pair: Pair = ([], [])
    with torch.enable_grad():
        for way, given, out in ((fused, dtype, pair[0]), (reference, torch.float32, pair[1])):
            own = [x.to(given).clone().requires_grad_() for x in rounded]
            result = way(*own)
            out += [result.detach(), *torch.autograd.grad((result * result).sum(), own)]
    return pair


def _edits(device: torch.device, dtype: torch.dtype, widest: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    width = fused_edits.TILE + 5 if widest else 70
    x, operand = (torch.randn(*shape, generator=generator).to(device) for shape in ((9, 3, width), (5, width)))
    token, group = torch.tensor([0, 8, 0, 3, 0]), torch.tensor([1, 2, 1, 0, 1])
    keep, row, wave = torch.tensor([1.0, 0.0, -0.5, 1.0, 1.0]), torch.arange(5), torch.tensor([0, 0, 1, 0, 2])

    def call(way: Way) -> Way:
        return lambda x, operand: way(x, token, group, keep, operand, row, wave)

    return _with_gradients(call(fused_edits.apply_edits), call(apply_edits.vectorised), [x, operand], dtype)


def _swap(device: torch.device, dtype: torch.dtype, widest: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    width, rank, edits = (MOST_RANK + 1, MOST_RANK, 9) if widest else (70, 5, 33)
    x, source = (torch.randn(*shape, generator=generator).to(device) for shape in ((40, 1, width), (7, width)))
    basis = torch.linalg.qr(torch.randn(2, width, rank, generator=generator)).Q.to(device)
    token, group, row = torch.arange(edits), torch.zeros(edits, dtype=torch.long), torch.arange(edits) % 7
    rotation = (torch.arange(edits) > 4).long()

    def call(way: Way) -> Way:
        return lambda x, source, basis: way(x, token, group, source, basis, row, rotation)

    return _with_gradients(call(fused_swap.swap_subspace), call(swap_subspace.vectorised), [x, source, basis], dtype)


def _latents(device: torch.device, dtype: torch.dtype, widest: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    width, n, edits = (75, MOST_LATENTS, 9) if widest else (70, 5, 33)
    shapes = ((40, 1, width), (n, width), (n, width), (n,), (edits, n), (edits, n))
    x, read, write, bias, gain, offset = (torch.randn(*s, generator=generator).to(device) for s in shapes)
    # Exact in bfloat16, as is what they read: no rounding decides which latents are on.
    x, read, bias = (torch.round(4 * t) / 4 for t in (x, read, bias))
    threshold = torch.linspace(-4, 4, n, device=device).mul(16).round().add(0.5).div(16)
    token, group = torch.arange(edits), torch.zeros(edits, dtype=torch.long)

    def call(way: Way) -> Way:
        return lambda x, read, write, bias, gain, offset: way(
            x, token, group, read, write, bias, threshold, gain, offset
        )

    inputs = [x, read, write, bias, gain, offset]
    return _with_gradients(call(fused_latents.edit_latents), call(edit_latents.vectorised), inputs, dtype)


def _attention(device: torch.device, dtype: torch.dtype, widest: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    d = MOST_D_HEAD if widest else 20
    shapes = ((15, 6, d), (15, 2, d), (15, 2, d), (2, 50, 2, d), (2, 50, 2, d))
    q, k, v, before_k, before_v = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes)
    wide = q.float(), k.float(), v.float(), before_k.float(), before_v.float()
    segments = [Segment(slice(0, 9), 3, 40, 3, 1), Segment(slice(9, 15), 2, 2, 3, 0)]
    rows = prefix_attention.PackedRows.of(segments, device)
    table = torch.zeros(1, 50, device=device)
    table[0, 1] = -torch.inf
    cut = torch.full((15, 6), -1, dtype=torch.int32, device=device)
    cut[::2] = 0
    pair: Pair = ([], [])
    with torch.no_grad():
        for options in ({}, {"softcap": 3.0, "window": 20, "edges": prefix_attention.EdgeBias(cut, table)}):
            options = {"scaling": 1.3 * d**-0.5, **options}
            pair[0].append(fused_attention.prefix_attention(q, k, v, before_k, before_v, rows, **options))
            pair[1].append(prefix_attention.segmented(*wide, rows, **options))
    return pair


TRIALS = {"apply_edits": _edits, "swap_subspace": _swap, "edit_latents": _latents, "prefix_attention": _attention}
