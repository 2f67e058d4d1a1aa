"""Indirect object identification."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from interp.errors import PairError
from interp.tasks import ioi, single_token
from interp.tasks.ioi import CORRUPTIONS, MALE_NAMES, NAMES, OBJECTS, ORDERS, PLACES, TEMPLATES


def names_in(prompt):
    """The names of a prompt in order: the two that are introduced, and the giver."""
    return [word for word in re.findall(r"[A-Z][a-z]+", prompt) if word in NAMES]


def roles(pair):
    """(IO, S1, S2) of both prompts, by the order of the template."""

    def of(prompt):
        first, second, giver = names_in(prompt)
        return (first, second, giver) if pair.label == "ABBA" else (second, first, giver)

    return of(pair.clean), of(pair.corrupted)


def test_names_are_single_tokens_and_at_least_forty(tokenizer):
    assert len(NAMES) == len(set(NAMES)) >= 40
    for name in NAMES:
        single_token(tokenizer, f" {name}")
    assert len(TEMPLATES) >= 8
    # "a {object}" has to be English, and a name would be confused with the two that matter.
    assert all(word[0] not in "aeiou" for word in OBJECTS)
    assert not {word.title() for word in OBJECTS + PLACES} & set(NAMES)


@pytest.mark.parametrize("templates", ORDERS)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_variant_encodes(model, templates, corruption):
    task = ioi(40, seed=3, templates=templates, corruption=corruption)
    encoded = task.encode(model)
    assert (encoded.clean.lengths == encoded.corrupted.lengths).all()
    assert all(pair.clean != pair.corrupted for pair in task.pairs)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_clean_prompts_call_for_the_name_that_is_not_repeated(corruption):
    for pair in ioi(60, corruption=corruption).pairs:
        (io, s1, s2), _ = roles(pair)
        assert s1 == s2 == pair.subject != io
        assert pair.answer == f" {io}"


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_do_what_they_say(corruption):
    for pair in ioi(60, seed=5, corruption=corruption).pairs:
        (io, s, _), (new_io, new_s1, new_s2) = roles(pair)
        wrong = pair.wrong_answer.strip()
        if corruption == "S2":
            assert (new_io, new_s1, new_s2) == (io, s, io)
            assert wrong == s
        elif corruption == "IO":
            assert (new_s1, new_s2) == (s, s)
            assert new_io == wrong
            assert wrong not in (io, s)
        elif corruption == "S1":
            assert (new_io, new_s2) == (io, s)
            assert new_s1 == wrong
            assert wrong not in (io, s)
        else:
            assert len({io, s, new_io, new_s1, new_s2}) == 5
            assert wrong == s
        assert pair.corrupted_subject == new_s2


@pytest.mark.parametrize(("corruption", "changed"), [("S2", 1), ("S1", 1), ("IO", 1), ("ABC", 3)])
def test_only_the_named_tokens_change(model, corruption, changed):
    encoded = ioi(40, corruption=corruption).encode(model)
    assert set((encoded.clean.ids != encoded.corrupted.ids).sum(1).tolist()) == {changed}


def test_the_template_mix_is_even_and_the_pure_ones_are_pure():
    assert Counter(pair.label for pair in ioi(50).pairs) == {"ABBA": 25, "BABA": 25}
    for order in ("ABBA", "BABA"):
        assert {pair.label for pair in ioi(20, templates=order).pairs} == {order}
    for pair in ioi(50).pairs:
        first, second, giver = names_in(pair.clean)
        assert giver == (second if pair.label == "ABBA" else first)


def test_all_templates_places_and_objects_are_used():
    text = "\n".join(pair.clean for pair in ioi(600).pairs)
    assert all(f"the {place}" in text for place in PLACES)
    assert all(f"a {thing}" in text for thing in OBJECTS)
    openings = {re.split(r"\{", template)[0] for template in TEMPLATES}
    assert all(opening in text for opening in openings)


def test_the_seed_decides_and_a_longer_task_begins_like_a_shorter_one():
    assert ioi(30, seed=1) == ioi(30, seed=1)
    assert ioi(30, seed=1).pairs != ioi(30, seed=2).pairs
    assert ioi(30, seed=1).pairs[:10] == ioi(10, seed=1).pairs
    assert ioi(3, seed=9).seed == 9


def test_splits_share_neither_names_nor_templates(model):
    train, held_out, both = (ioi(300, split=split) for split in ("train", "held out", "all"))
    used = [
        {name for pair in task.pairs for name in names_in(pair.clean + pair.corrupted)} for task in (train, held_out)
    ]
    assert not used[0] & used[1]
    assert used[0] | used[1] == set(NAMES)
    assert {len(used[0] & set(MALE_NAMES)), len(used[1] & set(MALE_NAMES))} == {22, 11}
    frames = [{frame_of(pair.clean) for pair in task.pairs} for task in (train, held_out, both)]
    assert not frames[0] & frames[1]
    assert frames[0] | frames[1] == frames[2] and len(frames[2]) == len(TEMPLATES)
    assert held_out.name == "ioi-mixed-S2-held-out" and both.name == "ioi-mixed-S2"
    for corruption in CORRUPTIONS:
        ioi(40, corruption=corruption, split="held out").encode(model)


def frame_of(prompt):
    """The template of a prompt: its names, place and object taken out."""
    for words, sign in ((NAMES, "N"), (PLACES, "P"), (OBJECTS, "O")):
        prompt = re.sub(rf"\b({'|'.join(words)})\b", sign, prompt)
    return prompt


def test_refusals():
    with pytest.raises(PairError, match=r"no IOI template 'ABAB'.*Allowed: mixed, ABBA, BABA"):
        ioi(3, templates="ABAB")
    with pytest.raises(PairError, match=r"no IOI corruption 'S3'.*Allowed: S2, S1, IO, ABC"):
        ioi(3, corruption="S3")
    with pytest.raises(PairError, match=r"no split 'test'.*Allowed: all, train, held out"):
        ioi(3, split="test")
    with pytest.raises(PairError, match="at least 1"):
        ioi(0)
