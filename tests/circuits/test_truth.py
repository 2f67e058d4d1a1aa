"""Scores on models whose circuit is known: who must find it, and where theory says that it cannot be found."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from interp.circuits.results import EdgeScores
from interp.circuits.score import attribution_patching, eap, eap_ig, eap_ig_activations, exact_edges, exact_nodes
from interp.circuits.score import random_scores as randomly
from interp.circuits.truth import auc
from interp.errors import InterpError
from interp.models.reset import reset
from interp.tasks import PROGRAMS, compiled, gate, induction_by_hand, planted

MAKERS = {name: (lambda name=name: compiled(name)) for name in PROGRAMS} | {
    "and": lambda: gate("and", 8),
    "or": lambda: gate("or", 8),
    "by hand": lambda: induction_by_hand(),
    "planted": lambda: planted(),
}
NARROW = ("occurrences", "duplicate", "parity")
"""Programs with an MLP that turns a number into a value, in ramps 1/100 wide: five points of a path fall beside them."""


@cache
def made(name):
    return MAKERS[name]()


def found(name, method, **options):
    return auc(method(made(name).model, made(name).task, **options), made(name))


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("and", "or")])
def test_exact_edges_find_every_circuit(name):
    assert found(name, exact_edges) == 1
    if len(made(name).all_edges) < 50:
        assert found(name, exact_edges, direction="denoising") == 1


@pytest.mark.parametrize(("kind", "blind"), [("or", "noising"), ("and", "denoising")])
@pytest.mark.parametrize("method", [exact_edges, eap])
def test_a_gate_hides_its_branches_from_whatever_looks_from_one_end(kind, blind, method):
    truth = made(kind)
    other = {"noising": "denoising", "denoising": "noising"}[blind]
    assert found(kind, method, direction=other) == 1
    scores = method(truth.model, truth.task, direction=blind)
    for edge in truth.unseen[blind]:
        assert scores.scores[scores.graph.index(edge)] == 0
    # One of five true edges stands above all eight others; four are level with them.
    assert auc(scores, truth) == pytest.approx((8 + 4 * 8 / 2) / (5 * 8))


@pytest.mark.parametrize("kind", ["or", "and"])
def test_a_path_from_end_to_end_sees_both_gates(kind):
    assert found(kind, eap_ig) == 1
    assert found(kind, eap_ig_activations) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_integrated_gradients_find_every_circuit_with_steps_enough(name):
    assert found(name, eap_ig, steps=20 if name in NARROW else 5) == 1


@pytest.mark.parametrize("name", ["first", "balance"])
def test_integrated_activations_find_circuits(name):
    assert found(name, eap_ig_activations) == 1


@pytest.mark.parametrize("name", ["balance", *NARROW])
def test_five_points_fall_beside_narrow_ramps_and_the_result_says_so(name):
    scores = eap_ig(made(name).model, made(name).task, steps=5)
    missed = abs(scores.provenance["missing"]) > 0.1
    assert missed == ("take more steps" in repr(scores)) == (name in NARROW)
    assert (auc(scores, made(name)) < 0.8) if missed else (auc(scores, made(name)) == 1)


def test_what_is_missing_is_what_the_embedding_s_edges_lack():
    truth = made("balance")
    scores = eap_ig(truth.model, truth.task, steps=3)
    gap = float((scores.data["clean"] - scores.data["corrupted"]).mean())
    assert scores.provenance["missing"] == pytest.approx(1 - np.nansum(scores.scores[0]) / gap, abs=1e-6)


def test_nodes_and_chance():
    for name in ("two_hop", "trigram", "planted"):
        assert found(name, exact_nodes) == found(name, attribution_patching) == 1
    # The control: scores that know nothing order nothing.
    by_chance = [found(name, randomly, seed=seed) for name in ("trigram", "planted") for seed in range(10)]
    assert abs(np.mean(by_chance) - 0.5) < 0.1


def test_auc_by_hand():
    truth = made("caesar")  # two true edges of eight
    scores = exact_edges(truth.model, truth.task)
    edges = scores.graph.edges
    ranked = np.full(edges.shape, np.nan)
    ranked[edges] = range(1, 9)
    own = sorted(ranked[scores.graph.index(edge)] for edge in truth.edges())
    assert len(own) == 2
    above = sum(x > other for x in own for other in range(1, 9) if other not in own)

    def order(values):
        return auc(EdgeScores(scores.data.assign(score=(scores.data["score"].dims, values)), scores.provenance), truth)

    assert order(ranked) == pytest.approx(above / 12)
    assert order(-ranked) == pytest.approx(above / 12)  # strength, not sign
    assert order(9 - ranked) == pytest.approx(1 - above / 12)
    assert order(np.where(edges, 1.0, np.nan)) == 0.5


def test_refusals():
    truth = made("caesar")
    scores = exact_edges(truth.model, truth.task)
    with pytest.raises(InterpError, match="the circuit of previous is one of"):
        auc(scores, made("previous"))
    with pytest.raises(InterpError, match="no circuit is known under ablation 'mean'"):
        auc(scores, truth, ablation="mean")
    with pytest.raises(InterpError, match="the circuit of caesar is one of"):
        auc(eap(reset(truth.model), truth.task), truth)
    nodes = made("match_first")
    with pytest.raises(InterpError, match="3 are true and 0 are not"):
        auc(exact_nodes(nodes.model, nodes.task), nodes)
