"""Where there is no circuit, none may be claimed; where there is one, it may."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from interp.circuits.controls import claim, shuffled_answers
from interp.errors import InterpError
from interp.interventions.run import run
from interp.models.reset import reset
from interp.tasks import compiled, planted
from interp.tasks.pairs import Task

MAKERS = {"induction": lambda: compiled("induction", 64), "planted": lambda: planted(64, n_layers=3, n_heads=3)}
QUICK = ("exact", "eap-ig")


@cache
def made(name):
    return MAKERS[name]()


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
    with pytest.raises(InterpError, match="no method 'eap-gi'"):
        claim(truth.model, truth.task, "eap-gi", 5)
