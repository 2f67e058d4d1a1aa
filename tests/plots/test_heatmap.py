"""Heat maps show the numbers that they were given, where they belong."""

from __future__ import annotations

import numpy
import pytest
import xarray

from interp.errors import ShapeError
from interp.plots import heatmap

TOKENS = [" John", " and", " John", "<script>"]


def cells(values: object, *dims: str) -> xarray.DataArray:
    return xarray.DataArray(values, dims=dims or ("layer", "pos"))


@pytest.fixture
def effect() -> xarray.DataArray:
    return cells(numpy.array([[0.0, 1.0, -0.5, 2.0], [0.25, -3.0, 0.0, numpy.nan], [1.0, 1.0, 1.0, 1.0]]))


def draw(effect: xarray.DataArray, **options: object):
    return heatmap(
        effect,
        **{"x": "pos", "y": "layer", "title": "Effect", "unit": "logits", "x_labels": TOKENS} | options,
    )


def test_values_and_labels(effect: xarray.DataArray) -> None:
    figure = draw(effect)
    trace = figure.data[0]
    numpy.testing.assert_array_equal(trace.z, effect.values)
    assert list(trace.x) == [0, 1, 2, 3] and list(trace.y) == [0, 1, 2]
    assert figure.layout.xaxis.ticktext == ("␣John", "␣and", "␣John", "&lt;script&gt;")
    assert figure.layout.xaxis.tickvals == (0, 1, 2, 3)
    assert figure.layout.yaxis.range == (-0.5, 2.5)  # layer 0 at the bottom
    assert figure.layout.xaxis.title.text == "position" and figure.layout.yaxis.title.text == "layer"
    assert (
        "logits" in figure.layout.coloraxis.colorbar.title.text
        and "red +" in figure.layout.coloraxis.colorbar.title.text
    )
    assert "grey: not measured" in figure.layout.annotations[-1].text


def test_the_order_of_dimensions_does_not_matter(effect: xarray.DataArray) -> None:
    numpy.testing.assert_array_equal(draw(effect.T).data[0].z, effect.values)


def test_colours(effect: xarray.DataArray) -> None:
    axis = draw(effect).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-3, 3)
    assert axis.colorscale[5] == (0.5, "#ffffff")
    axis = draw(effect, zmid=1.0).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-3, 5) and "red above 1" in axis.colorbar.title.text
    axis = draw(cells(numpy.full((3, 4), 0.3)), diverging=False).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 0.3)
    axis = draw(cells(numpy.zeros((3, 4)))).layout.coloraxis
    assert axis.cmin == -axis.cmax < 0
    axis = draw(cells(numpy.full((3, 4), numpy.nan))).layout.coloraxis
    assert axis.cmin < axis.cmax


def test_hover_tells_interval_and_p(effect: xarray.DataArray) -> None:
    figure = draw(effect, low=effect - 1, high=effect + 1, p=cells(numpy.full((3, 4), 0.02)))
    text = figure.data[0].hovertext
    assert text[0][3] == "layer 0, position 3: &lt;script&gt;<br><b>2</b> logits<br>interval 1 to 3<br>adjusted p 0.02"
    assert "not measured" in text[1][3] and "no interval" in text[1][3]


def test_dots_and_frames(effect: xarray.DataArray) -> None:
    p = cells(numpy.array([[0.6, 0.02, 0.06, 0.05], [0.6] * 4, [0.6] * 4]))
    figure = draw(effect, p=p, marks=effect == -3)
    dots, frames = figure.data[1], figure.data[2]
    assert list(zip(dots.y, dots.x, strict=True)) == [(0, 1), (0, 3)]
    assert numpy.nanmean(frames.x[:4]) == 1 and numpy.nanmean(frames.y[:4]) == 1 and len(frames.x) == 6
    assert "dot: adjusted p ≤ 0.05" in figure.layout.annotations[-1].text
    none = draw(effect, p=cells(numpy.full((3, 4), 0.2)))
    assert "no cell has an adjusted p ≤ 0.05" in none.layout.annotations[-1].text
    assert len(draw(effect, p=p, dots=False).data) == 1


def test_facets_share_a_scale(effect: xarray.DataArray) -> None:
    both = xarray.concat([effect, -2 * effect], dim="part").assign_coords(part=["q", "<b>"])
    figure = draw(both, facet="part")
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    numpy.testing.assert_array_equal(maps[1].z, -2 * effect.values)
    assert {trace.coloraxis for trace in maps} == {"coloraxis"} and figure.layout.coloraxis.cmax == 6
    assert [note.text for note in figure.layout.annotations[:2]] == ["part q", "part &lt;b&gt;"]


def test_coordinates_label_the_axes(effect: xarray.DataArray) -> None:
    figure = draw(effect.assign_coords(layer=[4, 5, 6]), x_labels=None)
    assert figure.layout.yaxis.ticktext == ("4", "5", "6") and figure.layout.xaxis.ticktext == (
        "0",
        "1",
        "2",
        "3",
    )


def test_all_text_is_escaped(effect: xarray.DataArray) -> None:
    evil = "<script>$x$</script>"
    figure = draw(effect, title=evil, unit=evil, x_labels=[evil] * 4, y_labels=[evil] * 3)
    assert "<script" not in str(figure.to_dict()) and "$" not in str(figure.to_dict())


def test_refusals(effect: xarray.DataArray) -> None:
    with pytest.raises(ShapeError, match="needs exactly"):
        draw(effect, y="head")
    with pytest.raises(ShapeError, match="needs exactly"):
        draw(effect.expand_dims("example"))
    with pytest.raises(ShapeError, match="3 labels, but 'pos' has 4"):
        draw(effect, x_labels=["a"] * 3)
    with pytest.raises(ShapeError, match="low has sizes"):
        draw(effect, low=effect[:2], high=effect)
    with pytest.raises(ShapeError, match="different coordinates"):
        draw(effect.assign_coords(layer=[0, 1, 2]), p=effect.assign_coords(layer=[1, 2, 3]))
    with pytest.raises(ShapeError, match="infinite"):
        draw(effect + numpy.inf)
    with pytest.raises(ShapeError, match="finite values"):
        draw(effect[:0])
