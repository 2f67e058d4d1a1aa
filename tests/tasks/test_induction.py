"""Induction on repeated words."""

from __future__ import annotations

import pytest

from interp.errors import PairError
from interp.tasks import induction, single_token
from interp.tasks.induction import OPENING, WORDS


def test_words_are_different_single_tokens(tokenizer):
    assert len(WORDS) == len(set(WORDS)) > 150
    for word in WORDS:
        single_token(tokenizer, f" {word}")


@pytest.mark.parametrize(("length", "repeat"), [(16, 4), (2, 1), (40, 10)])
def test_the_answer_follows_the_earlier_occurrence_of_the_last_word(length, repeat):
    for pair in induction(40, seed=4, length=length, repeat=repeat).pairs:
        for prompt, answer in ((pair.clean, pair.answer), (pair.corrupted, pair.wrong_answer)):
            opening, *words = prompt.split()
            assert opening == OPENING
            first, again = words[:length], words[length:]
            assert len(set(first)) == length
            assert len(again) == repeat
            at = first.index(words[-1])
            assert first[at + 1 - repeat : at + 1] == again
            assert f" {first[at + 1]}" == answer
            assert words.count(answer.strip()) == 1
        assert pair.wrong_answer.strip() not in pair.clean.split()
        assert pair.answer.strip() not in pair.corrupted.split()


def test_only_the_earlier_answer_changes(model):
    task = induction(40)
    encoded = task.encode(model)
    differs = encoded.clean.ids != encoded.corrupted.ids
    assert (differs.sum(1) == 1).all()
    assert (encoded.clean.ids[differs] == encoded.answer).all()
    assert (encoded.corrupted.ids[differs] == encoded.wrong_answer).all()
    # Prompts are equally long while the distance to look back varies.
    assert encoded.clean.lengths.unique().numel() == 1
    assert differs.int().argmax(1).unique().numel() > 5


def test_the_seed_decides():
    assert induction(20, seed=1) == induction(20, seed=1)
    assert induction(20, seed=1).pairs != induction(20, seed=2).pairs
    assert induction(20, seed=1).pairs[:5] == induction(5, seed=1).pairs


def test_refusals():
    for length, repeat in ((4, 4), (10, 0), (1000, 4)):
        with pytest.raises(PairError, match=f"length={length} and repeat={repeat}"):
            induction(3, length=length, repeat=repeat)
    with pytest.raises(PairError, match="at least 1"):
        induction(0)
