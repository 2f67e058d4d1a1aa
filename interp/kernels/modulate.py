"""Edits that read the state they change: latents by their activation, a length kept, a condition.

Half-precision states are read and edited in float32, and rounded once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    token, group = token.to(x.device), group.to(x.device)
    old = _wide(x[token, group])
    z = old @ read.to(old).T + bias.to(old)
    active = torch.where(z > threshold.to(old), z, torch.zeros_like(z))
    new = old + (gain.to(old) * active + offset.to(old) - active) @ write.to(old)
    return x.index_put((token, group), new.to(x.dtype))


def with_norm_of(
    x: Float[Tensor, "token group width"],
    edited: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
) -> Float[Tensor, "token group width"]:
    """`edited`, scaled at the given places to the Euclidean length that `x` has there.

    A state that was edited to zero has no direction, and stays zero. Equal states keep their bits.
    """
    token, group = token.to(x.device), group.to(x.device)
    new = _wide(edited[token, group])
    length, wanted = new.norm(dim=-1, keepdim=True), _wide(x[token, group]).norm(dim=-1, keepdim=True)
    one = torch.ones_like(length)
    ratio = torch.where(length > 0, wanted / torch.where(length > 0, length, one), one)  # no 0/0 in the gradient
    return edited.index_put((token, group), (new * ratio).to(x.dtype))


def where_open(
    x: Float[Tensor, "token group width"],
    edited: Float[Tensor, "token group width"],
    token: Int[Tensor, "edit"],
    group: Int[Tensor, "edit"],
    read: Float[Tensor, "width"],
    threshold: float,
) -> Float[Tensor, "token group width"]:
    """`edited` at those of the given places where `x · read > threshold`, and `x` at the others.

    The condition is hard: no gradient flows to `read` or through it.
    """
    token, group = token.to(x.device), group.to(x.device)
    old = x[token, group]
    shut = ~(_wide(old) @ _wide(read) > threshold)
    return edited.index_put((token[shut], group[shut]), old[shut])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
