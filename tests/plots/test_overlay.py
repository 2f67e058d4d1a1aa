"""Overlays place a map's cells over the pixels that they stand for, and show words as they are."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from interp.errors import ShapeError
from interp.plots import overlays

PICTURE = np.full((8, 12, 3), 200, np.uint8)


def maps(values) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, float), dims=("word", "y", "x"))


def drawn(values, names, **changes):
    return overlays(PICTURE, maps(values), names=names, title="where", unit="share", **changes)


def test_cells_cover_their_pixels() -> None:
    figure = drawn([np.arange(6).reshape(2, 3) / 10, np.zeros((2, 3))], ["red", "<b>$x$ & co"])
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heat) == 2 and len([trace for trace in figure.data if trace.type == "image"]) == 3
    assert (heat[0].x0, heat[0].dx, heat[0].y0, heat[0].dy) == (1.5, 4, 1.5, 4)  # pixels −0.5 to 3.5 of 12 and of 8
    assert (heat[0].zmin, heat[0].zmax, heat[1].zmax) == (0, 0.5, 0.5)  # one scale
    assert [trace.showscale for trace in heat] == [True, False]
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles[:2] == ["picture", "red · 0.5"]
    assert titles[2] == "&lt;b&gt;&#36;x&#36; &amp; co · 0"
    assert "<b>" not in figure.to_json().replace("\\u003c", "<")


def test_panels_fill_rows() -> None:
    figure = drawn(np.ones((4, 1, 1)), list("abcd"), columns=2)
    assert len({annotation.y for annotation in figure.layout.annotations}) == 3
    assert figure.layout.height > drawn(np.ones((1, 1, 1)), ["a"]).layout.height


@pytest.mark.parametrize(
    ("picture", "values", "names", "message"),
    [
        (PICTURE.astype(float), np.ones((1, 2, 2)), ["a"], "RGB bytes"),
        (PICTURE[..., 0], np.ones((1, 2, 2)), ["a"], "RGB bytes"),
        (PICTURE, np.ones((1, 2, 2)), ["a", "b"], "2 names for maps"),
        (PICTURE, np.ones((2, 2)), ["a", "b"], "they are .panel, y, x."),
        (PICTURE, -np.ones((1, 2, 2)), ["a"], "not negative"),
        (PICTURE, np.full((1, 2, 2), np.nan), ["a"], "finite"),
    ],
)
def test_what_is_refused(picture, values, names, message) -> None:
    dims = ("word", "y", "x")[3 - values.ndim :]
    with pytest.raises(ShapeError, match=message):
        overlays(picture, xr.DataArray(values, dims=dims), names=names, title="where", unit="share")
