"""What a dissection looks at: numbers that a site has in every cell, with a way to take them out and to put them in.

`Channels` are the site's own. `Directions` are axes of our choice (probes, mean differences, the decoder of a
dictionary); a trained dictionary joins by answering the same three questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import ShapeError
from interp.interventions.edits import Edit, Replace, Swap, When
from interp.models.site import Site


@runtime_checkable
class Units(Protocol):
    """Units of a site: channels, directions, latents."""

    @property
    def names(self) -> Sequence[str] | None:
        """One per unit; `None`: their numbers."""
        ...

    def activations(self, x: Float[Tensor, "... channel"]) -> Float[Tensor, "... unit"]:
        """How strongly each unit is on."""
        ...

    def setting(
        self,
        site: Site,
        units: Sequence[int],
        values: Float[Tensor, "unit"],
        positions: Tensor | Sequence[int] | None,
        when: When,
    ) -> list[Edit]:
        """Edits after which these units have these values there, and what they do not speak of is as before."""
        ...


@dataclass(frozen=True, slots=True)
class Channels:
    """A site's own channels."""

    @property
    def names(self) -> None:
        """Their numbers."""
        return None

    def activations(self, x: Float[Tensor, "... channel"]) -> Float[Tensor, "... unit"]:
        """As `Units.activations`: the channels themselves."""
        return x

    def setting(
        self,
        site: Site,
        units: Sequence[int],
        values: Float[Tensor, "unit"],
        positions: Tensor | Sequence[int] | None,
        when: When,
    ) -> list[Edit]:
        """As `Units.setting`."""
        return [Replace(site, values, positions=positions, units=list(units), when=when)]


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Axes in the space of a site's channels; a unit's activation is the coordinate x · d along its axis d.

    Several are set together: the part of x in the space that they span is replaced by the one that has exactly the
    wanted coordinates, also where the axes are not orthogonal.

    Attributes:
        axes: of unit length.

    Raises:
        ShapeError: axes that are not of unit length.
    """

    axes: Float[Tensor, "unit channel"]
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not torch.allclose(self.axes.norm(dim=1), self.axes.new_ones(len(self.axes)), atol=1e-4):
            raise ShapeError("Directions have unit length; divide each by its norm.")

    def activations(self, x: Float[Tensor, "... channel"]) -> Float[Tensor, "... unit"]:
        """As `Units.activations`."""
        return x @ self.axes.to(x).T

    def setting(
        self,
        site: Site,
        units: Sequence[int],
        values: Float[Tensor, "unit"],
        positions: Tensor | Sequence[int] | None,
        when: When,
    ) -> list[Edit]:
        """As `Units.setting`.

        Raises:
            ShapeError: axes that depend linearly on one another, which cannot be set apart.
        """
        chosen = self.axes[list(units)].double()
        basis, upper = torch.linalg.qr(chosen.T)
        if float(upper.diagonal().abs().min()) < 1e-4:
            raise ShapeError(f"The directions {list(units)} depend linearly on one another; leave one out.")
        point = basis @ torch.linalg.solve_triangular(upper.T, values.double()[:, None], upper=False)[:, 0]
        return [Swap(site, point.to(values), basis.to(values), positions=positions, when=when)]
