"""Learned masks: gates are what they say, and on models of known circuits training finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import PLANTED, exact, pairs, plain, planted
from scipy.stats import rankdata

import interp
from interp.circuits.gated import Gated
from interp.circuits.masks import LOW, edge_masks, hard_concrete, node_gates, open_probability
from interp.circuits.patching import EdgePatching
from interp.circuits.select import threshold
from interp.errors import InterpError, PairError
from interp.interventions.run import run
from interp.models.site import Site
from interp.tasks.metrics import LogitDifference
from interp.tasks.pairs import EncodedTask

PAIRS = pairs()
METRIC = LogitDifference(PAIRS.answer, PAIRS.wrong_answer)
QUICK = dict(steps=80, learning_rate=0.3, batch=8)


def auc(scores, true) -> float:
    ranks, n = rankdata(scores), int(np.sum(true))
    return (ranks[true].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n))


def test_gates_are_drawn_as_their_formula_says():
    log_alpha = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0], dtype=torch.float64)
    uniform = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    drawn = hard_concrete(log_alpha[:, None].expand(-1, len(uniform)).flatten(), uniform.repeat(5)).view(5, -1)
    torch.testing.assert_close((drawn > 0).double().mean(1), open_probability(log_alpha), rtol=0, atol=1e-5)
    # symmetric: gates of −log α are one minus those of log α
    assert float((drawn[2] == 0).double().mean()) == pytest.approx(float((drawn[2] == 1).double().mean()), abs=1e-5)
    assert drawn.min() == 0 and drawn.max() == 1 and LOW < 0
    leaf = torch.zeros(1, requires_grad=True)
    hard_concrete(leaf, torch.tensor([0.4])).sum().backward()
    assert leaf.grad is not None and leaf.grad.item() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_gated_nodes_are_edge_patches_of_all_that_they_write(family):
    model = exact(family)
    cut = EdgePatching(model, PAIRS.clean, PAIRS.corrupted, METRIC)
    graph, generator = cut.graph, torch.Generator().manual_seed(0)
    sites = [Site("resid_pre", 0), *model.sites("z"), *model.sites("mlp_out")]
    source = run(model, PAIRS.corrupted, (), sites, logits=False).activations
    gated = Gated(model, PAIRS.clean, METRIC, sites, source)
    masks = torch.rand(2, len(graph.senders), generator=generator, dtype=torch.float64)
    gates = {Site("resid_pre", 0): masks[:, 0]}
    for layer in range(graph.n_layers):
        gates[Site("z", layer)] = masks[:, graph.heads(layer)]
        gates[Site("mlp_out", layer)] = masks[:, graph.mlp_sender(layer)]
    rows = torch.tensor([2, 0])
    found = gated(gates, rows)
    for mask, values in zip(masks, found, strict=True):
        patch = (1 - mask)[:, None].expand(-1, len(graph.receivers))
        torch.testing.assert_close(values, cut(patch)[rows], rtol=0, atol=1e-9)
        torch.testing.assert_close(cut(patch, rows), cut(patch)[rows], rtol=0, atol=1e-9)
    assert (found - plain(model, PAIRS.clean, PAIRS)[rows]).abs().min() > 1e-3


@pytest.mark.parametrize("program", ["trigram", "balance", "or", "and"])
def test_masks_of_known_circuits(program):
    truth = interp.tasks.gate(program, n=16) if program in ("or", "and") else interp.tasks.compiled(program, n=16)
    result = edge_masks(truth.model, truth.task, **QUICK)
    graph, true = result.graph, np.zeros(result.scores.shape, dtype=bool)
    for edge in truth.edges():
        true[graph.index(edge)] = True
    assert auc(result.scores[graph.edges], true[graph.edges]) == 1
    assert set(threshold(result, 0.5).names) == truth.edges()
    assert np.isnan(result.scores[~graph.edges]).all() and np.nanmax(result.scores) <= 1
    assert result.data["score"].attrs["unit"] == "probability that the gate is open"
    assert result.data["clean"].attrs["unit"] == "nats"


def test_masks_under_zeros_keep_the_constants_too():
    truth = interp.tasks.compiled("previous", n=16)
    result = edge_masks(truth.model, truth.task, ablation="zero", **QUICK)
    assert set(threshold(result, 0.5).names) == truth.edges("zero") > truth.edges()
    assert "by edge masks, zero ablation" in result.title


def test_nodes_of_a_known_circuit():
    truth = interp.tasks.compiled("trigram", n=16)
    result = node_gates(truth.model, truth.task, **QUICK)
    true = {edge.split("->")[0] for edge in truth.edges()}
    assert {node for node, score in zip(result.graph.senders, result.scores, strict=True) if score > 0.5} == true
    assert "Node scores by node gates" in repr(result) and result.plot().layout.title.text


def test_the_planted_edges_and_no_others():
    result = edge_masks(planted(), PAIRS, penalty=2e-3, steps=60, learning_rate=0.4, batch=3)
    gap = float((result.data["clean"] - result.data["corrupted"]).mean())
    assert gap > 0.05
    assert set(threshold(result, 0.5).names) == PLANTED


def test_groups_of_pairs_and_seeds():
    model = exact("gpt2")
    options = dict(steps=3, batch=3, learning_rate=0.5)
    for method in (edge_masks, node_gates):
        whole, again, alone = (method(model, PAIRS, budget=budget, **options) for budget in (2**28, 2**28, 1))
        other = method(model, PAIRS, seed=1, **options)
        np.testing.assert_array_equal(whole.scores, again.scores)
        np.testing.assert_allclose(whole.scores, alone.scores, rtol=0, atol=1e-6)
        assert np.nanmax(np.abs(whole.scores - other.scores)) > 1e-6


def test_refusals():
    model = exact("gpt2")
    same = EncodedTask(PAIRS.task, PAIRS.clean, PAIRS.clean, PAIRS.answer, PAIRS.wrong_answer)
    for method in (edge_masks, node_gates):
        with pytest.raises(InterpError, match="penalty of 0.0 closes no gate"):
            method(model, PAIRS, penalty=0.0)
        with pytest.raises(InterpError, match="0 steps of 16 pairs train nothing"):
            method(model, PAIRS, steps=0)
        with pytest.raises(PairError, match="nothing to explain"):
            method(model, same)
