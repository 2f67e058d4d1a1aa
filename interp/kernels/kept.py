"""What an edited state keeps of the one that was there: its length, or, where a gate is shut, everything.

Half-precision states are read and edited in float32, and rounded once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
