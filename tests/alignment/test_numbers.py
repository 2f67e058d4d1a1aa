"""Steering of a number on a tiny network: each count is that of plain runs, and controls have the same length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.alignment.directions import pls
from interp.alignment.numbers import NumberFlips, number_flips
from interp.errors import InterpError, PairError, SiteError
from interp.interventions.edits import Add
from interp.interventions.run import run
from interp.models.site import Site
from interp.results import Result
from interp.tasks.greater_than import greater_than
from interp.tasks.pairs import PromptPair, Task

STRENGTHS = (-3.0, 0.0, 8.0)


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, Task]:
    return greater_than(24, 0, "train"), greater_than(20, 1, "held out")


@pytest.fixture(scope="module")
def found(speaking, tasks) -> NumberFlips:
    return number_flips(speaking, *tasks, layers=[0, 2], strengths=STRENGTHS, draws=3, seed=5)


def test_flips_are_those_of_plain_runs(speaking, tasks, found: NumberFlips) -> None:
    train, test = (task.encode(speaking) for task in tasks)
    numbers = torch.tensor([float(pair.label) for pair in tasks[0]])
    rows, last = torch.arange(len(test)), test.clean.lengths - 1

    def difference(edits) -> torch.Tensor:
        logits = run(speaking, test.clean, edits).logits[rows, last]
        return logits[rows, test.answer] - logits[rows, test.wrong_answer]

    right = difference([]) > 0
    at = torch.tensor([(a != b).nonzero()[0, 0] for a, b in zip(test.clean.ids, test.corrupted.ids, strict=True)])
    known_at = torch.tensor(
        [(a != b).nonzero()[0, 0] for a, b in zip(train.clean.ids, train.corrupted.ids, strict=True)]
    )
    for layer in (0, 2):
        site = Site("resid_pre", layer)
        states = run(speaking, train.clean, (), [site])[site][torch.arange(len(train)), known_at]
        direction = pls(states, numbers)[:, 0]
        unit = float((states @ direction).std())
        assert float(found.data["deviation"].sel(layer=layer)) == pytest.approx(unit)
        for strength in STRENGTHS:
            steered = difference([Add(site, direction, strength * unit, positions=at[:, None])])
            expected = float((steered[right] < 0).double().mean())
            here = found.data["flips"].sel(direction="first component", layer=layer, strength=strength)
            assert float(here) == pytest.approx(expected)
    assert found.provenance["n_scored"] == int(right.sum())


def test_nothing_added_flips_nothing(found: NumberFlips) -> None:
    assert (found.data["flips"].sel(strength=0.0) == 0).all()
    assert (found.data["flips"].sel(strength=8.0) > 0).any()


def test_the_number_is_read_where_it_stands(speaking, found: NumberFlips) -> None:
    """At layer 0 the state is the digit's embedding: what PLS finds there holds for the same digits elsewhere."""
    assert float(found.data["correlation"].sel(layer=0)) > 0.7


def test_it_draws_saves_and_shows(found: NumberFlips, tmp_path) -> None:
    found.save(tmp_path / "flips.nc")
    assert repr(Result.load(tmp_path / "flips.nc")) == repr(found)
    assert {"first component", "shuffled numbers", "random directions"} <= {line.name for line in found.plot(0).data}
    assert "answered rightly, and can flip" in repr(found) and "best of 2 layers" in repr(found)
    with pytest.raises(InterpError, match="Layer 1 was not steered"):
        found.plot(1)


def test_a_direction_like_any_other_is_said_to_be_none(found: NumberFlips) -> None:
    """The first component's flips put in the place of every other's."""
    data = found.data.copy(deep=True)
    flips = data["flips"].copy(data=np.broadcast_to(data["flips"].values[:1], data["flips"].shape).copy())
    assert "NOT above its controls" in repr(NumberFlips(data.assign(flips=flips), found.provenance))


def test_refusals(speaking, tasks) -> None:
    with pytest.raises(InterpError, match="name at least one of each"):
        number_flips(speaking, *tasks, layers=[])
    with pytest.raises(SiteError, match="3 layers"):
        number_flips(speaking, *tasks, layers=[7])
    words = Task(
        "words", tuple(PromptPair(p.clean, p.corrupted, p.answer, p.wrong_answer, label="many") for p in tasks[0]), ""
    )
    with pytest.raises(PairError, match="no number"):
        number_flips(speaking, words, tasks[1], layers=[0])
    far = Task("far", (PromptPair("It was 1732 to 17", "It was 1845 to 17", "5", "2", label="3"),) * 2, "")
    with pytest.raises(PairError, match="differs in 3 tokens"):
        number_flips(speaking, far, tasks[1], layers=[0])
