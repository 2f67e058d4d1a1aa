"""`edit_latents` in one launch: what the latents read, what follows from it, and what they write, by tiles of edits.

A program keeps the activations of 16 edits in registers. It goes over their states twice, once to read them and once to
change them; the second time they come from the cache, and not at all where no latent of the tile changes.
"""

from __future__ import annotations

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
from interp.kernels.path import MOST_LATENTS

FEW_EDITS, MANY_EDITS = 16, 64
"""Edits of a tile, as in `swap_subspace`."""

MANY = 64 * 128
"""Edits from which on tiles of many still give every one of about 130 multiprocessors its own. Not yet timed."""


@triton.jit
@no_type_check
def seen(state, rows, SHORT: tl.constexpr):
    """The product of states with rows, in float32's precision. SHORT: both of one short type; products are exact."""
    if SHORT:
        return tl.dot(state, rows)
    return tl.dot(state.to(tl.float32), rows.to(tl.float32), input_precision="ieee")


@triton.jit
@no_type_check
def latent_tile(
    x_ptr, encoder_ptr, atoms_ptr, bias_ptr, threshold_ptr, gain_ptr, offset_ptr, place_ptr, z_ptr,
    n_places, groups, width, n_latents, x_token, x_group, encoder_latent, encoder_width, atoms_latent, atoms_width,
    gain_edit, offset_edit,
    SHORT: tl.constexpr, SPLIT: tl.constexpr, KEPT: tl.constexpr,
    EDITS: tl.constexpr, COLUMNS: tl.constexpr, LATENTS: tl.constexpr,
):  # fmt: skip
    """One program edits the latents of up to EDITS states, in place.

    x_ptr: [token, group, width], last axis contiguous. encoder_ptr, atoms_ptr: [latent, width], any strides.
    bias_ptr, threshold_ptr: [latent] float32, contiguous. gain_ptr, offset_ptr: [edit, latent], last axis contiguous.
    place_ptr: [edit] int32, distinct flat indices token · groups + group.
    z_ptr: [edit, LATENTS] float32, contiguous: takes what the latents read; with KEPT only.
    """
    edit = tl.program_id(0) * EDITS + tl.arange(0, EDITS)
    acts = edit < n_places
    place = tl.load(place_ptr + edit, mask=acts, other=0)
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    x_row = x_ptr + (token * x_token + group * x_group)[:, None]
    latent = tl.arange(0, LATENTS)
    there = latent < n_latents
    z = tl.zeros((EDITS, LATENTS), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        known = (column < width)[:, None] & there[None, :]
        x = tl.load(x_row + column[None, :], mask=acts[:, None] & (column < width)[None, :], other=0.0)
        at = latent.to(tl.int64)[None, :] * encoder_latent + column.to(tl.int64)[:, None] * encoder_width
        z += seen(x, tl.load(encoder_ptr + at, mask=known, other=0.0), SHORT)
    z += tl.load(bias_ptr + latent, mask=there, other=0.0)[None, :]
    far = edit.to(tl.int64)[:, None]
    if KEPT:
        tl.store(z_ptr + far * LATENTS + latent[None, :], z, mask=acts[:, None])
    # Of a latent that is not there, or an edit that is none, the change is 1 · a + 0 − a: nothing.
    given = acts[:, None] & there[None, :]
    gain = tl.load(gain_ptr + far * gain_edit + latent[None, :], mask=given, other=1.0).to(tl.float32)
    offset = tl.load(offset_ptr + far * offset_edit + latent[None, :], mask=given, other=0.0).to(tl.float32)
    threshold = tl.load(threshold_ptr + latent, mask=there, other=float("inf"))
    active = tl.where(z > threshold[None, :], z, 0.0)
    change = gain * active + offset - active
    if tl.max(tl.max((change != 0).to(tl.int32), 1), 0) > 0:
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            within = acts[:, None] & (column < width)[None, :]
            at = latent.to(tl.int64)[:, None] * atoms_latent + column.to(tl.int64)[None, :] * atoms_width
            atoms = tl.load(atoms_ptr + at, mask=there[:, None] & (column < width)[None, :], other=0.0)
            x = tl.load(x_row + column[None, :], mask=within, other=0.0).to(tl.float32)
            x += product(change, atoms, SPLIT)
            tl.store(x_row + column[None, :], x.to(x_ptr.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def latent_tile_backward(
    grad_ptr, grad_x_ptr, encoder_ptr, atoms_ptr, threshold_ptr, gain_ptr, z_ptr, told_ptr, place_ptr,
    n_places, groups, width, n_latents, grad_token, grad_group, x_token, x_group, encoder_latent, encoder_width,
    atoms_latent, atoms_width, gain_edit,
    SHORT: tl.constexpr, SPLIT: tl.constexpr, STATES: tl.constexpr,
    EDITS: tl.constexpr, COLUMNS: tl.constexpr, LATENTS: tl.constexpr,
):  # fmt: skip
    """The gradient at up to EDITS places.

    grad_ptr: [token, group, width], last axis contiguous: the gradient of the result.
    grad_x_ptr: the same shape, strides x_token and x_group: holds that gradient, and gets what the latents pass on to
    x added at the places; with STATES only.
    told_ptr: [edit, LATENTS] float32, contiguous: takes the gradient by each latent's change.
    The others as in `latent_tile`.
    """
    edit = tl.program_id(0) * EDITS + tl.arange(0, EDITS)
    acts = edit < n_places
    place = tl.load(place_ptr + edit, mask=acts, other=0)
    token, group = (place // groups).to(tl.int64), (place % groups).to(tl.int64)
    grad_row = grad_ptr + (token * grad_token + group * grad_group)[:, None]
    x_row = grad_x_ptr + (token * x_token + group * x_group)[:, None]
    latent = tl.arange(0, LATENTS)
    there = latent < n_latents
    told = tl.zeros((EDITS, LATENTS), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        known = (column < width)[:, None] & there[None, :]
        grad = tl.load(grad_row + column[None, :], mask=acts[:, None] & (column < width)[None, :], other=0.0)
        at = latent.to(tl.int64)[None, :] * atoms_latent + column.to(tl.int64)[:, None] * atoms_width
        told += seen(grad, tl.load(atoms_ptr + at, mask=known, other=0.0), SHORT)
    far = edit.to(tl.int64)[:, None]
    tl.store(told_ptr + far * LATENTS + latent[None, :], told, mask=acts[:, None])
    if STATES:
        given = acts[:, None] & there[None, :]
        gain = tl.load(gain_ptr + far * gain_edit + latent[None, :], mask=given, other=1.0).to(tl.float32)
        threshold = tl.load(threshold_ptr + latent, mask=there, other=float("inf"))
        z = tl.load(z_ptr + far * LATENTS + latent[None, :], mask=acts[:, None], other=0.0)
        passed = tl.where(z > threshold[None, :], gain * told - told, 0.0)
        if tl.max(tl.max((passed != 0).to(tl.int32), 1), 0) > 0:
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                within = acts[:, None] & (column < width)[None, :]
                at = latent.to(tl.int64)[:, None] * encoder_latent + column.to(tl.int64)[None, :] * encoder_width
                rows = tl.load(encoder_ptr + at, mask=there[:, None] & (column < width)[None, :], other=0.0)
                grad = tl.load(x_row + column[None, :], mask=within, other=0.0).to(tl.float32)
                grad += product(passed, rows, SPLIT)
                tl.store(x_row + column[None, :], grad.to(grad_x_ptr.dtype.element_ty), mask=within)


def tile(n_latents: int, edits: int, split: bool) -> dict[str, Any]:
    """Sizes of a program's tile, for so many edits; larger ones where the matrix units multiply (`split`)."""
    latents = padded(n_latents, 16)
    return {
        "SPLIT": split,
        "EDITS": MANY_EDITS if split and edits >= MANY else FEW_EDITS,
        "COLUMNS": 64 if split else 32 if latents <= 32 else 16,
        "LATENTS": latents,
    }


class _EditLatents(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, read: Tensor, write: Tensor, bias: Tensor, threshold: Tensor, gain: Tensor, offset: Tensor,
        place: Tensor, owned: bool,
    ) -> Tensor:  # fmt: skip
        if owned:
            ctx.mark_dirty(x)
        out = x if owned else x.clone(memory_format=torch.contiguous_format)
        n, n_latents, width = len(place), len(read), x.shape[2]
        sizes = tile(n_latents, n, _split(x, read, write))
        kept = not owned and any(ctx.needs_input_grad)
        z = torch.empty(n if kept else 0, sizes["LATENTS"], dtype=torch.float32, device=x.device)
        if n and n_latents:
            latent_tile[(triton.cdiv(n, sizes["EDITS"]),)](
                out, read, write, bias.float().contiguous(), threshold.float().contiguous(), gain, offset, place, z,
                n, x.shape[1], width, n_latents, out.stride(0), out.stride(1),
                gain_edit=gain.stride(0), offset_edit=offset.stride(0), **_strides(read, write),
                SHORT=_short(x, read), KEPT=kept, **sizes,
            )  # fmt: skip
        if kept:
            ctx.save_for_backward(x, read, write, threshold, gain, offset, place, z)
            ctx.bias = bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, read, write, threshold, gain, offset, place, z = ctx.saved_tensors
        wants, n, n_latents, width = ctx.needs_input_grad, len(place), len(read), x.shape[2]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grad_x = grad.clone(memory_format=torch.contiguous_format) if wants[0] else grad
        sizes = tile(n_latents, n, _split(grad, read, write))
        told = torch.zeros_like(z)
        if n and n_latents:
            latent_tile_backward[(triton.cdiv(n, sizes["EDITS"]),)](
                grad, grad_x, read, write, threshold.float().contiguous(), gain, z, told, place,
                n, x.shape[1], width, n_latents, grad.stride(0), grad.stride(1), grad_x.stride(0), grad_x.stride(1),
                gain_edit=gain.stride(0), **_strides(read, write),
                SHORT=_short(grad, write), STATES=wants[0], **sizes,
            )  # fmt: skip
        # What is left is small: [edit, latent]; and two thin products, if the latents themselves are trained.
        told, z = told[:, :n_latents], z[:, :n_latents]
        on = z > threshold.float()
        active = torch.where(on, z, 0)
        passed = torch.where(on, gain.float() * told - told, 0)
        token, group = place // x.shape[1], place % x.shape[1]
        change = gain.float() * active + offset.float() - active
        return (
            grad_x if wants[0] else None,
            (passed.T @ x[token, group].float()).to(read.dtype) if wants[1] else None,
            (change.T @ grad[token, group].float()).to(write.dtype) if wants[2] else None,
            passed.sum(0).to(ctx.bias) if wants[3] else None,
            None,
            (told * active).to(gain.dtype) if wants[5] else None,
            told.to(offset.dtype) if wants[6] else None,
            None,
            None,
        )


def _strides(read: Tensor, write: Tensor) -> dict[str, Any]:
    names = ("encoder_latent", "encoder_width", "atoms_latent", "atoms_width")
    return dict(zip(names, (*read.stride(), *write.stride()), strict=True))


def _split(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.bfloat16 for t in tensors)


def _short(states: Tensor, rows: Tensor) -> bool:
    return states.dtype == rows.dtype != torch.float32


def edit_latents(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    read: Float[Tensor, "latent width"],
    write: Float[Tensor, "latent width"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
    gain: Float[Tensor, "edit latent"],
    offset: Float[Tensor, "edit latent"],
    owned: bool = False,
) -> Float[Tensor, "token group width"]:
    """As `interp.kernels.edit_latents.edit_latents`, in one launch (and a copy of `x`, unless it is `owned`).

    Raises:
        InterpError: an element type that is not float32, float16 or bfloat16; tensors on several devices.
        ShapeError: a last axis of states, gains or offsets that is not contiguous; parts of the latents of unlike
            shapes; not one index, gain and offset for every edit; indices outside `x`; two edits at one place; more
            than 64 latents; `LIMIT` places or edits, or more.
    """
    latents = {"read": read, "write": write, "bias": bias, "threshold": threshold}
    check_tensors("edit_latents", {"x": x, "gain": gain, "offset": offset}, latents)
    n, width, edits = len(read), x.shape[2], (len(token), len(read))
    wanted = ((n, width), (n, width), (n,), (n,), edits, edits)
    for (name, part), shape in zip({**latents, "gain": gain, "offset": offset}.items(), wanted, strict=True):
        if tuple(part.shape) != shape:
            raise ShapeError(
                f"edit_latents: {name} has shape {list(part.shape)}; for {n} latents, {len(token)} edits and states of "
                f"{width} numbers it must be {list(shape)}."
            )
    if n > MOST_LATENTS:
        raise ShapeError(f"edit_latents: {n} latents; the kernel takes up to {MOST_LATENTS}.")
    place = _places(x, token, group)
    given = x, read, write, bias, threshold, gain, offset, place, owned
    return _EditLatents.apply(*given)  # pyright: ignore[reportReturnType]  torch leaves apply untyped


def _places(x: Tensor, token: Tensor, group: Tensor) -> Tensor:
    """Distinct flat indices, on the device."""
    tokens, groups = x.shape[:2]
    check_count("edit_latents", "places", tokens * groups)
    check_count("edit_latents", "edits", len(token))
    check_lengths("edit_latents", token=token, group=group)
    at_token, at_group = token.cpu().numpy(), group.cpu().numpy()
    check_indices("edit_latents", "tokens", at_token, tokens)
    check_indices("edit_latents", "groups", at_group, groups)
    place = at_token * groups + at_group
    if len(np.unique(place)) < len(place):
        raise ShapeError("edit_latents: two edits at one place; apply them in several calls.")
    return uploaded(x.device, place.astype(np.int32))[0]
