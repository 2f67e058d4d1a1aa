"""CausalGym's measure, against hooks written by hand and numbers worked by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from interp.alignment.fit import Cells, Training, fit
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import LowRank
from interp.alignment.odds import GYM_METHODS, Gym, aggregate, causal_gym, gym_tasks
from interp.errors import InterpError, PairError, SiteError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.site import Site
from interp.results import provenance
from interp.tasks.causal_models.number import number_interchange
from interp.tasks.interchange import InterchangeTask
from interp.tasks.minimal_pairs import CONTROL_ANSWERS

QUICK = Training(steps=5, batch=4)
NAMES = ("agreement-object-relative", "state-subordinate")


@pytest.fixture(scope="module")
def tasks() -> dict[str, tuple[InterchangeTask, InterchangeTask]]:
    return gym_tasks(NAMES, 10, 8)


@pytest.fixture(scope="module")
def found(speaking, tasks) -> Gym:
    return causal_gym(speaking, tasks, layers=[0, 1], training=QUICK)


def states(model, prompts, layer: int, at: torch.Tensor) -> torch.Tensor:
    """What a block gives out at one token of each prompt, by a hook."""
    out = []
    for ids, n, here in zip(prompts.ids, prompts.lengths, at, strict=True):
        kept = []
        handle = model.network.model.layers[layer].register_forward_hook(lambda _, __, x, kept=kept: kept.append(x))
        model.network(ids[None, : int(n)])
        handle.remove()
        out.append(kept[0][0, int(here)])
    return torch.stack(out).detach()


def odds_by_hand(model, task: InterchangeTask, layer: int, region: str, v: torch.Tensor | None, answers) -> np.ndarray:
    """[example] by the paper's formula, one pair at a time; `v` None swaps the whole state."""
    encoded = task.encode(model)
    base_at, (source_at,) = encoded.position(region)
    base_states = states(model, encoded.base, layer, base_at)
    source_states = states(model, encoded.sources[0], layer, source_at)
    found = []
    for row in range(len(task)):
        ids = encoded.base.ids[row : row + 1, : int(encoded.base.lengths[row])]
        b, s, at = base_states[row], source_states[row], int(base_at[row])
        new = s if v is None else b + (s @ v - b @ v) * v

        def edit(_, __, x, at=at, new=new):
            x = x.clone()
            x[0, at] = new
            return x

        with torch.no_grad():
            plain = model.network(ids).logits[0, -1].log_softmax(-1)
            handle = model.network.model.layers[layer].register_forward_hook(edit)
            edited = model.network(ids).logits[0, -1].log_softmax(-1)
            handle.remove()
        y_b, y_s = (model.tokenizer.encode(word, add_special_tokens=False)[0] for word in answers(row))
        found.append(float(plain[y_b] - plain[y_s] + edited[y_s] - edited[y_b]))
    return np.array(found)


def own(task: InterchangeTask):
    return lambda row: (task.examples[row].base.answer, task.examples[row].label)


def arbitrary(task: InterchangeTask):
    types = sorted({str(e.base.setting["type"]) for e in task})

    def answers(row: int) -> tuple[str, str]:
        base = types.index(str(task.examples[row].base.setting["type"]))
        return CONTROL_ANSWERS[base], CONTROL_ANSWERS[1 - base]

    return answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", ["task", "control"])
def test_a_full_swap_and_the_difference_of_means_equal_hooks_by_hand(speaking, tasks, found, name, asked) -> None:
    train, held_out = tasks[name]
    encoded = train.encode(speaking)
    region = "verb"
    base_at, (source_at,) = encoded.position(region)
    both = torch.cat([states(speaking, encoded.base, 1, base_at), states(speaking, encoded.sources[0], 1, source_at)])
    first = train.examples[0].base.setting["type"]
    is_first = torch.tensor(
        [text.setting["type"] == first for text in [e.base for e in train] + [e.sources[0] for e in train]]
    )
    v = both[is_first].mean(0) - both[~is_first].mean(0)
    answers = (own if asked == "task" else arbitrary)(held_out)
    for method, unit in (("difference of means", v / v.norm()), ("full swap", None)):
        by_hand = odds_by_hand(speaking, held_out, 1, region, unit, answers)
        cell = found.data.sel(asked=asked, task=name, layer=1, region=region, direction=method)
        assert np.abs(by_hand).max() > 1e-3
        np.testing.assert_allclose(cell["odds_of"], by_hand, atol=1e-5, rtol=0)
        np.testing.assert_allclose(cell["odds"], by_hand.mean(), atol=1e-5, rtol=0)
        base = found.data["base_odds"].sel(asked=asked, task=name).values
        hit = by_hand - base > 0
        np.testing.assert_allclose(cell["iia"], hit.mean())
        np.testing.assert_allclose(cell["iia_flip"], hit[base > 0].mean() if (base > 0).any() else np.nan)


