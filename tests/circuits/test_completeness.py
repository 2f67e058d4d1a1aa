"""Completeness: a backup that a circuit lacks is found, a complete circuit shows nothing, and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from circuits.exact import exact, pairs
from circuits.test_evaluate import LONG, oriented
from circuits.test_hypotheses import true_circuit

import interp
from interp.circuits.ablation import Ablation, Cut
from interp.circuits.completeness import Completeness, completeness
from interp.circuits.evaluate import evaluate
from interp.circuits.hypotheses import inner_nodes, without_nodes
from interp.circuits.problem import Problem
from interp.circuits.score import eap
from interp.circuits.select import circuit, top_n
from interp.errors import InterpError, PairError

GREEDY = dict(n_random=0, starts=1, depth=2, candidates=9)


def one_branch(truth):
    """A circuit of one branch of the gate."""
    whole = true_circuit(truth)
    some = whole.edges.copy()
    for edge in ("input->a0.h1<v>", "a0.h1->m0"):
        some[whole.graph.index(edge)] = False
    return circuit(whole, some, "one branch")


def test_a_missing_backup_is_found():
    """From 1 1, an OR gate answers by either head alone: a circuit of one of them is faithful, and not complete."""
    truth = interp.tasks.gate("or", 8)
    found = one_branch(truth)
    judged = evaluate(truth.model, truth.task, found, trials=None, n_random=0)
    assert float(judged.data["faithfulness"][0]) == pytest.approx(1, abs=1e-5)
    result = completeness(truth.model, truth.task, found, **GREEDY)
    assert result.worst["nodes"].item() == "a0.h0"
    assert result.worst["left"].values == pytest.approx([0, 1], abs=1e-5)
    for name in ("difference", "low", "high"):
        assert float(result.worst[name]) == pytest.approx(-1, abs=1e-5)
    # With the MLP gone as well, nothing is left of either: the second step can only lose what the first found.
    assert result.data["nodes"].values.tolist() == ["a0.h0", "a0.h0, m0"]
    np.testing.assert_allclose(result.data["difference"], [-1, 0], atol=1e-5)
    assert "worst: without a0.h0 the circuit keeps 0.000 of the gap and the model 1.000" in repr(result)
    assert "difference -1.000 (-1.000 to -1.000)" in repr(result)


@pytest.mark.parametrize("name", ["or", "and", "planted"])
def test_a_true_circuit_lacks_nothing(name):
    truth = interp.tasks.planted() if name == "planted" else interp.tasks.gate(name, 8)
    result = completeness(truth.model, truth.task, true_circuit(truth), n_random=4, starts=2, depth=3, candidates=4)
    np.testing.assert_allclose(result.data["difference"], 0, atol=1e-4)
    assert {"random", "greedy"} == set(result.data["search"].values)


def test_an_and_gate_without_a_branch_is_unfaithful_and_no_less_complete_for_it():
    """Nothing stands in for a branch of AND: with the other gone too, circuit and model are equally lost."""
    truth = interp.tasks.gate("and", 8)
    result = completeness(truth.model, truth.task, one_branch(truth), **GREEDY)
    np.testing.assert_allclose(result.data["difference"], 0, atol=1e-5)


def test_greedy_steps_are_the_best_by_brute_force_and_the_cost_is_as_said():
    model, task = exact("gpt2"), oriented(exact("gpt2"), LONG)
    found = top_n(eap(model, task), 30)
    result = completeness(model, task, found, n_random=3, starts=1, depth=2, candidates=99, seed=4)
    assert result.data["search"].values.tolist() == ["random"] * 3 + ["greedy"] * 2
    problem = Problem.of(model, task, "logit_difference")
    cut, nodes, senders = Cut(problem, Ablation()), inner_nodes(found.edges), np.array(problem.graph.senders)
    clean, empty = (problem.values[name].double().numpy() for name in ("clean", "corrupted"))
    n = len(nodes)
    p = result.provenance
    assert p["n_passes"] == 2 * p["n_tried"] <= 2 * (3 + n + n - 1) and f"{p['n_passes']} passes" in repr(result)
    assert (p["n_searched"], p["n_measured"]) == (4, 4)
    searched = np.random.default_rng(4).permutation(8)[:4]
    measured = np.setdiff1d(np.arange(8), searched)

    def by_hand(names, rows):
        values = without_nodes(cut, found.edges, np.isin(senders, names))[:, rows].mean(-1)
        return (values - empty[rows].mean()) / (clean[rows].mean() - empty[rows].mean())

    singles = {senders[i]: abs(np.subtract(*by_hand([senders[i]], searched))) for i in nodes}
    first = max(singles, key=singles.__getitem__)
    doubles = {pair: abs(np.subtract(*by_hand(pair, searched))) for pair in combinations(singles, 2) if first in pair}
    second = max(doubles, key=doubles.__getitem__)
    assert result.data["nodes"].values[3:].tolist() == [first, ", ".join(second)]
    for row, names in enumerate(result.data["nodes"].values):
        names = names.split(", ")
        left = by_hand(names, measured)
        np.testing.assert_allclose(result.data["left"].values[:, row], left, atol=1e-9)
        assert float(result.data["difference"][row]) == pytest.approx(left[0] - left[1], abs=1e-9)
        assert float(result.data["chosen_by"][row]) == pytest.approx(abs(np.subtract(*by_hand(names, searched))))
        assert float(result.data["low"][row]) <= left[0] - left[1] <= float(result.data["high"][row])
        assert len(names) == int(result.data["n_nodes"][row]) and "input" not in names


def test_it_shows_and_keeps_itself(tmp_path):
    truth = interp.tasks.gate("or", 8)
    result = completeness(truth.model, truth.task, one_branch(truth), ablation="zero", n_random=2)
    assert "zero ablation" in repr(result) and "one branch" in result.provenance["selection"]
    assert result.plot().layout.title.text
    result.save(tmp_path / "completeness.nc")
    assert repr(Completeness.load(tmp_path / "completeness.nc")) == repr(result)


def test_refusals():
    truth = interp.tasks.gate("or", 8)
    found = true_circuit(truth)
    with pytest.raises(
        InterpError, match="0 random sets and 2 greedy searches of 4 steps among 0 nodes: there is nothing"
    ):
        completeness(truth.model, truth.task, found, n_random=0, candidates=0)
    with pytest.raises(InterpError, match="llama has other weights"):
        completeness(exact("llama"), pairs(), found)
    with pytest.raises(PairError, match="give at least two pairs"):
        completeness(truth.model, truth.task[:1], found)
    alone = found.edges & False
    alone[found.graph.index("input->logits")] = True
    with pytest.raises(InterpError, match="no node but the embedding"):
        completeness(truth.model, truth.task, circuit(found, alone, "by hand"))
