"""Heat maps: one value per cell, such as the effect of patching each layer at each token.

Effects get a diverging scale centred on zero, the same distance to both sides, so that white is "nothing" and
colours compare; quantities without a natural middle (probabilities) get a sequential one. Cells are placed
by index and only labelled with their tokens, so a token that occurs twice keeps two columns. Grey cells were
not measured. A cell whose adjusted p is at most 0.05 carries a dot; if none does, the figure says so.
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

_ALPHA = 0.05


def heatmap(
    data: xarray.DataArray,
    *,
    x: str,
    y: str,
    title: str,
    unit: str,
    x_labels: Sequence[Any] | None = None,
    y_labels: Sequence[Any] | None = None,
    low: xarray.DataArray | None = None,
    high: xarray.DataArray | None = None,
    p: xarray.DataArray | None = None,
    zmid: float = 0.0,
    marks: xarray.DataArray | None = None,
    diverging: bool = True,
    facet: str | None = None,
    dots: bool = True,
) -> plotly.graph_objects.Figure:
    """A heat map of `data` with y = 0 at the bottom; with `facet`, one panel per entry, side by side.

    Args:
        data: exactly the dimensions `x`, `y` (and `facet`); NaN means not measured, and is drawn grey.
        x: dimension along the horizontal axis, also its name there.
        y: dimension along the vertical axis, also its name there.
        title: what was measured, in one sentence; plain text.
        unit: unit of `data`, for the colour bar and hover.
        x_labels: one per column, by default the coordinate `x` or 0, 1, …; strings are shown as tokens.
        y_labels: one per row, likewise.
        low: lower end of each value's interval, for the hover; same dimensions as `data`.
        high: upper end.
        p: adjusted p of each value, for the hover and the dots.
        zmid: the value that is white; only with `diverging`.
        marks: True where a cell is to be outlined.
        diverging: blue below `zmid`, red above, at one scale; otherwise white to dark blue from the smallest
            to the largest value (from 0 where all lie between 0 and 1).
        facet: dimension of the panels, which share the colour scale.
        dots: whether cells with p of at most 0.05 get a small dot.

    Raises:
        ShapeError: dimensions or sizes that do not fit together, labels of the wrong number, or infinite
            values.
    """
    import numpy
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    order = ((facet,) if facet else ()) + (y, x)
    layers = {"data": data, "low": low, "high": high, "p": p, "marks": marks}
    arrays = {name: style.ordered(array, order, data, name) for name, array in layers.items() if array is not None}
    if not facet:
        arrays = {name: array[None] for name, array in arrays.items()}
    z = arrays["data"].astype(float)
    if not z.size or numpy.isinf(z).any():
        raise ShapeError(f"A heat map needs finite values; got {z.size} with {int(numpy.isinf(z).sum())} infinite.")
    panels, rows, columns = z.shape
    x_text = style.labels_of(style.labels_along(data, x, x_labels, "x_labels"))
    y_text = style.labels_of(style.labels_along(data, y, y_labels, "y_labels"))
    heads = []
    if facet:
        names = style.labels_of(style.labels_along(data, facet, None, "facet"))
        heads = [f"{style.plain(style.axis_name(facet))} {name}" for name in names]

    size = _sizes(panels, x_text, y_text, title)
    figure = make_subplots(
        rows=1,
        cols=panels,
        shared_yaxes=True,
        subplot_titles=heads or None,
        horizontal_spacing=size["gap"] / size["inner"] if panels > 1 else 0.0,
    )
    for panel in range(panels):
        chosen = {name: array[panel] for name, array in arrays.items()}
        figure.add_trace(
            graph_objects.Heatmap(
                z=z[panel],
                x=numpy.arange(columns),
                y=numpy.arange(rows),
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hovertext=_hover(chosen, (x, x_text), (y, y_text), unit, heads[panel] if heads else ""),
                hoverinfo="text",
                name=heads[panel] if heads else style.plain(unit),
            ),
            row=1,
            col=panel + 1,
        )
        if dots and p is not None:
            figure.add_trace(_dots(numpy.argwhere(chosen["p"].astype(float) <= _ALPHA)), row=1, col=panel + 1)
        if marks is not None:
            figure.add_trace(_frames(numpy.argwhere(chosen["marks"].astype(bool))), row=1, col=panel + 1)

    style.dress(figure, title, size["width"], size["height"])
    notes = []
    if dots and p is not None:
        found = bool((arrays["p"].astype(float) <= _ALPHA).any())
        notes.append(f"dot: adjusted p ≤ {_ALPHA}" if found else f"no cell has an adjusted p ≤ {_ALPHA}")
    notes += ["grey: not measured"] if numpy.isnan(z).any() else []
    _axes(figure, (x, x_text), (y, y_text), size, " · ".join(notes))
    figure.update_layout(coloraxis=_colours(z, zmid, diverging, unit, size["plot_height"]))
    return figure


_FRAME = ((-0.5, -0.5, 0.5, -0.5), (0.5, -0.5, 0.5, 0.5), (0.5, 0.5, -0.5, 0.5), (-0.5, 0.5, -0.5, -0.5))


def _sizes(panels: int, x_text: list[str], y_text: list[str], title: str) -> dict[str, Any]:
    """Pixels of the parts: cells of a readable size, within the limits of a page."""
    rows, columns, letter = len(y_text), len(x_text), 7.4
    widest = max(map(style.seen_width, x_text)) * letter
    cell_x = min(44.0, max(7.0, 560 / columns))
    step = max(1, -(-columns // 40)) if _numeric(x_text) else 1
    turn = 0 if widest + 4 <= cell_x * step else (-45 if cell_x * step >= 16 else -90)
    plot_width = max(220.0, cell_x * columns)
    plot_height = max(120.0, min(26.0, max(6.0, 430 / rows)) * rows)
    y_width = max(map(style.seen_width, y_text)) * letter
    left, right, gap = 56 + y_width, 134, 24.0
    inner = plot_width * panels + gap * (panels - 1)
    width = int(max(460, left + inner + right))
    x_height = {0: 18.0, -45: 14 + widest * 0.7, -90: 10 + widest}[turn]
    top = style.title_height(title, width) + (22 if panels > 1 else 0)
    bottom = x_height + 58
    return {
        "turn": turn,
        "step": step,
        "y_step": max(1, -(-rows // 32)),
        "gap": gap,
        "inner": inner,
        "left": left,
        "top": top,
        "bottom": bottom,
        "x_height": x_height,
        "y_width": y_width,
        "plot_height": plot_height,
        "width": width,
        "right": width - left - inner,
        "height": int(top + plot_height + bottom),
    }


def _numeric(labels: list[str]) -> bool:
    return all(label.lstrip("-").isdigit() for label in labels)


def _nice(step: int) -> int:
    return next((nice for nice in (1, 2, 5, 10, 20, 50, 100, 200, 500) if nice >= step), step)


def _ticks(labels: list[str], step: int) -> dict[str, Any]:
    chosen = range(0, len(labels), _nice(step) if _numeric(labels) else 1)
    return {"tickmode": "array", "tickvals": list(chosen), "ticktext": [labels[index] for index in chosen]}


def _axes(figure: Any, x: tuple[str, list[str]], y: tuple[str, list[str]], size: dict[str, Any], note: str) -> None:
    (x_name, x_text), (y_name, y_text) = x, y
    common = {
        "showgrid": False,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 3,
        "tickcolor": "#888888",
        "showline": True,
        "linecolor": "#888888",
        "mirror": True,
    }
    figure.update_xaxes(
        **common,
        **_ticks(x_text, size["step"]),
        tickangle=size["turn"],
        range=[-0.5, len(x_text) - 0.5],
        title={"text": style.plain(style.axis_name(x_name)), "standoff": 8},
    )
    figure.update_yaxes(
        **common,
        **_ticks(y_text, size["y_step"] if len(y_text) < 20 else max(2, size["y_step"])),
        range=[-0.5, len(y_text) - 0.5],
    )
    figure.update_yaxes(title={"text": style.plain(style.axis_name(y_name)), "standoff": 8}, col=1)
    figure.update_layout(
        plot_bgcolor=style.MISSING,
        showlegend=False,
        margin={
            "l": size["left"],
            "r": size["right"],
            "t": size["top"],
            "b": size["bottom"],
            "autoexpand": False,
        },
    )
    if note:
        figure.add_annotation(
            text=style.plain(note),
            xref="paper",
            yref="paper",
            x=1,
            y=0,
            xanchor="right",
            yanchor="top",
            yshift=-(size["x_height"] + 36),
            showarrow=False,
            font={"size": 11, "color": "#555555"},
        )


def _colours(z: numpy.ndarray, zmid: float, diverging: bool, unit: str, height: float) -> dict[str, Any]:
    import numpy

    present = z[~numpy.isnan(z)]
    smallest, largest = (present.min(), present.max()) if present.size else (0.0, 1.0)
    if diverging:
        reach = max(largest - zmid, zmid - smallest) or 1.0
        low, high, scale = zmid - reach, zmid + reach, style.DIVERGING
        sign = "<br>red +, blue −" if zmid == 0 else f"<br>red above {zmid:g}"
    else:
        is_share = smallest >= 0 and largest <= 1
        low, high = (0.0 if is_share else smallest), largest
        high = high if high > low else low + 1.0
        scale, sign = style.SEQUENTIAL, ""
    return {
        "colorscale": [list(stop) for stop in scale],
        "cmin": float(low),
        "cmax": float(high),
        "colorbar": {
            "title": {"text": style.wrapped(unit, 100, 12) + sign, "side": "top", "font": {"size": 12}},
            "thickness": 13,
            "outlinewidth": 0.5,
            "outlinecolor": "#888888",
            "tickfont": {"size": 12},
            "ticks": "outside",
            "ticklen": 3,
            "nticks": 7 if height > 200 else 5 if height > 140 else 3,
            "xpad": 12,
            "len": min(1.0, 300 / height),
            "y": 1,
            "yanchor": "top",
        },
    }


def _dots(cells: numpy.ndarray) -> Any:
    """A trace with a small dot in every (row, column) of `cells`."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        x=cells[:, 1],
        y=cells[:, 0],
        mode="markers",
        marker={"size": 5, "color": style.INK, "line": {"width": 1, "color": "#ffffff"}},
        hoverinfo="skip",
        name="adjusted p ≤ 0.05",
        showlegend=False,
    )


