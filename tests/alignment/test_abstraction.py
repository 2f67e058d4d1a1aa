"""A whole causal model in a network: right where it is there, refused where it is not, and failures where they were put."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interp.alignment.abstraction import Abstraction, Interchanges, abstraction
from interp.alignment.continuation import FunctionContinuation
from interp.alignment.fit import Cells, Training, fit
from interp.alignment.joint import Aligned, joint_outputs
from interp.alignment.maps import LowRank, Subspace
from interp.alignment.toy import MlpContinuation, VectorMlp, trained_mlp, vector_interchanges
from interp.errors import InterpError, PairError
from interp.results import Result
from interp.tasks.causal_models.equality import VECTOR_MODELS, VectorInterchange, vector_interchange

EQUALITY = VECTOR_MODELS["equality"]
UNITS = Aligned(("left", "right"), 0, Subspace(torch.eye(16), (8, 8)))


def told(answer: int) -> str:
    return str(bool(answer))


def by_rule(states: torch.Tensor, broken: bool = False) -> torch.Tensor:
    """Logits of a network whose state is its input: half of the units are `left`'s symbols, half `right`'s.

    Broken: where the left pair is equal and the right pair is not, it says the opposite.
    """
    a, b, c, d = states.split(4, -1)
    left, right = ((x - y).abs().sum(-1) < 1e-3 for x, y in ((a, b), (c, d)))
    true = left == right
    true = torch.where(left & ~right, ~true, true) if broken else true
    return torch.stack([(~true).float(), true.float()], 1)


def exact(examples: VectorInterchange, broken: bool = False) -> list[Interchanges]:
    """Examples for a network of `by_rule`, through a plain function of one state."""
    found = []
    for one in vector_interchanges(VectorMlp(16).requires_grad_(False), examples):
        own = examples.exchanging(one.exchanged)
        ready = FunctionContinuation(own.base, tuple(own.sources), lambda states: by_rule(states, broken))
        found.append(dataclasses.replace(one, continuation=ready))
    return found


@pytest.fixture(scope="module")
def examples() -> VectorInterchange:
    return vector_interchange("equality", 300, seed=3)


@pytest.fixture(scope="module")
def right(examples) -> Abstraction:
    return abstraction(EQUALITY, [UNITS], exact(examples), network="by rule", told=told)


def test_a_network_that_computes_the_model_agrees_in_every_set(right: Abstraction) -> None:
    data = right.data
    assert data["exchanged"].values.tolist() == ["left", "right", "left + right"]
    assert (data["iia"].sel(way="fitted") == 1).all() and float(data["score"].sel(way="fitted")) == 1
    assert (data["iia"].sel(way=["no interchange", "random subspaces"]) < 0.75).all()
    assert right.unsupported == () and len(right.failures()) == 0
    assert "Holds in all 300 interventions" in repr(right) and "NOT run: random model" in repr(right)
    assert np.isnan(data["iia"].sel(way="full swap", exchanged="left + right"))  # two sources have no whole state
    with pytest.raises(InterpError, match="nothing to draw"):
        right.plot_failures()


def test_every_number_is_that_of_its_definition(examples) -> None:
    """One set after another, by swaps written out."""
    found = abstraction(EQUALITY, [UNITS], exact(examples, broken=True), network="by rule", told=told)
    scores = []
    for exchanged in (("left",), ("right",), ("left", "right")):
        own = examples.exchanging(exchanged)
        state = own.base.clone()
        for variable, source in zip(own.variables, own.sources, strict=True):
            units = slice(0, 8) if variable == "left" else slice(8, 16)
            state[:, units] = source[:, units]
        correct = by_rule(state, broken=True).argmax(1) == own.label.long()
        here = found.data.sel(exchanged=" + ".join(exchanged))
        got = here["correct"].sel(way="fitted").values
        np.testing.assert_array_equal(got[: len(own)], correct.numpy())
        assert np.isnan(got[len(own) :]).all()
        scores.append(float(correct.double().mean()))
        still = by_rule(own.base, broken=True).argmax(1) == own.label.long()
        assert float(here["iia"].sel(way="no interchange")) == pytest.approx(float(still.double().mean()))
        if len(exchanged) == 1:
            swapped = by_rule(own.sources[0], broken=True).argmax(1) == own.label.long()
            assert float(here["iia"].sel(way="full swap")) == pytest.approx(float(swapped.double().mean()))
    assert float(found.data["score"].sel(way="fitted")) == pytest.approx(np.mean(scores))
    assert found.worst == ["left", "right", "left + right"][int(np.argmin(scores))]


def test_failures_that_were_put_in_are_found_and_listed(examples) -> None:
    found = abstraction(EQUALITY, [UNITS], exact(examples, broken=True), network="by rule", told=told)
    wrong = found.failures()
    assert len(wrong) == int((found.data["correct"].sel(way="fitted") == 0).sum()) > 30
    assert (wrong["label"] == "False").all() and (wrong["answer"] == "True").all()
    first = str(found.data["condition"].values[0])
    assert float(found.data["p"][0]) < 1e-6 and first == "answer under the interchange is False"
    text = repr(found)
    assert "does NOT hold in" in text and "fails where " in text
    assert str(found.data["description"].item()).startswith("where answer under the interchange is False")
    assert found.plot_failures().data[0].x[0] == pytest.approx(float(found.data["rate"][0]))


@pytest.mark.slow
def test_a_trained_network_has_both_variables_in_one_family_and_an_untrained_one_has_not() -> None:
    networks = trained_mlp("equality", steps=2500, batch=512, rate=1e-2)
    untrained = VectorMlp(16).requires_grad_(False)
    train, held_out = vector_interchange("equality", 50_000, seed=1), vector_interchange("equality", 900, seed=2)
    maps = [family(each, train) for each in (networks, untrained)]
    of_trained, of_untrained = (vector_interchanges(each, held_out) for each in (networks, untrained))
    found = abstraction(
        EQUALITY, maps[:1], of_trained, network="MLP", told=told, untrained=(maps[1:], of_untrained)
    )  # fmt: skip
    assert found.unsupported == ()
    assert (found.data["iia"].sel(way="fitted") > 0.65).all() and (
        found.data["iia"].sel(way="random model") < 0.6
    ).all()
    nothing = abstraction(EQUALITY, maps[1:], of_untrained, network="untrained MLP", told=told)
    assert nothing.unsupported == ("left", "right", "left + right")
    assert "Does NOT hold: not above the controls when exchanging left, right, left + right" in repr(nothing)


def family(networks: VectorMlp, train: VectorInterchange) -> Aligned:
    """Both variables' blocks in the first layer, fitted to every set of them."""
    made, one = LowRank(16, (8, 8)), torch.zeros(1, dtype=torch.long)
    cells = Cells(made, one, one, ("layer 1",))
    about = Training(steps=600, batch=256, learning_rate=1e-2)
    fit([cells], MlpContinuation(networks, train), train.label.long()[None], about)
    return Aligned(("left", "right"), 0, made.frozen())


