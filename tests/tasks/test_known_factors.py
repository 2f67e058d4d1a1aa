"""Tables of factors: quarters of pictures against the scenes themselves; what a table refuses; shuffling."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import ShapeError
from interp.shapes.scene import CELLS, factors_of, sample_scenes
from interp.tasks.known_factors import KnownFactors, quarters


def table(**changed):
    given = {
        "factors": {"shape": ("circle", "square"), "colour": ("red", "blue")},
        "values": np.array([[0, 1], [1, -1], [0, 0], [-1, -1]]),
        "group": np.array([0, 0, 1, 1]),
    }
    return KnownFactors(**given | changed)


def test_indicators_by_hand():
    known = table()
    assert known.names == ("circle", "square", "red", "blue") and known.columns["colour"] == range(2, 4)
    assert known.indicators().astype(int).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert known.n_activations == 4 and table(region=np.array([0, 1, 2, 3, 3, -1])).n_activations == 6


@pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
def test_quarters_say_what_the_scenes_say(grid):
    scenes = sample_scenes(6, seed=5)
    cells = grid[0] * grid[1]
    picture, cell = np.divmod(np.arange(6 * cells), cells)
    known = quarters([factors_of(scene) for scene in scenes], picture, cell, grid)
    assert len(known.values) == 24 and known.group.tolist() == [i for i in range(6) for _ in range(4)]
    has = known.indicators()
    for i, scene in enumerate(scenes):
        at = {thing.cell: thing for thing in scene.objects}
        for number, place in enumerate(CELLS):
            wanted = {scene.background}
            if place in at:
                thing = at[place]
                wanted |= {
                    thing.shape,
                    thing.shape_family,
                    thing.colour,
                    thing.colour_family,
                    thing.size,
                    place,
                    "object",
                }
            row = 4 * i + number
            assert {name for name, yes in zip(known.names, has[row], strict=True) if yes} == wanted
            ys, xs = np.divmod(cell[known.region == row], grid[1])
            assert (ys // (grid[0] // 2) * 2 + xs // (grid[1] // 2) == number).all()
            assert (picture[known.region == row] == i).all() and (known.region == row).sum() == cells // 4
    assert known.parents["ring"] == "round" and known.parents["round"] == "object"


def test_some_quarters_only():
    scenes = [factors_of(scene) for scene in sample_scenes(3, seed=5)]
    known = quarters(scenes, np.array([0, 0, 2]), np.array([0, 3, 2]), (2, 2))
    assert known.group.tolist() == [0, 0, 2] and known.region.tolist() == [0, 1, 2]


def test_shuffled_groups_keep_their_rows_together():
    rows = np.arange(12)
    known = KnownFactors({"id": tuple(f"v{i}" for i in rows)}, rows[:, None], rows // 3)
    moved = known.shuffled(3).values[:, 0]
    assert sorted(moved) == rows.tolist() and not (moved == rows).all()
    assert (moved.reshape(4, 3) % 3 == [0, 1, 2]).all() and (moved.reshape(4, 3) // 3 == moved[::3, None] // 3).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"group": np.array([0, 1])}, "one group per row"),
        ({"group": np.zeros(4, int)}, "at least two"),
        ({"factors": {"shape": ("red", "square"), "colour": ("red", "blue")}}, "distinct"),
        ({"values": np.array([[0, 2], [1, -1], [0, 0], [-1, -1]])}, "lies between"),
        ({"parents": {"circle": "round"}}, "'round'"),
        ({"region": np.array([0, 1, 2, 4])}, "0 to 3"),
        ({"region": np.array([0, 1, 2, 2])}, "1 of 4 rows have no activation"),
    ],
)
def test_refused_tables(changed, said):
    with pytest.raises(ShapeError, match=said):
        table(**changed)


def test_refused_quarters():
    scenes = [factors_of(scene) for scene in sample_scenes(2, seed=5)]
    with pytest.raises(ShapeError, match="no quarters"):
        quarters(scenes, np.array([0]), np.array([0]), (3, 4))
    with pytest.raises(ShapeError, match="2 scenes"):
        quarters(scenes, np.array([2]), np.array([0]), (2, 2))
