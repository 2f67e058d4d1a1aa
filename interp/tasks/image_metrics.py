"""Metrics of pictures: one number per picture, never averaged inside.

A metric names itself and its unit, and says which row of the base each picture belongs to, so that every row can have
its own target, mask and reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest
from interp.shapes.judge import ANSWERS, Judge, load_judge
from interp.shapes.scene import CELLS


def as_bytes(images: Float[Tensor, "row 3 height width"]) -> UInt8[np.ndarray, "row height width 3"]:
    """Pictures in [0, 1] as RGB bytes."""
    scaled = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


@runtime_checkable
class ImageMetric(Protocol):
    """What `sweep` asks of a metric of pictures."""

    @property
    def name(self) -> str:
        """Of the result's variable."""
        ...

    @property
    def unit(self) -> str:
        """Of its values."""
        ...

    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """One number per picture in [0, 1]; `example` is the base row that it belongs to."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PixelChange:
    """Root mean square difference to a reference picture, inside a mask, in units of the full range [0, 1].

    Attributes:
        reference: of each base row.
        mask: True where pixels count, of each base row; `None`: everywhere.
    """

    reference: Float[Tensor, "example 3 height width"]
    mask: Bool[Tensor, "example height width"] | None = None
    name: str = "pixel_change"
    unit: str = "of full range"

    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        squares = (images - self.reference[example]).square().mean(1)
        if self.mask is None:
            return squares.mean((1, 2)).sqrt()
        mask = self.mask[example].to(squares)
        return ((squares * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class JudgeLogProbability:
    """Log-probability (nats) that the shapes judge gives to an answer about one cell, or about the background.

    Attributes:
        factor: `"shape"`, `"colour"`, `"size"` (of a cell) or `"background"`.
        answer: of each base row, among `interp.shapes.judge.ANSWERS[factor]`.
        cell: of each base row, one of `CELLS`; left out for the background.

    Raises:
        InterpError: no such factor, answer or cell.
    """

    factor: str
    answer: Sequence[str]
    cell: Sequence[str] | None = None
    judge: Judge = field(default_factory=load_judge, repr=False)

    def __post_init__(self) -> None:
        if self.factor not in ANSWERS:
            raise InterpError(f"The judge knows no factor {self.factor!r}." + nearest(self.factor, ANSWERS))
        for answer in self.answer:
            if answer not in ANSWERS[self.factor]:
                raise InterpError(f"No {self.factor} is {answer!r}." + nearest(answer, ANSWERS[self.factor]))
        if (self.cell is None) != (self.factor == "background"):
            raise InterpError(
                f"{self.factor!r} needs {'no cell' if self.factor == 'background' else 'a cell per row'}."
            )
        for cell in self.cell or ():
            if cell not in CELLS:
                raise InterpError(f"There is no cell {cell!r}." + nearest(cell, CELLS))
        if self.cell is not None and len(self.cell) != len(self.answer):
            raise ShapeError(f"{len(self.answer)} answers for {len(self.cell)} cells; give one of each per row.")

    @property
    def name(self) -> str:
        """Of the result's variable."""
        return f"{self.factor}_log_probability"

    @property
    def unit(self) -> str:
        """Of its values."""
        return "nats"

    @torch.no_grad()
    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        rows = example.tolist()
        verdict = getattr(self.judge.judge(as_bytes(images)), self.factor)
        answer = torch.tensor([ANSWERS[self.factor].index(self.answer[row]) for row in rows])
        at = torch.arange(len(rows))
        if self.cell is None:
            return verdict[at, answer]
        return verdict[at, torch.tensor([CELLS.index(self.cell[row]) for row in rows]), answer]
