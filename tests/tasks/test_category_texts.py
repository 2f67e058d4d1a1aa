"""Sentences of kinds: the words around a thing do not tell its kind, and the patterns find the things."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks.category_texts import GROUPS, category_texts, kind_words


def test_kinds_of_a_group_stand_in_the_same_sentences():
    data = category_texts()
    rows = list(zip(data.texts, data.thing, data.kind, data.group, strict=True))
    assert len({text for text, *_ in rows}) == len(rows)
    for group, kinds in GROUPS.items():
        around = {
            kind: {re.sub(rf"\b{thing}\b", "…", text) for text, thing, own, _ in rows if own == kind} for kind in kinds
        }
        assert len(set(map(frozenset, around.values()))) == 1 and len(next(iter(around.values()))) == 10, group
    for text, thing, kind, group in rows:
        assert thing in GROUPS[group][kind]
        assert len(re.findall(rf" {thing}\b", text)) == 1  # behind a space, and not first


def test_things_belong_to_one_kind_and_are_one_token(tokenizer):
    things = [thing for kinds in GROUPS.values() for some in kinds.values() for thing in some]
    assert len(set(things)) == len(things)
    several = [thing for thing in things if len(tokenizer(f" {thing}").input_ids) > 1]
    assert several == ["hamster"] or not several


def test_patterns():
    words = kind_words(["day"])
    assert list(words) == ["any day", "weekday", "weekend"]
    for pattern, word, matches in (("weekday", "friday", 1), ("weekend", "Friday", 0), ("any day", "Sunday", 1)):
        assert bool(re.fullmatch(words[pattern], word, re.IGNORECASE)) == matches


def test_refusals():
    with pytest.raises(PairError, match="no group 'dya'"):
        category_texts(["dya"])
    for groups in ("day", []):
        with pytest.raises(PairError, match="give a list"):
            category_texts(groups)
