"""A figure as a picture file, drawn offline by kaleido."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.plots.style import without_controls
from interp.results import replacing

if TYPE_CHECKING:
    import plotly.graph_objects


def write_png(
    figure: plotly.graph_objects.Figure,
    path: str | os.PathLike[str],
    width: int | None = None,
    height: int | None = None,
    scale: float = 2.0,
) -> None:
    """Write `figure` as a PNG file, atomically.

    Args:
        figure: any plotly figure; its sliders and menus, of no use in a picture, are left out.
        path: the file to write or replace; its folder must exist.
        width: in layout pixels; by default the figure's own.
        height: likewise.
        scale: picture pixels per layout pixel; 2 prints well at column width.

    Raises:
        InterpError: kaleido is missing or could not draw.
        OSError: the file cannot be written.
    """
    try:
        with warnings.catch_warnings():  # plotly announces the end of kaleido 0.2, the last that needs no Chrome
            warnings.simplefilter("ignore", DeprecationWarning)
            drawn = without_controls(figure).to_image(format="png", width=width, height=height, scale=scale)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        raise InterpError(
            f"The figure could not be drawn as PNG: {error}. This needs kaleido "
            "(`pip install kaleido==0.2.1`); interp.plots.write_report needs nothing."
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(drawn)
