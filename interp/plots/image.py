"""A figure as a picture file, drawn offline by kaleido."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from threading import Timer
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.plots.style import without_controls
from interp.results import replacing

if TYPE_CHECKING:
    import plotly.graph_objects

LIMIT = 120.0
"""Seconds that the renderer has for one picture."""


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
        InterpError: kaleido is missing, could not draw, or did not answer.
        OSError: the file cannot be written.
    """
    figure = without_controls(figure)
    settings = {"format": "png", "width": width, "height": height, "scale": scale}
    try:
        try:
            drawn = _drawn(figure, settings)
        except _SilentError:  # a new renderer starts with the next call
            drawn = _drawn(figure, settings)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        raise InterpError(
            f"The figure could not be drawn as PNG: {error}. This needs kaleido "
            "(`pip install kaleido==0.2.1`); interp.plots.write_report needs nothing."
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(drawn)


class _SilentError(RuntimeError):
    """The renderer did not answer."""


def _drawn(figure: plotly.graph_objects.Figure, settings: Mapping[str, Any]) -> bytes:
    """The picture's bytes. Kaleido waits for its renderer without a limit; here the renderer is ended at `LIMIT`."""
    ended: list[int] = []
    timer = Timer(LIMIT, _end_renderer, [ended])
    timer.daemon = True
    timer.start()
    try:
        with warnings.catch_warnings():  # plotly announces the end of kaleido 0.2, the last that needs no Chrome
            warnings.simplefilter("ignore", DeprecationWarning)
            return figure.to_image(**settings)
    except (ValueError, RuntimeError, OSError) as error:
        if ended:
            raise _SilentError(f"the renderer did not answer in {LIMIT:.0f} seconds") from error
        raise
    finally:
        timer.cancel()


def _end_renderer(ended: list[int]) -> None:
    """Kill kaleido's process and what it has started; appends its number."""
    import psutil
    from plotly.io import kaleido

    process = getattr(getattr(kaleido, "scope", None), "_proc", None)
    if process is None:
        return
    ended.append(process.pid)
    try:
        renderer = psutil.Process(process.pid)
        family = [*renderer.children(recursive=True), renderer]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
