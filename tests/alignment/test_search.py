"""A search as a whole, on a tiny network that knows nothing of the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.alignment import Alignment, Screening, Training, align
from interp.alignment.language import LanguageContinuation, Place, right
from interp.alignment.maps import Subspace
from interp.alignment.masks import Boundless
from interp.alignment.revnet import RevNet
from interp.alignment.screening import chosen
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.models.reset import reset
from interp.models.site import Site
from interp.tasks.causal_models.number import number_interchange
from interp.tasks.interchange import InterchangeTask

QUICK = Training(steps=6, batch=4)


@pytest.fixture(scope="module")
def tasks() -> tuple[InterchangeTask, InterchangeTask]:
    return number_interchange(12, 0, split="train"), number_interchange(10, 1, split="held out")


@pytest.fixture(scope="module")
def found(speaking, tasks) -> Alignment:
    return align(speaking, *tasks, layers=[0, 2], regions=["attractor", "subject", "last"], ranks=[1, 3], training=QUICK,
                 only_right=False, among_answers=True)  # fmt: skip


def test_every_iia_stands_beside_its_controls(speaking, tasks, found: Alignment) -> None:
    data = found.data
    assert data["iia"].dims == ("layer", "region", "rank") and data["iia"].shape == (2, 3, 2)
    assert data["control"].values.tolist() == ["full swap", "random rotation", "shuffled labels", "random model"]
    np.testing.assert_array_equal(data["iia"], data["correct"].mean("example"))
    np.testing.assert_array_equal(data["control_iia"], data["control_correct"].mean("example"))
    assert ((data["low"] <= data["iia"]) & (data["iia"] <= data["high"])).all()
    text = repr(found)
    best = data["iia"].max()
    for piece in ("held-out", f"{float(best):.3f}", "full swap", "random rotation", "shuffled labels", "random model",
                  "resid_pre of layer", "12 of 12 and 10 of 10", "without an interchange"):  # fmt: skip
        assert piece in text, piece


def test_the_numbers_are_those_of_the_definitions(speaking, tasks, found: Alignment) -> None:
    held_out = tasks[1].encode(speaking)
    among = torch.cat([tasks[0].encode(speaking).answers, held_out.answers]).unique()
    ready = LanguageContinuation(speaking, held_out, [Place(Site("resid_pre", 2), "subject")])
    rows, zero = torch.arange(10), torch.zeros(10, dtype=torch.long)

    def correct(values: torch.Tensor) -> np.ndarray:
        return (among[ready.outputs(values, zero, rows)[:, among].argmax(-1)] == held_out.label).numpy()

    subspace = found.basis(2, "subject", 3)
    at = {"layer": 2, "region": "subject", "rank": 3}
    np.testing.assert_array_equal(
        found.data["correct"].sel(at), correct(subspace.swap(ready.base[0], [ready.sources[0][0]]))
    )
    whole = found.data["control_correct"].sel(control="full swap").sel(at)
    np.testing.assert_array_equal(whole, correct(ready.sources[0][0]))
    start = Subspace.random(24, 3, cells=12, seed=0).select(
        [4]
    )  # two layers, three regions, and as many for the shuffle
    np.testing.assert_array_equal(
        found.data["control_correct"].sel(control="random rotation").sel(at),
        correct(start.double().swap(ready.base[0], [ready.sources[0][0]])),
    )
    base = among[ready.base_logits[:, among].argmax(-1)] == held_out.label
    np.testing.assert_array_equal(found.data["base_correct"], base)


def test_the_random_model_is_trained_on_its_own_states(speaking, tasks, found: Alignment) -> None:
    losses = found.data["loss"]
    assert np.isfinite(losses).all() or not found.data["trained"].all()
    other = align(reset(speaking, 0), *tasks, layers=[2], regions=["last"], ranks=[1], training=QUICK, only_right=False,
                  among_answers=True, controls=["shuffled labels"])  # fmt: skip
    assert other.data["loss"].sel(fit="task").shape == (1, 1, 1, 6)
    assert not np.allclose(losses.sel(fit="task"), losses.sel(fit="random model"), equal_nan=True)
    assert not np.allclose(losses.sel(fit="task"), losses.sel(fit="shuffled labels"), equal_nan=True)


def test_it_is_reproducible_saved_and_resumed(speaking, tasks, found: Alignment, tmp_path) -> None:
    about: dict[str, Any] = dict(layers=[0, 2], regions=["attractor", "subject", "last"], ranks=[1, 3], training=QUICK, only_right=False,
                 among_answers=True)  # fmt: skip
    once = align(speaking, *tasks, **about, checkpoint=tmp_path / "kept")
    again = align(speaking, *tasks, **about, checkpoint=tmp_path / "kept")
    assert once.data.equals(found.data) and again.data.equals(found.data)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"task.safetensors", "random_model.safetensors"}
    found.save(tmp_path / "found.nc")
    assert Alignment.load(tmp_path / "found.nc").data.equals(found.data)


def test_a_screening_chooses_places_and_the_rest_is_not_searched(speaking, tasks, tmp_path) -> None:
    about: dict[str, Any] = dict(
        regions=["attractor", "subject", "last"], training=QUICK, only_right=False, among_answers=True
    )
    screening = Screening(places=2, steps=9)
    some = align(
        speaking, *tasks, layers=[0, 2], ranks=[1, 3], screening=screening, checkpoint=tmp_path / "kept", **about
    )
    data = some.data
    # The losses are those of the same short trainings on their own: the mean of the last three of nine steps.
    alone = align(speaking, *tasks, layers=[0, 2], ranks=[3], controls=(), **about | {"training": Training(9, 4)})
    np.testing.assert_array_equal(
        data["screened"], alone.data["loss"].sel(fit="task", rank=3).isel(step=slice(6, None)).mean("step")
    )
    went = data["iia"].notnull().any("rank")
    lowest = np.sort(data["screened"].values[data["trained"].values])[:2]
    assert int((went & data["trained"]).sum()) == 2
    np.testing.assert_array_equal(np.sort(data["screened"].values[(went & data["trained"]).values]), lowest)
    for name in ("iia", "low", "train_iia", "loss", "correct", "control_iia", "control_correct", "basis"):
        assert bool(data[name].where(~went).isnull().all()), name
        assert bool(data[name].where(went & data["trained"]).notnull().any()), name
    places = went.stack(place=("layer", "region"))
    layer, region = places[places]["place"].values[0]
    whole = align(speaking, *tasks, layers=[layer], regions=[region], ranks=[1, 3], training=QUICK, only_right=False,
                  among_answers=True, controls=["full swap"])  # fmt: skip
    np.testing.assert_array_equal(
        data["control_correct"].sel(control="full swap", layer=layer, region=region),
        whole.data["control_correct"].sel(control="full swap", layer=layer, region=region),
    )
    left = places[~places]["place"].values[0]
    with pytest.raises(InterpError, match="the screening left it out"):
        some.basis(*left, 1)
    assert "went on" in repr(some) and some.best["layer"] in (0, 2)
    marks = some.plot_screening()
    assert "the chosen outlined" in marks.layout.title.text
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "screening.safetensors", "task.safetensors", "random_model.safetensors"
    }  # fmt: skip
    again = align(
        speaking, *tasks, layers=[0, 2], ranks=[1, 3], screening=screening, checkpoint=tmp_path / "kept", **about
    )
    assert again.data.equals(data)


def test_a_screening_of_no_more_places_than_it_wants_is_none(speaking, tasks, found: Alignment) -> None:
    about: dict[str, Any] = dict(layers=[0, 2], regions=["attractor", "subject", "last"], ranks=[1, 3], training=QUICK, only_right=False,
                 among_answers=True)  # fmt: skip
    every = align(speaking, *tasks, screening=Screening(places=6), **about)
    assert every.data.equals(found.data) and "went on" not in repr(every)
    with pytest.raises(InterpError, match="plot. shows them all"):
        every.plot_screening()
    with pytest.raises(InterpError, match="at least one of each"):
        Screening(places=0)


def test_the_lowest_losses_go_on_and_those_that_are_not_known() -> None:
    losses = np.array([3.0, np.nan, 1.0, 2.0, np.nan, 0.5])
    assert chosen(losses, 2).tolist() == [1, 2, 4, 5]
    assert chosen(losses, 9).tolist() == [0, 1, 2, 3, 4, 5]


def test_pictures(found: Alignment) -> None:
    assert [a.text for a in found.plot().layout.annotations][:2] == ["by fit", "by full swap"]
    assert len(found.plot_training(3).data) == 2
    with pytest.raises(InterpError, match="Rank 9"):
        found.plot(9)


def test_boundaries_are_drawn_as_they_were_learned(speaking, tasks, found: Alignment) -> None:
    learned = align(speaking, *tasks, layers=[1, 2], regions=["last"], ranks=[1], training=QUICK, only_right=False, controls=(),
                    kind=lambda width, ranks, *, cells, seed: Boundless(width, len(ranks), cells=cells, seed=seed))  # fmt: skip
    assert learned.data["boundary"].dims == ("layer", "region", "rank", "step", "variable")
    assert learned.provenance["kind"] == "Boundless" and learned.provenance["width"] == 24
    figure = learned.plot_boundaries(2)
    band, line = figure.data
    here = learned.data.sel(layer=2, region="last", rank=1)
    np.testing.assert_array_equal(line.y, here["boundary"].values[:, 0])
    assert line.name == "number" and max(band.y) <= 24 and min(band.y) >= 0
    with pytest.raises(InterpError, match="no such cell"):
        learned.plot_boundaries(0)
    with pytest.raises(InterpError, match="learn no boundaries"):
        found.plot_boundaries()


def test_what_is_left_out_is_said(speaking, tasks) -> None:
    bare = align(speaking, *tasks, layers=[1], regions=["last"], training=QUICK, only_right=False, controls=())
    assert "NO CONTROL" in repr(bare) and "NOT run: full swap, random rotation" in repr(bare)
    twisted = align(speaking, *tasks, layers=[1], regions=["last"], training=QUICK, only_right=False,
                    kind=lambda width, ranks, *, cells, seed: RevNet(width, ranks, hidden=4, cells=cells, seed=seed),
                    controls=("random rotation",))  # fmt: skip
    with pytest.raises(InterpError, match="no subspaces"):
        twisted.basis(1, "last", 1)


def test_both_variables_at_once(speaking) -> None:
    tasks = (number_interchange(n, seed, variables=("number", "tense"), split=split)
             for n, seed, split in ((12, 0, "train"), (8, 1, "held out")))  # fmt: skip
    both = align(speaking, *tasks, layers=[1], regions=["last"], ranks=[2], training=QUICK, only_right=False)
    assert "full swap" not in both.data["control"].values and "NOT run: full swap" in repr(both)
    assert both.basis(1, "last", 2).ranks == (2, 2)


def test_only_examples_that_the_model_answers_rightly(speaking, tasks) -> None:
    task = tasks[0].encode(speaking)
    fine = right(speaking, task, task.answers)
    from interp.interventions.run import run

    for row in range(len(task)):
        known = []
        for side, answer in ((task.base, task.answer), (task.sources[0], task.source_answers[0])):
            logits = run(speaking, side.select([row])).logits[0, -1, task.answers]
            known.append(bool(task.answers[logits.argmax()] == answer[row]))
        assert bool(fine[row]) == all(known)
    with pytest.raises(PairError, match="do not|does not do"):
        align(speaking, *tasks, layers=[1], training=QUICK)


def test_refusals(speaking, tasks) -> None:
    train, held_out = tasks
    with pytest.raises(InterpError, match="no control 'fullswap'"):
        align(speaking, train, held_out, controls=["fullswap"])
    with pytest.raises(InterpError, match="also one of"):
        align(speaking, train, train)
    with pytest.raises(InterpError, match="exchanges"):
        align(speaking, train, number_interchange(4, 3, variables=("tense",), split="held out"))
    with pytest.raises(InterpError, match="`ranks` is empty"):
        align(speaking, train, held_out, ranks=[])
    some = dict(training=QUICK, only_right=False)
    with pytest.raises(InterpError, match="no place"):
        align(speaking, train, held_out, layers=[], **some)
    with pytest.raises(SiteError, match="3 layers"):
        align(speaking, train, held_out, layers=[7], **some)
    with pytest.raises(ShapeError, match="above the width"):
        align(speaking, train, held_out, layers=[1], regions=["last"], ranks=[25], **some)