def test_das_is_fitted_to_the_task_and_anew_to_the_control(speaking, tasks) -> None:
    name, layer = NAMES[0], 1
    train, held_out = tasks[name]
    ours = causal_gym(speaking, {name: tasks[name]}, methods=["DAS"], layers=[layer], regions=["subject"],
                      training=QUICK, seed=3)  # fmt: skip
    ready = LanguageContinuation(speaking, train.encode(speaking), [Place(Site("resid_post", layer), "subject")])
    tokens = [[speaking.tokenizer.encode(answers(row)[1])[0] for row in range(len(train))]
              for answers in (own(train), arbitrary(train))]  # fmt: skip
    maps = LowRank(24, 1, cells=2, seed=3)
    start = maps.basis.detach().clone()
    fit([Cells(maps, torch.tensor([0, 0]), torch.tensor([0, 1]), ("a", "b"))], ready, torch.tensor(tokens), QUICK)
    assert ((maps.basis - start).abs().flatten(1).max(1).values > 1e-3).all()
    for i, (asked, answers) in enumerate((("task", own(held_out)), ("control", arbitrary(held_out)))):
        v = maps.basis[i, :, 0].detach().double()
        by_hand = odds_by_hand(speaking, held_out, layer, "subject", v, answers)
        cell = ours.data["odds_of"].sel(asked=asked, direction="DAS").squeeze(drop=True)
        np.testing.assert_allclose(cell, by_hand, atol=1e-5, rtol=0)


def test_a_full_swap_is_a_replacement_of_the_state(speaking, tasks, found: Gym) -> None:
    name = NAMES[1]
    task, site = tasks[name][1].encode(speaking), Site("resid_post", 0)
    base_at, (source_at,) = task.position("person")
    rows = torch.arange(len(task))
    source = run(speaking, task.sources[0], (), [site])[site][rows, source_at]
    logits = run(speaking, task.base, [Replace(site, source[:, None], positions=base_at[:, None])]).logits
    last = logits[rows, task.base.lengths - 1]
    cell = found.data.sel(asked="task", task=name, layer=0, region="person", direction="full swap")
    towards = cell["odds_of"] - found.data["base_odds"].sel(asked="task", task=name)
    np.testing.assert_allclose(towards, last[rows, task.label] - last[rows, task.answer], atol=1e-5, rtol=0)


def test_a_random_direction_moves_little_and_nothing_moves_where_nothing_differs(speaking, tasks) -> None:
    """A swap along a random unit vector does 1/d of a full swap in a linear network, averaged over directions."""
    task = {NAMES[0]: tasks[NAMES[0]]}
    runs = [causal_gym(speaking, task, methods=["random direction", "full swap"], layers=[1], regions=["subject"],
                       seed=seed) for seed in range(12)]  # fmt: skip
    cells = [one.data["odds"].sel(asked="task").squeeze(drop=True) for one in runs]
    drawn = [float(cell.sel(direction="random direction")) for cell in cells]
    assert abs(np.mean(drawn)) < 0.15 * abs(float(cells[0].sel(direction="full swap")))
    assert len({round(x, 6) for x in drawn}) == 12

    name = "filler-gap"
    early = causal_gym(speaking, gym_tasks([name], 6, 4), layers=[1], regions=["knower", "filler"], training=QUICK)
    before = early.data.sel(region="knower", task=name)
    assert (before["odds_of"] == 0).all() and (before["moved"] == 0).all()
    assert float(early.data["moved"].sel(region="filler").squeeze()) == 1


def test_the_aggregate_of_numbers_worked_by_hand() -> None:
    nan = np.nan
    task = [[[1.0, 5.0], [2.0, 0.0]], [[3.0, nan], [4.0, nan]]]  # task, layer, region
    other = [[[0.0, 4.5], [2.0, 1.0]], [[-1.0, nan], [4.0, nan]]]
    odds = np.array([task, other])[..., None]
    cells = ("asked", "task", "layer", "region", "direction")
    data = xr.Dataset(
        {"odds": (cells, odds), "iia": (cells, odds), "iia_flip": (cells, odds),
         "base_odds": (("asked", "task", "example"), np.ones((2, 2, 3)))},
        {"asked": ["task", "control"], "task": ["a", "b"], "layer": [0, 1], "region": ["x", "y"], "direction": ["DAS"]},
    )  # fmt: skip
    gym = Gym(data, provenance(part="resid_post", model="none", n_train=1, stopped=[], failed=[]))
    # a: max over regions 5, 2 → 3.5; b: 3, 4 → 3.5. Of the differences, a: (1, 0.5), (0, -1) → 1, 0; b: 4, 0.
    assert float(gym.scores["odds"].sel(direction="DAS")) == 3.5
    assert float(gym.scores["selectivity"].sel(direction="DAS")) == (0.5 + 2.0) / 2
    row = next(line for line in repr(gym).splitlines() if line.strip().startswith("DAS"))
    assert row.split()[1:3] == ["3.50", "1.25"]
    missing = data[["odds"]].where(data["layer"] != 1)
    assert np.isnan(float(aggregate(missing.sel(asked="task"))["odds"].squeeze()))


