"""Docstrings."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks import docstring
from interp.tasks.docstring import TEMPLATES
from interp.tasks.induction import WORDS

WORD = re.compile(rf"\b({'|'.join(WORDS)})\b")


def signature(prompt):
    return re.search(r"\((?:self, )?(.*)\):", prompt).group(1).split(", ")


def test_every_pair_encodes_and_differs_in_two_tokens(model):
    encoded = docstring(60, seed=2).encode(model)
    assert ((encoded.clean.ids != encoded.corrupted.ids).sum(1) == 2).all()


def test_the_answer_is_the_argument_that_comes_next_in_the_signature():
    for pair in docstring(200).pairs:
        for prompt, answer, other in (
            (pair.clean, pair.answer, pair.wrong_answer),
            (pair.corrupted, pair.wrong_answer, pair.answer),
        ):
            arguments = signature(prompt)
            documented = re.findall(r"[:@]param (\w+):", prompt)
            assert documented == arguments[:2]
            assert f" {arguments[2]}" == answer
            assert f" {arguments[3]}" == other
            assert prompt.endswith("param")
            assert [len(re.findall(rf"\b{word.strip()}\b", prompt)) for word in (answer, other)] == [1, 1]


def test_functions_are_python():
    for pair in docstring(30).pairs:
        compile(pair.clean + ' x: y\n    """\n', "a function", "exec")


def test_splits_share_neither_words_nor_templates():
    train, held_out, both = (docstring(300, split=split).pairs for split in ("train", "held out", "all"))
    frames = [{WORD.sub("#", pair.clean) for pair in pairs} for pairs in (train, held_out, both)]
    assert not frames[0] & frames[1] and frames[0] | frames[1] == frames[2]
    assert len(frames[2]) == len(TEMPLATES)
    words = [{word for pair in pairs for word in WORD.findall(pair.clean)} for pairs in (train, held_out)]
    assert not words[0] & words[1]


def test_the_seed_decides():
    assert docstring(20, seed=1) == docstring(20, seed=1)
    assert docstring(20, seed=1).pairs != docstring(20, seed=2).pairs
    assert docstring(20, seed=1).pairs[:5] == docstring(5, seed=1).pairs


def test_refusals():
    with pytest.raises(PairError, match="at least 1; got n=0"):
        docstring(0)
    with pytest.raises(PairError, match="no split 'test'"):
        docstring(2, split="test")
