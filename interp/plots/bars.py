"""Bars: one value per named thing and condition, with its interval; nothing is drawn between things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import plotly.graph_objects
    import xarray

_THICK = 9  # pixels of a bar
_GAP = 12


def bars(
    data: xarray.DataArray,
    *,
    y: str,
    bar: str,
    title: str,
    unit: str,
    low: xarray.DataArray,
    high: xarray.DataArray,
    quantity: str = "value",
    y_labels: Sequence[Any] | None = None,
    bar_labels: Sequence[Any] | None = None,
) -> plotly.graph_objects.Figure:
    """Horizontal bars: a group for each entry of `y`, from top to bottom, with one bar for each entry of `bar`.

    Args:
        data: exactly the dimensions `y` and `bar`; NaN leaves a bar out.
        title: what was measured, in one sentence; plain text.
        unit: unit of `data`.
        low: lower end of each value's interval; same dimensions as `data`; NaN for none.
        high: upper end.
        quantity: name of the axis; the unit is added.
        y_labels: names of the groups, words that are shown in full; by default the coordinate `y`, shown as tokens.
        bar_labels: names of the bars of a group, by default the coordinate `bar`.

    Raises:
        ShapeError: dimensions, sizes or labels that do not fit together, or infinite values.
    """
    import numpy as np
    from plotly import graph_objects

    x = style.ordered(data, (bar, y), data, "data")
    ends = [style.ordered(end, (bar, y), data, name) for end, name in ((low, "low"), (high, "high"))]
    if np.isinf([x, *ends]).any():
        raise ShapeError("Bars cannot be infinitely long; data, low and high must be finite or NaN.")
    labels = style.labels_along(data, y, y_labels, "y_labels")
    groups = style.labels_of(labels) if y_labels is None else [style.plain(label) for label in labels]
    names = style.labels_of(style.labels_along(data, bar, bar_labels, "bar_labels"))
    figure = graph_objects.Figure()
    for number, name in enumerate(names):
        # no interval is drawn where none was measured; the bar itself stays away, too
        out = np.nan_to_num(ends[1][number] - x[number]), np.nan_to_num(x[number] - ends[0][number])
        figure.add_bar(
            x=x[number], y=list(range(len(groups))), orientation="h", name=name, offsetgroup=str(number),
            marker={"color": style.LINES[number % len(style.LINES)]},
            error_x={"array": out[0], "arrayminus": out[1], "thickness": 1, "width": 2, "color": style.INK},
            hovertemplate="%{x:.3g}<extra>" + name + "</extra>",
        )  # fmt: skip
    left = 24 + 7.4 * max(map(style.seen_width, groups))
    height = len(groups) * (len(names) * _THICK + _GAP)
    width, top = 760, style.title_height(title, 760)
    style.dress(figure, title, width, height + top + 104)
    figure.update_xaxes(
        title={"text": f"{style.plain(quantity)} ({style.plain(unit)})", "standoff": 10},
        showgrid=True,
        gridcolor=style.FAINT,
        zeroline=True,
    )
    figure.update_yaxes(
        tickvals=list(range(len(groups))),
        ticktext=groups,
        range=[len(groups) - 0.5, -0.5],
        showgrid=False,
        ticks="outside",
        ticklen=5,
        tickcolor="white",
    )
    figure.update_layout(
        bargap=_GAP / (len(names) * _THICK + _GAP), bargroupgap=0, margin={"l": left, "r": 24, "t": top + 34, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal", "font": {"size": 12}},
    )  # fmt: skip
    return figure
