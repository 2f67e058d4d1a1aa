"""Values that exclude one another (the six colours) as points in one subspace: to set one is to take the others out.

Adding "blue" to a state leaves "red" in it. A family knows where the states of each value lie on average, and moves
the part of a state in the space of those means towards one of them; the rest stays, to the bit:

    x ← x + strength · R Rᵀ (μ_value − x)

with R the span of the means' differences, or any basis that is given (one found by an alignment, say). Start with
`family`.

When it misleads: means over examples take in whatever goes with a value there, so examples must be balanced; the part
of a state in that space also holds what is not of the family, and is set to its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest
from interp.interventions.edits import Edit, Latents, Modulate
from interp.kernels.directions import difference_of_means
from interp.models.site import Site
from interp.steering.concepts import Concept, concept, each_step
from interp.steering.controls import random_rotation
from interp.steering.measured import Measured


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The means of some values at a site, and the space in which they are exchanged.

    Attributes:
        values: their names.
        means: of the states of each value.
        basis: orthonormal columns.
        norm: of each step, the mean length of a state.
        timesteps: of a denoiser, those that were measured.
    """

    site: Site
    values: tuple[str, ...]
    means: Float[Tensor, "step value width"]
    basis: Float[Tensor, "step width rank"]
    norm: Float[Tensor, "step"]
    timesteps: tuple[float, ...] | None = None

    def set(self, value: str, strength: float = 1.0, **where: Any) -> list[Edit]:
        """Edits that bring a value.

        Args:
            strength: share of the way to the value's mean: 0 changes nothing, 1 arrives, more overshoots.
            where: `positions`, `rows`, `when`, `gate`, `keep_norm`, as of the edits.

        Raises:
            InterpError: an unknown value.
        """
        at = self._at(value)
        edits: list[Edit] = []
        for mean, basis in zip(self.means[:, at], self.basis, strict=True):
            latents = Latents(basis.T, basis.T)
            edits.append(Modulate(self.site, latents, 1.0 - strength, (strength * (mean @ basis)).tolist()))
        return each_step(self.site, edits, where, self.timesteps)

    def within(self, basis: Float[Tensor, "..."]) -> Family:
        """The same means, exchanged in another space: [width, rank], or one for each step.

        Raises:
            ShapeError: another width or number of steps, or columns that are not orthonormal.
        """
        steps, _, width = self.means.shape
        each = basis.expand(steps, *basis.shape) if basis.ndim == 2 else basis
        if each.ndim != 3 or each.shape[:2] != (steps, width):
            raise ShapeError(f"A basis of {list(basis.shape)} for {self.site}: [{width}, rank], or {steps} of these.")
        off = each.mT @ each - torch.eye(each.shape[-1], dtype=each.dtype, device=each.device)
        if not float(off.abs().max()) <= 1e-3:
            raise ShapeError(f"The columns of the basis for {self.site} are not orthonormal.")
        return replace(self, basis=each.to(self.means))

    def at_random(self, seed: int = 0) -> Family:
        """The control: a random space of the same rank, with points as far from one another as the means are.

        The means are turned about their centre by one random rotation (`interp.steering.controls`): distances stay,
        meaning goes.
        """
        turn, centre = random_rotation(self.means, seed), self.means.mean(1, keepdim=True)
        return replace(self, means=centre + (self.means - centre) @ turn, basis=turn.T @ self.basis)

    def _at(self, value: str) -> int:
        if value not in self.values:
            raise InterpError(f"This family has no {value!r}." + nearest(value, self.values))
        return self.values.index(value)


def family(measured: Measured, labels: Sequence[str]) -> Family:
    """The family of the labels that examples have.

    Args:
        labels: of each example, its value.

    Raises:
        ShapeError: not one label for each example.
        InterpError: fewer than two values, or means that do not differ.
    """
    values = tuple(dict.fromkeys(sorted(labels)))
    if len(labels) != measured.n:
        raise ShapeError(f"{len(labels)} labels for {measured.n} examples.")
    pooled = measured.pooled()
    number = torch.tensor([values.index(label) for label in labels], device=pooled.device)
    means = torch.stack([pooled[:, number == value].mean(1) for value in range(len(values))], 1)
    basis = torch.stack([difference_of_means(states, number) for states in pooled])
    return Family(measured.site, values, means, basis, measured.norm(), measured.timesteps)


def one_against_rest(measured: Measured, labels: Sequence[str], value: str, method: str = "mean") -> Concept:
    """A value as a `concept`: its examples against all others.

    Raises:
        InterpError: no example of the value, or no other; as `concept`.
    """
    chosen = [i for i, label in enumerate(labels) if label == value]
    rest = [i for i, label in enumerate(labels) if label != value]
    if not chosen or not rest:
        raise InterpError(f"{len(chosen)} examples of {value!r} and {len(rest)} others: both are needed.")
    return concept(value, measured.of(chosen), measured.of(rest), method)
