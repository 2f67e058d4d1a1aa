"""Greater-than."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import tokenizers
import transformers

from interp.errors import PairError
from interp.tasks import greater_than
from interp.tasks.greater_than import EVENTS, TEMPLATES

SIGN = re.compile(rf"\b({'|'.join(EVENTS)})\b|\d+")


def test_every_pair_encodes_and_differs_in_the_decade_alone(model):
    encoded = greater_than(60, seed=2).encode(model)
    assert ((encoded.clean.ids != encoded.corrupted.ids).sum(1) == 1).all()
    assert encoded.clean.tokens[0][-1].isdigit()


def test_only_the_answer_may_follow_the_clean_start_and_both_the_corrupted_one():
    for pair in greater_than(300).pairs:
        start, century = re.findall(r"\d+", pair.clean)
        corrupted, again = re.findall(r"\d+", pair.corrupted)
        assert century == again == start[:2] == corrupted[:2] and start[3] == corrupted[3]
        # Whatever the last digits are.
        assert int(f"{century}{pair.answer}0") > int(start) > int(f"{century}{pair.wrong_answer}9")
        assert int(f"{century}{pair.wrong_answer}0") > int(corrupted)
        assert (pair.subject, pair.corrupted_subject, pair.label) == (start, corrupted, start[2])


def test_splits_share_neither_events_nor_templates():
    train, held_out, both = (
        {SIGN.sub("#", pair.clean) for pair in greater_than(300, split=split)} for split in ("train", "held out", "all")
    )
    assert not train & held_out
    assert train | held_out == both and len(both) == len(TEMPLATES)
    events = [
        {word for pair in greater_than(300, split=split) for word in SIGN.findall(pair.clean) if word}
        for split in ("train", "held out")
    ]
    assert not events[0] & events[1] and events[0] | events[1] == set(EVENTS)


def test_a_tokenizer_that_joins_digits_is_refused():
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    joining = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[UNK]")
    with pytest.raises(PairError, match="exactly one token"):
        greater_than(3).encode(SimpleNamespace(tokenizer=joining, device="cpu"))


def test_the_seed_decides():
    assert greater_than(20, seed=1) == greater_than(20, seed=1)
    assert greater_than(20, seed=1).pairs != greater_than(20, seed=2).pairs
    assert greater_than(20, seed=1).pairs[:5] == greater_than(5, seed=1).pairs


def test_refusals():
    with pytest.raises(PairError, match="at least 1; got n=0"):
        greater_than(0)
    with pytest.raises(PairError, match="no split 'test'"):
        greater_than(2, split="test")
