"""Subject-verb agreement."""

from __future__ import annotations

from collections import Counter

import pytest

from interp.errors import PairError
from interp.tasks import agreement, single_token
from interp.tasks.agreement import ATTRACTORS, HEADS, NUMBERS, VERBS

SINGULAR = {one for one, _ in HEADS}
PLURAL = {many for _, many in HEADS}


def test_nouns_are_single_tokens_in_both_numbers(tokenizer):
    for word in (word for pair in HEADS + ATTRACTORS for word in pair):
        single_token(tokenizer, f" {word}")
    assert not {word for pair in HEADS for word in pair} & {word for pair in ATTRACTORS for word in pair}


@pytest.mark.parametrize("attractor", NUMBERS)
@pytest.mark.parametrize("verb", ["is", "was", "has"])
def test_every_variant_encodes_and_differs_in_the_head_alone(model, attractor, verb):
    encoded = agreement(40, seed=1, attractor=attractor, verb=verb).encode(model)
    differs = encoded.clean.ids != encoded.corrupted.ids
    assert differs[:, 1].all()
    assert (differs.sum(1) == 1).all()


@pytest.mark.parametrize(("one", "many"), VERBS)
def test_the_verb_agrees_with_the_head_and_the_attractor_is_where_it_should_be(one, many):
    attractors = {
        word: number for pair in ATTRACTORS for word, number in zip(pair, ("singular", "plural"), strict=True)
    }
    for attractor in NUMBERS:
        for pair in agreement(40, attractor=attractor, verb=one.strip()).pairs:
            head, noun = pair.label.split("-")
            assert pair.subject in (PLURAL if head == "plural" else SINGULAR)
            assert (pair.answer, pair.wrong_answer) == ((many, one) if head == "plural" else (one, many))
            assert attractors[pair.clean.split()[-1]] == attractors[pair.corrupted.split()[-1]] == noun
            assert attractor == "mixed" or (head == noun) == (attractor == "same")


def test_numbers_are_balanced():
    labels = Counter(pair.label for pair in agreement(400).pairs)
    assert len(labels) == 4
    assert min(labels.values()) > 70
    assert sum(count for label, count in labels.items() if label.startswith("plural")) == 200


def test_the_seed_decides():
    assert agreement(20, seed=1) == agreement(20, seed=1)
    assert agreement(20, seed=1).pairs != agreement(20, seed=2).pairs
    assert agreement(20, seed=1).pairs[:5] == agreement(5, seed=1).pairs


def test_refusals():
    with pytest.raises(PairError, match=r"no attractor number 'other'.*Allowed: mixed, same, opposite"):
        agreement(3, attractor="other")
    with pytest.raises(PairError, match=r"no verb 'are'.*Allowed: is, was, has"):
        agreement(3, verb="are")
    with pytest.raises(PairError, match="at least 1"):
        agreement(0)
