"""`apply_edits` as one launch: every touched element is read once at most, edited in registers, and written once.

The edits of a place stand next to each other in list order, so that a program walks through them with the place's
numbers in registers. A place whose first edit replaces is not read at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from interp.errors import ShapeError
from interp.kernels.fused.launch import check_count, check_indices, check_lengths, check_tensors, padded, uploaded

TILE = 2048
"""Elements of a program: 16 for each thread of four warps, so two 16-byte loads of bfloat16. Not yet timed on a GPU."""


# no_type_check: the tests' annotation checker would otherwise wrap what Triton must read as source.
@triton.jit
@no_type_check
def edit_places(
    x_ptr, out_ptr, operand_ptr, place_ptr, first_ptr, row_ptr, keep_ptr,
    n_places, groups, width, x_token, x_group, out_token, out_group, operand_row,
    PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program edits a tile of PLACES × COLUMNS numbers.

    x_ptr, out_ptr: [token, group, width], last axis contiguous, strides x_token …; they may be the same memory.
    operand_ptr: [operand, width], last axis contiguous, stride operand_row.
    place_ptr: [place] int32, distinct flat indices token · groups + group.
    first_ptr: [place + 1] int32, contiguous; edits first[i] to first[i + 1] are those of place i, in list order.
    row_ptr, keep_ptr: [edit] int32 and float32, contiguous: the edit's operand, and what it keeps of x.
    """
    at = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < n_places
    place = tl.load(place_ptr + at, mask=inside, other=0)
    begin = tl.load(first_ptr + at, mask=inside, other=0)
    count = tl.load(first_ptr + at + 1, mask=inside, other=0) - begin
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    within = inside[:, None] & (column < width)[None, :]
    kept = tl.load(keep_ptr + begin, mask=inside, other=0.0) != 0
    source = x_ptr + token[:, None] * x_token + group[:, None] * x_group + column[None, :]
    x = tl.load(source, mask=within & kept[:, None], other=0.0).to(tl.float32)
    for step in range(tl.max(count, 0)):
        acts = step < count
        keep = tl.load(keep_ptr + begin + step, mask=acts, other=1.0)[:, None]
        row = tl.load(row_ptr + begin + step, mask=acts, other=0).to(tl.int64)
        value = operand_ptr + row[:, None] * operand_row + column[None, :]
        value = tl.load(value, mask=within & acts[:, None], other=0.0).to(tl.float32)
        edited = tl.where(keep == 0, 0.0, keep * x) + value
        x = tl.where(acts[:, None], edited, x)
    target = out_ptr + token[:, None] * out_token + group[:, None] * out_group + column[None, :]
    tl.store(target, x.to(out_ptr.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def edit_places_backward(
    grad_ptr, grad_x_ptr, grad_edit_ptr, place_ptr, first_ptr, keep_ptr,
    n_places, groups, width, grad_token, grad_group, x_token, x_group,
    EDITS: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient at a tile of places, through their edits from the last to the first.

    grad_ptr: [token, group, width], last axis contiguous: the gradient of the result.
    grad_x_ptr: the same shape, strides x_token and x_group: that of x, written at the places only.
    grad_edit_ptr: [edit, width] float32, contiguous: that of each edit's operand, in place order; with EDITS only.
    place_ptr, first_ptr, keep_ptr: as in `edit_places`.
    """
    at = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < n_places
    place = tl.load(place_ptr + at, mask=inside, other=0)
    begin = tl.load(first_ptr + at, mask=inside, other=0)
    count = tl.load(first_ptr + at + 1, mask=inside, other=0) - begin
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    within = inside[:, None] & (column < width)[None, :]
    source = grad_ptr + token[:, None] * grad_token + group[:, None] * grad_group + column[None, :]
    grad = tl.load(source, mask=within, other=0.0).to(tl.float32)
    for step in range(tl.max(count, 0)):
        edit, acts = begin + count - 1 - step, step < count
        keep = tl.load(keep_ptr + edit, mask=acts, other=1.0)[:, None]
        if EDITS:
            target = grad_edit_ptr + edit.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(target, grad, mask=within & acts[:, None])
        grad = tl.where(acts[:, None], tl.where(keep == 0, 0.0, keep * grad), grad)
    target = grad_x_ptr + token[:, None] * x_token + group[:, None] * x_group + column[None, :]
    tl.store(target, grad.to(grad_x_ptr.dtype.element_ty), mask=within)


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """Edits sorted by place, on the device, as `edit_places` reads them."""

    place: Tensor
    first: Tensor
    row: Tensor
    keep: Tensor

    @classmethod
    def of(
        cls, x: Tensor, token: Tensor, group: Tensor, keep: Tensor, operand: Tensor, row: Tensor | None,
        wave: Tensor | None,
    ) -> _Placed:  # fmt: skip
        tokens, groups, n_operands = x.shape[0], x.shape[1], operand.shape[0]
        check_count("apply_edits", "places", tokens * groups)
        check_count("apply_edits", "edits", len(token))
        check_count("apply_edits", "operands", n_operands)
        if operand.shape[1] != x.shape[2]:
            raise ShapeError(f"apply_edits: operands of {operand.shape[1]} numbers, for rows of {x.shape[2]}.")
        check_lengths("apply_edits", token=token, group=group, keep=keep, row=row, wave=wave)
        at_token, at_group = token.cpu().numpy(), group.cpu().numpy()
        rows = np.arange(len(at_token)) if row is None else row.cpu().numpy()
        check_indices("apply_edits", "tokens", at_token, tokens)
        check_indices("apply_edits", "groups", at_group, groups)
        check_indices("apply_edits", "rows of the operand", rows, n_operands)
        place = at_token * groups + at_group
        order = np.argsort(place, kind="stable") if wave is None else np.lexsort((wave.cpu().numpy(), place))
        place, first = np.unique(place[order], return_index=True)
        if wave is None and len(place) < len(order):
            raise ShapeError("apply_edits: two edits at one place; say in which order they act (`wave`).")
        counts = np.append(first, len(order)).astype(np.int32)
        numbers = keep.detach().cpu().numpy().astype(np.float32)[order]
        return cls(*uploaded(x.device, place.astype(np.int32), counts, rows[order].astype(np.int32), numbers))


def tile(width: int) -> tuple[int, int]:
    """(places, columns) of a program: whole short rows, or parts of a long one."""
    columns = min(padded(width), TILE)
    return TILE // columns, columns


class _ApplyEdits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operand: Tensor, placed: _Placed, owned: bool) -> Tensor:
        if owned:
            ctx.mark_dirty(x)
        out = x if owned else x.clone(memory_format=torch.contiguous_format)
        ctx.placed, ctx.operand = placed, operand.shape
        ctx.dtypes = x.dtype, operand.dtype
        n, width = len(placed.place), x.shape[2]
        if n and width:
            places, columns = tile(width)
            edit_places[(triton.cdiv(n, places), triton.cdiv(width, columns))](
                out, out, operand, placed.place, placed.first, placed.row, placed.keep,
                n, x.shape[1], width, out.stride(0), out.stride(1), out.stride(0), out.stride(1), operand.stride(0),
                PLACES=places, COLUMNS=columns,
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        placed, (grad,) = ctx.placed, grads
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        n, width, needed = len(placed.place), grad.shape[2], ctx.needs_input_grad[1]
        grad_x = grad.clone(memory_format=torch.contiguous_format)
        grad_edit = grad.new_zeros((len(placed.row), width) if needed else (0, width), dtype=torch.float32)
        if n and width:
            places, columns = tile(width)
            edit_places_backward[(triton.cdiv(n, places), triton.cdiv(width, columns))](
                grad, grad_x, grad_edit, placed.place, placed.first, placed.keep,
                n, grad.shape[1], width, grad.stride(0), grad.stride(1), grad_x.stride(0), grad_x.stride(1),
                EDITS=needed, PLACES=places, COLUMNS=columns,
            )  # fmt: skip
        grad_operand = None
        if needed:
            whole = torch.zeros(ctx.operand, dtype=torch.float32, device=grad.device)
            grad_operand = whole.index_add_(0, placed.row, grad_edit).to(ctx.dtypes[1])
        return grad_x, grad_operand, None, None


def apply_edits(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    keep: Float[Tensor, "edit"],
    operand: Float[Tensor, "operand width"],
    row: Int[Tensor, "edit"] | None = None,
    wave: Int[Tensor, "edit"] | None = None,
    owned: bool = False,
) -> Float[Tensor, "token group width"]:
    """As `interp.kernels.apply_edits.apply_edits`, in one launch (and a copy of `x`, unless it is `owned`).

    Indices are sorted on the host, so they are best handed over there.

    Raises:
        InterpError: an element type that is not float32, float16 or bfloat16; tensors on several devices.
        ShapeError: a last axis that is not contiguous; operands of another width; not one index for every edit; indices
            outside `x` or `operand`; two edits at one place without `wave`; `LIMIT` places, edits or operands, or more.
    """
    check_tensors("apply_edits", {"x": x, "operand": operand})
    placed = _Placed.of(x, token, group, keep, operand, row, wave)
    return _ApplyEdits.apply(x, operand, placed, owned)  # pyright: ignore[reportReturnType]  torch leaves apply untyped
