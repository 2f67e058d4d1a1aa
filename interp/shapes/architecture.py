"""What differs between the two networks that learn the shapes world: a table, and what each has to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float, Real
from torch import Tensor, nn

from interp.errors import InterpError, nearest
from interp.shapes.pipeline import load_pipeline, new_scheduler, new_unet
from interp.shapes.transformer import SHIFT, TIMES, load_transformer, new_transformer

Latents = Float[Tensor, "batch 12 16 16"]
Noised = tuple[Latents, Real[Tensor, " batch"], Latents]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of denoiser, and how it is trained.

    Attributes:
        denoiser: its name among the parts of its pipeline, and before its weights in a file.
        new: makes one with random weights.
        load: the trained pipeline, from a folder or from what comes with interp.
        reads: its text encoder learns with it, from a reading lesson on; otherwise it borrows the UNet's, frozen.
        plain: parts of names of matrices that are no maps between hidden spaces: AdamW's share.
        noised: (latents, noise, u) to (what the denoiser gets, its time steps, what it has to predict). u in [0, 1)
            is the place in the schedule, 1 for pure noise.
    """

    denoiser: str
    new: Callable[[], nn.Module]
    load: Callable[[Path | None], Any]
    reads: bool
    plain: tuple[str, ...]
    noised: Callable[[Latents, Latents, Float[Tensor, " batch"]], Noised]


def noised_for_v(latents: Latents, noise: Latents, u: Float[Tensor, " batch"]) -> Noised:
    """Of the UNet's schedule, with v = α·noise − σ·latent to predict."""
    times = (u * 1000).long()
    signal = _signal()[times].view(-1, 1, 1, 1)
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    return alpha * latents + sigma * noise, times, alpha * noise - sigma * latents


@cache
def _signal() -> Float[Tensor, " time"]:
    return new_scheduler().alphas_cumprod


def noised_for_flow(latents: Latents, noise: Latents, u: Float[Tensor, " batch"]) -> Noised:
    """Of rectified flow, with noise − latent to predict."""
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    share = sigma.view(-1, 1, 1, 1)
    return (1 - share) * latents + share * noise, TIMES * sigma, noise - latents


ARCHITECTURES = MappingProxyType(
    {
        "unet": Architecture(
            denoiser="unet",
            new=new_unet,
            load=load_pipeline,
            reads=True,
            plain=("conv_in", "conv_out", "embedding"),
            noised=noised_for_v,
        ),
        "dit": Architecture(
            denoiser="transformer",
            new=new_transformer,
            load=load_transformer,
            reads=False,
            plain=("pos_embed", "proj_out", "embedder", "scale_shift_table"),
            noised=noised_for_flow,
        ),
    }
)


def architecture_named(name: str) -> Architecture:
    """A row of `ARCHITECTURES`.

    Raises:
        InterpError: a name that is not there.
    """
    if name not in ARCHITECTURES:
        raise InterpError(f"There is no architecture {name!r} of the shapes model." + nearest(name, ARCHITECTURES))
    return ARCHITECTURES[name]
