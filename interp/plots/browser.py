"""A page to browse concepts: a list to search, and of every concept its examples, its numbers, and its neighbours.

One HTML file without a network: the data are JSON inside it, a script of this package builds the pages from it. All
text enters as text, never as markup, and the page's content policy forbids every connection.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from interp.results import replacing

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def browser(title: str, page: Mapping[str, Any]) -> str:
    """The page.

    Args:
        title: plain text.
        page: JSON-able, without NaN: `concepts`, of each its `id` (a text), `level` and `latent`, `label`, `candidate`,
            `hint` (a few words for the list), `numbers` by name, `histogram`, `examples` and what else `browser.js`
            shows; `meaning` of the numbers' names; `orders`, those to sort by; `bins` of the histograms; `about` and
            `summary`; `pictures` (data URLs) and `prompts`, which examples of pictures number. `graph` is `None`, or
            `levels`, `nodes` (of a level, each with the `concept` that it leads to) and `edges` between nodes, with
            `nodeMeaning` and `edgeMeaning` of their numbers; the first of an edge is drawn.

    Raises:
        ValueError: a number that JSON does not have.
    """
    part = files("interp.plots")
    # "</script>" in a token would end the script; JSON knows other ways to write "<".
    data = json.dumps(page, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{(part / 'browser.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            '<nav><p><a href="#">About</a></p>',
            '<input id="search" type="search" placeholder="Search: number, label, token" aria-label="Search">',
            '<select id="order" aria-label="Order"></select>',
            '<p id="count" class="soft"></p><ul id="list"></ul></nav>\n<main id="main"></main>',
            f'<script type="application/json" id="data">{data}</script>',
            f"<script>{(part / 'browser.js').read_text(encoding='utf-8')}</script>\n</body>\n</html>\n",
        ]
    )


def write_browser(path: str | os.PathLike[str], title: str, page: Mapping[str, Any]) -> None:
    """Write `browser(title, page)` to a file, atomically.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    text = browser(title, page)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
