"""Results in, plotly figures, pictures and reports out; models are never touched."""

from interp.plots.bars import bars
from interp.plots.browser import write_browser
from interp.plots.circuit import Edge, circuit_graph
from interp.plots.curves import curves, panels, trade_off
from interp.plots.heatmap import heatmap
from interp.plots.image import write_png
from interp.plots.overlay import overlays
from interp.plots.pictures import picture_grid
from interp.plots.points import points
from interp.plots.report import Section, report, write_report
from interp.plots.style import plain, token_label

__all__ = [
    "Edge", "Section", "bars", "circuit_graph", "curves", "heatmap", "overlays", "panels", "picture_grid", "plain",
    "points", "report", "token_label", "trade_off", "write_browser", "write_png", "write_report",
]  # fmt: skip
