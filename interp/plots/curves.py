"""Curves: a value over layers, strengths or token roles, one line per condition, with its uncertainty.

`curves` draws a few lines that are to be compared into one frame; `panels` gives each line a frame of its own,
all with the same axes, where there are many and their bands would cover one another (averaged causal traces).
Error bands are drawn for a numeric axis, error bars for a named one, where what lies between two points means
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import numpy
    import plotly.graph_objects
    import xarray

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "star")


def curves(
    data: xarray.DataArray,
    *,
    x: str,
    title: str,
    unit: str,
    line: str | None = None,
    low: xarray.DataArray | None = None,
    high: xarray.DataArray | None = None,
    x_labels: Sequence[Any] | None = None,
    line_labels: Sequence[Any] | None = None,
    x_title: str | None = None,
    quantity: str = "effect",
    bars: bool | None = None,
    baseline: float | None = 0.0,
) -> plotly.graph_objects.Figure:
    """Lines of `data` over `x`, one per entry of `line`; gaps where a value is NaN.

    Args:
        data: exactly the dimensions `x` (and `line`).
        x: dimension along the horizontal axis.
        title: what was measured, in one sentence; plain text.
        unit: unit of `data`.
        line: dimension with one curve per entry.
        low: lower end of each value's interval; same dimensions as `data`; needs `high`.
        high: upper end.
        x_labels: names of the points, which are then spaced evenly; by default the coordinate `x`, at its
            numeric values if it has any.
        line_labels: names of the lines, by default the coordinate `line`.
        x_title: name and unit of the horizontal axis, by default the dimension's name.
        quantity: name of the vertical axis; the unit is added.
        bars: error bars if true, a band if false; by default bars where points have names.
        baseline: where to draw a thin horizontal line; None for nowhere.

    Raises:
        ShapeError: dimensions, sizes or labels that do not fit together, infinite values, or only one of
            `low` and `high`.
    """
    from plotly import graph_objects

    y, ends = _checked(data, ((line,) if line else ()) + (x,), low, high)
    at, names = _points(data, x, x_labels)
    lines = _line_names(data, line, line_labels)
    bars = names is not None if bars is None else bars

    figure = graph_objects.Figure()
    for index, name in enumerate(lines):
        interval = (ends[0][index], ends[1][index]) if ends else None
        look = _look(index, len(at))
        if interval and not bars:
            for band in _bands(at, y[index], *interval, look["line"]["color"], name):
                figure.add_trace(band)
        figure.add_trace(_curve(at, names, y[index], interval, name, bars, look, (x, unit)))
    width = 680
    style.dress(figure, title, width, 420 + style.title_height(title, width) - 50)
    legend_width = 7.2 * max(map(style.seen_width, lines)) + 52 if line else 0
    turned = names is not None and max(map(style.seen_width, names)) * 7.0 > (590 - legend_width) / len(names)
    _axes(figure, at, names, x_title or style.axis_name(x), f"{quantity} ({unit})", turned)
    if baseline is not None:
        figure.add_hline(y=baseline, line={"color": "#777777", "width": 0.8}, layer="below")
    figure.update_layout(
        showlegend=line is not None,
        legend={
            "title": {"text": style.plain(style.axis_name(line or "")), "font": {"size": 12}},
            "x": 1.02,
            "y": 1,
            "font": {"size": 12},
            "tracegroupgap": 0,
        },
        margin={
            "l": 72,
            "r": 24 + legend_width,
            "t": style.title_height(title, width),
            "b": 110 if turned else 60,
        },
    )
    return figure


def panels(
    data: xarray.DataArray,
    *,
    x: str,
    panel: str,
    title: str,
    unit: str,
    low: xarray.DataArray | None = None,
    high: xarray.DataArray | None = None,
    panel_labels: Sequence[Any] | None = None,
    quantity: str = "effect",
    baseline: Sequence[float] | None = None,
    columns: int = 3,
) -> plotly.graph_objects.Figure:
    """Small multiples: one curve over `x` per entry of `panel`, each in its own frame with the same axes.

    Args:
        data: exactly the dimensions `panel` and `x`; gaps where a value is NaN.
        x: dimension along the horizontal axes, with numeric coordinates.
        panel: dimension with one frame per entry.
        title: what was measured, in one sentence; plain text.
        unit: unit of `data`.
        low: lower end of each value's interval; same dimensions as `data`; needs `high`.
        high: upper end.
        panel_labels: heads of the frames, by default the coordinate `panel`.
        quantity: name of the vertical axis; the unit is added.
        baseline: of each frame, where to draw a dashed horizontal line.
        columns: frames side by side.

    Raises:
        ShapeError: as `curves`; a baseline per frame that is missing.
    """
    from plotly.subplots import make_subplots

    y, ends = _checked(data, (panel, x), low, high)
    at, names = _points(data, x, None)
    if names is not None:
        raise ShapeError(f"Panels need numbers along {x!r}; got the names {names[:3]}.")
    heads = _line_names(data, panel, panel_labels)
    if baseline is not None and len(baseline) != len(heads):
        raise ShapeError(f"There are {len(heads)} panels but {len(baseline)} baselines.")

    columns = min(columns, len(heads))
    rows = -(-len(heads) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=heads,
        horizontal_spacing=0.035, vertical_spacing=0.32 / (rows + 1),
    )  # fmt: skip
    look = _look(0, len(at))
    look["marker"]["size"] = 4
    for index, name in enumerate(heads):
        row, col = index // columns + 1, index % columns + 1
        interval = (ends[0][index], ends[1][index]) if ends else None
        if interval:
            for band in _bands(at, y[index], *interval, look["line"]["color"], name):
                figure.add_trace(band, row=row, col=col)
        figure.add_trace(_curve(at, None, y[index], interval, name, False, look, (x, unit)), row=row, col=col)
        if baseline is not None:
            dashes = {"color": "#555555", "width": 1, "dash": "dash"}
            level = float(baseline[index])
            figure.add_shape(
                type="line", x0=0, x1=1, y0=level, y1=level, xref="x domain", line=dashes, row=row, col=col
            )
    width = 60 + 240 * columns
    top = style.title_height(title, width) + 24
    style.dress(figure, title, width, top + 190 * rows + 60)
    _axes(figure, at, None, "", "", False)
    figure.update_layout(showlegend=False)
    for letter, axes in (("x", figure.select_xaxes()), ("y", figure.select_yaxes())):
        for axis in list(axes)[1:]:
            axis.matches = letter
    # The last frame of each column and the first of each row carry the numbers.
    figure.update_xaxes(showticklabels=False)
    for column in range(1, columns):
        figure.update_yaxes(showticklabels=False, col=column + 1)
    for column in range(columns):
        lowest = rows - (column >= len(heads) - (rows - 1) * columns)
        figure.update_xaxes(
            title={"text": style.plain(style.axis_name(x))}, showticklabels=True, row=lowest, col=column + 1
        )
    figure.update_annotations(font_size=13)
    figure.add_annotation(
        text=style.plain(f"{quantity} ({unit})"), textangle=-90, showarrow=False, font={"size": 14},
        xref="paper", yref="paper", x=0, xshift=-58, y=0.5, xanchor="center", yanchor="middle",
    )  # fmt: skip
    figure.update_layout(margin={"l": 84, "r": 20, "t": top, "b": 56})
    return figure


def trade_off(
    x: xarray.DataArray,
    y: xarray.DataArray,
    *,
    line: str,
    along: str,
    low: xarray.DataArray,
    high: xarray.DataArray,
    title: str,
    x_title: str,
    y_title: str,
    limit: float | None = None,
) -> plotly.graph_objects.Figure:
    """A line for each entry of `line`: its points are the entries of `along`, at (x, y), with intervals of y.

    Args:
        limit: of x, drawn as a dashed line.

    Raises:
        ShapeError: arrays of other dimensions than `line` and `along`, or no values.
    """
    from plotly import graph_objects

    order = (line, along)
    xs, ys, lows, highs = (style.ordered(a, order, x, "value").astype(float) for a in (x, y, low, high))
    if not xs.size:
        raise ShapeError("A trade-off needs at least one point.")
    figure = graph_objects.Figure()
    for index, name in enumerate(style.labels_along(x, line, None, "line")):
        points = [
            f"{style.plain(name)}<br>{style.plain(along)} {at}<br>{a:.3g}, <b>{b:.3g}</b>"
            for at, a, b in zip(x[along].values, xs[index], ys[index], strict=True)
        ]
        error = {
            "type": "data", "symmetric": False, "thickness": 0.8, "width": 2,
            "array": highs[index] - ys[index], "arrayminus": ys[index] - lows[index],
        }  # fmt: skip
        figure.add_trace(
            graph_objects.Scatter(
                x=xs[index], y=ys[index], mode="lines+markers", name=style.plain(name), hovertext=points,
                hoverinfo="text", error_y=error, **_look(index, xs.shape[1]),
            )
        )  # fmt: skip
    width = 680
    style.dress(figure, title, width, 400 + style.title_height(title, width))
    _axes(figure, list(xs.flat), None, x_title, y_title, False)
    if limit is not None:
        figure.add_vline(x=limit, line={"color": "#555555", "width": 1, "dash": "dash"})
    names = [style.plain(name) for name in style.labels_along(x, line, None, "line")]
    figure.update_layout(
        showlegend=True, legend={"x": 1.02, "y": 1, "font": {"size": 12}},
        margin={
            "l": 72, "r": 76 + 7.2 * max(map(style.seen_width, names)), "t": style.title_height(title, width), "b": 60
        },
    )  # fmt: skip
    return figure


def _checked(
    data: xarray.DataArray, order: tuple[str, ...], low: xarray.DataArray | None, high: xarray.DataArray | None
) -> tuple[numpy.ndarray, list[numpy.ndarray]]:
    """`data`, and `low` and `high` if they are given, as [line, x]."""
    import numpy

    if (low is None) != (high is None):
        raise ShapeError("An interval needs both low and high.")
    y, ends = _ordered(data, order, data, "data"), []
    if low is not None and high is not None:
        ends = [_ordered(low, order, data, "low"), _ordered(high, order, data, "high")]
    if not y.size or any(numpy.isinf(values).any() for values in (y, *ends)):
        raise ShapeError("Curves need finite values, and at least one; got infinity or an empty array.")
    return y, ends


def _ordered(array: xarray.DataArray, order: tuple[str, ...], data: xarray.DataArray, name: str) -> numpy.ndarray:
    """`[line, x]` as float64."""
    ordered = style.ordered(array, order, data, name).astype(float)
    return ordered if len(order) == 2 else ordered[None]


def _points(data: xarray.DataArray, x: str, labels: Sequence[Any] | None) -> tuple[list[Any], list[str] | None]:
    """Where the points lie, and their names if they are named."""
    chosen = style.labels_along(data, x, labels, "x_labels")
    numeric = all(isinstance(label, int | float) and not isinstance(label, bool) for label in chosen)
    if numeric and labels is None:
        return chosen, None
    return list(range(len(chosen))), style.labels_of(chosen)


def _line_names(data: xarray.DataArray, line: str | None, labels: Sequence[Any] | None) -> list[str]:
    if line is None:
        return [style.plain(data.name or "value")]
    return [style.plain(label) for label in style.labels_along(data, line, labels, "line_labels")]


def _look(index: int, points: int) -> dict[str, Any]:
    """Colour, dash and symbol of a line, so that it is also told apart in grey."""
    colour = style.LINES[index % len(style.LINES)]
    return {
        "line": {"color": colour, "width": 2, "dash": _DASHES[index // len(style.LINES) % len(_DASHES)]},
        "marker": {
            "size": 6 if points <= 40 else 3,
            "symbol": _SYMBOLS[index % len(_SYMBOLS)],
            "color": colour,
        },
    }


def _curve(
    at: list[Any],
    names: list[str] | None,
    y: numpy.ndarray,
    interval: tuple[numpy.ndarray, numpy.ndarray] | None,
    name: str,
    bars: bool,
    look: dict[str, Any],
    about: tuple[str, str],
) -> Any:
    from plotly import graph_objects

    x_name, unit = style.plain(style.axis_name(about[0])), style.plain(about[1])
    texts = []
    for index, value in enumerate(y):
        text = f"{name}<br>{x_name} {names[index] if names else f'{at[index]:g}'}<br><b>{value:.4g}</b> {unit}"
        if interval and interval[0][index] == interval[0][index]:
            text += f"<br>interval {interval[0][index]:.4g} to {interval[1][index]:.4g}"
        texts.append(text)
    error = None
    if interval and bars:
        error = {
            "type": "data",
            "symmetric": False,
            "array": interval[1] - y,
            "arrayminus": y - interval[0],
            "thickness": 1.2,
            "width": 3,
            "color": look["line"]["color"],
        }
    return graph_objects.Scatter(
        x=at,
        y=y,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        hovertext=texts,
        hoverinfo="text",
        error_y=error,
        **look,
    )


def _bands(
    at: list[Any], y: numpy.ndarray, low: numpy.ndarray, high: numpy.ndarray, colour: str, name: str
) -> list[Any]:
    """One filled polygon per unbroken stretch of points that have an interval."""
    import numpy
    from plotly import graph_objects

    known = numpy.flatnonzero(~(numpy.isnan(y) | numpy.isnan(low) | numpy.isnan(high)))
    stretches = numpy.split(known, numpy.flatnonzero(numpy.diff(known) > 1) + 1)
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    xs = numpy.asarray(at, dtype=float)
    return [
        graph_objects.Scatter(
            x=numpy.concatenate([xs[part], xs[part][::-1]]),
            y=numpy.concatenate([high[part], low[part][::-1]]),
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.16)",
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
            name=name,
        )
        for part in stretches
        if len(part)
    ]


def _axes(figure: Any, at: list[Any], names: list[str] | None, x_title: str, y_title: str, turned: bool) -> None:
    common = {
        "showline": True,
        "linecolor": "#888888",
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#888888",
        "zeroline": False,
        "automargin": True,
    }
    figure.update_xaxes(**common, showgrid=False, title={"text": style.plain(x_title), "standoff": 10})
    figure.update_yaxes(**common, gridcolor="#ececec", title={"text": style.plain(y_title), "standoff": 10})
    if names is not None:
        figure.update_xaxes(
            tickmode="array",
            tickvals=at,
            ticktext=names,
            tickangle=-45 if turned else 0,
            range=[-0.5, len(at) - 0.5],
        )
