"""Splits: what a circuit is found on and what it is evaluated on have nothing in common that a task draws."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks import agreement, facts, induction, pronouns
from interp.tasks.pairs import part_of


def test_a_third_is_held_out():
    assert part_of("abcdefg", "held out") == ("c", "f")
    assert part_of("abcdefg", "train") == ("a", "b", "d", "e", "g")
    assert part_of("abcdefg", "all") == tuple("abcdefg")
    with pytest.raises(PairError, match=r"no split 'test'.*Allowed: all, train, held out"):
        part_of("abc", "test")


def words(pairs):
    return {word for pair in pairs for prompt in (pair.clean, pair.corrupted) for word in re.findall(r"[\w']+", prompt)}


@pytest.mark.parametrize(
    ("task", "common"),
    [
        (induction, {"Words"}),
        (agreement, {"The", "the", "from", "to", "of", "in", "close", "across", "front"}),
        (pronouns, set("So Everyone knows I think that is was a really such very isn't wasn't".split())),
    ],
)
def test_splits_have_no_content_word_in_common(task, common):
    from interp.tasks.pronouns import ADJECTIVES, ROLES

    train, held_out = (task(400, split=split) for split in ("train", "held out"))
    shared = words(train.pairs) & words(held_out.pairs)
    assert shared <= common | set(ADJECTIVES) | set(ROLES)
    assert held_out.name.endswith("-held-out") and train.name.endswith("-train")
    assert task(5) == task(5, split="all")


def test_facts_share_no_subject():
    train, held_out = (facts(split=split).pairs for split in ("train", "held out"))
    subjects = [{word for pair in of for word in (pair.subject, pair.corrupted_subject)} for of in (train, held_out)]
    assert not {s.casefold() for s in subjects[0]} & {s.casefold() for s in subjects[1]}
    assert len(train) + len(held_out) > 0.9 * len(facts())
    with pytest.raises(PairError, match=r"There are \d+ facts of these relations and this split; got n=2000"):
        facts(2000, split="held out")
