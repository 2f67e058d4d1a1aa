"""JumpReLU dictionaries: a latent is on where its pre-activation is above its own, trained threshold.

    c = z · H(z − θ),   loss = ‖x − x̂‖² / width + sparsity · ‖c‖₀

Neither term has a gradient by θ; both get the *pseudo-derivative* of a step smeared out over a bandwidth ε:

    ∂(z H(z − θ))/∂θ := −(θ / ε) K((z − θ) / ε),    ∂H(z − θ)/∂θ := −(1 / ε) K((z − θ) / ε),    K = 1 on (−½, ½)

Early in training half of all latents are on, so training is dense; in use the codes are sparse as any.

Source: Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders"
(arXiv:2407.14435), §3 and §4; the pseudo-code of appendix J. They scale activations to a mean squared length of 1 and
set ε = 0.001; ours have a mean squared length of `width`, so ε and the initial threshold are √width times theirs. θ is
kept positive by training its logarithm.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from interp.dictionaries.codes import Codes
from interp.dictionaries.dictionary import LinearDictionary, Loss, above, unexplained
from interp.dictionaries.standardise import Standardisation
from interp.errors import InterpError

BANDWIDTH = 1e-3
"""ε, and the initial threshold, where the mean squared length is 1."""
SPARSITY_WARM_UP = 0.1
"""Share of the training in which the weight of a sparsity loss rises from 0."""


class JumpReLU(LinearDictionary):
    """A trained threshold for each latent.

    Args:
        sparsity: what a latent that is on costs, as a share of the activations' variance.

    Raises:
        InterpError: a sparsity below 0.
        ShapeError: as `LinearDictionary`.
    """

    kind: ClassVar[str] = "jumprelu"

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        *,
        sparsity: int | float = 2e-3,
        write: Standardisation | None = None,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, write=write, conditioned=conditioned, seed=seed)
        self.sparsity = checked_sparsity(sparsity)
        self.bandwidth = BANDWIDTH * read.width**0.5
        self.log_threshold = nn.Parameter(torch.full((n_latents,), self.bandwidth).log())

    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """As `Dictionary.code`."""
        threshold = self.thresholds()
        return self.entries(x, bins, lambda z: above(z, threshold))

    def thresholds(self) -> Float[Tensor, "latent"]:
        """As `LinearDictionary.thresholds`."""
        return self.log_threshold.detach().exp()

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """As the module says; the weight of the sparsity rises linearly at first."""
        z = self.preactivations(self.centred(x), bins)
        threshold = self.log_threshold.exp()
        values = _JumpReLU.apply(z, threshold, self.bandwidth)
        on = _Step.apply(z, threshold, self.bandwidth)
        share = unexplained(values @ self.atoms + self.offset, target)
        total = share + warmed(self.sparsity, progress) * on.sum(1).mean()
        return Loss(total, share.detach(), Codes.from_dense(values.detach()))

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return super().settings() | {"sparsity": self.sparsity}


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold) * (z > 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) * grad
        return (z > threshold) * (z > 0) * grad, -(threshold / ctx.bandwidth) * near.sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) * grad
        return None, -near.sum(0) / ctx.bandwidth, None


def checked_sparsity(sparsity: int | float) -> int | float:
    """The weight of a sparsity loss.

    Raises:
        InterpError: below 0, or not finite.
    """
    if not 0 <= sparsity < float("inf"):
        raise InterpError(f"sparsity={sparsity}: give a share of the variance, 0 or more.")
    return sparsity


def warmed(sparsity: int | float, progress: float) -> int | float:
    """The weight at this point of the training."""
    return sparsity * min(1.0, progress / SPARSITY_WARM_UP)
