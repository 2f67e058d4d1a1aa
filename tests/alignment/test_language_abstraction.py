"""A report on a language model: a tiny network that knows nothing of the task, held against hooks and plain runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.alignment import Training, align
from interp.alignment.abstraction import Abstraction
from interp.alignment.joint import Aligned, subsets
from interp.alignment.language import Place
from interp.alignment.language_abstraction import language_abstraction
from interp.alignment.maps import Subspace
from interp.errors import InterpError, PairError
from interp.interventions.edits import Swap
from interp.interventions.run import run
from interp.models.site import Site
from interp.tasks.causal_models.number import number_interchange, number_model
from interp.tasks.interchange import merged

BOTH = ("number", "tense")
QUICK = Training(steps=3, batch=4)
NUMBER, TENSE = Place(Site("resid_pre", 2), "subject"), Place(Site("resid_pre", 1), "verb")


def tasks(n: int, seed: int, split: str) -> list:
    return [number_interchange(n, seed, some, split) for some in subsets(BOTH)]


def aligned() -> list[Aligned]:
    return [
        Aligned(("number",), NUMBER, Subspace.random(24, 9, seed=3)),
        Aligned(("tense",), TENSE, Subspace.random(24, 9)),
    ]


@pytest.fixture(scope="module")
def found(speaking) -> Abstraction:
    return language_abstraction(
        speaking, number_model(), aligned(), tasks(6, 1, "held out"), train=tasks(6, 0, "train"), training=QUICK,
        only_right=False, among_answers=True,
    )  # fmt: skip


def test_answers_are_those_of_plain_runs_with_swaps(speaking, found: Abstraction) -> None:
    """Each set by `run` with one `Swap` per variable, values taken from whole runs of the sources."""
    held_out = tasks(6, 1, "held out")
    among = torch.cat([task.encode(speaking).answers for task in held_out]).unique()
    for task in held_out:
        encoded, edits = task.encode(speaking), []
        for one in sorted(aligned(), key=lambda a: a.place.site.layer):
            if one.variables[0] in task.variables:
                i = task.variables.index(one.variables[0])
                base_at, source_at = encoded.position(one.place.region)
                source = run(speaking, encoded.sources[i], (), [one.place.site])[one.place.site]
                value = source[torch.arange(6), source_at[i]][:, None]
                edits.append(Swap(one.place.site, value, one.map.basis[0].double(), positions=base_at[:, None]))
        logits = run(speaking, encoded.base, edits).logits[torch.arange(6), encoded.base.lengths - 1]
        answer = among[logits[:, among].argmax(-1)]
        here = found.data.sel(exchanged=" + ".join(task.variables))
        np.testing.assert_array_equal(here["correct"].sel(way="fitted"), (answer == encoded.label).numpy())
        assert here["answer"].values.tolist() == [speaking.tokenizer.decode([int(token)]) for token in answer]


def test_the_report_says_what_stands_where_and_beside_what(found: Abstraction) -> None:
    assert found.data["way"].values.tolist() == [
        "fitted",
        "no interchange",
        "random subspaces",
        "random model",
        "full swap",
    ]
    assert not np.isnan(found.data["iia"]).any()  # at two places every whole state can be exchanged
    text = repr(found)
    for piece in ("causal model 'subject number' in tiny-smol", "number: L2.resid_pre at 'subject'", "tense: L1.resid_pre at 'verb', Subspace of rank 9",
                  "number + tense", "every set alike", "kept 18 of 18 examples", "does NOT hold", "answers among the tasks'"):  # fmt: skip
        assert piece.lower() in text.lower(), piece
    assert " ← number of " in str(found.data["words"].values[0, 0])


def test_a_search_hands_its_best_cell_over_and_merged_tasks_fit_one_family(speaking) -> None:
    train, held_out = (merged(tasks(5, seed, split)) for seed, split in ((0, "train"), (1, "held out")))
    assert train.variables == BOTH and len(train) == 15
    assert [sum(s is e.base for s in e.sources) for e in train][:3] == [1, 1, 0]
    both = align(speaking, train, held_out, layers=[1], regions=["last"], ranks=[2], training=QUICK, only_right=False,
                 controls=())  # fmt: skip
    one = both.aligned()
    assert one.variables == BOTH and one.place == Place(Site("resid_pre", 1), "last") and one.map.ranks == (2, 2)
    report = language_abstraction(speaking, number_model(), [one], tasks(5, 1, "held out"), train=tasks(5, 0, "train"),
                                  training=QUICK, only_right=False)  # fmt: skip
    assert np.isnan(report.data["iia"].sel(way="full swap", exchanged="number + tense"))
    with pytest.raises(InterpError, match="no such cell"):
        both.aligned(layer=2)


def test_refusals(speaking) -> None:
    held_out, some = tasks(4, 1, "held out"), dict(only_right=False)
    with pytest.raises(InterpError, match="is a `Place`"):
        language_abstraction(
            speaking, number_model(), [Aligned(("number",), 0, Subspace.random(24, 2))], held_out, **some
        )
    with pytest.raises(InterpError, match="`train` has no task that exchanges tense"):
        language_abstraction(speaking, number_model(), aligned(), held_out, train=tasks(4, 0, "train")[:1],
                             training=QUICK, **some)  # fmt: skip
    with pytest.raises(PairError, match="does not do"):
        language_abstraction(speaking, number_model(), aligned(), held_out)
    with pytest.raises(PairError, match="same number of examples"):
        merged([held_out[0], held_out[1][:2]])