def test_the_random_model_is_judged_by_its_own_states(examples) -> None:
    networks = [VectorMlp(16, seeds=(seed,)).requires_grad_(False) for seed in (0, 1)]
    one, other = (vector_interchanges(each, examples) for each in networks)
    found = abstraction(EQUALITY, [UNITS], one, network="0", told=told, untrained=([UNITS], other))
    for of in other:
        answer = joint_outputs([UNITS], of.exchanged, of.continuation).argmax(1)
        expected = float((answer == of.label).double().mean())
        assert float(found.data["iia"].sel(way="random model", exchanged=of.name)) == pytest.approx(expected)
    assert "NOT run" not in repr(found)


def test_it_draws_saves_and_loads(right: Abstraction, tmp_path) -> None:
    right.save(tmp_path / "abstraction.nc")
    again = Result.load(tmp_path / "abstraction.nc")
    assert isinstance(again, Abstraction) and repr(again) == repr(right)
    figure = right.plot()
    assert {bar.name for bar in figure.data} == {"fitted", "no interchange", "random subspaces", "full swap"}
    assert list(figure.layout.yaxis.ticktext) == ["left", "right", "left + right", "every set alike"]
    assert '"iia"' in right.to_json()


def test_the_interval_of_the_score_is_that_of_its_mean(right: Abstraction, examples) -> None:
    """Sets of unlike size count alike: the score is within its interval, which is as wide as the examples allow."""
    few = exact(examples, broken=True)
    found = abstraction(EQUALITY, [UNITS], few, network="by rule", told=told).data.sel(way="fitted")
    score, low, high = (float(found[name]) for name in ("score", "score_low", "score_high"))
    spread = np.sqrt(
        sum(float(p) * (1 - float(p)) / n / 9 for p, n in zip(found["iia"], [len(o.label) for o in few], strict=True))
    )
    assert low < score < high
    assert 3.3 * spread < high - low < 5.2 * spread  # ± 1.96, and what drawing the sets adds


def test_refusals(examples) -> None:
    sets = exact(examples)
    about = dict(network="by rule", told=told)
    with pytest.raises(InterpError, match="no examples"):
        abstraction(EQUALITY, [UNITS], [], **about)
    with pytest.raises(InterpError, match="in two entries"):
        abstraction(EQUALITY, [UNITS], [sets[0], sets[0]], **about)
    with pytest.raises(InterpError, match="'right' is exchanged and not aligned"):
        abstraction(EQUALITY, [Aligned(("left",), 0, Subspace(torch.eye(16)[:, :8]))], sets, **about)
    with pytest.raises(InterpError, match="no variable 'left'"):
        abstraction(VECTOR_MODELS["and-or"], [UNITS], sets, **about)
    with pytest.raises(InterpError, match="the same sets"):
        abstraction(EQUALITY, [UNITS], sets, untrained=([UNITS], sets[:1]), **about)
    wrong = dataclasses.replace(sets[1], label=1 - sets[1].label)
    with pytest.raises(PairError, match="Exchanging right, example 0: causal model 'equality' answers"):
        abstraction(EQUALITY, [UNITS], [wrong], **about)
