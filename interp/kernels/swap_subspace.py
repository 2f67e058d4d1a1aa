"""Exchange the part of a state that lies in a subspace."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels.path import choose


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
    """`x ← x + R Rᵀ (source[row] − x)` at the given places, for orthonormal columns R; into a new tensor.

    Nothing of the size width × width is made. Half-precision states are exchanged in float32 and rounded once.
    Gradients flow to `x`, `source` and `basis`.

    Args:
        token: of each edit; like all indices, on the host or on x's device. (token, group) pairs must be distinct.
        group: of each edit: the head, or 0.
        source: rows of states, of any floating type.
        basis: [width, rank], or [rotation, width, rank] for several R.
        row: which row of `source` an edit takes; `None`: edit i takes row i.
        rotation: which R an edit takes; `None`: the only one.
        owned: as in `apply_edits`.
    """
    owned = owned and not torch.is_grad_enabled()
    if choose("swap_subspace", x, source, others=(basis,), rank=basis.shape[-1]).fused:
        from interp.kernels.fused.swap_subspace import swap_subspace as fused

        return fused(x, token, group, source, basis, row, rotation, owned)
    return vectorised(x, token, group, source, basis, row, rotation, owned)


def vectorised(
    x: Tensor,
    token: Tensor,
    group: Tensor,
    source: Tensor,
    basis: Tensor,
    row: Tensor | None = None,
    rotation: Tensor | None = None,
    owned: bool = False,
) -> Tensor:
    """The reference: two products with each R that is used."""
    wide = torch.promote_types(x.dtype, torch.float32)
    token, group, basis = token.to(x.device), group.to(x.device), basis.to(wide)
    old = x[token, group].to(wide)
    difference = (source if row is None else source[row.to(source.device)]).to(wide) - old
    if rotation is None:
        basis = basis if basis.ndim == 2 else basis[0]
        new = old + (difference @ basis) @ basis.T
    else:
        new, rotation = old, rotation.to(x.device)
        for number in rotation.unique().tolist():
            own, at = basis[number], (rotation == number).nonzero()[:, 0]
            new = new.index_add(0, at, (difference[at] @ own) @ own.T)
    return (x.index_put_ if owned else x.index_put)((token, group), new.to(x.dtype))
