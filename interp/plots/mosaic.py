"""Pictures side by side: a row for each condition or unit, every picture as large as can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import numpy
    import plotly.graph_objects

_SIDE = 96  # pixels of the figure that a picture takes
_GAP = 6


def mosaic(pictures: numpy.ndarray, labels: Sequence[str], title: str) -> plotly.graph_objects.Figure:
    """Rows of RGB pictures, uint8 [row, column, y, x, rgb], each row with a label at its left.

    Raises:
        ShapeError: not uint8 pictures in rows, or labels that are not as many as rows.
    """
    import numpy as np
    from plotly import graph_objects

    if pictures.ndim != 5 or pictures.dtype != np.uint8 or pictures.shape[-1] != 3 or len(labels) != len(pictures):
        raise ShapeError(
            f"A mosaic takes uint8 pictures [row, column, y, x, 3] and a label per row; got {pictures.dtype} "
            f"{pictures.shape} and {len(labels)} labels."
        )
    rows, columns, height, width, _ = pictures.shape
    zoom = max(1, _SIDE // max(height, width))
    large = pictures.repeat(zoom, 2).repeat(zoom, 3)
    high, wide = height * zoom + _GAP, width * zoom + _GAP
    canvas = np.full((rows * high, columns * wide, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * high, column * wide
            canvas[top : top + height * zoom, left : left + width * zoom] = large[row, column]
    figure = graph_objects.Figure(graph_objects.Image(z=canvas, hoverinfo="skip"))
    margin = 24 + 7 * max(len(label) for label in labels)
    total = max(420, canvas.shape[1] + margin + 20)
    top = style.title_height(title, total)
    style.dress(figure, title, total, canvas.shape[0] + top + 24)
    figure.update_layout(margin={"l": margin, "r": total - margin - canvas.shape[1], "t": top, "b": 20})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(
        tickvals=[row * high + (high - _GAP) / 2 for row in range(rows)],
        ticktext=[style.plain(label) for label in labels], ticks="", showgrid=False, zeroline=False,
    )  # fmt: skip
    return figure
