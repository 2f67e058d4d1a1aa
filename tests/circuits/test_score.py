"""Scores: estimates equal derivatives, exact scores equal single patches, and where both must agree they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import FAMILIES, PLANTED, exact, pairs, plain, planted, tolerance
from models.tiny import tiny
from torch import nn

from interp.circuits.ablation import Ablation, Cut
from interp.circuits.patching import EdgePatching
from interp.circuits.problem import Problem, checked_direction
from interp.circuits.results import EdgeScores, NodeScores
from interp.circuits.score import (
    METHODS,
    alphas,
    attribution_patching,
    eap,
    eap_ig,
    eap_ig_activations,
    exact_edges,
    exact_nodes,
    random_scores,
    score,
)
from interp.errors import InterpError, PairError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.load import describe
from interp.models.site import Site
from interp.tasks.metrics import LogitDifference
from interp.tasks.pairs import EncodedTask, PromptPair

PAIRS = pairs()
DIRECTIONS = pytest.mark.parametrize("direction", ["noising", "denoising"])


def patching(model, direction):
    base, source = (PAIRS.clean, PAIRS.corrupted) if direction == "noising" else (PAIRS.corrupted, PAIRS.clean)
    metric = LogitDifference(PAIRS.answer, PAIRS.wrong_answer)
    return EdgePatching(model, base, source, metric), -1 if direction == "noising" else 1


def close(found, expected, atol=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def gap(model):
    return float((plain(model, PAIRS.clean, PAIRS) - plain(model, PAIRS.corrupted, PAIRS)).mean())


@DIRECTIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_eap_is_the_derivative_by_the_edges_weight(family, direction):
    model = exact(family)
    found, sign = patching(model, direction)
    weights = torch.zeros(found.graph.edges.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(found(weights).mean(), weights)
    result = eap(model, PAIRS, direction=direction)
    assert np.isnan(result.scores[~found.graph.edges]).all()
    assert np.nanmax(np.abs(result.scores)) > 1e-2
    close(result.scores[found.graph.edges], sign * gradient.numpy()[found.graph.edges], tolerance(family))
    if family == "llama":  # a group of one pair at a time, where prompts differ from their own positions on
        close(eap(model, PAIRS, direction=direction, budget=1).scores, result.scores)


@DIRECTIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_edges_are_single_patches(family, direction):
    model = exact(family)
    found, sign = patching(model, direction)
    result = exact_edges(model, PAIRS, direction=direction)
    edges = np.argwhere(found.graph.edges)
    edges = np.random.default_rng(0).permutation(edges)[: 60 if family == "llama" else 12]
    base = found(torch.zeros(found.graph.edges.shape, dtype=torch.float64))
    for i, j in edges:
        patch = torch.zeros(found.graph.edges.shape, dtype=torch.float64)
        patch[i, j] = 1
        effects = sign * (found(patch) - base)
        assert float(effects.mean()) == pytest.approx(result.scores[i, j], abs=tolerance(family)), (i, j)
        error = float(effects.std()) / 3**0.5
        assert error == pytest.approx(result.data["error"].values[i, j], abs=tolerance(family))
    assert np.nanmax(np.abs(result.scores)) > 1e-2


@pytest.mark.parametrize("kind", ["zero", "mean", "resample-other"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_under_other_ablations_scores_are_single_cuts_and_their_derivative(family, kind):
    """`Cut` is what test_ablation.py checks by hand."""
    model, task = exact(family), pairs((7, 5, 6, 7, 6, 5))
    cut = Cut(Problem.of(model, task, "logit_difference"), Ablation(kind))
    graph, clean = cut.problem.graph, plain(model, task.clean, task).numpy()
    weights = torch.zeros(graph.edges.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cut.patching(weights).mean(), weights)
    estimated = eap(model, task, ablation=kind)
    close(estimated.scores[graph.edges], -gradient.numpy()[graph.edges], tolerance(family))
    assert np.nanmax(np.abs(estimated.scores - eap(model, task).scores)) > 1e-3
    assert estimated.provenance["ablation"] == kind and f"by EAP, {kind} ablation ·" in estimated.title
    close(eap(model, task, ablation=kind, budget=1).scores, estimated.scores, tolerance(family))
    found = exact_edges(model, task, ablation=kind)
    for i, j in np.random.default_rng(0).permutation(np.argwhere(graph.edges))[:12]:
        one = np.zeros(graph.edges.shape, dtype=bool)
        one[i, j] = True
        assert found.scores[i, j] == pytest.approx((clean - cut.without(one)).mean(), abs=tolerance(family)), (i, j)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_under_other_ablations_activations_complete_layer_by_layer(kind):
    model, task = exact("gpt2"), pairs((7, 5, 6, 7, 6, 5))
    cut = Cut(Problem.of(model, task, "logit_difference"), Ablation(kind))
    graph, clean = cut.problem.graph, plain(model, task.clean, task).numpy()
    leaving = np.nansum(eap_ig_activations(model, task, steps=32, ablation=kind).scores, 1)
    for senders in ([0], list(range(*graph.heads(1).indices(99))), [graph.mlp_sender(0)]):
        layer = np.isin(np.arange(len(graph.senders)), senders)[:, None] & graph.edges
        effect = (clean - cut.without(layer)).mean()
        assert abs(effect) > 1e-1
        # All of the embedding's effect is where it is nearly zero, since norms are blind to scale: points fall beside it.
        found = abs(leaving[senders].sum() - effect) < 1e-2
        assert found == (kind == "mean" or senders != [0])


@DIRECTIONS
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gpt_neox"])
def test_exact_nodes_are_single_runs(family, direction):
    model = exact(family)
    found, sign = patching(model, direction)
    base, other = (PAIRS.clean, PAIRS.corrupted) if direction == "noising" else (PAIRS.corrupted, PAIRS.clean)
    result = exact_nodes(model, PAIRS, direction=direction)
    source = run(model, other, (), ["z", "mlp_out", Site("resid_pre", 0)])
    before = plain(model, base, PAIRS)
    sites = {
        "input": Site("resid_pre", 0),
        "a0.h1": Site("z", 0, 1),
        "a2.h3": Site("z", 2, 3),
        "m1": Site("mlp_out", 1),
    }
    for name, site in sites.items():
        logits = run(model, base, [Replace(site, source)]).last_logits()
        after = (logits.gather(1, PAIRS.answer[:, None]) - logits.gather(1, PAIRS.wrong_answer[:, None]))[:, 0]
        expected = sign * float((after - before).mean())
        assert expected == pytest.approx(result.scores[found.graph.senders.index(name)], abs=1e-9)
    assert result.scores[0] == pytest.approx(gap(model), abs=1e-9)


@DIRECTIONS
@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_of_a_node_is_the_sum_of_its_edges(family, direction):
    model = exact(family)
    nodes = attribution_patching(model, PAIRS, direction=direction)
    edges = np.nansum(eap(model, PAIRS, direction=direction).scores, 1)
    assert np.abs(edges).max() > 1e-2
    if family.startswith("gemma"):  # a head's z also moves the scale that all heads' terms share; other nodes agree
        others = [i for i, name in enumerate(nodes.graph.senders) if name[0] != "a"]
        close(nodes.scores[others], edges[others], tolerance(family))
    else:
        close(nodes.scores, edges)


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3"])
def test_integrated_gradients_complete_with_the_square_of_steps(family):
    model = exact(family)
    off = {
        (steps, points): abs(np.nansum(eap_ig(model, PAIRS, steps=steps, points=points).scores[0]) - gap(model))
        for steps, points in [(16, "midpoint"), (32, "midpoint"), (16, "right"), (32, "right")]
    }
    assert abs(gap(model)) > 0.05
    assert off[16, "midpoint"] / off[32, "midpoint"] == pytest.approx(4, rel=0.15)
    assert off[16, "right"] / off[32, "right"] == pytest.approx(2, rel=0.25)
    assert off[32, "midpoint"] < 3e-4 and off[32, "right"] > off[32, "midpoint"]


def test_one_midpoint_is_the_derivative_halfway():
    model = exact("llama")
    halfway = eap_ig(model, PAIRS, steps=1)
    assert halfway.provenance["alphas"] == [0.5]
    clean = eap_ig(model, PAIRS, steps=1, points="right")
    close(clean.scores, eap(model, PAIRS, direction="noising").scores)
    assert np.nanmax(np.abs(halfway.scores - clean.scores)) > 1e-3


@pytest.mark.parametrize("points", ["midpoint", "left", "shifted"])
def test_integrated_gradients_of_the_embedding_by_hand(points):
    """The scores of the embedding's edges add up to (clean − corrupted) · the gradient, mean over each pair's points."""
    model = exact("llama")
    embedding = model.network.get_input_embeddings()
    total = 0.0
    for row, length in enumerate(PAIRS.clean.lengths.tolist()):
        clean, corrupted = (embedding(x.ids[row, :length]) for x in (PAIRS.clean, PAIRS.corrupted))
        offset = {"midpoint": 0.5, "left": 0.0, "shifted": (0.5 + row * 0.6180339887498949) % 1}[points]
        for step in range(4):
            x = (corrupted + (step + offset) / 4 * (clean - corrupted)).detach().requires_grad_()
            logits = model.network(inputs_embeds=x[None], use_cache=False).logits[0, -1]
            value = logits[PAIRS.answer[row]] - logits[PAIRS.wrong_answer[row]]
            total += float((torch.autograd.grad(value, x)[0] * (clean - corrupted)).sum()) / 4 / 3
    found = eap_ig(model, PAIRS, steps=4, points=points)
    assert float(np.nansum(found.scores[0])) == pytest.approx(total, abs=1e-9)
    close(eap_ig(model, PAIRS, steps=4, points=points, budget=1).scores, found.scores)  # pairs keep their numbers


def test_points_of_pairs():
    assert alphas(2, "midpoint", 3).tolist() == [[0.25, 0.75]] * 3 and alphas(2, "right").tolist() == [[0.5, 1.0]]
    shifted = alphas(5, "shifted", 32)
    np.testing.assert_allclose(shifted[0], alphas(5, "midpoint")[0])
    every = np.sort(shifted.ravel())
    assert every.min() >= 0 and every.max() < 1 and np.diff(every).max() < 2.7 / 160  # spread over the whole path
    np.testing.assert_allclose(np.diff(shifted, axis=1), 0.2)
    model = exact("gpt2")
    one = PAIRS.select([1])
    equal, own = (eap_ig_activations(model, one, steps=3, points=points) for points in ("midpoint", "shifted"))
    close(equal.scores, own.scores)  # a pair alone is the first
    assert np.nanmax(np.abs(eap_ig_activations(model, PAIRS, steps=3, points="shifted").scores
                            - eap_ig_activations(model, PAIRS, steps=3).scores)) > 1e-6  # fmt: skip


@pytest.mark.parametrize(
    ("family", "direction"), [("gpt2", "noising"), ("gemma3", "denoising"), ("gpt_neox", "noising")]
)
def test_activations_complete_layer_by_layer(family, direction):
    model = exact(family)
    base, other = (PAIRS.clean, PAIRS.corrupted) if direction == "noising" else (PAIRS.corrupted, PAIRS.clean)
    source = run(model, other, (), ["attn_out", "mlp_out", Site("resid_pre", 0)])
    before = plain(model, base, PAIRS)
    result = eap_ig_activations(model, PAIRS, steps=8, direction=direction)
    graph, sign = result.graph, -1 if direction == "noising" else 1
    leaving = np.nansum(result.scores, 1)
    groups = [(Site("resid_pre", 0), [0]), (Site("mlp_out", 1), [graph.mlp_sender(1)])]
    groups += [(Site("attn_out", layer), list(range(*graph.heads(layer).indices(99)))) for layer in (0, 2)]
    for site, senders in groups:
        logits = run(model, base, [Replace(site, source)]).last_logits()
        after = (logits.gather(1, PAIRS.answer[:, None]) - logits.gather(1, PAIRS.wrong_answer[:, None]))[:, 0]
        effect = sign * float((after - before).mean())
        assert abs(effect) > 1e-3
        assert leaving[senders].sum() == pytest.approx(effect, abs=2e-2 * max(1, abs(effect))), site


def linear():
    """GPT-2 whose every step is linear: no norms, no non-linearity, attention that looks everywhere alike."""
    network = tiny("gpt2").requires_grad_(False)
    network.transformer.ln_f = nn.Identity()
    for block in network.transformer.h:
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        block.attn.c_attn.weight[:, :24] = 0
        block.attn.c_attn.bias[:24] = 0
    return describe(network, None, "linear")


def test_on_a_linear_model_every_method_agrees():
    model = linear()
    expected = exact_edges(model, PAIRS).scores
    assert np.nanmax(np.abs(expected)) > 1e-2
    for direction in ("noising", "denoising"):
        close(exact_edges(model, PAIRS, direction=direction).scores, expected)
        close(eap(model, PAIRS, direction=direction).scores, expected)
        close(eap_ig_activations(model, PAIRS, steps=2, direction=direction).scores, expected)
        nodes = np.nansum(expected, 1)
        close(exact_nodes(model, PAIRS, direction=direction).scores, nodes)
        close(attribution_patching(model, PAIRS, direction=direction).scores, nodes)
    close(eap_ig(model, PAIRS, steps=3).scores, expected)
    queries = [i for i, name in enumerate(exact_edges(model, PAIRS).graph.receivers) if name.endswith(("<q>", "<k>"))]
    close(expected[:, queries][exact_edges(model, PAIRS).graph.edges[:, queries]], 0)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("random", "information-flow", "edge-masks")]
)
def test_a_planted_circuit_is_found_and_nothing_else(method):
    result = score(planted(), PAIRS, method)
    found = {name for name, value in result.strongest(result.graph.n_edges) if abs(value) > 1e-6}
    assert found == PLANTED


def test_random_scores_know_nothing():
    model = planted()
    first, again, other = (random_scores(model, PAIRS, seed=seed) for seed in (0, 0, 1))
    close(first.scores, again.scores)
    assert np.nanmax(np.abs(first.scores - other.scores)) > 1
    values = first.scores[first.graph.edges]
    assert abs(values.mean()) < 4 / len(values) ** 0.5 and values.std() == pytest.approx(1, abs=0.25)
    assert {name for name, _ in first.strongest(len(PLANTED))} != PLANTED


@pytest.mark.parametrize("metric", ["log_probability", "probability", "negative_kl"])
def test_other_metrics(metric):
    model = exact("gpt2")
    result = eap_ig(model, PAIRS, steps=16, metric=metric)
    found = exact_nodes(model, PAIRS, metric=metric)
    assert np.nansum(result.scores[0]) == pytest.approx(found.scores[0], rel=2e-2)
    assert result.provenance["metric"] == metric
    difference = result.data["clean"].values - result.data["corrupted"].values
    assert found.scores[0] == pytest.approx(difference.mean(), abs=1e-9)


def test_text_tasks_results_and_files(speaking, tmp_path):
    pair = PromptPair("The key to the cabinets", "The keys to the cabinets", " is", " are")
    result = score(speaking, pair, "eap")
    assert isinstance(result, EdgeScores) and result.title == "Edge scores by EAP · given (1 pair) · tiny-smol"
    assert "190 edges" in repr(result) and "± nan" in repr(result) and "of 1 pairs right, 1 scored" in repr(result)
    assert result.networkx().number_of_nodes() == 17
    assert result.plot().layout.title.text
    result.save(tmp_path / "scores.nc")
    loaded = EdgeScores.load(tmp_path / "scores.nc")
    close(loaded.scores, result.scores)
    assert loaded.graph == result.graph
    nodes = exact_nodes(speaking, pair)
    assert isinstance(nodes, NodeScores) and "strongest" in repr(nodes) and nodes.plot().layout.title.text
    assert (
        exact_edges(speaking, pair, checkpoint=tmp_path / "run").title
        == exact_edges(speaking, pair, checkpoint=tmp_path / "run").title
    )


def test_pairs_that_the_model_gets_wrong_are_counted_and_left_out_when_asked():
    model = exact("llama")
    right = plain(model, PAIRS.clean, PAIRS) > 0
    assert 0 < right.sum() < 3
    everything = eap(model, PAIRS)
    assert (everything.provenance["n_right"], everything.provenance["n_scored"]) == (int(right.sum()), 3)
    some = eap(model, PAIRS, only_right=True)
    assert (some.provenance["n_attempted"], some.provenance["n_scored"]) == (3, int(right.sum()))
    found, _ = patching(model, "noising")
    weights = torch.zeros(found.graph.edges.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(found(weights)[right].mean(), weights)
    close(some.scores[found.graph.edges], -gradient.numpy()[found.graph.edges])


def test_refusals():
    model = exact("gpt2")
    with pytest.raises(InterpError, match="no method 'eap-gi'.*Did you mean 'eap-ig'"):
        score(model, PAIRS, "eap-gi")
    with pytest.raises(InterpError, match="eap takes no 'steps'; eap-ig, eap-ig-activations, edge-masks do"):
        score(model, PAIRS, "eap", steps=3)
    with pytest.raises(InterpError, match="random takes no 'seeed'.*Did you mean 'seed'"):
        score(model, PAIRS, "random", seeed=3)
    with pytest.raises(InterpError, match="no metric 'accuracy' with a gradient"):
        eap(model, PAIRS, metric="accuracy")
    with pytest.raises(InterpError, match="Direction 'up'"):
        checked_direction("up")
    for function in (eap_ig, eap_ig_activations):
        with pytest.raises(InterpError, match="0 steps make no average"):
            function(model, PAIRS, steps=0)
    with pytest.raises(InterpError, match="no rule 'up'"):
        alphas(3, "up")
    same = EncodedTask(PAIRS.task, PAIRS.clean, PAIRS.clean, PAIRS.answer, PAIRS.wrong_answer)
    for function in METHODS.values():
        with pytest.raises(PairError, match="nothing to explain"):
            function(model, same)
    wrong = plain(model, PAIRS.clean, PAIRS) < 0
    answer = torch.where(wrong, PAIRS.answer, PAIRS.wrong_answer), torch.where(wrong, PAIRS.wrong_answer, PAIRS.answer)
    hopeless = EncodedTask(PAIRS.task, PAIRS.clean, PAIRS.corrupted, *answer)
    with pytest.raises(PairError, match="gets none of the 3 pairs"):
        eap(model, hopeless, only_right=True)
