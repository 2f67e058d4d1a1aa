"""Faithfulness by hand, its areas, and chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import PLANTED, exact, pairs, plain, planted

from interp.circuits.ablation import Ablation, Cut
from interp.circuits.evaluate import Evaluation, areas, evaluate
from interp.circuits.hypotheses import Trials
from interp.circuits.patching import EdgePatching
from interp.circuits.problem import Problem
from interp.circuits.results import Circuit
from interp.circuits.score import eap, exact_edges, random_scores
from interp.circuits.select import circuit, nested, prune, top_n
from interp.errors import InterpError, PairError
from interp.tasks.compiled import compiled
from interp.tasks.metrics import LogitDifference
from interp.tasks.pairs import EncodedTask


def oriented(model, lengths=(7, 5, 6)):
    """Pairs whose answers are named so that every clean value is well above the corrupted one."""
    task = pairs(lengths)
    swap = plain(model, task.clean, task) < plain(model, task.corrupted, task)
    answer = torch.where(swap, task.wrong_answer, task.answer), torch.where(swap, task.answer, task.wrong_answer)
    return EncodedTask(task.task, task.clean, task.corrupted, *answer)


LONG = (7, 5, 6, 7, 6, 5, 7, 6)


@pytest.fixture(scope="module")
def evaluated():
    model = exact("gpt2")
    task = oriented(model, LONG)
    scores = eap(model, task)
    few = Trials(n_edges=2, n_inflated=6, n_subsets=2)
    return model, task, scores, evaluate(model, task, scores, sizes=(0.05, 0.2, 1.0), n_random=4, trials=few, at=0.2)


def test_faithfulness_by_hand(evaluated):
    model, task, scores, result = evaluated
    clean, corrupted = plain(model, task.clean, task), plain(model, task.corrupted, task)
    cut = EdgePatching(model, task.clean, task.corrupted, LogitDifference(task.answer, task.wrong_answer))
    for i, found in enumerate(nested(scores, (0.05, 0.2, 1.0))):
        value = cut(torch.from_numpy(~found.edges).double())
        f = float((value.mean() - corrupted.mean()) / (clean.mean() - corrupted.mean()))
        assert float(result.data["faithfulness"][i]) == pytest.approx(f, abs=1e-9)
        assert int(result.data["edges"][i]) == found.edges.sum()
        np.testing.assert_allclose(result.data["value"].values[i], value, rtol=0, atol=1e-9)
    assert float(result.data["faithfulness"][-1]) == pytest.approx(1, abs=1e-9)
    f = result.data["faithfulness"].values
    cpr = 0.15 * (f[0] + f[1]) / 2 + 0.8 * (f[1] + f[2]) / 2
    cmd = 0.15 * (abs(1 - f[0]) + abs(1 - f[1])) / 2 + 0.8 * (abs(1 - f[1]) + abs(1 - f[2])) / 2
    assert float(result.data["cpr"]) == pytest.approx(cpr, abs=1e-9)
    assert float(result.data["cmd"]) == pytest.approx(cmd, abs=1e-9)
    assert float(result.data["cpr_low"]) <= cpr <= float(result.data["cpr_high"])


def test_random_circuits_and_p(evaluated):
    data = evaluated[3].data
    assert data["random"].shape == (3, 19) and int((~np.isnan(data["random"][0])).sum()) == 4
    for i, n in enumerate((4, 19)):
        better = int((data["random"][i] >= data["faithfulness"][i]).sum())
        assert float(data["p"][i]) == (1 + better) / (1 + n)
    assert np.isnan(data["p"][2]) and np.allclose(data["random"][2, :4], 1)
    assert len(np.unique(data["random"].values[1])) == 19


def test_the_examined_circuit_carries_its_verdict(evaluated, tmp_path):
    _, _, scores, result = evaluated
    found = result.circuit()
    np.testing.assert_array_equal(found.edges, nested(scores, (0.2,))[0].edges)
    verdict = result.verdict
    assert found.provenance["verdict"] == verdict and found.provenance["method"] == "EAP"
    assert ("PASSES" if verdict["passed"] else "DOES NOT PASS") in repr(found) and "resample ablation" in repr(found)
    assert "of 2 edges tested are needed" in repr(found) and "without random nodes" in repr(found)
    found.save(tmp_path / "circuit.nc")
    assert repr(Circuit.load(tmp_path / "circuit.nc")) == repr(found)
    assert "not evaluated" in repr(prune(found))  # other edges, other verdict
    small = result.circuit(0.05)
    assert small.edges.sum() == nested(scores, (0.05,))[0].edges.sum() and "verdict" in small.provenance
    with pytest.raises(InterpError, match=r"No circuit of 0.3 of the edges; there are 0.05, 0.2, 1"):
        result.circuit(0.3)


def test_without_trials_nothing_is_settled():
    model = exact("gpt2")
    task = oriented(model, LONG)
    whole = evaluate(model, task, eap(model, task), sizes=(1.0,), trials=None)
    assert whole.verdict["passed"] in (None, False) and "examined" not in repr(whole)
    assert "NOT SETTLED" in repr(whole.circuit()) or "DOES NOT PASS" in repr(whole.circuit())
    tested = evaluate(model, task, eap(model, task), sizes=(1.0,))
    assert "sufficiency: not tested, there are too few other circuits" in repr(tested)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample-other"])
def test_other_ablations(ablation):
    truth = compiled("induction", n=16)
    scores = random_scores(truth.model, truth.task)
    result = evaluate(truth.model, truth.task, scores, sizes=(0.1, 1.0), ablation=ablation, trials=None, n_random=1)
    problem = Problem.of(truth.model, truth.task, "logit_difference")
    clean, empty = problem.values["clean"].double().numpy(), result.data["empty"].values
    none = Cut(problem, Ablation(ablation)).kept(result.circuit().edges & False)
    np.testing.assert_allclose(empty, none, rtol=0, atol=1e-12)
    f = (result.data["value"].values.mean(-1) - empty.mean()) / (clean.mean() - empty.mean())
    np.testing.assert_allclose(result.data["faithfulness"], f, rtol=0, atol=1e-9)
    assert f[1] == pytest.approx(1, abs=1e-5) and f[0] < 0.9 and result.provenance["ablation"] == ablation
    assert f"{ablation} ablation" in repr(result)


def test_areas_of_known_curves():
    shares = np.array([0.001, 0.01, 0.1, 1.0])
    clean, corrupted = np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0, -1.0])
    whole = areas(shares, np.tile(clean, (4, 1)), clean, corrupted)
    assert whole["cpr"] == pytest.approx((0.999, 0.999, 0.999)) and whole["cmd"] == pytest.approx((0, 0, 0))
    nothing = areas(shares, np.tile(corrupted, (4, 1)), clean, corrupted)
    assert nothing["cpr"] == pytest.approx((0, 0, 0)) and nothing["cmd"] == pytest.approx((0.999, 0.999, 0.999))
    double = areas(shares, np.tile(2 * clean - corrupted, (4, 1)), clean, corrupted)
    assert double["cpr"] == pytest.approx((1.998,) * 3) and double["cmd"] == pytest.approx((0.999,) * 3)
    one = areas(shares, np.tile(clean[:1], (4, 1)), clean[:1], corrupted[:1])
    assert one["cpr"][0] == pytest.approx(0.999) and np.isnan(one["cpr"][1:]).all()


def test_a_planted_circuit_is_faithful_and_needs_every_edge_that_matters():
    model = planted()
    task = oriented(model, LONG)
    scores = exact_edges(model, task)
    chosen = scores.graph.edges & False
    for name in PLANTED:
        chosen[scores.graph.index(name)] = True
    whole = evaluate(model, task, circuit(scores, chosen, "planted"))
    assert float(whole.data["faithfulness"][0]) == pytest.approx(1, abs=1e-9)
    # Five edges of so few types: random ones may be the same by chance, but mostly are not.
    assert float(whole.data["random"].mean()) < 0.9
    assert "cpr" not in whole.data
    chosen[scores.graph.index("a1.h2->logits")] = False
    less = evaluate(model, task, circuit(scores, chosen, "planted"), n_random=0, trials=None)
    assert abs(float(less.data["faithfulness"][0]) - 1) > 0.01 and "random" not in less.data


def test_random_scores_find_no_circuit():
    """The control: on few of the edges, scores that know nothing are not better than chance."""
    model = exact("gpt2")
    task = oriented(model, LONG)
    p = [
        float(
            evaluate(model, task, top_n(random_scores(model, task, seed=seed), 26), n_random=9, trials=None).data["p"][
                0
            ]
        )
        for seed in range(6)
    ]
    assert np.mean(p) > 0.25  # uniform on 0.1 … 1: mean 0.55, standard error 0.12


def test_it_shows_and_keeps_itself(evaluated, tmp_path):
    model, task, scores, result = evaluated
    assert "CPR" in repr(result) and "examined, 20.00%" in repr(result) and "4 random" in repr(result)
    assert len(result.to_dataframe()) == 3 and "edge" not in result.to_dataframe()
    assert "Faithfulness of circuits by EAP" in result.title
    figure = result.plot()
    assert figure.layout.xaxis.type == "log"
    result.save(tmp_path / "evaluation.nc")
    np.testing.assert_array_equal(Evaluation.load(tmp_path / "evaluation.nc").data["value"], result.data["value"])
    several = evaluate(model, task, nested(scores, (0.05, 0.2, 1.0)), n_random=0, trials=None)
    np.testing.assert_allclose(several.data["faithfulness"], result.data["faithfulness"], rtol=0, atol=1e-12)


def test_refusals(evaluated):
    model, task, scores, _ = evaluated
    with pytest.raises(InterpError, match="llama has other weights"):
        evaluate(exact("llama"), task, scores)
    with pytest.raises(InterpError, match="at least one circuit, and several by growing size"):
        evaluate(model, task, [top_n(scores, 5), top_n(scores, 2)])
    with pytest.raises(InterpError, match="at least one circuit"):
        evaluate(model, task, [])
    with pytest.raises(InterpError, match="no circuit of 0.3 of the edges"):
        evaluate(model, task, scores, sizes=(0.1, 0.2), at=0.3)
    halves = torch.arange(len(task)) % 2 == 0  # gaps of both signs
    answer = torch.where(halves, task.answer, task.wrong_answer), torch.where(halves, task.wrong_answer, task.answer)
    mixed = EncodedTask(task.task, task.clean, task.corrupted, *answer)
    with pytest.raises(PairError, match="nothing is there to recover"):
        evaluate(model, mixed, scores)
