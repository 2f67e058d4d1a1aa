"""Apply many edits to one activation in a handful of vectorised operations."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def apply_edits(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    keep: Float[Tensor, "edit"],
    operand: Float[Tensor, "edit width"],
) -> Float[Tensor, "token group width"]:
    """`x[token, group] ← keep · x[token, group] + operand`, all edits at once, into a new tensor.

    `keep = 0` replaces (and never multiplies what was there: an infinity does not leak), `keep = 1` adds.
    (token, group) pairs must be distinct; edits that meet at one place are applied in several calls.
    """
    old = x[token, group]
    scaled = torch.where((keep == 0)[:, None], torch.zeros_like(old), keep[:, None] * old)
    return x.index_put((token, group), scaled + operand)


def swap_subspace(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    source: Float[Tensor, "edit width"],
    basis: Float[Tensor, "width rank"],
) -> Float[Tensor, "token group width"]:
    """`x ← x + R Rᵀ (source − x)` at the given places, for orthonormal columns R; into a new tensor."""
    old = x[token, group]
    return x.index_put((token, group), old + ((source - old) @ basis) @ basis.T)


def modulate(
    x: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    read: Float[Tensor, "latent width"],
    write: Float[Tensor, "latent width"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
    gain: Float[Tensor, "edit latent"],
    offset: Float[Tensor, "edit latent"],
) -> Float[Tensor, "token group width"]:
    """`x ← x + Σ_i (gain_i a_i + offset_i − a_i) write_i` at the given places, into a new tensor.

    a_i = z_i where z_i = x · read_i + bias_i exceeds threshold_i, else 0. Costs 4 · latent · width operations a place,
    whatever the size of the dictionary that they come from.
    """
    old = x[token, group]
    z = old @ read.T + bias
    active = torch.where(z > threshold, z, torch.zeros_like(z))
    return x.index_put((token, group), old + (gain * active + offset - active) @ write)


def with_norm_of(
    x: Float[Tensor, "token group width"],
    edited: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
) -> Float[Tensor, "token group width"]:
    """`edited`, scaled at the given places to the Euclidean length that `x` has there.

    A state that was edited to zero has no direction, and stays zero. Equal states keep their bits.
    """
    new = edited[token, group]
    length, wanted = new.norm(dim=-1, keepdim=True), x[token, group].norm(dim=-1, keepdim=True)
    ratio = torch.where(length > 0, wanted / length, torch.ones_like(length))
    return edited.index_put((token, group), new * ratio)


def where_open(
    x: Float[Tensor, "token group width"],
    edited: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    read: Float[Tensor, "width"],
    threshold: float,
) -> Float[Tensor, "token group width"]:
    """`edited` at those of the given places where `x · read > threshold`, and `x` at the others."""
    old = x[token, group]
    shut = ~(old @ read > threshold)
    return edited.index_put((token[shut], group[shut]), old[shut])
