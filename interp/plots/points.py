"""Points: two numbers of many things, each with its name under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.errors import ShapeError
from interp.plots import style

if TYPE_CHECKING:
    import plotly.graph_objects
    import xarray


def points(
    across: xarray.DataArray,
    up: xarray.DataArray,
    *,
    title: str,
    x: str,
    y: str,
    names: Sequence[str],
    log_x: bool = False,
) -> plotly.graph_objects.Figure:
    """One point for each entry of two variables over the same dimension.

    Args:
        across: where a point lies horizontally; points without a number are left out.
        up: where vertically.
        title: what is shown, in one sentence; plain text.
        x: name of the horizontal axis; y: of the vertical one; plain text.
        names: of the points; plain text.
        log_x: whether the horizontal axis is logarithmic; numbers of 0 and below are then left out.

    Raises:
        ShapeError: variables that are not over the same one dimension, or another number of names.
    """
    from plotly import graph_objects

    if across.ndim != 1 or across.dims != up.dims or across.shape != up.shape or len(names) != len(across):
        raise ShapeError(
            f"Points need two variables over one dimension and a name for each; got {across.dims} of "
            f"{across.shape}, {up.dims} of {up.shape} and {len(names)} names."
        )
    figure = graph_objects.Figure(
        graph_objects.Scatter(
            x=across.values.tolist(), y=up.values.tolist(), mode="markers", text=[style.plain(name) for name in names],
            hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
            marker={"size": 6, "color": style.LINES[0], "opacity": 0.6},
        )
    )  # fmt: skip
    width = 620
    style.dress(figure, title, width, 420 + style.title_height(title, width) - 50)
    figure.update_xaxes(title_text=style.plain(x), type="log" if log_x else "linear")
    figure.update_yaxes(title_text=style.plain(y))
    figure.update_layout(margin={"l": 72, "r": 24, "t": style.title_height(title, width), "b": 60})
    return figure