def test_what_finds_no_direction_is_nan_and_said(speaking, found: Gym) -> None:
    """Of "When the" and "The", the states within a type are all equal: nothing to discriminate for LDA."""
    cell = found.data["odds"].sel(task="state-subordinate", region="opener", direction="lda")
    assert np.isnan(cell).all()
    assert any("lda, state-subordinate" in why and "'opener'" in why for why in found.provenance["failed"])
    assert "no direction: lda" in repr(found)
    rest = found.data["odds"].sel(task="state-subordinate", region=["person", "verb", "thing"], direction="lda")
    assert np.isfinite(rest).all()
    assert np.isnan(found.data["odds"].sel(task="state-subordinate", region="attractor")).all()  # it has no such region
    assert np.isfinite(found.scores["odds"]).all()


def test_it_is_shown_saved_and_reproducible(speaking, tasks, found: Gym, tmp_path) -> None:
    assert found.data["direction"].values.tolist() == list(GYM_METHODS)
    # `last` is the verb of the relative clause, but a comma of its own in the other task
    assert found.data["region"].values.tolist() == ["subject", "attractor", "verb", "opener", "person", "thing", "last"]
    assert np.isnan(found.data["odds"].sel(task=NAMES[0], region="last")).all()
    for piece in ("2 tasks", "8 held-out pairs", "selectivity", *GYM_METHODS):
        assert piece in repr(found), piece
    found.save(tmp_path / "gym.nc")
    assert Gym.load(tmp_path / "gym.nc").data.equals(found.data)
    assert causal_gym(speaking, tasks, layers=[0, 1], training=QUICK).data.equals(found.data)
    best = found.data["odds"].sel(asked="task").max("region").mean("task")
    lines: list[Any] = list(found.plot().select_traces({"name": "DAS"}))
    np.testing.assert_allclose(lines[0].y, best.sel(direction="DAS"))
    assert found.plot("selectivity").to_dict()["data"] and len(found.plot_task(NAMES[0], "iia").layout.annotations) >= 3


def test_refusals(speaking, tasks, found: Gym) -> None:
    with pytest.raises(InterpError, match="no task"):
        causal_gym(speaking, {})
    with pytest.raises(InterpError, match="no method to"):
        causal_gym(speaking, tasks, methods=[])
    with pytest.raises(InterpError, match=r"no method 'das'.*DAS"):
        causal_gym(speaking, tasks, methods=["das"])
    with pytest.raises(InterpError, match="no layer"):
        causal_gym(speaking, tasks, layers=[])
    with pytest.raises(SiteError, match="3 layers"):
        causal_gym(speaking, tasks, layers=[9])
    with pytest.raises(InterpError, match="none of the regions"):
        causal_gym(speaking, tasks, regions=["opener"])
    train, held_out = tasks[NAMES[0]]
    with pytest.raises(InterpError, match="also one of the training pairs"):
        causal_gym(speaking, {"x": (train, train[:8])})
    with pytest.raises(InterpError, match="as many"):
        causal_gym(speaking, {**tasks, "x": (train, held_out[:4])})
    wrong = dataclasses.replace(train.examples[2], label=train.examples[2].base.answer)
    with pytest.raises(InterpError, match="Example 2 of .* label is"):
        causal_gym(speaking, {"x": (dataclasses.replace(train, examples=(*train.examples[:2], wrong)), held_out)})
    with pytest.raises(PairError, match="unknown|There is no|no minimal-pair"):
        gym_tasks(["agreement"])
    untyped = number_interchange(12, 0, split="train")
    some = untyped.select([row for row, e in enumerate(untyped) if e.label == e.sources[0].answer != e.base.answer])
    with pytest.raises(PairError, match="two types"):
        causal_gym(speaking, {"x": (some[:2], some[2:])})
    with pytest.raises(InterpError, match="no score 'iai'"):
        found.plot("iai")
    with pytest.raises(InterpError, match="no task 'agreement'"):
        found.plot_task("agreement")
