"""Curves show the numbers that they were given."""

from __future__ import annotations

import numpy
import pytest
import xarray

from interp.errors import ShapeError
from interp.plots import curves, panels


@pytest.fixture
def effect() -> xarray.DataArray:
    values = numpy.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, numpy.nan, 0.5, 0.25, 0.0]])
    return xarray.DataArray(
        values, dims=("role", "layer"), coords={"role": ["<first>", "last"], "layer": [0, 4, 8, 12, 20]}
    )


def lines(figure):
    return [trace for trace in figure.data if trace.showlegend is not False]


def test_values_names_and_bands(effect: xarray.DataArray) -> None:
    figure = curves(effect, x="layer", line="role", title="T", unit="logits", low=effect - 0.1, high=effect + 0.2)
    first, last = lines(figure)
    numpy.testing.assert_array_equal(first.y, effect.values[0])
    assert list(last.x) == [0, 4, 8, 12, 20]
    assert (first.name, last.name) == ("&lt;first&gt;", "last")
    assert figure.layout.yaxis.title.text == "effect (logits)" and figure.layout.xaxis.title.text == "layer"
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 3  # the gap breaks the second
    numpy.testing.assert_allclose(bands[0].y[:5], effect.values[0] + 0.2)
    numpy.testing.assert_allclose(bands[0].y[5:], (effect.values[0] - 0.1)[::-1])
    numpy.testing.assert_array_equal(bands[2].x, [8, 12, 20, 20, 12, 8])
    assert "interval -0.1 to 0.2" in first.hovertext[0] and "interval" not in last.hovertext[1]


def test_named_points_get_bars(effect: xarray.DataArray) -> None:
    data = effect[:, 2]
    figure = curves(data, x="role", title="T", unit="nats", low=data - 0.1, high=data + 0.2)
    (trace,) = figure.data
    assert figure.layout.xaxis.ticktext == ("&lt;first&gt;", "last") and figure.layout.showlegend is False
    numpy.testing.assert_allclose(trace.error_y.array, [0.2, 0.2])
    numpy.testing.assert_allclose(trace.error_y.arrayminus, [0.1, 0.1])


def test_twenty_lines_stay_distinct() -> None:
    data = xarray.DataArray(numpy.zeros((20, 3)), dims=("head", "layer"))
    figure = curves(data, x="layer", line="head", title="T", unit="logits")
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 20


def test_panels_give_every_line_its_frame(effect: xarray.DataArray) -> None:
    six = xarray.concat([effect] * 3, "role").assign_coords(role=list("abcdef"))[:5]
    figure = panels(
        six, x="layer", panel="role", title="T", unit="nats", quantity="mean", low=six - 0.1, high=six + 0.2,
        panel_labels=[f"<{name}>" for name in "abcde"], baseline=[0.0, 0.1, 0.2, 0.3, 0.4],
    )  # fmt: skip
    drawn = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len({(trace.xaxis, trace.yaxis) for trace in drawn}) == 5
    for index, trace in enumerate(drawn):
        numpy.testing.assert_array_equal(trace.y, six.values[index])
        bands = [band for band in figure.data if band.fill == "toself" and band.xaxis == trace.xaxis]
        assert len(bands) == 1 + index % 2
        (line,) = [shape for shape in figure.layout.shapes if shape.yref == trace.yaxis]
        assert line.y0 == line.y1 == [0.0, 0.1, 0.2, 0.3, 0.4][index]
    heads = [note.text for note in figure.layout.annotations]
    assert heads[:5] == [f"&lt;{name}&gt;" for name in "abcde"] and heads[5] == "mean (nats)"
    # The same axes everywhere, and numbers below the last frame of each column.
    axes = [figure.layout[f"xaxis{i}"] if i > 1 else figure.layout.xaxis for i in range(1, 7)]
    assert [axis.title.text for axis in axes[2:5]] == ["layer"] * 3 and axes[2].showticklabels
    heights = [figure.layout[f"yaxis{i}" if i > 1 else "yaxis"] for i in range(1, 6)]
    assert [axis.matches for axis in heights] == [None, *["y"] * 4]
    assert [axis.showticklabels for axis in heights] == [None, False, False, None, False]


def test_panels_that_do_not_fit_are_refused(effect: xarray.DataArray) -> None:
    with pytest.raises(ShapeError, match="2 panels but 1 baselines"):
        panels(effect, x="layer", panel="role", title="T", unit="u", baseline=[0.0])
    with pytest.raises(ShapeError, match="need numbers along 'role'"):
        panels(effect, x="role", panel="layer", title="T", unit="u")
    with pytest.raises(ShapeError, match="both low and high"):
        panels(effect, x="layer", panel="role", title="T", unit="u", low=effect)


def test_all_text_is_escaped(effect: xarray.DataArray) -> None:
    evil = "<script>$x$"
    figure = curves(
        effect,
        x="layer",
        line="role",
        title=evil,
        unit=evil,
        x_labels=[evil] * 5,
        line_labels=[evil, evil],
        x_title=evil,
        quantity=evil,
    )
    assert "<script" not in str(figure.to_dict()) and "$" not in str(figure.to_dict())


def test_refusals(effect: xarray.DataArray) -> None:
    with pytest.raises(ShapeError, match="both low and high"):
        curves(effect, x="layer", line="role", title="T", unit="u", low=effect)
    with pytest.raises(ShapeError, match="needs exactly"):
        curves(effect, x="layer", title="T", unit="u")
    with pytest.raises(ShapeError, match="finite"):
        curves(effect + numpy.inf, x="layer", line="role", title="T", unit="u")
    with pytest.raises(ShapeError, match="1 labels"):
        curves(effect, x="layer", line="role", title="T", unit="u", line_labels=["a"])
