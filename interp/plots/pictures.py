"""Grids of pictures: what was asked for, what came out, and where two of them differ."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import numpy
    import plotly.graph_objects

_SIDE = 104
"""Layout pixels of a picture's shorter side."""
_GAP = 10


def picture_grid(
    columns: Mapping[str, Any],
    *,
    rows: Sequence[str],
    title: str,
    difference: tuple[str, str] | None = None,
) -> plotly.graph_objects.Figure:
    """Pictures side by side, one column per condition, one row per example.

    Args:
        columns: from each column's heading to its pictures, uint8 [row, y, x, rgb], all of one size.
        rows: names of the examples; plain text.
        title: what is shown, in one sentence; plain text.
        difference: two headings; a last column shows how much each pixel differs between them, as the largest
            difference of its three colours, white for none and black for the full range.

    Raises:
        ShapeError: no pictures, pictures of unlike shapes or other numbers than 0 to 255, names of another number, a
            heading that is none.
    """
    import numpy
    from plotly import graph_objects

    arrays = {name: numpy.asarray(pictures) for name, pictures in columns.items()}
    shapes = {array.shape for array in arrays.values()}
    if (
        len(shapes) != 1
        or len(next(iter(shapes))) != 4
        or {array.dtype for array in arrays.values()} != {numpy.dtype("uint8")}
    ):
        found = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
        raise ShapeError(f"A grid of pictures needs uint8 [row, y, x, rgb], the same of every column; got {found}.")
    count, height, width, _ = next(iter(shapes))
    if len(rows) != count:
        raise ShapeError(f"{len(rows)} names for {count} rows of pictures.")
    if difference is not None:
        if missing := [name for name in difference if name not in arrays]:
            raise ShapeError(f"There is no column {missing[0]!r} to compare; the columns are {', '.join(arrays)}.")
        one, other = (arrays[name].astype(int) for name in difference)
        change = (255 - numpy.abs(one - other).max(-1)).astype(numpy.uint8)
        arrays[f"|{difference[0]} − {difference[1]}|"] = numpy.repeat(change[..., None], 3, axis=-1)

    scale = _SIDE / min(height, width)
    cell_x, cell_y = width * scale, height * scale
    row_names = [style.wrapped(name, 150, 12) for name in rows]
    heads = [style.wrapped(name, int(cell_x), 12) for name in arrays]
    left = 24 + 6.6 * max(len(line) for name in row_names for line in name.split("<br>"))
    plot_x, plot_y = len(arrays) * (cell_x + _GAP) - _GAP, count * (cell_y + _GAP) - _GAP
    page = int(max(420, left + plot_x + 24))
    top = style.title_height(title, page) + 16 * max(head.count("<br>") + 1 for head in heads)
    figure = graph_objects.Figure()
    style.dress(figure, title, page, int(top + plot_y + 20))
    for column, (array, head) in enumerate(zip(arrays.values(), heads, strict=True)):
        x = column * (cell_x + _GAP) + cell_x / 2
        figure.add_annotation(
            x=x / plot_x, y=1, xref="paper", yref="paper", text=head, showarrow=False, font={"size": 12},
            xanchor="center", yanchor="bottom", yshift=2,
        )  # fmt: skip
        for row, picture in enumerate(array):
            figure.add_layout_image(
                source=as_uri(picture, max(1, round(2 * scale))), xref="x", yref="y", sizing="stretch",
                x=x - cell_x / 2, y=plot_y - row * (cell_y + _GAP), sizex=cell_x, sizey=cell_y,
            )  # fmt: skip
            corner = {"x0": x - cell_x / 2, "x1": x + cell_x / 2}
            bottom = plot_y - row * (cell_y + _GAP) - cell_y
            figure.add_shape(
                type="rect", **corner, y0=bottom, y1=bottom + cell_y, line={"width": 1, "color": "#888888"}
            )
    for row, name in enumerate(row_names):
        y = plot_y - row * (cell_y + _GAP) - cell_y / 2
        figure.add_annotation(
            x=0, y=y / plot_y, xref="paper", yref="paper", text=name, showarrow=False, font={"size": 12},
            xanchor="right", yanchor="middle", align="right", xshift=-8,
        )  # fmt: skip
    figure.update_xaxes(visible=False, range=[0, plot_x], fixedrange=True)
    figure.update_yaxes(visible=False, range=[0, plot_y], fixedrange=True)
    margin = {"l": left, "r": page - left - plot_x, "t": top, "b": 20, "autoexpand": False}
    figure.update_layout(margin=margin, showlegend=False)
    return figure


def as_uri(picture: numpy.ndarray, times: int) -> str:
    """A picture as an embedded PNG, every pixel `times` as large, so that no viewer smooths it."""
    from PIL import Image

    image = Image.fromarray(picture)
    buffer = BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
