"""Gated dictionaries: one affine map says whether a latent is on, another how strongly; both share their directions.

    π = W (x̃ − b) + c_gate,   c = 1[π > 0] · ReLU(exp(r) · W (x̃ − b) + c_mag)
    loss = ‖x − x̂(c)‖² / width + sparsity · ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖² / width

The penalty shrinks π alone, so that magnitudes are not shrunk; the third term, whose decoder is held fixed, is what
trains the gate. As for JumpReLU, training is dense and codes in use are sparse.

Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders" (arXiv:2404.16014),
§3.2: the gated encoder with tied directions, and the loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.dictionaries.codes import Codes
from interp.dictionaries.dictionary import LinearDictionary, Loss, above, unexplained
from interp.dictionaries.jumprelu import checked_sparsity, warmed
from interp.dictionaries.standardise import Standardisation


class Gated(LinearDictionary):
    """A gate and a magnitude. `bias` is the gate's, c_gate.

    Args:
        sparsity: what a unit of π's positive part costs, as a share of the activations' variance.

    Raises:
        InterpError: a sparsity below 0.
        ShapeError: as `LinearDictionary`.
    """

    kind: ClassVar[str] = "gated"

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        *,
        sparsity: int | float = 1e-3,
        write: Standardisation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, write=write, seed=seed)
        self.sparsity = checked_sparsity(sparsity)
        self.log_magnitude = nn.Parameter(torch.zeros(n_latents))
        self.magnitude_bias = nn.Parameter(torch.zeros(n_latents))

    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """As `Dictionary.code`."""
        gate = self.entries(x, None, lambda z: above(z, torch.zeros(())))
        values = self._magnitude(gate.values - self.bias[gate.latents], gate.latents)
        return Codes(values, gate.latents, gate.offsets, self.n_latents)

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """As the module says; the weight of the sparsity rises linearly at first."""
        gate = self.preactivations(self.centred(x), None)
        values = self._magnitude(gate - self.bias, slice(None)) * (gate > 0)
        share = unexplained(values @ self.atoms + self.offset, target)
        open_ = gate.relu()
        frozen = unexplained(open_ @ self.atoms.detach() + self.offset.detach(), target)
        total = share + warmed(self.sparsity, progress) * open_.sum(1).mean() + frozen
        return Loss(total, share.detach(), Codes.from_dense(values.detach()))

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return {"sparsity": self.sparsity}

    def _magnitude(self, product: Tensor, latents: Any) -> Tensor:
        return (product * self.log_magnitude[latents].exp() + self.magnitude_bias[latents]).relu()

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "chosen"], directions: Float[Tensor, "chosen width"]) -> list[Tensor]:
        """As `LinearDictionary.reset`; gain and bias of the magnitude go to 1 and 0."""
        changed = super().reset(latents, directions)
        self.log_magnitude[latents], self.magnitude_bias[latents] = 0.0, 0.0
        return [*changed, self.log_magnitude, self.magnitude_bias]
