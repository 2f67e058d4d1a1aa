"""A report is one file, whole, escaped, and offline."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy
import pandas
import pytest
import xarray
from plotly.offline import get_plotlyjs

from interp.errors import InterpError
from interp.plots import Section, heatmap, report, write_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The tags and text of a page, read as a browser would."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._in: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._in and self._in[-1] not in ("script", "style"):
            self.text.append(data)


def figure(text: str = "T"):
    data = xarray.DataArray(numpy.eye(2), dims=("layer", "pos"))
    return heatmap(data, x="pos", y="layer", title=text, unit=text, x_labels=[text, text])


def test_everything_is_escaped() -> None:
    table = pandas.DataFrame({EVIL: [EVIL]})
    harmless = report("x", [("x", ["x"], figure()), ("x", ["x"], pandas.DataFrame({"x": ["x"]}))])
    page = report(EVIL, [(EVIL, [EVIL], figure(EVIL)), Section(EVIL, [EVIL], table, EVIL)])
    read = Page(page)
    assert [tag for tag, _ in read.tags if tag not in ("meta", "p")] == [
        tag for tag, _ in Page(harmless).tags if tag not in ("meta", "p")
    ]
    assert "".join(read.text).count(EVIL) == 9  # two titles, two headings, two paragraphs, table head and cell, caption


def test_plotly_is_inlined_once_and_nothing_is_fetched() -> None:
    page = report("Two", [("A", [], figure()), ("B", [], figure())])
    assert page.count(get_plotlyjs()) == 1
    read = Page(page)
    assert not [attrs for _, attrs in read.tags if "src" in attrs or "href" in attrs]
    policy = next(attrs["content"] for _, attrs in read.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy and "http" not in policy
    assert {attrs.get("id") for tag, attrs in read.tags if tag == "div"} >= {"figure-1", "figure-2"}


def test_a_report_without_figures_needs_no_script() -> None:
    page = report("Words", [("A", ["one", "two"]), ("B", [], None)])
    assert "<script" not in page and len(page) < 5000


def test_tables() -> None:
    frame = pandas.DataFrame(
        {"value": [1.23456789, float("nan")], "n": [12345678, 2], "yes": [True, False], "t": [" a", None]}
    )
    read = "|".join(Page(report("T", [("A", [], frame)])).text)
    for shown in ("1.235", "–", "12345678", "True", " a"):
        assert shown in read


def test_writing_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write_report(path, "é ␣", [("A", ["half \ud83d"])])
    before = path.read_bytes()
    assert "é ␣" in before.decode()
    with pytest.raises(InterpError, match="Figure or a DataFrame; got a dict"):
        write_report(path, "T", [("A", [], {})])  # type: ignore[list-item]
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_one_string_is_not_paragraphs() -> None:
    with pytest.raises(InterpError, match="sequence of strings"):
        report("T", [("A", "text")])


def test_words_in_several_lines_keep_their_columns() -> None:
    page = report("T", [("A", ["one line", f"'The'  1\n{EVIL}  2"])])
    read = Page(page)
    assert [tag for tag, _ in read.tags if tag in ("p", "pre")] == ["p", "pre"]
    assert f"'The'  1\n{EVIL}  2" in read.text
