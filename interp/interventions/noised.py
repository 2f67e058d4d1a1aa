"""Pictures brought to a noise level, and what a denoiser is trained to make of them.

    x_t = α_t x₀ + σ_t ε,   target = ε,  α_t ε − σ_t x₀ ("v"),  or x₀,   α_t² = the scheduler's ᾱ_t = 1 − σ_t²

A sampling ends in pictures that the model drew; these begin with given ones. So what they show is known without reading
it off, one evaluation of the denoiser stands for a whole loop, and there is a right answer: the denoising loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest
from interp.interventions.one_step import States
from interp.models.denoiser import Denoiser

TARGETS = ("epsilon", "v_prediction", "sample")
"""What denoisers may be trained to predict, as diffusers calls it."""


@dataclass(frozen=True, slots=True, eq=False)
class NoisedPictures:
    """Pictures at one noise level.

    Attributes:
        states: what the denoiser receives.
        target: what it should predict, row by row.
    """

    states: States
    target: Float[Tensor, "row ..."]


@torch.no_grad()
def noised(model: Denoiser, pictures: np.ndarray, timestep: int, seed: int = 0) -> NoisedPictures:
    """Pictures with noise, as training gives them to the denoiser.

    Args:
        pictures: RGB, uint8 [row, height, width, 3].
        timestep: of the schedule that the model was trained with, 0 for hardly any noise.
        seed: of the noise, which is drawn for all rows at once.

    Raises:
        ShapeError: anything but RGB pictures as bytes.
        InterpError: a scheduler without ᾱ_t (rectified flow), another prediction than `TARGETS`; a timestep that the
            schedule does not have; a pipeline without an autoencoder.
    """
    scheduler, vae = model.pipeline.scheduler, getattr(model.pipeline, "vae", None)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise ShapeError(f"Pictures are uint8 [row, height, width, 3]; got {pictures.dtype} {list(pictures.shape)}.")
    if not hasattr(scheduler, "alphas_cumprod") or vae is None:
        raise InterpError(
            f"{model.name} has no autoencoder, or a schedule without ᾱ_t (rectified flow): no noised rows."
        )
    kept = cast(Tensor, scheduler.alphas_cumprod)
    wanted = str(scheduler.config.prediction_type)
    if wanted not in TARGETS:
        raise InterpError(f"A denoiser that predicts {wanted!r} is not known here." + nearest(wanted, TARGETS))
    if not 0 <= timestep < len(kept):
        raise InterpError(f"There is no timestep {timestep}: the schedule has 0 to {len(kept) - 1}.")
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(model.device, model.dtype) / 127.5 - 1
    clean = _latents(vae, x)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    alpha, sigma = float(kept[timestep].sqrt()), float((1 - kept[timestep]).sqrt())
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[wanted]
    time = torch.full((len(clean),), timestep, device=clean.device)
    return NoisedPictures(States(alpha * clean + sigma * noise, time), target)


def _latents(vae: Any, x: Tensor) -> Tensor:
    """The mode of what the autoencoder makes of pictures in [-1, 1], shifted and scaled as its pipeline does."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (vae.encode(x).latent_dist.mode() - shift) * vae.config.scaling_factor
