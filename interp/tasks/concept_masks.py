"""Which pixels of a picture show which concept: the known side of a dissection.

For the shapes world there are two sources. `seen_masks` reads the pictures themselves: the analytic checker's
components, labelled by what it sees in them. `scene_masks` renders the scenes that prompts describe. For *generated*
pictures the first is the right one: a prompt does not say where in its cell an object lies (jitter moves it by up to
0.8 pixels, a tenth of a small object), and a picture that shows something else than it was asked for keeps its true
labels instead of being dropped. What no reader can name (`UNCLEAR`) counts for no value of that factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from interp.errors import ShapeError
from interp.shapes.checker import check, segment
from interp.shapes.reading import Reading, ideal
from interp.shapes.render import masks as object_masks
from interp.shapes.scene import (
    BACKGROUNDS,
    CELLS,
    COLOUR_FAMILIES,
    COLOURS,
    SHAPE_FAMILIES,
    SHAPES,
    SIZES,
    Scene,
)

SHAPES_CONCEPTS = (
    "object", *SHAPES, *SHAPE_FAMILIES, *COLOURS, *COLOUR_FAMILIES, *SIZES, *CELLS, *BACKGROUNDS,
)  # fmt: skip
"""Concepts of the shapes world. A background's pixels are those of no object; a cell's, those of the object in it."""
_FAMILIES = {**SHAPE_FAMILIES, **COLOUR_FAMILIES}


@dataclass(frozen=True, slots=True, eq=False)
class ConceptMasks:
    """Pixels by concept.

    Attributes:
        concepts: their names.
        masks: [row, concept, height, width], True where a picture shows the concept.

    Raises:
        ShapeError: names that are not as many as the masks, or not distinct.
    """

    concepts: tuple[str, ...]
    masks: np.ndarray

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or self.masks.shape[1] != len(self.concepts) or self.masks.dtype != bool:
            raise ShapeError(
                f"Masks are booleans [row, concept, height, width]; got {self.masks.dtype} {self.masks.shape} for "
                f"{len(self.concepts)} concepts."
            )
        if len(set(self.concepts)) < len(self.concepts):
            raise ShapeError(f"Concepts have distinct names; got {', '.join(self.concepts)}.")


def seen_masks(pictures: np.ndarray) -> ConceptMasks:
    """What the analytic checker sees in pictures of the shapes world, uint8 [row, 32, 32, 3].

    Raises:
        ShapeError: other pictures.
    """
    return _labelled([check(picture) for picture in pictures], np.stack([segment(picture) for picture in pictures]))


def scene_masks(scenes: Sequence[Scene]) -> ConceptMasks:
    """What perfect pictures of these scenes show, nuisances included."""
    drawn = object_masks(scenes)
    cells = np.zeros((len(scenes), len(CELLS), *drawn.shape[2:]), bool)
    for row, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.objects):
            cells[row, CELLS.index(thing.cell)] = drawn[row, slot]
    return _labelled([ideal(scene) for scene in scenes], cells)


def _labelled(readings: Sequence[Reading], cells: Bool[np.ndarray, "row 4 height width"]) -> ConceptMasks:
    masks = np.zeros((len(readings), len(SHAPES_CONCEPTS), *cells.shape[2:]), bool)
    place = {concept: number for number, concept in enumerate(SHAPES_CONCEPTS)}
    for row, reading in enumerate(readings):
        for number, seen in enumerate(reading.cells):
            if seen is None:
                continue
            values = [seen.shape, seen.colour, seen.size]
            for concept in [
                "object",
                CELLS[number],
                *values,
                *(family for family, of in _FAMILIES.items() if {*of} & {*values}),
            ]:
                if concept in place:
                    masks[row, place[concept]] |= cells[row, number]
        if reading.background in place:
            masks[row, place[reading.background]] = ~cells[row].any(0)
    return ConceptMasks(SHAPES_CONCEPTS, masks)
