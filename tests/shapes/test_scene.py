"""Scenes: the hierarchy, counterfactuals, and what the variants promise."""

from __future__ import annotations

from collections import Counter

import pytest

from interp.errors import SceneError
from interp.shapes.scene import (
    BACKGROUNDS,
    CELLS,
    COLOUR_FAMILIES,
    COLOURS,
    FACTORS,
    LEAVES,
    SHAPE_FAMILIES,
    SHAPES,
    SIZES,
    VARIANTS,
    Object,
    Scene,
    factors_of,
    sample_scenes,
)

RED = Object("circle", "red", "large", "top left")
BLUE = Object("square", "blue", "small", "bottom right")
PAIR = Scene("white", (RED, BLUE), seed=7)


def test_families_partition_their_leaves():
    for families, leaves in ((SHAPE_FAMILIES, SHAPES), (COLOUR_FAMILIES, COLOURS)):
        assert sorted(leaf for members in families.values() for leaf in members) == sorted(leaves)


def test_every_parent_comes_before_its_children_and_lies_above_them():
    seen = {}
    for factor in FACTORS.values():
        assert factor.parent is None or seen[factor.parent] < factor.level
        seen[factor.name] = factor.level


@pytest.mark.parametrize(
    ("second", "layout"),
    [(None, "single"), ("top right", "row"), ("bottom left", "column"), ("bottom right", "diagonal")],
)
def test_the_layout_follows_from_the_cells(second, layout):
    things = (RED,) if second is None else (RED, Object("ring", "green", "small", second))
    assert Scene("pink", things).layout == layout
    assert Scene("pink", things[::-1]).layout == layout


@pytest.mark.parametrize(
    ("factor", "value", "which"),
    [
        ("background", "black", 0),
        ("shape", "cross", 0),
        ("colour", "purple", 1),
        ("size", "large", 1),
        ("cell", "top right", 0),
    ],
)
def test_a_counterfactual_changes_one_factor_and_back(factor, value, which):
    changed = PAIR.counterfactual(factor, value, which)
    assert changed != PAIR and changed.seed == PAIR.seed
    old = PAIR.background if factor == "background" else getattr(PAIR.objects[which], factor)
    assert changed.counterfactual(factor, old, which) == PAIR
    same = [
        getattr(a, leaf) == getattr(b, leaf)
        for a, b in zip(changed.objects, PAIR.objects, strict=True)
        for leaf in LEAVES
    ] + [changed.background == PAIR.background]
    assert same.count(False) == 1


def test_objects_come_and_go():
    assert Scene("white", (RED,), 7).with_object(BLUE) == PAIR
    assert PAIR.without(1) == Scene("white", (RED,), 7)


def test_factors_of_an_empty_cell_end_with_its_absence():
    values = factors_of(PAIR)
    assert values["top left.shape_family"] == "round" and values["bottom right.colour_family"] == "cool"
    assert values["top right.present"] == "no" and "top right.colour" not in values
    assert values["layout"] == "diagonal"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Object("sphere", "red", "large", "top left"), "no shape 'sphere'.*square"),
        (lambda: Object("circle", "redd", "large", "top left"), "no colour 'redd'. Did you mean 'red'"),
        (lambda: Scene("blue", (RED,)), "no background 'blue'"),
        (lambda: Scene("white", ()), "1 or 2 objects; got 0"),
        (lambda: Scene("white", (RED, RED)), "share the cell 'top left'"),
        (lambda: Scene("white", (RED,), -1), "nuisance seed"),
        (lambda: PAIR.counterfactual("cell", "bottom right"), "share the cell"),
        (lambda: PAIR.counterfactual("layout", "row"), "'layout' cannot be set directly"),
        (lambda: PAIR.counterfactual("shape", "ring", which=2), "no object 2"),
        (lambda: PAIR.counterfactual("shape", "ring", which=-1), "no object -1"),
        (lambda: PAIR.with_object(Object("ring", "red", "small", "top right")), "1 or 2 objects; got 3"),
        (lambda: sample_scenes(0), "n=0"),
        (lambda: sample_scenes(1, variant="F"), "no variant 'F'"),
    ],
)
def test_scenes_that_cannot_exist_are_refused(make, words):
    with pytest.raises(SceneError, match=words):
        make()


