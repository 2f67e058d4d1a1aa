"""The traces of a circuit's picture (`interp.plots.circuit`), from where its boxes and edges are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.plots import style
from interp.plots.circuit import Edge
from interp.plots.circuit_layout import Box, Layout, box_name, lay_out

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

STEPS = (5, 10, 20, 50, 100, 200, 500)
"""Numbers of edges that the slider offers."""
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
_FILLS = {"head": "#ffffff", "group": "#efefef", "mlp": "#fbeed5", "input": "#e6e6e6", "logits": "#e6e6e6"}
_LEGEND, _SLIDER = 150, 72
"""Room on the right, and below."""


def drawn(edges: Sequence[Edge], title: str, unit: str, group: int, quantity: str) -> Figure:
    """The figure of `circuit_graph`."""
    from plotly import graph_objects

    ranked = sorted(edges, key=lambda edge: -abs(edge.score))
    layout = lay_out(ranked, group)
    shown = [*(step for step in STEPS if step < len(ranked)), len(ranked)]
    traces = [*_edges(layout, unit, style.plain(quantity)), *_links(layout), *_boxes(layout, shown, unit)]
    legend = _legend(ranked)
    figure = graph_objects.Figure([trace for _, trace in traces] + legend)
    _dress(figure, layout, title, f"{quantity} ({unit})" if unit else quantity, slider=len(shown) > 2)
    if len(shown) > 2:
        figure.update_layout(sliders=[_slider([first for first, _ in traces] + [0] * len(legend), shown)])
    return figure


def _edges(layout: Layout, unit: str, quantity: str) -> list[tuple[int, Scatter]]:
    """Rank and line of every edge, the strongest last and so on top."""
    from plotly.graph_objects import Scatter

    largest, count = abs(layout.edges[0].score) or 1.0, len(layout.edges)
    traces = []
    for rank, (edge, path) in enumerate(zip(layout.edges, layout.paths, strict=True)):
        share = (abs(edge.score) / largest) ** 0.5
        tip = np.append(np.zeros(len(path) - 1), 4 + 5 * share)
        look = {"symbol": "triangle-up", "size": tip, "color": _colour(edge.score), "opacity": 1, "line": {"width": 0}}
        text = f"{style.plain(_ends(edge))}<br>{_amount(edge, unit)}<br>{rank + 1} of {count} by |{quantity}|"
        line = Scatter(
            x=path[:, 0].round(1), y=path[:, 1].round(1), mode="lines+markers", line=_line(edge.score, largest),
            marker=look, opacity=0.35 + 0.6 * share, hoverinfo="text", hovertext=text, showlegend=False,
        )  # fmt: skip
        traces.append((rank, line))
    return traces[::-1]


def _ends(edge: Edge) -> str:
    name, _, port = edge.receiver.partition("<")
    into = {"q": ", query", "k": ", key", "v": ", value"}.get(port[:1], "")
    return f"{edge.sender} → {name}{into}"


def _amount(edge: Edge, unit: str) -> str:
    error = f" ± {edge.error:.3g}" if np.isfinite(edge.error) else ""
    return f"<b>{_signed(edge.score)}</b>{error} {style.plain(unit)}".rstrip()


def _signed(score: float, digits: int = 3) -> str:
    return f"{score:+.{digits}g}".replace("-", "−")


def _colour(score: float) -> str:
    return POSITIVE if score >= 0 else NEGATIVE


def _line(score: float, largest: float) -> dict[str, Any]:
    return {"color": _colour(score), "width": 0.8 + 6 * (abs(score) / largest) ** 0.6}


def _links(layout: Layout) -> list[tuple[int, Scatter]]:
    from plotly.graph_objects import Scatter

    look = {"color": "#9a9a9a", "width": 1.2, "dash": "dot"}
    return [
        (
            max(layout.boxes[a].first, layout.boxes[b].first),
            Scatter(x=path[:, 0], y=path[:, 1], mode="lines", line=look, hoverinfo="skip", showlegend=False),
        )
        for a, b, path in layout.links
    ]


def _boxes(layout: Layout, shown: Sequence[int], unit: str) -> list[tuple[int, Scatter]]:
    """Outlines and names; those of one kind that come with the same step of the slider in one trace."""
    from plotly.graph_objects import Scatter

    traces = []
    for low, high in zip((0, *shown), shown, strict=False):
        for kind, fill in _FILLS.items():
            boxes = [box for box in layout.boxes.values() if box.kind == kind and low <= box.first < high]
            if not boxes:
                continue
            # A gap parts the outlines, which one trace fills one by one.
            points = np.concatenate([np.append(_outline(box), [[np.nan] * 2], 0) for box in boxes])[:-1]
            outlines = Scatter(
                x=points[:, 0].round(1), y=points[:, 1].round(1), mode="lines", fill="toself", fillcolor=fill,
                line={"color": "#777777" if kind != "group" else "#aaaaaa", "width": 1}, hoverinfo="skip",
                showlegend=False,
            )  # fmt: skip
            names = Scatter(
                x=[box.x for box in boxes], y=[box.y for box in boxes], mode="text", showlegend=False,
                text=[box.name.partition(".")[2] if kind == "group" else box.name for box in boxes],
                textfont={"size": 9 if kind == "group" else 11, "color": style.INK},
                hovertext=[_about(layout, box, unit) for box in boxes], hoverinfo="text",
            )  # fmt: skip
            traces += [(low, outlines), (low, names)]
    return traces


def _outline(box: Box) -> np.ndarray:
    """[point, 2] of a rectangle with round corners."""
    radius = 5.0
    turns = np.linspace(0, np.pi / 2, 5)
    corners = []
    for quarter, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        angle = turns + quarter * np.pi / 2
        centre = [box.x + sx * (box.width / 2 - radius), box.y + sy * (box.height / 2 - radius)]
        corners.append(centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1))
    points = np.concatenate(corners)
    return np.concatenate([points, points[:1]])


def _about(layout: Layout, box: Box, unit: str) -> str:
    """What the pointer says about a box: its strongest edges in and out."""
    what = {"head": "attention head", "group": "key and value that heads share", "mlp": "MLP", "input": "embedding"}
    lines = [f"<b>{style.plain(box.name)}</b> {what.get(box.kind, 'final norm')}"]
    for word, edges in (
        ("in", [edge for edge in layout.edges if box_name(edge.receiver) == box.name]),
        ("out", [edge for edge in layout.edges if edge.sender == box.name]),
    ):
        if edges:
            lines.append(f"{len(edges)} {word}, sum {_signed(sum(edge.score for edge in edges))} {style.plain(unit)}")
            lines += [f"  {style.plain(_ends(edge))} {_signed(edge.score)}" for edge in edges[:5]]
    return "<br>".join(lines)


def _legend(ranked: Sequence[Edge]) -> list[Scatter]:
    """What widths and colours mean: the strongest edge of either sign, and a tenth of it."""
    from plotly.graph_objects import Scatter

    largest = abs(ranked[0].score) or 1.0
    tops = [max((edge.score * sign for edge in ranked), default=0.0) * sign for sign in (1, -1)]
    scores = [top * share for sign, top in zip((1, -1), tops, strict=True) if top * sign > 0 for share in (1, 0.1)]
    look = {"x": [None], "y": [None], "mode": "lines", "hoverinfo": "skip"}
    return [Scatter(**look, line=_line(score, largest), name=_signed(score, 2)) for score in scores]


def _dress(figure: Figure, layout: Layout, title: str, name: str, slider: bool) -> None:
    """Size, axes, bands of the layers and legend."""
    (left, right), (low, high) = layout.span
    across, middle = max(right - left, 400), (left + right) / 2
    margin = {"l": 52, "r": _LEGEND, "b": 16 + (_SLIDER if slider else 0)}
    width = int(across + margin["l"] + margin["r"])
    margin["t"] = style.title_height(title, width) + 6
    style.dress(figure, title, width, int(high - low) + margin["t"] + margin["b"])
    figure.update_xaxes(visible=False, range=[middle - across / 2, middle + across / 2])
    figure.update_yaxes(
        range=[low, high], showgrid=False, zeroline=False, ticks="", title={"text": "layer", "standoff": 8},
        tickvals=[sum(band) / 2 for band in layout.bands.values()], ticktext=[str(layer) for layer in layout.bands],
        tickfont={"size": 11, "color": "#666666"}, side="left",
    )  # fmt: skip
    for number, (low, high) in enumerate(layout.bands.values()):
        if number % 2 == 0:
            figure.add_shape(
                type="rect", x0=0, x1=1, xref="paper", y0=low, y1=high, fillcolor="#f7f7f7", line_width=0, layer="below"
            )
    figure.update_layout(
        margin=margin, hovermode="closest", hoverdistance=16, showlegend=True, dragmode="pan",
        meta={"controls": _SLIDER if slider else 0},
        legend={
            "title": {"text": style.plain(name), "font": {"size": 12}}, "font": {"size": 12},
            "x": 1.01, "y": 1, "itemclick": False, "itemdoubleclick": False,
        },
    )  # fmt: skip


def _slider(firsts: Sequence[int], shown: Sequence[int]) -> dict[str, Any]:
    """Leaves the strongest edges, and the boxes at their ends."""
    steps = [
        {
            "label": str(count),
            "method": "restyle",
            "args": [{"visible": [first < count for first in firsts]}],
        }
        for count in shown
    ]
    return {
        "steps": steps, "active": len(steps) - 1, "x": 0, "len": 1, "y": 0, "pad": {"t": 26, "b": 6},
        "currentvalue": {"prefix": "strongest edges: ", "font": {"size": 12}}, "font": {"size": 11},
        "bgcolor": "#e9e9e9", "bordercolor": "#d9d9d9", "ticklen": 3, "minorticklen": 0,
    }  # fmt: skip
