"""Alignment maps that choose how many coordinates a variable has, or which: soft masks that harden.

Both train a mask in [0, 1] over coordinates, sharp only at the end (`anneal`), and pay for the share of coordinates
that they exchange (`penalty`). In evaluation (torch's `.eval()`) a mask is hard, 0 or 1: what is reported exchanges
whole coordinates and is no mixture. With masks mᵢ and an orthonormal basis R the exchange is

    b + R Σᵢ mᵢ · Rᵀ(sᵢ − b)

When they mislead: a soft mask that swaps a little of everything can answer right where no hard one does, so only the
evaluated IIA counts; and a penalty too high hides a variable, one too low takes in what it does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.alignment.maps import AlignmentMap, checked_basis, orthonormal, random_columns
from interp.errors import InterpError, ShapeError

_LEAST_SHARE = 1e-3
_BOUNDARY_RATE = 10
"""Boundaries learn this many times as fast as the rotation (the paper's 1e-2 and 1e-3)."""


class Boundless(AlignmentMap):
    """Boundless DAS: a rotation, and boundaries that say how many of its coordinates each variable has.

    Variable i has the coordinates from the end of variable i − 1 to its own. With a share βᵢ of the width d for each,
    and eᵢ = d · (β₁ + … + βᵢ), the mask at coordinate j is

        mᵢ(j) = σ((j − eᵢ₋₁) / T) · σ((eᵢ − j) / T),      e₀ = 0

    and in evaluation 1 for eᵢ₋₁ ≤ j < eᵢ, else 0. T falls from `temperatures[0]` to `temperatures[1]`, in coordinates.
    Shares are at least 0.001, so a first variable keeps one coordinate.

    Source: Wu, Geiger, Icard, Potts & Goodman 2023 (arXiv:2305.08809), its defaults. We differ in the hard mask (theirs
    is evaluated at the last temperature), in where boundaries start (half the width is shared by all variables), and in
    that `anneal` brings a share that left its range back to the range's end: clamped only, as theirs is, it would have
    no gradient any more, and a variable that the penalty closes while T is high would stay closed.

    Args:
        width: d.
        n_variables: how many.
        temperatures: at the beginning and at the end of training.
        weight: of the penalty, weight · Σ β.
        cells: how many maps.
        seed: of the rotation's start.

    Raises:
        InterpError: a temperature that is not above 0, or a negative weight.
    """

    temperature: Tensor

    def __init__(
        self,
        width: int,
        n_variables: int = 1,
        *,
        temperatures: tuple[float, float] = (50.0, 0.1),
        weight: float = 1.0,
        cells: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(width, n_variables, cells)
        self.temperatures, self.weight = _checked(temperatures, weight)
        self.columns = nn.Parameter(orthonormal(random_columns(width, width, cells, seed)).contiguous())
        self.share = nn.Parameter(torch.full((cells, n_variables), 0.5 / n_variables))
        self.register_buffer("temperature", torch.full((cells,), self.temperatures[0]))

    @property
    def basis(self) -> Float[Tensor, "cell width width"]:
        """R, orthonormal."""
        return orthonormal(self.columns)

    @property
    def boundaries(self) -> Float[Tensor, "cell variable"]:
        """Where each variable's coordinates end: eᵢ."""
        return self._shares().cumsum(-1).clamp(max=1) * self.width

    @property
    def masks(self) -> Float[Tensor, "cell variable width"]:
        """The share of each coordinate that is exchanged for each variable."""
        ends = self.boundaries[..., None]
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        j = torch.arange(self.width, device=ends.device)
        if not self.training:
            return ((starts <= j) & (j < ends)).to(ends.dtype)
        temperature = self.temperature[:, None, None]
        return torch.sigmoid((j - starts) / temperature) * torch.sigmoid((ends - j) / temperature)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each variable's block as they are now, in the first cell."""
        return tuple(self.masks[0].sum(-1).round().long().tolist())

    def penalty(self) -> Float[Tensor, "cell"]:
        """The weight times Σ β."""
        return self.weight * self._shares().sum(-1)

    def anneal(self, progress: float) -> None:
        """T falls linearly; shares stay in their range."""
        start, end = self.temperatures
        self.temperature.fill_(start + (end - start) * progress)
        with torch.no_grad():
            self.share.clamp_(_LEAST_SHARE, 1)

    def followed(self) -> dict[str, Tensor]:
        """Where each variable's coordinates end, and how soft that is, in coordinates."""
        return {"boundary": self.boundaries, "temperature": self.temperature}

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The boundaries at ten times the rate of the rotation."""
        return [{"params": [self.columns], "lr": rate}, {"params": [self.share], "lr": _BOUNDARY_RATE * rate}]

    def _shares(self) -> Tensor:
        return self.share.clamp(_LEAST_SHARE, 1)

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return _masked(base, sources, self.basis, self.masks)

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return (self.masks[:, :, None] * (states @ self.basis)[:, None]).unbind(1)

    def _blocks(self) -> str:
        return f"{self.n_variables} variables with learned boundaries"


class UnitMask(AlignmentMap):
    """Which of some fixed axes belong to a variable: units of the state, or given directions (PCA, a trained rotation).

    An axis belongs to one variable or to none. With a score aᵢ(j) for each variable and 0 for none,

        m(j) = softmax(0, a₁(j) / T, a₂(j) / T, …)

    for one variable the sigmoid σ(a / T); in evaluation the largest alone is 1, none's in a tie. Scores start at 0. T
    falls geometrically, as its effect is by ratio.

    Sources: Davies, Nadeau, Prakash, Shaham & Bau 2023 (arXiv:2307.03637), masks from desiderata, one of which is that
    an interchange does what the causal model says; Huang et al. 2024 (arXiv:2402.17700), differential binary masks.

    Args:
        width: d.
        n_variables: how many.
        axes: [width, axis] or [cell, width, axis], orthonormal; `None`: the units themselves.
        temperatures: at the beginning and at the end of training.
        weight: of the penalty, weight · the share of the axes that is exchanged.
        cells: how many maps.

    Raises:
        ShapeError: axes that are not orthonormal, of another width, or for another number of cells.
        InterpError: as `Boundless`.
    """

    temperature: Tensor
    axes: Tensor | None

    def __init__(
        self,
        width: int,
        n_variables: int = 1,
        *,
        axes: Tensor | None = None,
        temperatures: tuple[float, float] = (1.0, 0.01),
        weight: float = 0.0,
        cells: int = 1,
    ) -> None:
        super().__init__(width, n_variables, cells)
        self.temperatures, self.weight = _checked(temperatures, weight)
        checked = None if axes is None else checked_basis(axes)
        if checked is not None and (checked.shape[1] != width or checked.shape[0] not in (1, cells)):
            found = f"{checked.shape[0]} × {checked.shape[1]}"
            raise ShapeError(f"Axes are for {found} cells × width, the map is {cells} × {width}; give [width, axis].")
        n_axes = width if checked is None else checked.shape[-1]
        self.score = nn.Parameter(torch.zeros(cells, n_variables, n_axes))
        self.register_buffer("axes", None if checked is None else checked.expand(cells, -1, -1).clone())
        self.register_buffer("temperature", torch.full((cells,), self.temperatures[0]))

    @property
    def masks(self) -> Float[Tensor, "cell variable axis"]:
        """The share of each axis that is exchanged for each variable."""
        if not self.training:
            return self.chosen.to(self.score.dtype)
        return torch.softmax(self._scores / self.temperature[:, None, None], 1)[:, 1:]

    @property
    def chosen(self) -> Bool[Tensor, "cell variable axis"]:
        """The axes of each variable, as evaluated."""
        best = self._scores.argmax(1, keepdim=True)
        return best == torch.arange(1, 1 + self.n_variables, device=best.device)[:, None]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Axes of each variable as evaluated, in the first cell."""
        return tuple(self.chosen[0].sum(-1).tolist())

    def penalty(self) -> Float[Tensor, "cell"]:
        """The weight times the share of the axes that is exchanged."""
        return self.weight * self.masks.sum(1).mean(-1)

    def anneal(self, progress: float) -> None:
        """T falls geometrically."""
        start, end = self.temperatures
        self.temperature.fill_(start * (end / start) ** progress)

    @property
    def _scores(self) -> Tensor:
        """Those of no variable, then each variable's."""
        return torch.cat([torch.zeros_like(self.score[:, :1]), self.score], 1)

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return _masked(base, sources, self.axes, self.masks)

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        along = states if self.axes is None else states @ self.axes
        return (self.masks[:, :, None] * along[:, None]).unbind(1)

    def _blocks(self) -> str:
        what = "units" if self.axes is None else "axes"
        return f"{self.n_variables} variables among {self.score.shape[-1]} {what}"


def _masked(
    base: Tensor, sources: Sequence[Tensor], basis: Tensor | None, masks: Float[Tensor, "cell variable axis"]
) -> Float[Tensor, "cell row width"]:
    """On rows, b + R Σᵢ mᵢ · Rᵀ(sᵢ − b); without a basis, R = 1."""
    moved = [source - base if basis is None else (source - base) @ basis for source in sources]
    total = sum(mask[:, None] * one for mask, one in zip(masks.unbind(1), moved, strict=True))
    assert isinstance(total, Tensor)
    return base + total if basis is None else torch.baddbmm(base, total, basis.mT)


def _checked(temperatures: tuple[float, float], weight: float) -> tuple[tuple[float, float], float]:
    if not min(temperatures) > 0 or not weight >= 0:
        raise InterpError(
            f"Temperatures {temperatures} and weight {weight}: temperatures must be above 0, the weight at least 0."
        )
    return temperatures, weight
