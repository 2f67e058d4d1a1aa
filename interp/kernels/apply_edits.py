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
