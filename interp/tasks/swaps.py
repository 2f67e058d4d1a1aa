"""Prompts for pictures that differ in one attribute of one object: "a large red circle at top left …" / "… blue …".

The world is that of the shapes model (`interp.shapes`), and so is the judge that says which of the two a picture shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from interp.errors import PairError
from interp.shapes.caption import full_caption
from interp.shapes.scene import CELLS, FACTORS, Object, Scene
from interp.tasks.image_metrics import ImageMetric, JudgeLogitDifference, JudgeLogProbability, JudgeProbability
from interp.tasks.pairs import check_choice, check_count

SWAPPED = ("colour", "shape", "size", "cell", "background")
"""Factors whose value is swapped."""


@dataclass(frozen=True, slots=True)
class PicturePair:
    """Two prompts that ask for pictures with two different values of one factor.

    Attributes:
        clean: the prompt that asks for `answer`; corrupted: the same prompt with `wrong_answer`.
        factor: one of `SWAPPED`.
        cell: where the object stands; `None` for the background and for a swap of cells.
    """

    clean: str
    corrupted: str
    factor: str
    answer: str
    wrong_answer: str
    cell: str | None


@dataclass(frozen=True, slots=True)
class PictureTask:
    """A named set of pairs of prompts for pictures; like `interp.tasks.Task`."""

    name: str
    pairs: tuple[PicturePair, ...]
    source: str
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PicturePair]:
        return iter(self.pairs)

    def __repr__(self) -> str:
        first = f"; {self.pairs[0].clean!r} / {self.pairs[0].corrupted!r}" if self.pairs else ""
        return f"PictureTask({self.name!r}, {len(self)} pairs, seed={self.seed}{first})"

    @property
    def factor(self) -> str:
        """What all pairs swap.

        Raises:
            PairError: no pair, or pairs that swap different factors, whose effects have no common unit.
        """
        factors = list(dict.fromkeys(pair.factor for pair in self.pairs))
        if len(factors) != 1:
            raise PairError(f"The pairs of {self.name!r} swap {factors or 'nothing'}; give pairs of one factor.")
        return factors[0]


def swaps(n: int, factor: str = "colour", seed: int = 0) -> PictureTask:
    """Pairs of full captions of one object, which differ in one factor.

    A cell is swapped with the opposite corner, so that two words differ in every such pair.

    Args:
        n: number of pairs.
        factor: one of `SWAPPED`.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.

    Raises:
        PairError: `n` below 1, or an unknown factor.
    """
    check_count(n)
    check_choice("factor", factor, SWAPPED)
    random = Random(seed)
    pairs = []
    for _ in range(n):
        thing = Object(**{leaf: random.choice(FACTORS[leaf].values) for leaf in ("shape", "colour", "size", "cell")})
        scene = Scene(random.choice(FACTORS["background"].values), (thing,))
        answer = scene.background if factor == "background" else getattr(thing, factor)
        if factor == "cell":
            wrong = CELLS[3 - CELLS.index(answer)]  # the opposite corner
        else:
            wrong = random.choice([value for value in FACTORS[factor].values if value != answer])
        clean, corrupted = full_caption(scene), full_caption(scene.counterfactual(factor, wrong))
        cell = None if factor in ("background", "cell") else thing.cell
        pairs.append(PicturePair(clean, corrupted, factor, answer, wrong, cell))
    return PictureTask(f"{factor} swaps", tuple(pairs), "procedural, the shapes world", seed)


def swap_metrics(pairs: Sequence[PicturePair]) -> list[ImageMetric]:
    """Of pictures of these pairs, one a row: the judge's logit difference of the two values, and its probability.

    Raises:
        PairError: pairs that swap different factors.
    """
    factor = PictureTask("these", tuple(pairs), "", None).factor
    cells = None if factor in ("background", "cell") else [str(pair.cell) for pair in pairs]
    right = JudgeLogProbability(factor, [pair.answer for pair in pairs], cells)
    wrong = JudgeLogProbability(factor, [pair.wrong_answer for pair in pairs], cells, right.judge)
    probability = JudgeProbability(factor, right.answer, cells, right.judge)
    return [JudgeLogitDifference(right, wrong), probability]
