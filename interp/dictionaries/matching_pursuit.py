"""Matching pursuit dictionaries: latents are taken one after another, each to explain what the ones before left over.

    r₀ = x̃ − b;   at step t:  iₜ = argmaxᵢ aᵢ · rₜ₋₁,   cₜ = ReLU(aᵢ · rₜ₋₁),   rₜ = rₜ₋₁ − cₜ aᵢ

The encoder is the decoder. A latent that is chosen late is orthogonal to the one chosen before it, given that: so a
concept and a special case of it can both be atoms, which a single affine map cannot tell apart.

Source: Costa, Fel, Lubana, Tolooshams, Ba 2025, "From Flat to Hierarchical: Extracting Sparse Representations with
Matching Pursuit" (arXiv:2506.03093), §4. k is fixed here; they can also stop at a given residual. A latent taken twice
is one entry, with the sum of both values. Choices are made with the products of atoms (Gram matrix): a step then costs
one row of it instead of a matrix product.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.dictionaries.codes import Codes
from interp.dictionaries.dictionary import Dictionary, Loss, unexplained
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import checked_k

GRAM_LATENTS = 16_384
"""With more latents (a Gram matrix above 1 GiB), the residual is multiplied with all atoms at every step."""


class MatchingPursuit(Dictionary):
    """k steps of matching pursuit on the atoms.

    Args:
        k: steps, so latents per row at most; may be changed after training.

    Raises:
        ShapeError: k below 1 or above the number of latents; as `Dictionary`.
    """

    kind: ClassVar[str] = "matching_pursuit"

    def __init__(self, read: Standardisation, n_latents: int, k: int, *, seed: int = 0) -> None:
        super().__init__(read, n_latents, seed=seed)
        self.k = checked_k(k, n_latents)

    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """As `Dictionary.code`."""
        latents = self._chosen(x)
        residual, values = x - self.offset, []
        for step in range(self.k):
            atom = self.atoms[latents[:, step]]
            value = (residual * atom).sum(1, keepdim=True).relu()
            residual = residual - value * atom
            values.append(value)
        first = (latents[:, :, None] == latents[:, None]).long().argmax(2)
        stacked = torch.cat(values, 1)
        return Codes.from_rows(torch.zeros_like(stacked).scatter_add(1, first, stacked), latents, self.n_latents)

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """The unexplained share of the variance; gradients pass through all steps."""
        codes = self.code(x)
        share = unexplained(self.decoded(codes), target)
        return Loss(share, share.detach(), codes)

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return {"k": self.k}

    @torch.no_grad()
    def _chosen(self, x: Tensor) -> Int[Tensor, "row k"]:
        residual = x - self.offset
        products = residual @ self.atoms.T
        gram = self.atoms @ self.atoms.T if self.n_latents <= GRAM_LATENTS else None
        chosen = []
        for _ in range(self.k):
            value, latent = products.max(1)
            chosen.append(latent)
            value = value.relu()[:, None]
            if gram is None:
                residual = residual - value * self.atoms[latent]
                products = residual @ self.atoms.T
            else:
                products -= value * gram[latent]
        return torch.stack(chosen, 1)
