"""How every figure looks, and how text enters one safely.

Plotly reads a small HTML (`<b>`, `<br>`, `<a href>`), entities and TeX (`$…$`) in titles, ticks and hovers.
A token may contain any of these, so all text that is not ours passes through `plain`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import ShapeError

if TYPE_CHECKING:
    import numpy
    import plotly.graph_objects
    import xarray

DIVERGING = (
    (0.0, "#053061"), (0.1, "#2166ac"), (0.2, "#4393c3"), (0.3, "#92c5de"), (0.4, "#d1e5f0"),
    (0.5, "#ffffff"),
    (0.6, "#fddbc7"), (0.7, "#f4a582"), (0.8, "#d6604d"), (0.9, "#b2182b"), (1.0, "#67001f"),
)  # fmt: skip
"""RdBu of ColorBrewer, reversed, white in the middle: blue below, red above; the colour-blind can read it."""

SEQUENTIAL = (
    (0.0, "#ffffff"), (0.125, "#deebf7"), (0.25, "#c6dbef"), (0.375, "#9ecae1"), (0.5, "#6baed6"),
    (0.625, "#4292c6"), (0.75, "#2171b5"), (0.875, "#08519c"), (1.0, "#08306b"),
)  # fmt: skip
"""ColorBrewer's Blues, from white."""

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

INK, FAINT, MISSING = "#222222", "#d9d9d9", "#e4e4e4"
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_WHITE_SPACE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_LONGEST = 28


def plain(text: object) -> str:
    """`text` so that plotly shows it letter for letter: `&`, `<`, `>` and `$` as entities."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("$", "&#36;")


def token_label(token: object) -> str:
    r"""A token for an axis or hover, escaped, with white space at its ends and control characters visible.

    `" Mary"` becomes `"␣Mary"`, a line break `"↵"`, NUL `"\x00"`, the empty string `"∅"`; more than
    28 letters are cut with `…`.
    """
    text = str(token)
    core = text.strip(" ")
    start = len(text) - len(text.lstrip(" ")) if core else len(text)
    text = "␣" * start + core + "␣" * (len(text) - start - len(core))
    text = "".join(_visible(letter) for letter in text) or "∅"
    return plain(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _visible(letter: str) -> str:
    if letter in _WHITE_SPACE and letter != " ":
        return _WHITE_SPACE[letter]
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def wrapped(text: str, pixels: int, size: int) -> str:
    """`text`, escaped, broken into even lines that fit into `pixels`; a letter is half as wide as `size`."""
    most = max(12, int(pixels / (0.52 * size)))
    count = len(textwrap.wrap(text, most, break_on_hyphens=False))
    lines = [""]
    longest = min(most, max((len(word) for word in text.split()), default=1))  # words stay whole where they fit
    for letters in range(max(longest, len(text) // max(count, 1)), most + 1):  # the narrowest with as few lines
        lines = textwrap.wrap(text, letters, break_on_hyphens=False) or [""]
        if len(lines) <= max(count, 1):
            break
    return "<br>".join(plain(line) for line in lines)


def labels_of(labels: Sequence[Any]) -> list[str]:
    """Axis labels, escaped: strings as tokens, numbers as they are."""
    return [token_label(label) if isinstance(label, str) else plain(label) for label in labels]


def labels_along(data: xarray.DataArray, dim: str, labels: Sequence[Any] | None, argument: str) -> list[Any]:
    """`labels` of `dim`, or else its coordinate, or else 0, 1, …; as Python values.

    Raises:
        ShapeError: too few or too many labels.
    """
    count = data.sizes[dim]
    if labels is None:
        return data.indexes[dim].tolist() if dim in data.indexes else list(range(count))
    if len(labels) != count:
        raise ShapeError(f"{argument} has {len(labels)} labels, but {dim!r} has {count} entries.")
    return [label.item() if hasattr(label, "item") else label for label in labels]


def ordered(array: xarray.DataArray, order: Sequence[str], data: xarray.DataArray, argument: str) -> numpy.ndarray:
    """The values of `array` with the dimensions in `order`, which must be those, and the labels, of `data`.

    Raises:
        ShapeError: other dimensions, sizes or coordinates.
    """
    if set(array.dims) != set(order) or array.ndim != len(order):
        raise ShapeError(f"{argument} has dimensions {array.dims}; this figure needs exactly {tuple(order)}.")
    if dict(array.sizes) != dict(data.sizes):
        raise ShapeError(f"{argument} has sizes {dict(array.sizes)}, data {dict(data.sizes)}; they must agree.")
    for dim in order:
        if dim in array.indexes and dim in data.indexes and not array.indexes[dim].equals(data.indexes[dim]):
            raise ShapeError(f"{argument} and data have different coordinates along {dim!r}.")
    return array.transpose(*order).values


def axis_name(dim: str) -> str:
    """A dimension in words."""
    return {"pos": "position", "query": "query position", "key": "key position", "window": "denoising steps"}.get(
        dim, dim.replace("_", " ")
    )


def seen_width(label: str) -> int:
    """How many letters of an escaped label are seen."""
    for entity in ("&amp;", "&lt;", "&gt;", "&#36;"):
        label = label.replace(entity, "x")
    return len(label)


def dress(figure: plotly.graph_objects.Figure, title: str, width: int, height: int) -> None:
    """Give `figure` the common look: white ground, dark ink, the title at the upper left."""
    lines = wrapped(title, width - 40, 16).count("<br>") + 1  # plotly lifts a title of several lines
    figure.update_xaxes(title_font_size=14)
    figure.update_yaxes(title_font_size=14)
    figure.update_layout(
        template="none",
        title={
            "text": wrapped(title, width - 40, 16),
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 16, "t": 14 + 12 * (lines - 1)},
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "font": {"size": 16},
        },
        font={"family": _FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        width=width,
        height=height,
        hoverlabel={
            "bgcolor": "white",
            "bordercolor": FAINT,
            "font": {"family": _FONT, "color": INK},
            "align": "left",
        },
    )


def without_controls(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    """`figure` without sliders and menus, and without the room below that `layout.meta.controls` says they take."""
    if not figure.layout.sliders and not figure.layout.updatemenus:
        return figure
    from plotly.graph_objects import Figure

    room = (figure.layout.meta or {}).get("controls", 0)
    still = Figure(figure)
    still.layout.sliders, still.layout.updatemenus = (), ()
    if room:
        still.update_layout(height=figure.layout.height - room, margin_b=figure.layout.margin.b - room)
    return still


def title_height(title: str, width: int) -> int:
    """Pixels that the title takes."""
    return 30 + 20 * (wrapped(title, width - 40, 16).count("<br>") + 1)
