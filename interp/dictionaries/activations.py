"""Rows of activations to train on: from memory, or read from a store as they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ShapeError
from interp.interventions.checkpoint import fingerprint


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows, in the activations' own units.

    Attributes:
        x: what is read.
        target: what is to be written; `None`: x.
        bins: the step bin of each row; `None`: there is one bin.
    """

    x: Float[Tensor, "row width"]
    target: Float[Tensor, "row out"] | None = None
    bins: Int[Tensor, "row"] | None = None


@runtime_checkable
class Activations(Protocol):
    """Rows in a fixed order, of which any can be had."""

    @property
    def mark(self) -> str:
        """A digest that no other rows have."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Int[Tensor, "row"]) -> Batch:
        """These rows, in this order."""
        ...


class InMemory:
    """Rows of tensors.

    Args:
        x: what is read.
        target: what is to be written, row by row; x, if not given.
        bins: step bins.

    Raises:
        ShapeError: not as many targets or bins as rows; values that are not finite (with where).
    """

    def __init__(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "target out"] | None = None,
        bins: Int[Tensor, "bin"] | None = None,
    ) -> None:
        for name, other in (("targets", target), ("bins", bins)):
            if other is not None and len(other) != len(x):
                raise ShapeError(f"{len(other)} {name} for {len(x)} rows; give one for each.")
        for name, values in (("Activations", x), ("Targets", target)):
            if values is not None:
                check_finite(values, name)
        self.whole = Batch(x, target, bins)

    @cached_property
    def mark(self) -> str:
        """As `Activations.mark`."""
        return fingerprint([self.whole])

    def __len__(self) -> int:
        return len(self.whole.x)

    def batch(self, rows: Int[Tensor, "row"]) -> Batch:
        """As `Activations.batch`."""
        x, target, bins = self.whole.x, self.whole.target, self.whole.bins
        at = rows.to(x.device)
        return Batch(x[at], None if target is None else target[at], None if bins is None else bins[at])


def check_finite(x: Float[Tensor, "row width"], name: str = "Activations") -> None:
    """Refuse rows that are not finite.

    Raises:
        ShapeError: the first such value, and where it is.
    """
    finite = x.isfinite()
    if not finite.all():
        row, channel = (int(i) for i in (~finite).nonzero()[0])
        raise ShapeError(f"{name} are not finite: {float(x[row, channel])} in row {row}, channel {channel}.")
