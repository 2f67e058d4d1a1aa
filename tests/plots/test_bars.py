"""Bars: values, intervals and names where they belong."""

import numpy as np
import pytest
import xarray as xr

from interp.errors import ShapeError
from interp.plots import bars


def table(values):
    return xr.DataArray(values, dims=("thing", "which"), coords={"thing": ["<a>", "b"], "which": ["before", "after"]})


def test_a_bar_for_every_value():
    data = table([[0.5, 0.75], [np.nan, 0.2]])
    figure = bars(
        data, y="thing", bar="which", low=data - 0.1, high=data + 0.2, title="Things", unit="of all", quantity="share"
    )
    assert [trace.name for trace in figure.data] == ["before", "after"]
    np.testing.assert_allclose(figure.data[1].x, [0.75, 0.2])
    np.testing.assert_allclose(figure.data[1].error_x.array, [0.2, 0.2])
    np.testing.assert_allclose(figure.data[1].error_x.arrayminus, [0.1, 0.1])
    assert figure.layout.yaxis.ticktext == ("&lt;a&gt;", "b") and figure.layout.xaxis.title.text == "share (of all)"


def test_words_are_shown_in_full():
    data = table([[0.5, 0.75], [0.1, 0.2]])
    words = ["a condition that is longer than any token <b>", "short"]
    figure = bars(data, y="thing", bar="which", low=data, high=data, title="T", unit="u", y_labels=words)
    assert figure.layout.yaxis.ticktext == ("a condition that is longer than any token &lt;b&gt;", "short")


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (table([[1.0, np.inf], [0, 0]]), {}, "infinitely long"),
        (table([[1.0, 0], [0, 0]]), {"y_labels": ["one"]}, "y_labels has 1"),
        (table([[1.0, 0], [0, 0]]), {"low": table([[1.0, 0], [0, 0]]).isel(thing=0)}, "low has dimensions"),
    ],
)
def test_what_is_refused(data, changes, message):
    with pytest.raises(ShapeError, match=message):
        bars(data, **(dict(y="thing", bar="which", low=data, high=data, title="T", unit="u") | changes))
