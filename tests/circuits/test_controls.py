"""Where there is no circuit, none may be claimed; where there is one, it may."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from interp.circuits.controls import claim, claim_found, shuffled_answers
from interp.circuits.head_gating import HeadToggles, head_gating, toggle_heads
from interp.circuits.masks import edge_masks, node_gates
from interp.circuits.select import between, threshold
from interp.errors import InterpError
from interp.interventions.run import run
from interp.models.reset import reset
from interp.tasks import compiled, planted
from interp.tasks.pairs import Task

MAKERS = {"induction": lambda: compiled("induction", 64), "planted": lambda: planted(64, n_layers=3, n_heads=3)}
MORE = MAKERS | {"trigram": lambda: compiled("trigram", 64)}
QUICK = ("exact", "eap-ig")


@cache
def made(name):
    return MORE[name]()


@cache
def without_weights(name, seed):
    return reset(made(name).model, seed)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("method", QUICK)
def test_the_true_circuit_is_claimed_and_scores_that_know_nothing_claim_none(name, method):
    truth, n = made(name), len(made(name).edges())
    found = claim(truth.model, truth.task, method, n)
    assert found, found.why
    assert float(found.evaluation.data["faithfulness"][0]) == pytest.approx(1, abs=0.2)
    assert not claim(truth.model, truth.task, "random", n)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("method", [*QUICK, "random"])
def test_nothing_is_claimed_of_random_weights_or_shuffled_answers(name, method, seed):
    truth, n = made(name), len(made(name).edges())
    for model, task in ((without_weights(name, seed), truth.task), (truth.model, shuffled_answers(truth.task, seed))):
        found = claim(model, task, method, n, seed=seed)
        assert not found and found.why


def test_a_reset_model_is_another_one_of_the_same_size():
    model = made("planted").model
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    other = reset(model, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.network.named_parameters())
    for name, weight in other.network.named_parameters():
        if weight.ndim > 1 and before[name].any():
            assert not torch.allclose(weight, before[name])
            assert weight.square().mean().sqrt() == pytest.approx(float(before[name].square().mean().sqrt()), rel=0.3)
        else:
            assert torch.equal(weight.sort().values, before[name].sort().values)
    logits = [run(m, "a + b").logits for m in (model, other, reset(model, 1), reset(model, 2))]
    assert torch.equal(logits[1], logits[2])
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[1], logits[3])


def test_half_of_the_answers_change_places():
    task = made("induction").task
    mixed = shuffled_answers(task, 3)
    assert mixed == shuffled_answers(task, 3) != shuffled_answers(task, 4)
    kept = [a == b for a, b in zip(task.pairs, mixed.pairs, strict=True)]
    assert sum(kept) == len(task) // 2
    for a, b, same in zip(task.pairs, mixed.pairs, kept, strict=True):
        assert (a.clean, a.corrupted) == (b.clean, b.corrupted)
        assert same or (a.answer, a.wrong_answer) == (b.wrong_answer, b.answer)


def test_why_not():
    truth = made("induction")
    n_edges = len(truth.all_edges)
    assert "sufficiency and necessity not tested" in claim(truth.model, truth.task, "exact", n_edges).why
    assert "is below 0.8" in claim(truth.model, truth.task, "exact", 1).why
    assert "nothing is there to recover" in claim(truth.model, shuffled_answers(truth.task), "exact", 5).why


def test_a_model_that_is_always_wrong_has_no_circuit_for_the_task():
    """The same difference and the same circuit, but every answer is the other one."""
    truth = made("induction")
    pairs = [replace(pair, answer=pair.wrong_answer, wrong_answer=pair.answer) for pair in truth.task.pairs]
    found = claim(truth.model, Task("exchanged", tuple(pairs), "", None), "exact", len(truth.edges()))
    assert not found and found.why.startswith("DOES NOT PASS: the model itself does not get more")
    assert float(found.evaluation.data["faithfulness"][0]) == pytest.approx(1, abs=0.2)


def test_refusals():
    truth = made("induction")
    with pytest.raises(InterpError, match="64 pairs and 9 random circuits"):
        claim(truth.model, truth.task, "eap", 5, n_random=9)
    with pytest.raises(InterpError, match="3 pairs and 19 random circuits"):
        claim(truth.model, truth.task.select([0, 1, 2]), "eap", 5)
    assert claim_found(truth.model, truth.task, lambda *_: None).why == "no circuit was found"
    with pytest.raises(InterpError, match="no method 'eap-gi'"):
        claim(truth.model, truth.task, "eap-gi", 5)


TRAINING = dict(steps=80, learning_rate=0.3, batch=8)


def by_edge_masks(model, task):
    scores = edge_masks(model, task, **TRAINING)
    return threshold(scores, 0.5) if (scores.scores >= 0.5).any() else None


def by_node_gates(model, task):
    scores = node_gates(model, task, **TRAINING)
    nodes = scores.scores >= 0.5
    return between(scores, 0.5) if nodes[0] and nodes[1:].any() else None


LEARNED = pytest.mark.parametrize("find", [by_edge_masks, by_node_gates])


@LEARNED
def test_learned_masks_claim_the_true_circuit(find):
    truth = made("trigram")
    found = claim_found(truth.model, truth.task, find)
    assert found, found.why


@LEARNED
@pytest.mark.parametrize("seed", [3])
def test_learned_masks_claim_nothing_of_random_weights(seed, find):
    """Of these reset models the prompts differ, and masks are faithful on pairs not seen: the tests must refuse them."""
    truth = made("trigram")
    found = claim_found(without_weights("trigram", seed), truth.task, find, seed=seed)
    assert not found and found.evaluation is not None and float(found.evaluation.data["faithfulness"][0]) > 0.8


@LEARNED
def test_learned_masks_claim_nothing_where_answers_are_shuffled(find):
    truth = made("induction")
    found = claim_found(truth.model, shuffled_answers(truth.task), find)
    assert not found and found.why


def toggled(model, task, seed=0):
    """Gates trained on one half of the pairs, their heads toggled on the other."""
    half = len(task) // 2
    gates = head_gating(
        model, task.select(range(half)), n_seeds=2, steps=40, batch=8, learning_rate=1.0, seed=seed
    )  # fmt: skip
    return toggle_heads(model, task.select(range(half, len(task))), gates, counts=[0, 1, 2, 4])


def test_facilitating_heads_of_a_known_circuit_do_the_task():
    truth = made("trigram")
    found = toggled(truth.model, truth.task)
    assert found.verdict == {"passed": True, "reasons": []}, repr(found)
    assert "do facilitating heads do the task? PASSES" in repr(found)
    again = HeadToggles(found.data.assign(lead=-found.data["lead"]), found.provenance)
    assert "the answer leads in 0 of 32 prompts, as coins could" in repr(again)
    calm = found.data["log_probability"].where(False, found.data["start"])
    idle = HeadToggles(found.data.assign(log_probability=calm), found.provenance)
    assert "loses 0.00 nats, without as many irrelevant ones 0.00" in idle.verdict["reasons"][0]
    none = HeadToggles(found.data.isel(toggled=[0]), found.provenance)
    assert none.verdict["reasons"] == ["no head is facilitating"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["induction", "trigram"])
def test_no_heads_do_the_task_in_random_weights_or_with_shuffled_answers(name, seed):
    truth = made(name)
    for model, task in ((without_weights(name, seed), truth.task), (truth.model, shuffled_answers(truth.task, seed))):
        found = toggled(model, task, seed)
        assert found.verdict["passed"] is False, repr(found)
        assert "do facilitating heads do the task? DOES NOT PASS" in repr(found)
