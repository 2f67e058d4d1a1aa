"""Masks of concepts: renders, whose truth is known, read by the checker; labels by hand."""

import numpy as np
import pytest

from interp.errors import ShapeError
from interp.shapes.render import masks, render
from interp.shapes.scene import Object, Scene, sample_scenes
from interp.tasks.concept_masks import SHAPES_CONCEPTS, ConceptMasks, scene_masks, seen_masks

SCENE = Scene("pink", (Object("ring", "red", "small", "top right"), Object("cross", "blue", "large", "bottom left")), 3)


def test_what_a_scene_shows_by_hand():
    found = scene_masks([SCENE])
    shown = dict(zip(found.concepts, found.masks[0], strict=True))
    ring, cross = masks([SCENE])[0]
    ours = {
        "object": ring | cross, "ring": ring, "round": ring, "red": ring, "warm": ring, "small": ring, "top right": ring,
        "cross": cross, "angular": cross, "blue": cross, "cool": cross, "large": cross, "bottom left": cross,
        "pink": ~(ring | cross),
    }  # fmt: skip
    for concept in SHAPES_CONCEPTS:
        expected = ours.get(concept, np.zeros((32, 32), bool))
        np.testing.assert_array_equal(shown[concept], expected, err_msg=concept)


def test_the_checker_sees_renders_nearly_as_they_are():
    scenes = sample_scenes(100, 11)
    seen, true = seen_masks(render(scenes)).masks, scene_masks(scenes).masks
    assert ((seen.any((2, 3))) == (true.any((2, 3)))).all()  # every concept in the right pictures
    iou = (seen & true).sum((0, 2, 3)) / (seen | true).sum((0, 2, 3))
    assert iou.min() > 0.9 and iou[0] > 0.95


def test_what_is_unclear_counts_for_no_value():
    picture = np.full((1, 32, 32, 3), 245, np.uint8)
    picture[0, 4:12, 4:12] = (140, 110, 90)  # a brown square
    shown = seen_masks(picture)
    named = {c for c, m in zip(shown.concepts, shown.masks[0], strict=True) if m.any()}
    assert "object" in named and "top left" in named and not named & {"red", "orange", "warm", "cool"}


@pytest.mark.parametrize(
    ("concepts", "array", "message"),
    [
        (("a",), np.zeros((2, 2, 4, 4), bool), "for 1 concepts"),
        (("a",), np.zeros((2, 1, 4, 4)), "booleans"),
        (("a", "a"), np.zeros((2, 2, 4, 4), bool), "distinct"),
    ],
)
def test_what_is_refused(concepts, array, message):
    with pytest.raises(ShapeError, match=message):
        ConceptMasks(concepts, array)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ShapeError, match="32×32"):
        seen_masks(np.zeros((1, 16, 16, 3), np.uint8))
