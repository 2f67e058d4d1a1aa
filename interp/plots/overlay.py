"""Maps over a picture: where in it something is, one panel per map.

The picture stands first, in colour. Under each map it is grey and faint, so that the map's one hue is not taken for a
colour of the picture. The map keeps its own cells: nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import numpy
    import plotly.graph_objects
    import xarray

_INK = ((0.0, "rgba(122, 1, 119, 0)"), (1.0, "rgba(122, 1, 119, 0.9)"))
"""A purple of ColorBrewer's RdPu that fades out."""
_BAR = {"thickness": 10, "len": 140, "lenmode": "pixels", "y": 1, "yanchor": "top", "nticks": 4, "outlinewidth": 0}
_PANEL, _GAP, _HEAD = 132, 14, 24
"""Pixels of a panel's side, between panels, and of a panel's title."""
_SIDE = 70
"""Pixels to the right, for the colour bar."""


def overlays(
    picture: numpy.ndarray,
    maps: xarray.DataArray,
    *,
    names: Sequence[str],
    title: str,
    unit: str,
    columns: int = 6,
) -> plotly.graph_objects.Figure:
    """One panel per map, on one scale from zero to the largest value of all; a panel's title states its own largest.

    Args:
        picture: RGB bytes [y, x, 3].
        maps: [panel, y, x], not negative; any grid that covers the picture.
        names: one per map; shown as tokens.
        title: what was measured, in one sentence; plain text.
        unit: of the maps, for the hover.
        columns: panels in a row.

    Raises:
        ShapeError: a picture that is not RGB bytes, maps that are not [panel, y, x], are negative or not finite, or as
            many names as there are no maps.
    """
    import numpy
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != numpy.uint8:
        raise ShapeError(f"A picture is RGB bytes [y, x, 3]; got {picture.dtype} {list(picture.shape)}.")
    values = numpy.asarray(maps.values, dtype=float)
    if values.ndim != 3 or len(names) != len(values):
        raise ShapeError(f"{len(names)} names for maps of shape {list(values.shape)}; they are [panel, y, x].")
    if not (numpy.isfinite(values).all() and (values >= 0).all()):
        raise ShapeError("Maps over a picture are finite and not negative.")
    height, width = picture.shape[:2]
    count = len(values) + 1
    columns = min(columns, count)
    rows = -(-count // columns)
    heads = ["picture", *(f"{style.token_label(n)} · {v.max():.2g}" for n, v in zip(names, values, strict=True))]
    panel = _PANEL * height / width
    inner = (columns * (_PANEL + _GAP) - _GAP, rows * (panel + _HEAD) - _HEAD)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=heads,
        horizontal_spacing=_GAP / inner[0], vertical_spacing=_HEAD / inner[1] if rows > 1 else 0.0,
    )  # fmt: skip
    scale = float(values.max(initial=0)) or 1.0
    grey = (255 - (255 - picture.mean(-1, keepdims=True)) * 0.4).round().astype(numpy.uint8).repeat(3, -1)
    for number in range(count):
        row, column = number // columns + 1, number % columns + 1
        ground = graph_objects.Image(z=picture if number == 0 else grey, hoverinfo="skip")
        figure.add_trace(ground, row=row, col=column)
        if number:
            z = values[number - 1]
            dy, dx = height / z.shape[0], width / z.shape[1]  # pixel i covers i − 0.5 to i + 0.5
            heat = graph_objects.Heatmap(
                z=z, x0=dx / 2 - 0.5, dx=dx, y0=dy / 2 - 0.5, dy=dy, zmin=0, zmax=scale,
                colorscale=_INK, showscale=number == 1, colorbar=_BAR, name=heads[number],
                hovertemplate=f"%{{z:.4f}} {style.plain(unit)}<extra>{heads[number]}</extra>",
            )  # fmt: skip
            figure.add_trace(heat, row=row, col=column)
    figure.update_xaxes(visible=False, range=[-0.5, width - 0.5], constrain="domain")
    figure.update_yaxes(visible=False, range=[height - 0.5, -0.5], constrain="domain")
    total = inner[0] + 20 + _SIDE
    head = style.title_height(title, total) + _HEAD
    style.dress(figure, title, total, int(inner[1]) + head + 16)
    figure.update_layout(margin={"l": 20, "r": _SIDE, "t": head, "b": 16})
    figure.update_annotations(font_size=12)
    return figure
