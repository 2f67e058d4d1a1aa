"""Controls of steering: the same changes, as large and at the same places, written in directions of no meaning.

`random_concept` is that of a concept; `Family.at_random` and `CounterfactualMap.at_random` are those of the others. All
turn what is written by one random rotation, the same in every step: directions that agree from step to step still do,
so that pushes over a denoising add up as the concept's do. (A new direction in each step would be a weaker control.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.steering.concepts import Concept


def random_concept(like: Concept, seed: int = 0) -> Concept:
    """A concept that reads the same and writes in a random direction.

    Every form moves every state as far as the concept's own does, by the same amount at the same places; for
    `replace_where` and `project_out`, which are about what is read, a concept of shuffled examples is the control.
    """
    turn = random_rotation(like.latents[0].write, seed)
    latents = tuple(replace(one, write=one.write @ turn) for one in like.latents)
    return replace(like, name=f"random direction {seed}", latents=latents, method="random")


def random_rotation(like: Float[Tensor, "... width"], seed: int) -> Float[Tensor, "width width"]:
    """A rotation (or reflection) of a space, uniform over all of them.

    Args:
        like: whose width, type and device it has.
    """
    width, generator = like.shape[-1], torch.Generator().manual_seed(seed)
    basis, upper = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return (basis * upper.diagonal().sign()).to(like)  # signs: QR's own choice is not uniform (Mezzadri 2007)