def _frames(cells: numpy.ndarray) -> Any:
    """A trace that outlines every (row, column) of `cells`; NaN lifts the pen."""
    import numpy
    from plotly import graph_objects

    corner_x = numpy.array([-0.5, 0.5, 0.5, -0.5, -0.5, numpy.nan])
    corner_y = numpy.array([-0.5, -0.5, 0.5, 0.5, -0.5, numpy.nan])
    return graph_objects.Scatter(
        x=(cells[:, 1, None] + corner_x).ravel(),
        y=(cells[:, 0, None] + corner_y).ravel(),
        mode="lines",
        line={"color": style.INK, "width": 1.8},
        hoverinfo="skip",
        name="marked",
        showlegend=False,
    )


def _hover(
    arrays: dict[str, numpy.ndarray], x: tuple[str, list[str]], y: tuple[str, list[str]], unit: str, head: str
) -> list[list[str]]:
    (x_name, x_text), (y_name, y_text) = x, y
    x_name, y_name = style.plain(style.axis_name(x_name)), style.plain(style.axis_name(y_name))
    unit, numbered = style.plain(unit), _numeric(x_text)

    def cell(row: int, column: int) -> str:
        value = float(arrays["data"][row, column])
        column_name = x_text[column] if numbered else f"{column}: {x_text[column]}"
        place = f"{y_name} {y_text[row]}, {x_name} {column_name}"
        lines = [
            f"{head}, {place}" if head else place,
            "not measured" if value != value else f"<b>{value:.4g}</b> {unit}",
        ]
        ends = [float(arrays[name][row, column]) for name in ("low", "high") if name in arrays]
        if len(ends) == 2:
            lines.append(f"interval {ends[0]:.4g} to {ends[1]:.4g}" if ends[0] == ends[0] else "no interval")
        if "p" in arrays:
            lines.append(f"adjusted p {float(arrays['p'][row, column]):.3g}")
        return "<br>".join(lines)

    return [[cell(row, column) for column in range(len(x_text))] for row in range(len(y_text))]
