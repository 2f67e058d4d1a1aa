"""Countries and capitals."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks import capitals, single_token
from interp.tasks.capitals import CAPITALS, TEMPLATES


def test_countries_and_capitals_are_single_tokens(tokenizer):
    for word in (word for pair in CAPITALS for word in pair):
        single_token(tokenizer, f" {word}")
    assert len({country for country, _ in CAPITALS}) == len({capital for _, capital in CAPITALS}) == len(CAPITALS)


def test_every_pair_encodes_and_differs_in_the_country_alone(model):
    task = capitals(60, seed=2)
    encoded = task.encode(model)
    assert ((encoded.clean.ids != encoded.corrupted.ids).sum(1) == 1).all()
    known = dict(CAPITALS)
    for pair in task.pairs:
        assert pair.clean.replace(pair.subject, pair.corrupted_subject) == pair.corrupted
        assert pair.answer.strip() == known[pair.subject] not in re.findall(r"\w+", pair.clean)
        assert pair.wrong_answer.strip() == known[pair.corrupted_subject]


def test_splits_share_neither_countries_nor_templates():
    pairs = {split: capitals(300, split=split).pairs for split in ("train", "held out", "all")}
    frames = {split: {pair.clean.replace(pair.subject, "{}") for pair in of} for split, of in pairs.items()}
    assert not frames["train"] & frames["held out"]
    assert frames["train"] | frames["held out"] == frames["all"] == set(TEMPLATES)
    used = {
        split: {pair.subject for pair in of} | {pair.corrupted_subject for pair in of} for split, of in pairs.items()
    }
    assert not used["train"] & used["held out"]
    assert used["train"] | used["held out"] == {country for country, _ in CAPITALS}


def test_the_seed_decides():
    assert capitals(20, seed=1) == capitals(20, seed=1)
    assert capitals(20, seed=1).pairs != capitals(20, seed=2).pairs
    assert capitals(20, seed=1).pairs[:5] == capitals(5, seed=1).pairs


def test_refusals():
    with pytest.raises(PairError, match="at least 1; got n=0"):
        capitals(0)
    with pytest.raises(PairError, match="no split 'test'"):
        capitals(2, split="test")
