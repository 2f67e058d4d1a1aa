"""Text enters a figure letter for letter."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from interp.plots import plain, token_label
from interp.plots.style import seen_width, wrapped


@given(st.text())
def test_plain_hides_markup_and_nothing_else(text: str) -> None:
    escaped = plain(text)
    assert not set("<>$") & set(escaped)
    assert (
        html.unescape(escaped.replace("&amp;", "&amp;amp;")).replace("&amp;", "&") == text
        or html.unescape(escaped) == text
    )


def test_token_labels() -> None:
    cases = {
        " Mary": "␣Mary",
        "Mary ": "Mary␣",
        "  ": "␣␣",
        "": "∅",
        "\n": "↵",
        "\n\n": "↵↵",
        "\t": "⇥",
        "\0": "\\x00",
        "a b": "a b",
        "<b>": "&lt;b&gt;",
        "$x$": "&#36;x&#36;",
        "&lt;": "&amp;lt;",
        " \n": "␣↵",
        "\ud83d": "\\ud83d",
        "é": "é",
    }
    assert {token: token_label(token) for token in cases} == cases
    assert token_label("x" * 50) == "x" * 27 + "…"


def test_width_counts_what_is_seen() -> None:
    assert seen_width(token_label("<&>$a")) == 5


def test_titles_break_evenly() -> None:
    assert wrapped("one two three four five six seven", 140, 16).count("<br>") >= 1
    assert wrapped("<i>", 400, 16) == "&lt;i&gt;"
    assert wrapped("", 400, 16) == ""
