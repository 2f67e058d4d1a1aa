"""The causal models that are shipped, and the tasks drawn from them."""

from __future__ import annotations

import pytest

from interp.errors import InterpError, PairError
from interp.tasks.causal_models import (
    INTERCHANGES,
    carry_interchange,
    carry_model,
    entity_interchange,
    entity_model,
    interchange,
    ioi_interchange,
    ioi_model,
    number_interchange,
    number_model,
    price_interchange,
    price_model,
)
from interp.tasks.interchange import InterchangeTask


def texts(task):
    return [text for example in task for text in (example.base, *example.sources)]


@pytest.mark.parametrize("name", INTERCHANGES)
def test_the_law_holds_and_the_model_agrees_in_every_split(name, tmp_path):
    causal = INTERCHANGES[name].model()
    for split in ("all", "train", "held out"):
        task = interchange(name, 60, seed=4, split=split)
        task.check(causal)
        assert task.variables == INTERCHANGES[name].variables
        kept = [example.label == example.base.answer for example in task]
        assert kept == [row % 2 == 1 for row in range(60)]
        assert all(e.sources[0].answer != e.label for e in task if e.label == e.base.answer)
        assert sum(e.label == e.sources[0].answer for e in task) <= 30
    task.to_jsonl(tmp_path / "task.jsonl")
    assert InterchangeTask.from_jsonl(tmp_path / "task.jsonl") == task


@pytest.mark.parametrize("name", INTERCHANGES)
def test_every_task_encodes_and_a_longer_one_begins_like_a_shorter_one(model, name):
    task = interchange(name, 12, seed=1)
    encoded = task.encode(model)
    for region in encoded.names:
        for prompts, places, instances in (
            (encoded.base, encoded.position(region)[0], [e.base for e in task]),
            (encoded.sources[0], encoded.position(region)[1][0], [e.sources[0] for e in task]),
        ):
            for row, text in enumerate(instances):
                assert text.words(region).endswith(prompts.tokens[row][int(places[row])].strip())
    assert interchange(name, 5, seed=1).examples == task.examples[:5] != interchange(name, 5, seed=2).examples


HELD_OUT = {
    "ioi-position": ("first", "second", "giver"),
    "ioi-identity": ("first", "second", "giver"),
    "subject-number": ("subject", "attractor"),
    "subject-tense": ("subject", "attractor"),
    "price-left": ("low", "high", "price"),
    "price-right": ("low", "high", "price"),
    "price-bracket": ("low", "high", "price"),
    "addition-carry": ("a", "b"),
    "addition-tens": ("a", "b"),
    "country-capital": ("country",),
    "country-language": ("country",),
    "country-continent": ("country",),
}


@pytest.mark.parametrize("name", INTERCHANGES)
def test_held_out_values_are_not_in_the_training_set(name):
    train, held_out = (
        {str(text.setting[v]) for text in texts(interchange(name, 150, split=split)) for v in HELD_OUT[name]}
        for split in ("train", "held out")
    )
    assert train and held_out and not train & held_out
    assert interchange(name, 4, split="held out").name == f"{name}-held-out"


def test_ioi_position_carries_no_name_over():
    for e in ioi_interchange(80, seed=2):
        base, (source,) = e.base, e.sources
        names = {base.setting["first"], base.setting["second"]}
        assert not names & {source.setting["first"], source.setting["second"]}
        assert e.label.strip() in names
        moved = base.setting["position"] != source.setting["position"]
        assert (e.label != base.answer) == moved


def test_the_two_models_of_ioi_agree_on_prompts_and_are_told_apart_by_interchanges():
    identity, position = ioi_model("identity"), ioi_model("position")
    disagree = 0
    for e in ioi_interchange(100, variables=("identity",)):
        base, source = e.base.setting, e.sources[0].setting
        inputs = {name: base[name] for name in position.inputs}
        assert position.run(inputs)["answer"] == identity.run(inputs)["answer"] == e.base.answer
        given = {name: source[name] for name in position.inputs}
        by_position = position.interchange(inputs, {"position": given})["answer"]
        assert identity.interchange(inputs, {"identity": given})["answer"] == e.label
        disagree += by_position != e.label
    assert 30 < disagree < 70


def test_number_and_tense_may_be_exchanged_together():
    task = number_interchange(40, variables=("number", "tense"))
    task.check(number_model())
    for e in task:
        number, tense = (source.setting[v] for v, source in zip(task.variables, e.sources, strict=True))
        expected = {"singular": {"present": " is", "past": " was"}, "plural": {"present": " are", "past": " were"}}
        assert e.label == expected[number][tense]


def test_prices_are_tagged_as_arithmetic_says():
    for text in texts(price_interchange(60, variables=("left", "right"))):
        low, high, price = (float(text.words(name)) for name in ("low", "high", "price"))
        assert low < high and text.answer == (" yes" if low <= price <= high else " no")
    bracket, boundaries = price_model("bracket"), price_model("boundaries")
    for text in texts(price_interchange(40, variables=("bracket",))):
        inputs = {name: text.setting[name] for name in bracket.inputs}
        assert bracket.run(inputs)["answer"] == boundaries.run(inputs)["answer"] == text.answer


def test_sums_begin_with_the_answer():
    for text in texts(carry_interchange(80)):
        a, b = int(text.words("a")), int(text.words("b"))
        assert a + b < 100 and str(a + b)[0] == text.answer
        assert text.setting["carry"] == (a % 10 + b % 10) // 10
    assert carry_model().run({"a": 89, "b": 85})["answer"] == "1"


def test_attributes_are_caused_and_isolated():
    for e in entity_interchange(80, variables=("capital",)):
        asked = e.base.setting["question"] == "capital"
        assert e.label == (e.sources[0].setting["capital"] if asked else e.base.answer)
        assert (e.label != e.base.answer) == asked
    questions = {e.sources[0].setting["question"] for e in entity_interchange(80)}
    assert questions == {"capital", "language", "continent"}
    france = entity_model().run({"country": "France", "question": "language"})
    assert (france["capital"], france["continent"], france["answer"]) == (" Paris", " Europe", " French")


def test_refusals():
    with pytest.raises(PairError, match="no interchange task 'ioi-positon'.*Did you mean 'ioi-position'"):
        interchange("ioi-positon", 3)
    with pytest.raises(PairError, match="no mechanism 'place'.*Allowed: position, identity"):
        ioi_model("place")
    with pytest.raises(PairError, match="no mechanism 'place'.*Allowed: position, identity"):
        ioi_interchange(3, variables=("place",))
    with pytest.raises(PairError, match="Exchange one of position, identity, which are rival models"):
        ioi_interchange(3, variables=("position", "identity"))
    with pytest.raises(PairError, match="no mechanism 'middle'.*Allowed: boundaries, bracket"):
        price_model("middle")
    for generate in (number_interchange, price_interchange, carry_interchange, entity_interchange):
        with pytest.raises(PairError, match="There is no (variable|attribute) 'colour'"):
            generate(3, variables=("colour",))
        with pytest.raises(InterpError, match="No variable of causal model"):
            generate(3, variables=())
        with pytest.raises(PairError, match="no split 'test'"):
            generate(3, split="test")
        with pytest.raises(PairError, match="at least 1"):
            generate(0)
    with pytest.raises(InterpError, match="no variable 'left'"):
        price_interchange(3, variables=("bracket", "left"))
