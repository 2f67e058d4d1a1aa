"""Minimal pairs of syntax."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks.agreement import ATTRACTORS
from interp.tasks.interchange import Counterfactual, Instance, InterchangeTask
from interp.tasks.minimal_pairs import KINDS, MINIMAL_PAIRS, control, minimal_pairs, pair_model


def texts(task):
    return [text for example in task for text in (example.base, *example.sources)]


def test_there_are_twelve_tasks_or_more_of_every_kind():
    assert len(MINIMAL_PAIRS) >= 12
    assert {contrast.kind for contrast in MINIMAL_PAIRS.values()} == set(KINDS)


@pytest.mark.parametrize("name", MINIMAL_PAIRS)
def test_400_examples_and_100_held_out_are_all_different_and_share_no_word_that_could_be_spared(name):
    contrast = MINIMAL_PAIRS[name]
    train, held_out = minimal_pairs(name, 400, split="train"), minimal_pairs(name, 100, split="held out")
    for task in (train, held_out):
        assert len({(e.base.text, e.sources[0].text) for e in task}) == len(task)
    assert not {text.text for text in texts(train)} & {text.text for text in texts(held_out)}
    parted = [field for field, choices in contrast.fields.items() if len(choices) >= 6]
    assert parted
    for field in parted:
        used = [
            {tuple(sorted((e.base.words(field), e.sources[0].words(field)))) for e in task}
            for task in (train, held_out)
        ]
        assert used[0] and used[1] and not used[0] & used[1], field


@pytest.mark.parametrize("name", MINIMAL_PAIRS)
def test_the_two_sentences_differ_in_the_contrast_alone_and_take_turns(name):
    contrast = MINIMAL_PAIRS[name]
    for row, example in enumerate(minimal_pairs(name, 24, seed=2)):
        base, (source,) = example.base, example.sources
        differing = [field for field in contrast.fields if base.words(field) != source.words(field)]
        assert len(differing) == 1
        pairs = [c for c in contrast.fields[differing[0]] if not isinstance(c, str)]
        side = row % 2
        assert any((base.words(differing[0]), source.words(differing[0])) == (c[side], c[1 - side]) for c in pairs)
        assert (base.setting["type"], source.setting["type"]) == (contrast.types[side], contrast.types[1 - side])
        assert (base.answer, source.answer, example.label) == (
            contrast.answers[side], contrast.answers[1 - side], contrast.answers[1 - side],
        )  # fmt: skip


@pytest.mark.parametrize("name", MINIMAL_PAIRS)
def test_every_task_and_its_control_encode(model, name):
    task = minimal_pairs(name, 12)
    for one in (task, control(task)):
        encoded = one.encode(model)
        assert set(encoded.names) == set(MINIMAL_PAIRS[name].fields)
        assert len(encoded.answers) == 2
        for region in encoded.names:
            place = int(encoded.position(region)[0][0])
            last_word = re.findall(r"[\w']+|[.,]", one.examples[0].base.words(region))[-1]
            assert last_word.endswith(encoded.base.tokens[0][place].strip())


def test_the_control_keeps_the_sentences_and_changes_the_answers():
    task = minimal_pairs("agreement-preposition", 20)
    other = control(task)
    assert [t.text for t in texts(other)] == [t.text for t in texts(task)]
    answers = {(a.answer, b.answer) for a, b in zip(texts(task), texts(other), strict=True)}
    assert len(answers) == 2 and {b for _, b in answers} == {" dog", " give"}
    assert all(e.label == e.sources[0].answer != e.base.answer for e in other)
    assert other.name == "agreement-preposition control"


def test_the_seed_decides_and_a_longer_task_begins_like_a_shorter_one():
    first = minimal_pairs("cleft", 30, seed=1)
    assert first.examples[:10] == minimal_pairs("cleft", 10, seed=1).examples
    assert first.examples != minimal_pairs("cleft", 30, seed=2).examples


def test_articles_and_attractors_are_english():
    assert len(ATTRACTORS) >= 20
    for name in MINIMAL_PAIRS:
        for text in texts(minimal_pairs(name, 60)):
            assert text.text[0].isupper() and "  " not in text.text and text.text == text.text.strip()


def test_refusals():
    with pytest.raises(PairError, match="no minimal-pair task 'clft'.*Did you mean 'cleft'"):
        minimal_pairs("clft", 3)
    with pytest.raises(PairError, match=r"no split 'test'"):
        minimal_pairs("cleft", 3, split="test")
    with pytest.raises(PairError, match="at least 1"):
        minimal_pairs("cleft", 0)
    with pytest.raises(
        PairError, match=r"There are not 5000 different examples of 'cleft' \(split 'held out'\): after \d+"
    ):
        minimal_pairs("cleft", 5000, split="held out")
    one = Instance("A", " b", (), {})
    with pytest.raises(PairError, match="A control task needs two types of sentence"):
        control(InterchangeTask("t", ("v",), (Counterfactual(one, (one,), " b"),), "hand"))


@pytest.mark.parametrize("name", MINIMAL_PAIRS)
def test_the_causal_model_agrees_with_every_example_of_its_task(name):
    causal = pair_model(name)
    for split in ("train", "held out"):
        minimal_pairs(name, 60, seed=3, split=split).check(causal)
    for text in texts(minimal_pairs(name, 60, seed=3)):
        words = {field: value for field, value in text.setting.items() if field != "type"}
        assert causal.run(words)["type"] == text.setting["type"]


def test_tasks_that_differ_in_words_only_share_a_causal_model():
    names = ("agreement-object-relative", "agreement-subject-relative")
    for name in names:
        minimal_pairs(name, 40).check(pair_model(*names))
    with pytest.raises(PairError, match="differ in their fields"):
        pair_model("agreement-object-relative", "agreement-preposition")
    with pytest.raises(PairError, match="No minimal-pair task was named"):
        pair_model()
    with pytest.raises(PairError, match="no minimal-pair task 'agreement'"):
        pair_model("agreement")
