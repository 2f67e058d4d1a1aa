"""Apply many edits to one activation at once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels.path import choose


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
    """`x[token, group] ← keep · x[token, group] + operand[row]`, all edits at once, into a new tensor.

    One formula serves replacing (`keep` 0: what was there is never multiplied, an infinity does not leak), adding (1),
    scaling (an operand of zeros), zeroing, and mixing (1 − t, with t · value as operand). Half-precision numbers are
    edited in float32 and rounded once. Gradients flow to `x` and `operand`.

    Args:
        token: of each edit; like all indices, on the host or on x's device.
        group: of each edit: the head, or 0.
        keep: of each edit.
        operand: rows of numbers, of any floating type.
        row: which row of `operand` an edit takes; `None`: edit i takes row i.
        wave: how many edits of the list come before this one at its place; they act in that order. `None`: all places
            are distinct.
        owned: whether `x` may be written into and returned: then only touched elements move. While gradients are
            recorded it is copied all the same.
    """
    owned = owned and not torch.is_grad_enabled()
    if choose("apply_edits", x, operand).fused:
        from interp.kernels.fused.apply_edits import apply_edits as fused

        return fused(x, token, group, keep, operand, row, wave, owned)
    return vectorised(x, token, group, keep, operand, row, wave, owned)


def vectorised(
    x: Tensor,
    token: Tensor,
    group: Tensor,
    keep: Tensor,
    operand: Tensor,
    row: Tensor | None = None,
    wave: Tensor | None = None,
    owned: bool = False,
) -> Tensor:
    """The reference: a handful of PyTorch calls for each wave."""
    wide = torch.promote_types(x.dtype, torch.float32)
    token, group, keep = token.to(x.device), group.to(x.device), keep.to(x.device, wide)[:, None]
    value = (operand if row is None else operand[row.to(operand.device)]).to(wide)
    if wave is None:
        new = edited(x[token, group].to(wide), keep, value)
    else:
        place, at = torch.unique(token * x.shape[1] + group, return_inverse=True)
        token, group = place // x.shape[1], place % x.shape[1]
        new, wave = x[token, group].to(wide), wave.to(x.device)
        for number in range(int(wave.max()) + 1 if len(wave) else 0):
            now = (wave == number).nonzero()[:, 0]
            new = new.index_put((at[now],), edited(new[at[now]], keep[now], value[now]))
    return (x.index_put_ if owned else x.index_put)((token, group), new.to(x.dtype))


def edited(old: Tensor, keep: Tensor, value: Tensor) -> Tensor:
    """`keep · old + value`, of float32 numbers or wider; where `keep` is 0, `old` is not multiplied."""
    return torch.where(keep == 0, torch.zeros_like(old), keep * old) + value
