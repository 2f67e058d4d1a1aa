"""The checker and the judge read clean pictures right, and say so when a picture is not one of this world."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from interp.errors import ShapeError
from interp.shapes.checker import check
from interp.shapes.judge import ANSWERS, Judge, load_judge
from interp.shapes.reading import UNCLEAR, Reading, Seen, compare, ideal
from interp.shapes.render import BACKGROUND_RGB, COLOUR_RGB, coverage, render
from interp.shapes.scene import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Object, Scene, sample_scenes

EVERY = [
    Scene(background, (Object(shape, colour, size, cell),), seed)
    for seed, (background, shape, colour, size, cell) in enumerate(product(BACKGROUNDS, SHAPES, COLOURS, SIZES, CELLS))
]
PAIRS = [scene for scene in sample_scenes(600, seed=8) if len(scene.objects) == 2]


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def test_the_checker_reads_every_combination_of_factors():
    assert [check(picture) for picture in render(EVERY)] == [ideal(scene) for scene in EVERY]


def test_the_checker_reads_pairs():
    assert [check(picture) for picture in render(PAIRS)] == [ideal(scene) for scene in PAIRS]


def test_the_judge_reads_at_least_99_percent_of_clean_pictures(judge):
    for scenes in (EVERY, PAIRS):
        seen = judge.judge(render(scenes)).readings()
        assert np.mean([s == ideal(scene) for s, scene in zip(seen, scenes, strict=True)]) >= 0.99


def painted(cover, colour, background="white"):
    ground = np.array(BACKGROUND_RGB[background], float)
    return np.rint(ground + cover[..., None] * (np.array(colour, float) - ground)).astype(np.uint8)


def blend(shape, other):
    covers = [coverage([Scene("white", (Object(s, "red", "large", "top left"),), 4)])[0, 0] for s in (shape, other)]
    return painted(sum(covers) / 2, COLOUR_RGB["red"])


@pytest.mark.parametrize("reader", ["checker", "judge"])
def test_what_is_none_of_the_five_shapes_is_unclear(reader, judge):
    rng = np.random.default_rng(0)
    half = coverage([Scene("white", (Object("ring", "red", "large", "top left"),), 4)])[0, 0]
    half[:, :8] = 0
    speckles = np.zeros((32, 32))
    speckles[:16, :16] = rng.random((16, 16)) < 0.3
    pictures = np.stack(
        [painted(half, COLOUR_RGB["red"]), painted(speckles, COLOUR_RGB["red"]), blend("square", "cross")]
    )
    readings = [check(p) for p in pictures] if reader == "checker" else judge.judge(pictures).readings()
    assert [reading.cells[0] is None or reading.cells[0].shape for reading in readings[:2]] == [UNCLEAR] * 2
    if reader == "judge":  # two melted shapes have moments of a third; the judge has met them
        assert readings[2].cells[0].shape == UNCLEAR


@pytest.mark.parametrize("reader", ["checker", "judge"])
def test_a_colour_of_another_world_is_unclear(reader, judge):
    cover = coverage([Scene("white", (Object("square", "red", "large", "top left"),), 4)])[0, 0]
    brown, teal = painted(cover, (90, 85, 80)), painted(cover, (40, 200, 210))
    lilac_ground = np.full((32, 32, 3), (120, 60, 220), np.uint8)
    pictures = np.stack([brown, teal, lilac_ground])
    seen = [check(p) for p in pictures] if reader == "checker" else judge.judge(pictures).readings()
    assert [reading.cells[0].colour for reading in seen[:2]] == [UNCLEAR] * 2
    assert seen[2].background == UNCLEAR


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_is_empty(background, judge):
    picture = np.full((32, 32, 3), BACKGROUND_RGB[background], np.uint8)
    empty = Reading(background, (None,) * 4)
    assert check(picture) == empty and judge.judge(picture[None]).readings() == [empty]


def test_verdicts_are_log_probabilities_and_differentiable(judge):
    pictures = torch.randn(3, 3, 32, 32, requires_grad=True)
    verdict = judge(pictures)
    for name, answers in ANSWERS.items():
        values = getattr(verdict, name)
        assert values.shape == ((3, 5) if name == "background" else (3, 4, len(answers)))
        torch.testing.assert_close(values.exp().sum(-1), torch.ones(values.shape[:-1]))
    verdict.shape.sum().backward()
    assert pictures.grad.abs().sum() > 0


def test_an_untrained_judge_fails():
    torch.manual_seed(0)
    seen = Judge().judge(render(PAIRS[:50])).readings()
    assert sum(s == ideal(scene) for s, scene in zip(seen, PAIRS[:50], strict=True)) == 0


@pytest.mark.parametrize(
    "picture", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3)), np.zeros((16, 16, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(picture, judge):
    with pytest.raises(ShapeError, match="32"):
        check(picture)
    with pytest.raises(ShapeError, match="32"):
        judge.judge(picture[None])


def test_comparison_counts_each_mistake_where_it_is():
    red, blue = Seen("circle", "red", "large"), Seen("ring", "blue", "small")
    wanted = Reading("white", (red, blue, None, None))
    assert all(all(right) for right in compare(wanted, wanted).values())
    swapped = Reading("white", (Seen("circle", "blue", "large"), Seen("ring", "red", "small"), None, None))
    result = compare(swapped, wanted)
    assert result["colour"] == [False, False] and result["shape"] == result["size"] == [True, True]
    assert result["binding"] == [False] and result["cells"] == [True]
    missing = compare(Reading("black", (red, None, None, None)), wanted)
    assert missing["shape"] == [True, False] and missing["cells"] == [False] and missing["background"] == [False]
    extra = compare(Reading("white", (red, blue, red, None)), wanted)
    assert extra["cells"] == [False] and extra["shape"] == [True, True] and extra["binding"] == [False]
    assert (
        compare(Reading("white", (red, None, None, None)), Reading("white", (red, None, None, None)))["binding"] == []
    )
