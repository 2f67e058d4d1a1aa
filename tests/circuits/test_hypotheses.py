"""Tests of circuits: their parts by hand, true circuits pass, and where there is none, none does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from circuits.exact import exact, pairs, plain
from circuits.test_select import GRAPH, SCORES

import interp
from interp.circuits.ablation import Ablation, Cut
from interp.circuits.evaluate import evaluate
from interp.circuits.hypotheses import (
    Examined,
    Trials,
    alternatives,
    edge_p,
    edge_power,
    examine,
    judged,
    random_path,
    rank_p,
)
from interp.circuits.patching import EdgePatching
from interp.circuits.problem import Problem
from interp.circuits.score import exact_edges, random_scores
from interp.circuits.select import circuit, random_like, top_n
from interp.errors import InterpError, PairError
from interp.progress import silent
from interp.tasks.metrics import LogitDifference
from interp.tasks.pairs import EncodedTask

FEW = Trials(n_random=0, n_edges=0, n_inflated=0, n_subsets=0)


def true_circuit(truth, ablation="resample"):
    scores = random_scores(truth.model, truth.task)
    chosen = np.zeros(scores.graph.edges.shape, dtype=bool)
    for name in truth.edges(ablation):
        chosen[scores.graph.index(name)] = True
    return circuit(scores, chosen, "the truth")


def test_random_paths_lead_from_input_to_logits_outside_of_the_circuit():
    generator, found = np.random.default_rng(0), set()
    edges = GRAPH.edges & False
    edges[GRAPH.index("input->logits")] = True
    for _ in range(50):
        path = random_path(GRAPH, edges, generator)
        assert path is not None
        nodes = ["input"]
        for sender, receiver in path:
            assert GRAPH.edges[sender, receiver] and GRAPH.senders[sender] in nodes
            nodes = [GRAPH.nodes[i] for i in np.flatnonzero(GRAPH.feeds[receiver])]
        assert nodes == ["logits"] and not edges[tuple(path.T)].all()
        found.add(tuple(path[:, 1]))
    assert len(found) > 20
    assert random_path(GRAPH, GRAPH.edges, generator) is None


def test_what_random_circuits_can_share():
    edges = GRAPH.edges & False
    assert alternatives(GRAPH, edges, GRAPH.edges, 19) == ""  # there is one circuit of no edges
    edges[GRAPH.index("input->logits")] = True
    assert alternatives(GRAPH, edges, GRAPH.edges, 19) == "number"  # the only edge of its type
    assert alternatives(GRAPH, edges, GRAPH.edges, 10_000) == ""
    for name in ("a0.h1->m1", "input->a0.h0<q>", "a0.h1->a1.h0<q>"):
        edges[GRAPH.index(name)] = True
    # heads into MLPs: 6; input into queries: 4; heads into queries: 4
    assert alternatives(GRAPH, edges, GRAPH.edges, 6 * 4 * 4 - 1) == "types"
    assert alternatives(GRAPH, edges, GRAPH.edges, 6 * 4 * 4) == "number"
    assert alternatives(GRAPH, GRAPH.edges, GRAPH.edges & False, 1) == ""
    rest, found = GRAPH.edges & ~edges, circuit(SCORES, edges, "by hand")
    drawn = random_like(found, np.random.default_rng(0), rest, typed=False)
    assert drawn.sum() == 4 and not (drawn & edges).any() and not (drawn & ~GRAPH.edges).any()


def test_p_by_hand():
    assert rank_p(0.5, np.array([0.1, 0.5, 0.6, 0.2])) == pytest.approx(3 / 5)
    assert rank_p(1.0, np.array([np.nan, 0.1])) == pytest.approx(1 / 2) and np.isnan(rank_p(1.0, np.array([np.nan])))
    whole = np.array([1.0, 2.0])
    inflated = np.array([[[1.0, 2.0]] * 4, [[1.1, 2.1], [0.9, 2.1], [1.0, 2.0], [4.0, 5.0]]])
    empty = np.zeros((0, 2))
    of = Examined(("", ""), empty, whole, empty, ["a", "b"], np.array([[0.0, 3.0], [1.1, 2.1]]), inflated, [], empty)
    changes, p, less = edge_p(whole, of, 1e-9)
    np.testing.assert_allclose(changes, [1, 0.1])
    # 3 wins of 4: 5/16; 1 win of 4 (equal is no win): 15/16. Holm: 2 · 5/16, then 15/16
    np.testing.assert_allclose(p, [10 / 16, 15 / 16])
    # at most 3 wins: 15/16; at most 1: 5/16. Holm: 2 · 5/16, then 15/16
    np.testing.assert_allclose(less, [15 / 16, 10 / 16])
    none = Examined(("", ""), empty, whole, empty, ["a"], whole[None], np.zeros((2, 0, 2)), [], empty)
    assert np.isnan(edge_p(whole, none, 0.0)[1:]).all()


def test_what_so_many_random_edges_can_show():
    # of 20: P(17 or more) = 1351 / 2^20 = 0.0013 ≤ 0.05 / 10 < P(16 or more) = 0.0059
    assert edge_power(10, 20, 0.05)[0] == 17 and edge_power(10, 10, 0.05)[0] == 10
    assert edge_power(10, 10, 0.05)[1] == pytest.approx(0.9**10)
    generator = np.random.default_rng(0)
    shown = (generator.random((4000, 20)) < 0.9).sum(1) >= 17
    assert edge_power(10, 20, 0.05)[1] == pytest.approx(shown.mean(), abs=0.02)
    assert edge_power(1, 5, 0.05) == (5, pytest.approx(0.9**5)) and edge_power(2, 5, 0.05) == (6, 0)  # none can


def test_verdicts():
    good = {"faithfulness": 0.9, "task": 0.01, "sufficiency": 0.05, "necessity": 0.05}
    assert judged(good, Trials()) == {"passed": True, "reasons": [], "untested": []}
    for name, value, said in (
        ("faithfulness", 0.7, "faithfulness 0.70 is below 0.8"),
        ("task", 0.3, "does not get more pairs right than chance"),
        ("sufficiency", 0.1, "not more faithful than random circuits"),
        ("necessity", 0.5, "misses it no more than random circuits"),
    ):
        found = judged({**good, name: value}, Trials())
        assert found["passed"] is False and said in found["reasons"][0] and len(found["reasons"]) == 1
    nan = float("nan")
    assert judged({**good, "necessity": nan}, Trials()) == {"passed": None, "reasons": [], "untested": ["necessity"]}
    assert judged({**good, "faithfulness": nan}, Trials())["passed"] is False


def test_what_is_run_by_hand():
    model, task = exact("llama"), pairs((7, 5, 6, 7))
    problem = Problem.of(model, task, "logit_difference")
    found = top_n(exact_edges(model, task), 12)
    cut, calls = Cut(problem, Ablation()), []
    trials = Trials(n_random=19, n_edges=3, n_inflated=6, n_subsets=2)

    def noted(items, what, /):
        calls.append((what, len(items)))
        return items

    of = examine(cut, found, trials, np.random.default_rng(0), noted)
    assert calls == [
        ("random circuits", 19), ("random knock-outs", 19), ("edges of the circuit", 3), ("random edges", 6),
        ("sets of nodes", 2),
    ]  # fmt: skip
    by_hand = EdgePatching(model, task.clean, task.corrupted, LogitDifference(task.answer, task.wrong_answer))
    graph = problem.graph

    def without(edges):
        return by_hand(torch.tensor(edges).double()).numpy()

    np.testing.assert_allclose(of.knocked_out, without(found.edges), rtol=0, atol=1e-12)
    for name, value in zip(of.edges, of.without_edge, strict=True):
        less = found.edges.copy()
        assert less[graph.index(name)]
        less[graph.index(name)] = False
        np.testing.assert_allclose(value, without(graph.edges & ~less), rtol=0, atol=1e-12)
    for gone, circuit_left, model_left in zip(of.subsets, *of.broken, strict=True):
        leaving = np.isin(np.array(graph.senders), gone)[:, None] & graph.edges
        assert len(gone) >= 1 and "input" not in gone and set(gone) <= set(found.nodes)
        np.testing.assert_allclose(model_left, without(leaving), rtol=0, atol=1e-12)
        np.testing.assert_allclose(circuit_left, without(graph.edges & ~(found.edges & ~leaving)), rtol=0, atol=1e-12)
    assert np.isfinite(of.inflated).all() and len(np.unique(of.random.round(9), axis=0)) > 1


@pytest.mark.parametrize(("name", "ablation"), [("planted", "resample"), ("induction", "zero")])
def test_the_true_circuit_passes(name, ablation):
    truth = interp.tasks.planted() if name == "planted" else interp.tasks.compiled(name)
    found = true_circuit(truth, ablation)
    result = evaluate(truth.model, truth.task, found, ablation=ablation, trials=Trials(n_edges=None))
    assert result.verdict["passed"] is True, repr(result)
    assert (result.data["edge_p"] < 0.05).all() and len(result.data["tested"]) == found.edges.sum()
    assert "PASSES" in repr(result.circuit()) and "PASSES" in repr(result)
    if ablation == "resample":  # zeros may leave constants behind that other parts of the model supplied
        np.testing.assert_allclose(result.data["left_circuit"], result.data["left_model"], atol=1e-3)


def test_edges_too_many_are_not_shown_to_be_needed_and_one_too_few_fails():
    truth = interp.tasks.planted()
    found, generator = true_circuit(truth), np.random.default_rng(1)
    more = found.edges.copy()
    extra = generator.permutation(np.argwhere(found.graph.edges & ~more))[:3]
    more[tuple(extra.T)] = True
    result = evaluate(
        truth.model, truth.task, circuit(found, more, "inflated"), trials=replace(FEW, n_edges=None, n_inflated=10)
    )
    needed = set(result.data["tested"].values[result.data["edge_p"].values < 0.05])
    assert needed == set(found.names)
    spare = result.data["tested"].values[result.data["edge_p_less"].values < 0.05]
    assert set(spare) == set(result.data["tested"].values) - needed
    assert "13 of 16 edges tested are needed more than random ones, 3 no more than those" in repr(result)
    assert f"needed no more than random edges: {spare[0]}" in repr(result) and "cannot be decided" not in repr(result)
    assert "must exceed up to 10 of 10 random ones; one that exceeds 9 in 10 of all does with a chance of 0.35" in repr(
        result
    )
    close = result.data["edge_p"].where(result.data["tested"] != found.names[0], 0.2)
    unsure = type(result)(result.data.assign(edge_p=close), result.provenance)
    assert "1 cannot be decided with 10 random edges" in repr(unsure) and f"not decided: {found.names[0]}" in repr(
        unsure
    )
    less = found.edges.copy()
    less[found.graph.index(found.names[-1])] = False
    broken = evaluate(truth.model, truth.task, circuit(found, less, "broken"), trials=FEW)
    assert result.verdict["passed"] is None and "NOT SETTLED" in repr(result)  # no random circuits were asked for
    assert "sufficiency: not tested, n_random is 0" in repr(result)
    assert broken.verdict["passed"] is False and "DOES NOT PASS: faithfulness" in repr(broken.circuit())


def passes(model, task, found):
    """Whether a circuit passes; pairs without a gap are refused, and nothing passes on them."""
    try:
        return evaluate(model, task, found, trials=replace(FEW, n_random=19)).verdict["passed"]
    except PairError:
        return False


def test_in_a_reset_model_no_circuit_passes():
    """Random weights tell clean from corrupted prompts, too. Found on half of the pairs, tested on the other."""
    task = pairs((7, 5, 6, 7, 6, 5, 7, 6) * 2)
    for family in ("gpt2", "llama"):
        found = top_n(exact_edges(exact(family), task.select(range(8))), 20)
        assert passes(exact(family), task.select(range(8, 16)), found) is False


def test_with_shuffled_answers_no_circuit_passes():
    """A model that does its task, asked for other answers than its own."""
    truth = interp.tasks.compiled("induction")
    encoded = truth.task.encode(truth.model)
    words = torch.unique(torch.cat([encoded.answer, encoded.wrong_answer]))
    mine, held = range(16), range(16, 32)
    assert passes(truth.model, encoded.select(held), top_n(exact_edges(truth.model, encoded.select(mine)), 5)) is True
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.stack([words[torch.randperm(len(words), generator=generator)[:2]] for _ in range(len(encoded))])
        shuffled = EncodedTask(encoded.task, encoded.clean, encoded.corrupted, drawn[:, 0], drawn[:, 1])
        values = [plain(truth.model, prompts, shuffled) for prompts in (encoded.clean, encoded.corrupted)]
        assert (values[0] - values[1]).abs().max() > 1
        found = top_n(exact_edges(truth.model, shuffled.select(mine)), 5)
        assert passes(truth.model, shuffled.select(held), found) is False


def test_refusals():
    with pytest.raises(InterpError, match="counted from 0"):
        Trials(n_edges=-1)
    with pytest.raises(InterpError, match="9 random circuits cannot give p ≤ 0.05; take 19 or more"):
        Trials(n_random=9)
    assert Trials(n_random=9, level=0.1).n_random == 9
    truth = interp.tasks.compiled("two_hop", n=8)
    problem = Problem.of(truth.model, truth.task, "logit_difference")
    found = true_circuit(truth)
    with pytest.raises(InterpError, match="3 random edges cannot give 8 edges p ≤ 0.05.*take n_inflated=8 or more"):
        examine(Cut(problem, Ablation()), found, Trials(n_edges=None, n_inflated=3), np.random.default_rng(0), silent)
