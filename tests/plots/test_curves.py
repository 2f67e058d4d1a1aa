"""Curves show the numbers that they were given."""

from __future__ import annotations

import numpy
import pytest
import xarray

from interp.errors import ShapeError
from interp.plots import curves


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
