"""ACDC's short cuts change nothing: the same decisions as one whole forward pass per edge."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from circuits.exact import PLANTED, exact, pairs, planted, tolerance

import interp
from interp.circuits.acdc import acdc
from interp.circuits.patching import EdgePatching
from interp.circuits.problem import Problem
from interp.circuits.results import Circuit
from interp.errors import InterpError, PairError

PAIRS = pairs()


def by_hand(problem: Problem, threshold: float, absolute: bool = False):
    """The algorithm as it is printed: a run of the whole model for every edge."""
    graph = problem.graph
    cut = EdgePatching(problem.model, problem.encoded.clean, problem.encoded.corrupted, problem.metric)
    gone = torch.zeros(graph.edges.shape, dtype=torch.float64)
    before, losses = cut(gone).mean(), np.zeros(graph.edges.shape)
    for receiver in reversed(range(len(graph.receivers))):
        for sender in reversed(np.flatnonzero(graph.edges[:, receiver])):
            gone[sender, receiver] = 1
            after = cut(gone).mean()
            losses[sender, receiver] = loss = float(before - after)
            if (abs(loss) if absolute else loss) < threshold:
                before = after
            else:
                gone[sender, receiver] = 0
    return graph.edges & (gone.numpy() == 0), losses


@cache
def expected(family: str, metric: str, threshold: float, absolute: bool = False):
    return by_hand(Problem.of(exact(family), PAIRS, metric), threshold, absolute)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "metric", "threshold"),
    [
        ("gpt2", "negative_kl", 0.03),
        ("gemma2", "logit_difference", 0.1),
        pytest.param("llama", "logit_difference", 0.1, marks=SLOW),
        pytest.param("gpt_neox", "negative_kl", 0.03, marks=SLOW),
    ],
)
def test_the_same_decisions_as_one_run_per_edge(family, metric, threshold):
    edges, losses = expected(family, metric, threshold)
    found = acdc(exact(family), PAIRS, threshold, metric=metric)
    assert isinstance(found, Circuit) and 2 < edges.sum() < found.graph.n_edges / 2
    assert np.array_equal(found.edges, edges)
    np.testing.assert_allclose(
        found.scores[found.graph.edges], losses[found.graph.edges], rtol=0, atol=tolerance(family)
    )
    p = found.provenance
    assert p["n_trials"] + p["n_untried"] == found.graph.n_edges
    assert p["n_rows"] == p["n_trials"] + p["n_vain"] and 0 < p["work"] < 0.5


def test_neither_the_batch_nor_the_memory_changes_a_decision():
    whole, alone = acdc(exact("llama"), PAIRS, 0.03), acdc(exact("llama"), PAIRS, 0.03, budget=1)
    assert np.array_equal(whole.edges, alone.edges)
    assert alone.provenance["n_vain"] == 0 < whole.provenance["n_vain"]
    np.testing.assert_allclose(whole.scores[whole.graph.edges], alone.scores[whole.graph.edges], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_gains_count_when_asked():
    edges, _ = expected("gpt2", "logit_difference", 0.1, True)
    found = acdc(exact("gpt2"), PAIRS, 0.1, metric="logit_difference", absolute=True)
    assert np.array_equal(found.edges, edges)
    assert edges.sum() > acdc(exact("gpt2"), PAIRS, 0.1, metric="logit_difference").edges.sum()


def test_a_planted_circuit_is_found_and_nothing_else():
    assert set(acdc(planted(), PAIRS, 1e-6, metric="logit_difference", absolute=True).names) == PLANTED


@pytest.mark.parametrize("name", ["induction", "trigram", "balance", "two_hop"])
def test_programs_lose_every_edge_but_the_true_ones(name):
    truth = interp.tasks.compiled(name, n=16)
    assert set(acdc(truth.model, truth.task, 0.01, metric="logit_difference").names) == truth.edges()


def test_an_edge_that_no_pair_makes_carry_anything_goes():
    """No fault of the method: on pairs that leave the first hop's word where it is, its true edge has no effect."""
    truth = interp.tasks.compiled("two_hop", n=16)
    same = [number for number, pair in enumerate(truth.task.pairs) if _first_hop(pair) == _first_hop(pair, True)]
    assert len(same) == 8
    scores = interp.circuits.exact_edges(truth.model, truth.task.select(same))
    assert scores.scores[scores.graph.index("input->a2.h0<v>")] == 0
    assert "input->a2.h0<v>" not in acdc(truth.model, truth.task.select(same), 0.01, metric="logit_difference").names


def _first_hop(pair, corrupted=False):
    """The word at the place where, in the clean prompt, the last word's follower stands."""
    clean = pair.clean.split()
    return (pair.corrupted if corrupted else pair.clean).split()[clean.index(clean[-1]) + 1]


def test_of_two_edges_that_stand_in_for_each_other_the_first_goes():
    truth = interp.tasks.gate("or", n=16)
    found = set(acdc(truth.model, truth.task, 0.01).names)
    assert truth.edges() - found == {"input->a0.h1<v>", "a0.h1->m0"}  # one branch of the OR, its later head
    assert found < truth.edges()


def test_refusals(speaking):
    with pytest.raises(InterpError, match="threshold of 0.0 keeps"):
        acdc(exact("gpt2"), PAIRS, 0.0)
    with pytest.raises(InterpError, match="no edge stays; the trial that cost most cost"):
        acdc(exact("gpt2"), PAIRS, 1e3)
    with pytest.raises(InterpError, match="no metric 'accuracy'"):
        acdc(exact("gpt2"), PAIRS, 0.1, metric="accuracy")
    with pytest.raises(PairError, match="nothing to explain"):
        acdc(speaking, interp.tasks.PromptPair("The key", "The key", " is", " are"), 0.1)
