"""`swap_subspace` in one launch: R Rᵀ (source − x) as two thin products, by tiles of edits that share an R.

A program keeps the coordinates Rᵀ(source − x) of 16 edits in registers. It goes over their states twice, once to
read the coordinates and once to write the result; the second time they come from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from interp.kernels.fused.product import product
from interp.kernels.path import MOST_RANK

FEW_EDITS, MANY_EDITS = 16, 64
"""Edits of a tile: as few as a matrix unit takes, or more of them for each time that R comes from the cache."""

MANY = 64 * 128
"""Edits from which on tiles of many still give every one of about 130 multiprocessors its own. Not yet timed."""


@triton.jit
@no_type_check
def swap_tile(
    x_ptr, out_ptr, source_ptr, basis_ptr, place_ptr, row_ptr, rotation_ptr, first_ptr,
    groups, width, rank, x_token, x_group, out_token, out_group, source_row, basis_rotation, basis_width, basis_rank,
    SPLIT: tl.constexpr, EDITS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One program exchanges the subspace of up to EDITS states.

    x_ptr, out_ptr: [token, group, width], last axis contiguous; they may be the same memory.
    source_ptr: [operand, width], last axis contiguous. basis_ptr: [rotation, width, rank], any strides
    (torch.linalg.qr gives columns).
    place_ptr, row_ptr: [edit] int32, sorted by rotation: token · groups + group, and the row of the source.
    rotation_ptr: [tile] int32; first_ptr: [tile + 1] int32: the R and the first edit of each tile.
    """
    tile = tl.program_id(0)
    first = tl.load(first_ptr + tile)
    edit = first + tl.arange(0, EDITS)
    acts = edit < tl.load(first_ptr + tile + 1)
    place = tl.load(place_ptr + edit, mask=acts, other=0)
    row = tl.load(row_ptr + edit, mask=acts, other=0).to(tl.int64)
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    x_row = x_ptr + (token * x_token + group * x_group)[:, None]
    out_row = out_ptr + (token * out_token + group * out_group)[:, None]
    s_row = source_ptr + (row * source_row)[:, None]
    r = tl.arange(0, RANK)
    r_row = basis_ptr + tl.load(rotation_ptr + tile).to(tl.int64) * basis_rotation + r[None, :] * basis_rank
    coordinates = tl.zeros((EDITS, RANK), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = acts[:, None] & (column < width)[None, :]
        x = tl.load(x_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        s = tl.load(s_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        known = (column < width)[:, None] & (r < rank)[None, :]
        basis = tl.load(r_row + column[:, None] * basis_width, mask=known, other=0.0)
        coordinates += product(s - x, basis, SPLIT)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = acts[:, None] & (column < width)[None, :]
        x = tl.load(x_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        known = (column < width)[:, None] & (r < rank)[None, :]
        basis = tl.load(r_row + column[:, None] * basis_width, mask=known, other=0.0)
        x += product(coordinates, tl.trans(basis), SPLIT)
        tl.store(out_row + column[None, :], x.to(out_ptr.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def swap_tile_backward(
    grad_ptr, x_ptr, source_ptr, basis_ptr, grad_x_ptr, grad_source_ptr, read_ptr, told_ptr,
    place_ptr, row_ptr, rotation_ptr, first_ptr,
    groups, width, rank, grad_token, grad_group, x_token, x_group, grad_x_token, grad_x_group, source_row,
    basis_rotation, basis_width, basis_rank,
    SPLIT: tl.constexpr, EDITS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile's states and sources, and what `swap_basis_backward` needs of it.

    grad_ptr: [token, group, width]: the gradient g of the result. grad_x_ptr: the same shape, written at the places:
    g − R Rᵀ g. grad_source_ptr: [edit, width] float32, contiguous, in sorted order: R Rᵀ g.
    read_ptr, told_ptr: [edit, RANK] float32, contiguous: Rᵀ(source − x) and Rᵀ g.
    The others as in `swap_tile`.
    """
    tile = tl.program_id(0)
    first = tl.load(first_ptr + tile)
    edit = first + tl.arange(0, EDITS)
    acts = edit < tl.load(first_ptr + tile + 1)
    place = tl.load(place_ptr + edit, mask=acts, other=0)
    row = tl.load(row_ptr + edit, mask=acts, other=0).to(tl.int64)
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    x_row = x_ptr + (token * x_token + group * x_group)[:, None]
    g_row = grad_ptr + (token * grad_token + group * grad_group)[:, None]
    grad_x_row = grad_x_ptr + (token * grad_x_token + group * grad_x_group)[:, None]
    s_row = source_ptr + (row * source_row)[:, None]
    grad_s_row = grad_source_ptr + (edit.to(tl.int64) * width)[:, None]
    r = tl.arange(0, RANK)
    r_row = basis_ptr + tl.load(rotation_ptr + tile).to(tl.int64) * basis_rotation + r[None, :] * basis_rank
    read = tl.zeros((EDITS, RANK), dtype=tl.float32)
    told = tl.zeros((EDITS, RANK), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = acts[:, None] & (column < width)[None, :]
        x = tl.load(x_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        s = tl.load(s_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        g = tl.load(g_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        known = (column < width)[:, None] & (r < rank)[None, :]
        basis = tl.load(r_row + column[:, None] * basis_width, mask=known, other=0.0)
        read += product(s - x, basis, SPLIT)
        told += product(g, basis, SPLIT)
    at = edit.to(tl.int64)[:, None] * RANK + r[None, :]
    tl.store(read_ptr + at, read, mask=acts[:, None])
    tl.store(told_ptr + at, told, mask=acts[:, None])
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = acts[:, None] & (column < width)[None, :]
        g = tl.load(g_row + column[None, :], mask=within, other=0.0).to(tl.float32)
        known = (column < width)[:, None] & (r < rank)[None, :]
        basis = tl.load(r_row + column[:, None] * basis_width, mask=known, other=0.0)
        inside = product(told, tl.trans(basis), SPLIT)
        tl.store(grad_x_row + column[None, :], (g - inside).to(grad_x_ptr.dtype.element_ty), mask=within)
        tl.store(grad_s_row + column[None, :], inside, mask=within)


@triton.jit
@no_type_check
def swap_basis_backward(
    grad_ptr, x_ptr, source_ptr, grad_basis_ptr, read_ptr, told_ptr, place_ptr, row_ptr, first_ptr,
    groups, width, rank, grad_token, grad_group, x_token, x_group, source_row,
    EDITS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """COLUMNS rows of the gradient of one R: Σ over its edits of g readᵀ + (source − x) toldᵀ, in one order always.

    grad_basis_ptr: [rotation, width, rank] float32, contiguous. first_ptr: [rotation + 1] int32: the first edit of
    each R. The others as in `swap_tile_backward`.
    """
    rotation = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANK)
    begin, end = tl.load(first_ptr + rotation), tl.load(first_ptr + rotation + 1)
    total = tl.zeros((COLUMNS, RANK), dtype=tl.float32)
    for start in range(begin, end, EDITS):
        edit = start + tl.arange(0, EDITS)
        acts = edit < end
        place = tl.load(place_ptr + edit, mask=acts, other=0)
        row = tl.load(row_ptr + edit, mask=acts, other=0).to(tl.int64)
        token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
        within = (column < width)[:, None] & acts[None, :]
        x = tl.load(x_ptr + (token * x_token + group * x_group)[None, :] + column[:, None], mask=within, other=0.0)
        s = tl.load(source_ptr + (row * source_row)[None, :] + column[:, None], mask=within, other=0.0)
        g = tl.load(
            grad_ptr + (token * grad_token + group * grad_group)[None, :] + column[:, None], mask=within, other=0.0
        )
        at = edit.to(tl.int64)[:, None] * RANK + r[None, :]
        read = tl.load(read_ptr + at, mask=acts[:, None], other=0.0)
        told = tl.load(told_ptr + at, mask=acts[:, None], other=0.0)
        difference = s.to(tl.float32) - x.to(tl.float32)
        total += tl.dot(g.to(tl.float32), read, input_precision="ieee")
        total += tl.dot(difference, told, input_precision="ieee")
    target = grad_basis_ptr + (rotation.to(tl.int64) * width + column[:, None]) * rank + r[None, :]
    tl.store(target, total, mask=(column < width)[:, None] & (r < rank)[None, :])


@dataclass(frozen=True, slots=True, eq=False)
class _Tiled:
    """Edits sorted by their R, on the device, as `swap_tile` and `swap_basis_backward` read them."""

    place: Tensor
    row: Tensor
    rotation: Tensor
    first: Tensor
    first_of: Tensor
    tiles: int

    @classmethod
    def of(
        cls, x: Tensor, token: Tensor, group: Tensor, source: Tensor, n_rotations: int, row: Tensor | None,
        rotation: Tensor | None, edits: int,
    ) -> _Tiled:  # fmt: skip
        tokens, groups = x.shape[:2]
        check_count("swap_subspace", "places", tokens * groups)
        check_count("swap_subspace", "edits", len(token))
        check_count("swap_subspace", "rows of the source", len(source))
        check_lengths("swap_subspace", token=token, group=group, row=row, rotation=rotation)
        at_token, at_group = token.cpu().numpy(), group.cpu().numpy()
        rows = np.arange(len(at_token)) if row is None else row.cpu().numpy()
        own = np.zeros(len(at_token), dtype=np.int64) if rotation is None else rotation.cpu().numpy()
        check_indices("swap_subspace", "tokens", at_token, tokens)
        check_indices("swap_subspace", "groups", at_group, groups)
        check_indices("swap_subspace", "rows of the source", rows, len(source))
        check_indices("swap_subspace", "rotations", own, n_rotations)
        place = at_token * groups + at_group
        if len(np.unique(place)) < len(place):
            raise ShapeError("swap_subspace: two edits at one place; apply them in several calls.")
        order = np.argsort(own, kind="stable")
        counts = np.bincount(own, minlength=n_rotations)
        begins = np.cumsum(counts) - counts
        tiles = -(-counts // edits)
        offset = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        first = np.append(np.repeat(begins, tiles) + offset * edits, len(place))
        arrays = (
            place[order],
            rows[order],
            np.repeat(np.arange(n_rotations), tiles),
            first,
            np.append(begins, len(place)),
        )
        return cls(*uploaded(x.device, *(a.astype(np.int32) for a in arrays)), tiles=int(tiles.sum()))


def tile(rank: int, edits: int, split: bool) -> dict[str, Any]:
    """Sizes of a program's tile, for so many edits; larger ones where the matrix units multiply (`split`).

    `num_warps`: 128 coordinates of a tile do not fit into the registers of four.
    """
    columns = padded(rank, 16)
    large = split and columns <= 64
    return {
        "SPLIT": split,
        "EDITS": MANY_EDITS if large and edits >= MANY else FEW_EDITS,
        "COLUMNS": 64 if large else 32 if columns <= 32 else 16,
        "RANK": columns,
        "num_warps": 8 if columns > 64 else 4,
    }


def basis_tile(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a program of `swap_basis_backward` beside such tiles; R's gradient leaves it room for few edits."""
    return {name: sizes[name] for name in ("COLUMNS", "RANK", "num_warps")} | {"EDITS": FEW_EDITS}


def _tile_for(basis: Tensor, edits: int) -> dict[str, Any]:
    return tile(basis.shape[-1], edits, basis.dtype == torch.bfloat16)


class _SwapSubspace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, basis: Tensor, tiled: _Tiled, owned: bool) -> Tensor:
        if owned:
            ctx.mark_dirty(x)
        out = x if owned else x.clone(memory_format=torch.contiguous_format)
        ctx.tiled = tiled
        if not owned:
            ctx.save_for_backward(x, source, basis)
        if tiled.tiles and x.shape[2]:
            swap_tile[(tiled.tiles,)](
                out, out, source, basis, tiled.place, tiled.row, tiled.rotation, tiled.first,
                x.shape[1], x.shape[2], basis.shape[2], out.stride(0), out.stride(1), out.stride(0), out.stride(1),
                source.stride(0), *basis.stride(), **_tile_for(basis, len(tiled.place)),
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), tiled = grads, ctx.tiled
        x, source, basis = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        groups, width, rank = x.shape[1], x.shape[2], basis.shape[2]
        n = len(tiled.place)
        sizes = _tile_for(basis, n)
        grad_x = grad.clone(memory_format=torch.contiguous_format)
        grad_edit = grad.new_empty(n, width, dtype=torch.float32)
        read, told = (grad.new_empty(n, sizes["RANK"], dtype=torch.float32) for _ in range(2))
        grad_basis = grad.new_zeros(basis.shape, dtype=torch.float32)
        if tiled.tiles and width:
            swap_tile_backward[(tiled.tiles,)](
                grad, x, source, basis, grad_x, grad_edit, read, told, tiled.place, tiled.row, tiled.rotation,
                tiled.first,
                groups, width, rank, grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), grad_x.stride(0),
                grad_x.stride(1), source.stride(0), *basis.stride(),
                **sizes,
            )  # fmt: skip
            if ctx.needs_input_grad[2]:
                swap_basis_backward[(len(basis), triton.cdiv(width, sizes["COLUMNS"]))](
                    grad, x, source, grad_basis, read, told, tiled.place, tiled.row, tiled.first_of,
                    groups, width, rank, grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), source.stride(0),
                    **basis_tile(sizes),
                )  # fmt: skip
        whole = torch.zeros(source.shape, dtype=torch.float32, device=grad.device)
        grad_source = whole.index_add_(0, tiled.row, grad_edit).to(source.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_source, grad_basis.to(basis.dtype), None, None


def swap_subspace(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    source: Float[Tensor, "operand width"],
    basis: Float[Tensor, "*rotation width rank"],
    row: Int[Tensor, "edit"] | None = None,
    rotation: Int[Tensor, "edit"] | None = None,
    owned: bool = False,
) -> Float[Tensor, "token group width"]:
    """As `interp.kernels.swap_subspace.swap_subspace`, in one launch (and a copy of `x`, unless it is `owned`).

    Raises:
        InterpError: an element type that is not float32, float16 or bfloat16; tensors on several devices.
        ShapeError: a last axis that is not contiguous; states, sources and bases of unlike widths; not one index for
            every edit; indices outside their tensors; two edits at one place; a rank above 128; `LIMIT` places, edits
            or rows, or more.
    """
    bases = basis[None] if basis.ndim == 2 else basis
    check_tensors("swap_subspace", {"x": x, "source": source}, {"basis": bases})
    if not x.shape[2] == source.shape[1] == bases.shape[1]:
        raise ShapeError(
            f"swap_subspace: states of {x.shape[2]} numbers, sources of {source.shape[1]}, bases of {bases.shape[1]}."
        )
    if bases.shape[-1] > MOST_RANK:
        raise ShapeError(f"swap_subspace: a rank of {bases.shape[-1]}; the kernel takes up to {MOST_RANK}.")
    edits = _tile_for(bases, len(token))["EDITS"]
    tiled = _Tiled.of(x, token, group, source, len(bases), row, rotation, edits)
    return _SwapSubspace.apply(x, source, bases, tiled, owned)  # pyright: ignore[reportReturnType]  torch leaves apply untyped
