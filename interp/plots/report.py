"""Reports: one HTML file with words, figures and tables, which opens anywhere without a network.

Plotly's script is inlined once. All text is escaped, so that a prompt that contains markup is read as a
prompt; the page's content policy forbids every connection, so that even a figure made elsewhere cannot load
anything.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.errors import InterpError
from interp.results import replacing

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


class Section(NamedTuple):
    """One part of a report.

    Attributes:
        heading: plain text.
        paragraphs: plain text; one of several lines is a result's words, whose columns stay aligned.
        content: a plotly figure (whose own strings must have passed `plain`), a table, or nothing.
        caption: plain text below the content.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    content: plotly.graph_objects.Figure | pandas.DataFrame | None = None
    caption: str = ""


def report(title: str, sections: Sequence[Section | tuple[Any, ...]]) -> str:
    """A self-contained HTML page.

    Args:
        title: plain text.
        sections: in reading order; plain tuples (heading, paragraphs, content) will do.

    Raises:
        InterpError: paragraphs given as one string, or content that is neither figure nor table.
    """
    parts = [_section(section, number) for number, section in enumerate(sections, start=1)]
    script = ""
    if any('class="figure"' in part for part in parts):
        from plotly.offline import get_plotlyjs

        local = 'window.PlotlyConfig = {MathJaxConfig: "local"};'
        script = f"<script>{local}</script><script>{get_plotlyjs()}</script>"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>",
            f"{script}\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>",
            *parts,
            "</main>\n</body>\n</html>\n",
        ]
    )


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section | tuple[Any, ...]]) -> None:
    """Write `report(title, sections)` to a file, atomically.

    Raises:
        InterpError: as `report`.
        OSError: the folder is missing or cannot be written.
    """
    page = report(title, sections)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _section(fields: tuple[Any, ...], number: int) -> str:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    section = Section(*fields)
    if isinstance(section.paragraphs, str):
        raise InterpError("paragraphs must be a sequence of strings; put the one string into a list.")
    parts = [f"<section>\n<h2>{html.escape(section.heading)}</h2>"]
    for paragraph in section.paragraphs:
        tag = "pre" if "\n" in paragraph else "p"
        parts.append(f"<{tag}>{html.escape(paragraph)}</{tag}>")
    if isinstance(section.content, Figure):
        drawn = section.content.to_html(
            include_plotlyjs=False,
            full_html=False,
            div_id=f"figure-{number}",
            config={
                "displaylogo": False,
                "plotlyServerURL": "",
                "responsive": False,
                "modeBarButtonsToRemove": _NEEDLESS,
            },
        )
        parts.append(f'<div class="figure">{drawn}</div>')
    elif isinstance(section.content, DataFrame):
        parts.append(_table(section.content))
    elif section.content is not None:
        kind = type(section.content).__name__
        raise InterpError(f"A section holds a plotly Figure or a DataFrame; got a {kind}.")
    if section.caption:
        parts.append(f'<p class="caption">{html.escape(section.caption)}</p>')
    return "\n".join([*parts, "</section>"])


def _table(frame: pandas.DataFrame) -> str:
    heads = "".join(f"<th>{html.escape(str(name))}</th>" for name in frame.columns)
    rows = ["".join(_cell(value) for value in row) for row in frame.itertuples(index=False, name=None)]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="table">{table}</div>'


def _cell(value: Any) -> str:
    if type(value).__name__ == "bool" or not hasattr(value, "__float__"):
        return f"<td>{html.escape(str(value))}</td>"
    if hasattr(value, "__index__"):
        return f'<td class="number">{int(value)}</td>'
    text = "–" if math.isnan(value) else f"{float(value):.4g}"
    return f'<td class="number">{html.escape(text)}</td>'


_NEEDLESS = ["zoomIn2d", "zoomOut2d", "autoScale2d", "select2d", "lasso2d"]
"""Buttons that would cover a figure's title."""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:"
)

_CSS = """
:root { color-scheme: light dark; --ink: #222; --ground: #fff; --line: #d9d9d9;
  --soft: #666; --head: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e2e2; --ground: #17191c; --line: #3a3e44; --soft: #a0a4aa; --head: #212429; }
}
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 Georgia, 'Times New Roman', serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, table, .caption { font-family: Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 0.6rem; padding-top: 0.8rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: 0.6rem 0; overflow-wrap: anywhere; }
pre { margin: 0.6rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 0.8rem/1.45 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
.caption { font-size: 0.85rem; color: var(--soft); }
.figure { overflow-x: auto; margin: 1rem 0; }
.figure > div { width: max-content; background: #fff; border-radius: 4px; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.8rem; text-align: left; border-bottom: 1px solid var(--line);
  white-space: pre-wrap; }
th { background: var(--head); position: sticky; top: 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
@media print { .figure, section { break-inside: avoid; } }
"""
