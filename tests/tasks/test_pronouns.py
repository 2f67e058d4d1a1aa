"""Gendered pronouns."""

from __future__ import annotations

import pytest

from interp.errors import PairError
from interp.tasks import pronouns
from interp.tasks.ioi import FEMALE_NAMES, MALE_NAMES

PRONOUN = dict.fromkeys(FEMALE_NAMES, " she") | dict.fromkeys(MALE_NAMES, " he")


def test_every_pair_encodes_and_differs_in_the_name_alone(model):
    task = pronouns(60, seed=2)
    encoded = task.encode(model)
    assert ((encoded.clean.ids != encoded.corrupted.ids).sum(1) == 1).all()
    for pair in task.pairs:
        assert pair.clean.replace(pair.subject, pair.corrupted_subject) == pair.corrupted


def test_the_answer_is_the_pronoun_of_the_name():
    for pair in pronouns(60).pairs:
        assert (pair.answer, pair.wrong_answer) == (PRONOUN[pair.subject], PRONOUN[pair.corrupted_subject])
        assert pair.answer != pair.wrong_answer
        assert pair.label == {" she": "female", " he": "male"}[pair.answer]


def test_the_genders_take_turns():
    assert [pair.label for pair in pronouns(4).pairs] == ["female", "male"] * 2


def test_no_name_is_of_both_genders():
    assert not set(FEMALE_NAMES) & set(MALE_NAMES)


def test_the_seed_decides():
    assert pronouns(20, seed=1) == pronouns(20, seed=1)
    assert pronouns(20, seed=1).pairs != pronouns(20, seed=2).pairs
    assert pronouns(20, seed=1).pairs[:5] == pronouns(5, seed=1).pairs


def test_refusals():
    with pytest.raises(PairError, match="at least 1; got n=0"):
        pronouns(0)
