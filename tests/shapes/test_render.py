"""Pictures: what each factor changes and leaves alone, and masks against areas worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from interp.shapes.render import CELL, RADII, coverage, masks, render
from interp.shapes.scene import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Object, Scene, sample_scenes

SCENES = sample_scenes(60, seed=11)
AREAS = {
    "circle": math.pi,
    "ring": math.pi * (1 - 0.55**2),
    "square": (2 * 0.86) ** 2,
    "triangle": 1.8 * 2 / 2,
    "cross": 2 * (2 * 0.66) - 0.66**2,
}
"""In squared radii. The triangle: base 2, height 1.8."""


def of_cell(array, cell):
    top, left = CELLS.index(cell) // 2 * CELL, CELLS.index(cell) % 2 * CELL
    return array[..., top : top + CELL, left : left + CELL]


def test_rendering_is_a_function_of_the_scene_alone():
    together = render(SCENES)
    assert together.dtype == np.uint8 and together.shape == (60, 32, 32, 3)
    for i in (0, 7, 59):
        assert (render([SCENES[i]])[0] == together[i]).all()
    swapped = [Scene(s.background, s.objects, s.seed ^ 1) for s in SCENES]
    assert not (render(swapped) == together).all((1, 2, 3)).any()  # nuisances are there


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_coverage_is_the_area_of_the_shape(shape, size):
    scenes = [Scene("white", (Object(shape, "red", size, "top right"),), seed) for seed in range(40)]
    areas = coverage(scenes)[:, 0].sum((1, 2))
    expected = AREAS[shape] * RADII[size] ** 2
    assert areas.mean() == pytest.approx(expected, rel=0.02)  # the mean over wobbles of the radius
    assert (abs(areas / expected - 1) < 0.15).all()  # ±3 % of radius, and straight edges to a quarter of a pixel


def test_an_object_stays_in_its_cell_and_mixes_its_colour_in_by_coverage():
    shares, pictures = coverage(SCENES), render(SCENES).astype(float)
    for scene, cover, picture in zip(SCENES, shares, pictures, strict=True):
        empty = cover.sum(0) == 0
        ground = picture[empty][0]
        assert (picture[empty] == ground).all()
        for slot in range(2):
            inside = of_cell(cover[slot], scene.objects[slot].cell) if slot < len(scene.objects) else 0
            assert cover[slot].sum() == np.sum(inside)
        for slot in range(len(scene.objects)):
            paint = picture[cover[slot] == 1][0]
            own = cover[slot] > 0
            mixed = ground + cover[slot][own][:, None] * (paint - ground)
            assert abs(picture[own] - mixed).max() <= 1.51  # three roundings


def test_masks_are_the_pixels_covered_by_half_or_more_and_never_overlap():
    shares, marked = coverage(SCENES), masks(SCENES)
    assert (marked == (shares >= 0.5)).all()
    assert not marked.all(1).any()
    assert [m.any() for m in marked[:, 1]] == [len(scene.objects) == 2 for scene in SCENES]


def changed(scene, other):
    return (render([scene])[0] != render([other])[0]).any(-1)


@pytest.mark.parametrize("scene", [s for s in SCENES if len(s.objects) == 2][:8], ids=str)
def test_a_counterfactual_render_changes_only_what_it_should(scene):
    thing, neighbour = scene.objects
    own, others = coverage([scene])[0] > 0
    colour = scene.counterfactual("colour", COLOURS[COLOURS.index(thing.colour) - 1])
    assert (coverage([colour]) == coverage([scene])).all()
    assert (changed(scene, colour) <= own).all() and changed(scene, colour)[masks([scene])[0, 0]].all()
    for leaf, value in (("shape", SHAPES[SHAPES.index(thing.shape) - 1]), ("size", SIZES[SIZES.index(thing.size) - 1])):
        other = scene.counterfactual(leaf, value)
        assert changed(scene, other).any()
        assert (changed(scene, other) <= (own | (coverage([other])[0, 0] > 0))).all()
    background = scene.counterfactual("background", BACKGROUNDS[BACKGROUNDS.index(scene.background) - 1])
    full = (coverage([scene])[0] == 1).any(0)
    assert not changed(scene, background)[full].any() and changed(scene, background)[~(own | others)].all()
    free = next(cell for cell in CELLS if cell not in (thing.cell, neighbour.cell))
    moved = scene.counterfactual("cell", free)
    assert (
        of_cell(render([moved])[0].transpose(2, 0, 1), free)
        == of_cell(render([scene])[0].transpose(2, 0, 1), thing.cell)
    ).all()
    assert not of_cell(changed(scene, moved), neighbour.cell).any()
    alone = scene.without(1)
    assert (changed(scene, alone) <= others).all() and changed(scene, alone)[masks([scene])[0, 1]].all()


def test_a_counterfactual_that_changes_nothing_is_the_same_picture():
    for scene in SCENES:
        assert not changed(scene, scene.counterfactual("shape", scene.objects[0].shape)).any()
