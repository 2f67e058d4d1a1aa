"""Equality of vectors: the models, and the law by which examples are drawn."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from interp.errors import PairError
from interp.tasks.causal_models import VECTOR_MODELS, VECTOR_VARIABLES, vector_interchange
from interp.tasks.causal_models.equality import LAWS, WIDTH

SHARE = pytest.approx(0.5, abs=0.03)  # of 4000 examples: four standard deviations


def symbols_of(rows):
    """The symbols of each example, by equality of vectors; rows is [batch, side, width]."""
    batch, sides, width = rows.shape
    vectors = rows.reshape(batch, sides * width // WIDTH, WIDTH)
    same = (vectors[:, :, None] == vectors[:, None]).all(-1)
    return same.int().argmax(-1).reshape(batch, sides, -1).tolist()  # the first place that holds the same vector


def test_examples_of_one_set_have_its_sources_alone_and_settings_that_say_what_stands_there() -> None:
    examples = vector_interchange("and-or", 400)
    total = 0
    for exchanged in (("middle",), ("outer",), ("middle", "outer")):
        own = examples.exchanging(exchanged)
        total += len(own)
        assert own.variables == exchanged and own.exchanged.all() and len(own.sources) == len(exchanged)
        model, settings = VECTOR_MODELS["and-or"], [own.settings(side) for side in range(1 + len(exchanged))]
        for row in range(len(own)):
            base, sources = settings[0][row], {v: settings[1 + i][row] for i, v in enumerate(exchanged)}
            assert base["answer"] == bool(own.answer[row])
            assert model.interchange(base, sources)["answer"] == bool(own.label[row])
            vectors = own.base[row].view(6, 4)
            assert bool((vectors[2] == vectors[3]).all()) == base["middle"]
            if "middle" in exchanged:
                lent = own.sources[0][row].view(6, 4)
                assert bool((lent[2] == lent[3]).all()) == sources["middle"]["middle"]
    assert total == len(examples)
    with pytest.raises(PairError):
        examples.exchanging(("left",))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", VECTOR_MODELS)
def test_answers_and_labels_are_those_of_the_causal_model_on_the_vectors_themselves(name, law):
    data, causal = vector_interchange(name, 300, seed=5, law=law), VECTOR_MODELS[name]
    for row, sides in enumerate(symbols_of(torch.stack([data.base, *data.sources], 1))):
        base, *sources = (dict(zip(causal.inputs, side, strict=True)) for side in sides)
        given = {v: s for v, s, used in zip(data.variables, sources, data.exchanged[:, row], strict=True) if used}
        assert given
        assert causal.run(base)["answer"] == data.answer[row]
        assert [causal.run(source)["answer"] for source in sources] == data.source_answers[:, row].tolist()
        assert causal.interchange(base, given)["answer"] == data.label[row]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", VECTOR_MODELS)
def test_answers_are_even_and_change_in_half(name, law):
    data = vector_interchange(name, 4000, seed=1, law=law)
    changed = data.label != data.answer
    assert data.answer.float().mean() == SHARE and changed.float().mean() == SHARE
    assert changed[data.answer].float().mean() == pytest.approx(0.5, abs=0.04)
    if len(data.variables) == 2:
        masks, counts = data.exchanged.T.unique(dim=0, return_counts=True)
        assert masks.tolist() == [[False, True], [True, False], [True, True]]
        assert counts.float().div(4000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_how_often_a_source_has_the_label_is_as_the_docstring_says():
    def share(name, variable, law):
        data = vector_interchange(name, 4000, seed=2, variables=(variable,), law=law)
        return (data.source_answers[0] == data.label).float().mean()

    for law in LAWS:
        assert share("equality", "left", law) == SHARE and share("first argument", "first", law) == SHARE
    for name, variable, published in (("and-or-and", "early", 0.77), ("and-or", "middle", 0.84)):
        assert share(name, variable, "published") == pytest.approx(published, abs=0.03)
        assert share(name, variable, "even") == pytest.approx(0.62, abs=0.03)


def test_two_models_of_a_task_give_the_same_answers():
    for one, other in (("equality", "first argument"), ("and-or-and", "and-or")):
        first, second = VECTOR_MODELS[one], VECTOR_MODELS[other]
        for symbols in product(range(2), repeat=len(first.inputs)):
            inputs = dict(zip(first.inputs, symbols, strict=True))
            assert first.run(inputs)["answer"] == second.run(inputs)["answer"]


def test_vectors_are_new_in_every_example_and_in_every_seed():
    data = vector_interchange("equality", 200)
    assert data.base.shape == (200, 16) and data.sources.shape == (2, 200, 16)
    assert data.base.abs().max() <= 0.5 and data.base.std() == pytest.approx(12**-0.5, abs=0.02)
    firsts = torch.cat(
        [data.base[:, :WIDTH], data.sources[0, :, :WIDTH], vector_interchange("equality", 200, 1).base[:, :WIDTH]]
    )
    assert len(firsts.unique(dim=0)) == 600
    again = vector_interchange("equality", 200)
    assert torch.equal(again.base, data.base) and torch.equal(again.sources, data.sources)
    assert vector_interchange("and-or", 3).base.shape == (3, 24)


def test_repr_and_refusals():
    assert repr(vector_interchange("and-or", 3)) == (
        "VectorInterchange('and-or', 3 examples of 24 numbers, variables middle, outer)"
    )
    assert VECTOR_VARIABLES.keys() == VECTOR_MODELS.keys()
    with pytest.raises(PairError, match="no causal model of vectors 'equalty'.*Did you mean 'equality'"):
        vector_interchange("equalty", 3)
    with pytest.raises(PairError, match="no variable of 'equality' 'early'"):
        vector_interchange("equality", 3, variables=("early",))
    with pytest.raises(PairError, match="no law 'fair'.*Allowed: even, published"):
        vector_interchange("equality", 3, law="fair")
    with pytest.raises(PairError, match="at least 1"):
        vector_interchange("equality", 0)
