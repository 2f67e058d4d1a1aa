"""Mosaics: every picture where it belongs, pixel for pixel."""

import numpy as np
import pytest

from interp.errors import ShapeError
from interp.plots import mosaic


def test_pictures_stand_in_rows_and_columns():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32, 3), dtype=np.uint8)
    canvas = np.asarray(mosaic(pictures, ["first", "<second>"], "Pictures").data[0].z)
    assert canvas.shape == (2 * (96 + 6), 3 * (96 + 6), 3)
    np.testing.assert_array_equal(canvas[102 : 102 + 96 : 3, 204 : 204 + 96 : 3], pictures[1, 2])
    assert (canvas[96:102] == 255).all()
    labels = mosaic(pictures, ["first", "<second>"], "Pictures").layout.yaxis.ticktext
    assert labels == ("first", "&lt;second&gt;")


@pytest.mark.parametrize(
    ("shape", "kind", "labels"),
    [
        ((2, 3, 8, 8, 3), float, 2),
        ((2, 3, 8, 8), np.uint8, 2),
        ((2, 3, 8, 8, 4), np.uint8, 2),
        ((2, 3, 8, 8, 3), np.uint8, 1),
    ],
)
def test_what_is_refused(shape, kind, labels):
    with pytest.raises(ShapeError, match="label per row"):
        mosaic(np.zeros(shape, kind), ["x"] * labels, "Pictures")
