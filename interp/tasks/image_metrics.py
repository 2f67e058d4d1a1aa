"""Metrics of pictures: one number per picture, never averaged inside.

A metric names itself and its unit, and says which row of the base each picture belongs to, so that every row can have
its own target, mask and reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest
from interp.shapes.judge import ANSWERS, Judge, load_judge
from interp.shapes.reading import Reading, compare, ideal
from interp.shapes.scene import CELLS, Scene


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
    """Log-probability (nats) that the shapes judge gives to an answer about one cell, about the scene, or of a place.

    It has no floor: from -21 to -8 is a step of 13 nats and no visible change. `JudgeProbability` says what is seen.

    Attributes:
        factor: `"shape"`, `"colour"`, `"size"` (of a cell), `"background"`, or `"cell"`.
        answer: of each base row, among `interp.shapes.judge.ANSWERS[factor]`; for `"cell"` one of `CELLS`, and what is
            asked is whether anything stands there.
        cell: of each base row, one of `CELLS`; left out for the background and for `"cell"`.

    Raises:
        InterpError: no such factor, answer or cell.
        ShapeError: not as many cells as answers.
    """

    factor: str
    answer: Sequence[str]
    cell: Sequence[str] | None = None
    judge: Judge = field(default_factory=load_judge, repr=False)

    def __post_init__(self) -> None:
        allowed = _answers(self.factor)
        for answer in self.answer:
            if answer not in allowed:
                raise InterpError(f"No {self.factor} is {answer!r}." + nearest(answer, allowed))
        if (self.cell is None) != (self.factor in _WHOLE):
            raise InterpError(f"{self.factor!r} needs {'no cell' if self.factor in _WHOLE else 'a cell per row'}.")
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
        verdict, at = self.judge.judge(as_bytes(images)), torch.arange(len(rows))
        answer = torch.tensor([_answers(self.factor).index(self.answer[row]) for row in rows])
        if self.factor == "cell":
            return verdict.shape[at, answer, 1:].logsumexp(-1)  # anything but "none"
        found = getattr(verdict, self.factor)
        if self.cell is None:
            return found[at, answer]
        return found[at, torch.tensor([CELLS.index(self.cell[row]) for row in rows]), answer]


@dataclass(frozen=True, slots=True, eq=False)
class JudgeProbability(JudgeLogProbability):
    """The same as a probability: whether the answer is what one sees."""

    @property
    def name(self) -> str:
        """Of the result's variable."""
        return f"{self.factor}_probability"

    @property
    def unit(self) -> str:
        """Of its values."""
        return "probability"

    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        return JudgeLogProbability.values(self, images, example).exp()


@dataclass(frozen=True, slots=True, eq=False)
class JudgeLogitDifference:
    """Log-probability of the right answer minus that of the wrong one, nats: 0 where the judge is undecided.

    For two answers about one cell that is the difference of the judge's logits. It does not saturate, and clean and
    corrupted are treated alike.

    Attributes:
        right: of each base row; wrong: likewise. Both ask the same factor.

    Raises:
        InterpError: two factors.
    """

    right: JudgeLogProbability
    wrong: JudgeLogProbability

    def __post_init__(self) -> None:
        if self.right.factor != self.wrong.factor:
            raise InterpError(f"A difference of {self.right.factor!r} and {self.wrong.factor!r} means nothing.")

    @property
    def name(self) -> str:
        """Of the result's variable."""
        return f"{self.right.factor}_logit_difference"

    @property
    def unit(self) -> str:
        """Of its values."""
        return "nats"

    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        return self.right.values(images, example) - self.wrong.values(images, example)


@dataclass(frozen=True, slots=True, eq=False)
class ClipScore:
    """Cosine of a CLIP model's embeddings of a picture and of a text, in [-1, 1].

    Source: Hessel et al. 2021, "CLIPScore" (arXiv:2104.08718), who report 2.5 · max(cosine, 0); here it is neither
    scaled nor cut off, so that effects are differences of cosines.

    Attributes:
        model: a `transformers.CLIPModel`; tokenizer, image_processor: those of its `CLIPProcessor`.
        texts: of each base row.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    image_processor: Any = field(repr=False)
    texts: Sequence[str]
    name: str = "clip_score"
    unit: str = "cosine"

    @torch.no_grad()
    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        texts = [self.texts[row] for row in example.tolist()]
        words = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        pixels = self.image_processor(list(as_bytes(images)), return_tensors="pt").pixel_values
        device = self.model.device
        found = self.model(
            input_ids=words.input_ids.to(device),
            attention_mask=words.attention_mask.to(device),
            pixel_values=pixels.to(device, self.model.dtype),
        )
        return torch.cosine_similarity(found.image_embeds, found.text_embeds).to(images.device)


_WHOLE = ("background", "cell")
"""Factors that are asked of the whole picture."""


def _answers(factor: str) -> Sequence[str]:
    """What can be answered about a factor.

    Raises:
        InterpError: a factor that the judge does not know.
    """
    if factor == "cell":
        return CELLS
    if factor not in ANSWERS:
        raise InterpError(f"The judge knows no factor {factor!r}." + nearest(factor, (*ANSWERS, "cell")))
    return ANSWERS[factor]


@dataclass(frozen=True, slots=True, eq=False)
class Shows:
    """1 where the judge sees these attributes of a scene of one object, else 0.

    Attributes:
        scenes: of each base row.
        attributes: `"shape"`, `"colour"`, `"size"` of what stands in the object's cell; `"cell"`: something stands
            there, and nothing elsewhere; `"background"`.
        name: of the result's variable.
    """

    scenes: Sequence[Scene]
    attributes: Sequence[str]
    name: str
    judge: Judge = field(default_factory=load_judge, repr=False)

    @property
    def unit(self) -> str:
        """Of its values."""
        return "1 if shown"

    def values(self, images: Float[Tensor, "row 3 height width"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """As `ImageMetric.values`."""
        seen = self.judge.judge(as_bytes(images)).readings()
        pairs = zip((self.scenes[row] for row in example.tolist()), seen, strict=True)
        return torch.tensor([float(self._shown(scene, one)) for scene, one in pairs], device=images.device)

    def _shown(self, scene: Scene, seen: Reading) -> bool:
        agrees = compare(seen, ideal(scene))
        return all(agrees["cells" if name == "cell" else name][0] for name in self.attributes)
