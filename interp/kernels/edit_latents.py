"""Change what some latents of a dictionary say at a place, and nothing else of the state there."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels.path import choose


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
    """`x ← x + Σ_i (gain_i a_i + offset_i − a_i) write_i` at the given places, into a new tensor.

    a_i = z_i where z_i = x · read_i + bias_i exceeds threshold_i, else 0: ReLU, JumpReLU, or, with a threshold of −∞, a
    direction. (Whether a latent is among the k largest hangs on all the others; that is no threshold, and not offered.)
    Costs 4 · latent · width operations a place, whatever the size of the dictionary that the latents come from.
    Half-precision states are read and edited in float32 and rounded once. Gradients flow to everything but `threshold`.

    Args:
        token: of each edit; like all indices, on the host or on x's device. (token, group) pairs must be distinct.
        group: of each edit: the head, or 0.
        read: the latents' rows of the encoder.
        write: their atoms.
        bias: added to what is read.
        threshold: at which a latent is still off.
        gain: of each edit, times the activation that is there; 1 leaves it.
        offset: of each edit, in the activation's unit.
        owned: as in `apply_edits`.
    """
    owned = owned and not torch.is_grad_enabled()
    path = choose("edit_latents", x, gain, offset, others=(read, write, bias, threshold), n_latents=len(read))
    if path.fused:
        from interp.kernels.fused.edit_latents import edit_latents as fused

        return fused(x, token, group, read, write, bias, threshold, gain, offset, owned)
    return vectorised(x, token, group, read, write, bias, threshold, gain, offset, owned)


def vectorised(
    x: Tensor,
    token: Tensor,
    group: Tensor,
    read: Tensor,
    write: Tensor,
    bias: Tensor,
    threshold: Tensor,
    gain: Tensor,
    offset: Tensor,
    owned: bool = False,
) -> Tensor:
    """The reference: two products."""
    token, group = token.to(x.device), group.to(x.device)
    old = x[token, group].to(torch.promote_types(x.dtype, torch.float32))
    z = old @ read.to(old).T + bias.to(old)
    active = torch.where(z > threshold.to(old), z, torch.zeros_like(z))
    new = old + (gain.to(old) * active + offset.to(old) - active) @ write.to(old)
    return (x.index_put_ if owned else x.index_put)((token, group), new.to(x.dtype))