def test_sampling_is_seeded_and_its_beginning_does_not_depend_on_n():
    assert sample_scenes(30, seed=3)[:10] == sample_scenes(10, seed=3) != sample_scenes(10, seed=4)


def things(variant, n=6_000):
    return [thing for scene in sample_scenes(n, seed=1, variant=variant) for thing in scene.objects]


def share(objects, given, then):
    some = [thing for thing in objects if given(thing)]
    return sum(map(then, some)) / len(some)


def warm(thing):
    return thing.colour_family == "warm"


def round_(thing):
    return thing.shape_family == "round"


@pytest.mark.parametrize("variant", ["A", "B", "D"])
def test_every_leaf_and_every_allowed_pair_is_frequent(variant):
    objects = things(variant)
    for leaf, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("cell", CELLS)):
        counts = Counter(getattr(thing, leaf) for thing in objects)
        assert min(counts[value] for value in values) >= 0.03 * len(objects)
    pairs = Counter((thing.shape, thing.colour) for thing in objects)
    allowed = {(s, c) for s in SHAPES for c in COLOURS} - VARIANTS[variant].held_out
    assert set(pairs) == allowed and min(pairs.values()) >= 0.005 * len(objects)


@pytest.mark.parametrize("variant", ["A", "B"])
def test_the_factors_of_a_and_b_are_independent(variant):
    objects = things(variant)
    assert share(objects, round_, warm) == pytest.approx(share(objects, lambda t: not round_(t), warm), abs=0.04)
    assert share(objects, warm, lambda t: t.size == "large") == pytest.approx(0.5, abs=0.03)
    assert Counter(scene.background for scene in sample_scenes(6_000, 1)).keys() == set(BACKGROUNDS)


def test_c_is_a_chain_whose_ends_are_independent_given_its_middle():
    objects = things("C")

    def large(thing):
        return thing.size == "large"

    assert share(objects, round_, warm) == pytest.approx(0.8, abs=0.03)
    assert share(objects, lambda t: not round_(t), warm) == pytest.approx(0.2, abs=0.03)
    assert share(objects, warm, large) == pytest.approx(0.75, abs=0.03)
    assert share(objects, lambda t: not warm(t), large) == pytest.approx(0.25, abs=0.03)
    # correlated: 0.8 · 0.75 + 0.2 · 0.25 = 0.65 against 0.35
    assert share(objects, round_, large) == pytest.approx(0.65, abs=0.03)
    assert share(objects, lambda t: not round_(t), large) == pytest.approx(0.35, abs=0.03)
    # but not a cause
    assert share(objects, lambda t: warm(t) and round_(t), large) == pytest.approx(
        share(objects, lambda t: warm(t) and not round_(t), large), abs=0.05
    )


def test_d_never_shows_its_held_out_pairs_and_all_of_their_parts():
    held_out = VARIANTS["D"].held_out
    assert 0.10 <= len(held_out) / (len(SHAPES) * len(COLOURS)) <= 0.15
    objects = things("D")
    assert not {(thing.shape, thing.colour) for thing in objects} & held_out
    assert {thing.shape for thing in objects} == set(SHAPES) and {thing.colour for thing in objects} == set(COLOURS)


def test_e_is_flat():
    scenes = sample_scenes(3_000, seed=2, variant="E")
    assert {len(scene.objects) for scene in scenes} == {1}
    objects = [scene.objects[0] for scene in scenes]
    for leaf, count in (("shape", 3), ("colour", 3), ("size", 2), ("cell", 4)):
        counts = Counter(getattr(thing, leaf) for thing in objects)
        assert len(counts) == count and min(counts.values()) > 0.8 * len(objects) / count
    pairs = Counter((thing.shape, thing.colour) for thing in objects)
    assert max(pairs.values()) - min(pairs.values()) < 0.04 * len(objects)
