"""Dose responses: numbers against runs by hand, limits that bind, answers that a reader of pictures would give."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.errors import InterpError, PairError, SceneError
from interp.interventions.edits import Add, Swap, UnderPrompt, When
from interp.interventions.generate import generate
from interp.interventions.run import run
from interp.models.load import load
from interp.models.site import Site
from interp.results import Result, provenance
from interp.shapes.reading import Reading, Seen
from interp.shapes.scene import Object, Scene
from interp.steering import DoseResponse, Manifold, PictureGoal, TextGoal, dose_response, scenes_for
from interp.steering.picture_response import _distance, _of_rows, answer, value_of
from interp.steering.response import Planned, planned, response_dataset
from interp.steering.text_response import is_garbage

SITE = Site("resid_post", 1)
UNRELATED = ("The square root of nine is three", "Iron melts later than copper does")
GOAL = TextGoal("letters", ("The cat sat", "A dog barks at the"), lambda text: float("e" in text), UNRELATED)


def made(success, damage, garbage, limit=0.25):
    """A response of these means, of four equal examples each: [method][dose]."""
    each = {
        name: np.repeat(np.array(values, dtype=float)[..., None], 4, -1)
        for name, values in (("success", success), ("damage", damage), ("garbage", garbage))
    }
    each["distance"] = np.full(each["success"].shape, np.nan)
    units = dict.fromkeys(each, "share")
    methods, doses = [f"m{i}" for i in range(len(success))], [0.5 * i for i in range(len(success[0]))]
    plans = {method: Planned(True, ([],) * len(doses)) for method in methods}
    data = response_dataset(plans, doses, each, units, {}, {}, 0)
    record = provenance(model="none", target="t", examples="texts", limit=limit, n_attempted=4, n_scored=4)
    return DoseResponse(data, record)


def test_the_best_dose_lies_within_the_limits_or_is_none():
    found = made(
        success=[[0.1, 0.6, 0.9], [0.2, 0.5, 1.0], [0.0, 0.7, 0.7], [0.9, 0.9, 0.9]],
        damage=[[0.0, 0.2, 0.3], [0.0, 0.1, 0.2], [0.3, 0.2, 0.1], [0.5, 0.6, np.nan]],
        garbage=[[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    )
    best = found.best()
    assert [best[f"m{i}"].dose for i in range(4)] == [0.5, 0.5, 1.0, None]
    assert best["m0"].success == pytest.approx(0.6) and "no dose within the limits" in str(best["m3"])
    assert found.best(limit=0.3)["m0"].dose == 1.0 and found.best(garbage=0.5)["m1"].dose == 1.0
    assert "no dose" in found.summary() and "success 0.60 [0.60, 0.60] (dose 0.5, damage 0.2)" in found.summary()
    with pytest.raises(InterpError, match="below 0"):
        found.best(limit=-1.0)


def drawn(success, n, seed, plans=None):
    """Doses that succeed with given rates, and damage nothing."""
    hits = np.random.default_rng(seed).random((1, len(success), n)) < np.array(success)[:, None]
    each = {"success": hits.astype(float)} | {name: np.zeros(hits.shape) for name in ("damage", "garbage", "distance")}
    doses = [float(k) for k in range(len(success))]
    plans = plans or {"push": Planned(True, ([],) * len(doses))}
    data = response_dataset(plans, doses, each, dict.fromkeys(each, "share"), {}, {}, 0)
    return DoseResponse(data, provenance(limit=0.25, seed=seed, model="m", target="t", examples="texts", n_scored=n))


def test_the_best_dose_is_chosen_on_one_half_and_reported_on_the_other():
    """Five doses of one true rate: on the examples that the dose was chosen by it would be 0.89."""
    responses = [drawn([0.8] * 5, 24, seed) for seed in range(120)]
    found = [response.best()["push"] for response in responses]
    assert np.mean([one.success for one in found]) == pytest.approx(0.8, abs=0.03)
    covered = np.mean([one.low <= 0.8 <= one.high for one in found])
    assert covered > 0.85 and all(one.low < one.success or one.success == 0 for one in found)
    assert np.mean([float(response.data["success"].max()) for response in responses]) > 0.87
    with pytest.raises(InterpError, match="chosen on half"):
        drawn([0.5, 0.5], 1, 0).best()
    assert "no best dose" in drawn([0.5, 0.5], 1, 0).summary()


def test_damage_that_is_no_number_is_no_small_damage_but_for_the_prompt_edit():
    plans = {"push": Planned(True, ([], [])), "prompt edit": Planned(False, ([],))}
    each = {name: np.zeros((2, 2, 8)) for name in ("success", "damage", "garbage", "distance")}
    each["success"][0, 1], each["damage"][0, 1, 3] = 1.0, np.nan
    each["success"][1], each["damage"][1] = 1.0, np.nan
    data = response_dataset(plans, [0.0, 1.0], each, dict.fromkeys(each, "share"), {}, {}, 0)
    assert np.isnan(data["damage"].sel(way="push", dose=1.0)) and np.isnan(data["damage_low"].sel(way="push", dose=1.0))
    found = DoseResponse(data, provenance(limit=0.25, model="m", target="t", examples="texts", n_scored=8))
    for seed in range(4):  # whichever half it falls in
        best = replace(found, provenance=found.provenance | {"seed": seed}).best()
        if best["push"].dose == 1.0:
            assert np.isnan(best["push"].damage)
    assert any(replace(found, provenance=found.provenance | {"seed": s}).best()["push"].dose == 0.0 for s in range(4))
    assert best["prompt edit"].dose is None and best["prompt edit"].success == 1.0
    assert "prompt edit: success 1.00 [0.51, 1.00] (no dose)" in found.summary()


def test_a_response_is_drawn_and_kept(tmp_path):
    found = made([[0.1, 0.6], [0.2, 0.5]], [[0.0, 0.2], [0.1, 0.3]], [[0.0, 0.0], [0.0, 0.1]])
    for measure in ("success", "damage", "garbage"):
        figure = found.plot(measure)
        lines = {trace.name: list(trace.y) for trace in figure.data if "markers" in (trace.mode or "")}
        assert lines["m1"] == pytest.approx(found.data[measure].sel(way="m1").values.tolist())
    figure = found.plot_trade_off()
    assert np.allclose([trace.x for trace in figure.data], [[0.0, 0.2], [0.1, 0.3]])
    assert figure.layout.xaxis.title.text == "damage (share)"
    with pytest.raises(InterpError, match="no measure 'sucess'.*success"):
        found.plot("sucess")
    found.save(tmp_path / "response.nc")
    again = Result.load(tmp_path / "response.nc")
    assert type(again) is DoseResponse and again.best() == found.best()


# --- texts --------------------------------------------------------------------------------------------------------


def push(dose, seed=0):
    return [Add(SITE, torch.randn(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dose)]


def test_numbers_of_texts_are_those_of_plain_runs(speaking):
    goal = replace(GOAL, reworded=("Say it: The cat sat", "Say it: A dog barks at the"))
    found = dose_response(
        speaking, goal, {"push": push, "fixed": push(1.0, 1)}, [2.0, 0.0], max_new_tokens=6, seed=3
    ).data
    assert found["way"].values.tolist() == ["push", "fixed", "prompt edit"]
    assert found["dose"].values.tolist() == [0.0, 2.0]
    texts = generate(speaking, list(GOAL.prompts), push(2.0), max_new_tokens=6, temperature=0.7, seed=3).texts
    assert found["text"].sel(way="push", dose=2.0).values.tolist() == list(texts)
    assert found["success_each"].sel(way="push", dose=2.0).values.tolist() == [float("e" in t) for t in texts]
    for text, expected in zip(UNRELATED, found["damage_each"].sel(way="push", dose=2.0).values, strict=True):
        p, q = (run(speaking, text, edits).logits[0].softmax(-1) for edits in ((), push(2.0)))
        by_hand = sum(float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)) / len(p)
        assert float(expected) == pytest.approx(by_hand, abs=1e-9) and by_hand > 1e-3
    assert float(found["damage"].sel(way="push", dose=0.0)) == 0.0
    assert found["dosed"].values.tolist() == [True, False, False]
    assert np.isnan(found["damage"].sel(way="prompt edit")).all()
    fixed = found["success_each"].sel(way="fixed").values
    assert (fixed[0] == fixed[1]).all()
    rows, nll = speaking.prompts(UNRELATED[0]).ids[0], 0.0
    scores = [run(speaking, text).logits[0].log_softmax(-1) for text in UNRELATED]
    counted = 0
    for text, told in zip(UNRELATED, scores, strict=True):
        rows = speaking.prompts(text).ids[0].tolist()
        nll -= sum(float(told[i, token]) for i, token in enumerate(rows[1:]))
        counted += len(rows) - 1
    assert float(found["perplexity"].sel(way="push", dose=0.0)) == pytest.approx(np.exp(nll / counted))


def test_surprise_is_of_the_unsteered_model(speaking):
    found = dose_response(speaking, GOAL, {"push": push}, [3.0], max_new_tokens=4, temperature=0.0).data
    made_ = generate(speaking, GOAL.prompts[0], push(3.0), max_new_tokens=4)
    ids = speaking.prompts(GOAL.prompts[0]).ids[0].tolist()
    surprise = 0.0
    for token in made_.tokens[0].tolist():
        told = run(speaking, torch.tensor([ids])).last_logits()[0].log_softmax(-1)
        surprise -= float(told[token]) / 4
        ids.append(token)
    assert float(found["fluency_each"][0, 0, 0]) == pytest.approx(surprise)


def test_what_repeats_itself_or_is_no_text_is_garbage(tokenizer):
    salad = "happy joy good love joy happy love good good joy love happy joy love good happy love joy"
    loops = ("the sea the sea the sea the sea the sea", "lalalalalalalalalalala", "!" * 30, "\n" * 12, salad)
    for text in (*loops, "12 34 56 78, 90", "wave wave wave wave wave wave wave wave"):
        assert is_garbage(text, tokenizer(text).input_ids), text
    for text in (
        "the old man looked at the sea and saw a boat far away", "good good", "", "I don't know.",
        " a great success. The team worked hard, and in 2019 they won 12 of the 15 games that they played.",
        " very good. The food was fresh, the service was quick and the people were very friendly to us.",
    ):  # fmt: skip
        assert not is_garbage(text, tokenizer(text).input_ids), text


def test_a_continuation_ends_with_its_turn(speaking, monkeypatch):
    """What a model writes behind the end of its turn is not judged, nor counted."""
    plain = dose_response(speaking, GOAL, {"push": push}, [0.0], max_new_tokens=6, temperature=0.0)
    tokens = generate(speaking, list(GOAL.prompts), max_new_tokens=6).tokens
    ends = int(tokens[0, 2])
    assert ends not in tokens[0, :2].tolist() + tokens[1].tolist()
    monkeypatch.setattr(type(speaking.tokenizer), "all_special_ids", [ends])
    found = dose_response(speaking, GOAL, {"push": push}, [0.0], max_new_tokens=6, temperature=0.0)
    first, second = found.data["text"].values[0, 0]
    assert first == speaking.tokenizer.decode(tokens[0, :2]) and second == plain.data["text"].values[0, 0, 1]
    assert float(found.data["fluency_each"][0, 0, 0]) != float(plain.data["fluency_each"][0, 0, 0])
    monkeypatch.setattr(type(speaking.tokenizer), "all_special_ids", [int(tokens[0, 0])])
    nothing = dose_response(speaking, GOAL, {"push": push}, [0.0], max_new_tokens=6, temperature=0.0).data
    assert nothing["text"].values[0, 0, 0] == "" and np.isnan(nothing["fluency_each"][0, 0, 0])


def test_refusals_of_texts(speaking):
    for goal, methods, doses, message in (
        (GOAL, {}, [1.0], "No method"),
        (GOAL, {"push": push}, [], "at least one"),
        (GOAL, {"push": push}, [1.0, 1.0], "each once"),
        (GOAL, {"push": push}, [float("nan")], "finite"),
        (replace(GOAL, judge=lambda text: 2.0), {"push": push}, [1.0], "from 0 to 1"),
        (replace(GOAL, judge=lambda text: None), {"push": push}, [1.0], "says None"),
        (GOAL, {"prompt edit": push}, [1.0], "call this method another"),
        (GOAL, {"push": lambda dose: dose}, [1.0], "'push' makes no edits.*a float"),
        *(
            (GOAL, {"push": Add(SITE, 1.0, **where)}, [1.0], "at some positions, rows or steps")
            for where in (
                {"positions": 0},
                {"positions": [3]},
                {"rows": [0]},
                {"when": When(steps=range(1, 9))},
            )
        ),
    ):
        with pytest.raises(InterpError, match=message):
            dose_response(speaking, goal, methods, doses, max_new_tokens=2)
    for name in ("prompts", "unrelated", "reworded"):
        with pytest.raises(PairError, match="letter by letter"):
            replace(GOAL, **{name: "My day"})
    single = dose_response(
        speaking, GOAL, {"one": Add(SITE, 1.0), "of": lambda d: Add(SITE, d)}, [1.0], max_new_tokens=2
    )
    assert (single.data["damage_each"].sel(way="one") == single.data["damage_each"].sel(way="of")).all()
    with pytest.raises(PairError, match="0 prompts"):
        replace(GOAL, prompts=())
    with pytest.raises(PairError, match="1 reworded prompts for 2"):
        replace(GOAL, reworded=("a",))


@pytest.mark.parametrize(
    ("methods", "doses", "message"),
    [
        ({"push": push}, 0.2, "list of numbers"),
        ({"push": push}, [None], "list of numbers"),
        ({"push": push}, ["a"], "list of numbers"),
        ({"push": push}, "0.2", "list of at least one"),
        ({"push": "mean"}, [1.0], "'push' makes no edits.*a str"),
        ({"push": lambda dose: None}, [1.0], "'push' makes no edits.*a NoneType"),
    ],
)
def test_what_is_no_dose_or_no_method_is_refused(methods, doses, message):
    with pytest.raises(InterpError, match=message):
        inspect.unwrap(planned)(methods, doses)  # as users call it, without the type checks of these tests


def test_a_manifold_of_another_schedule_is_refused():
    one = Manifold(SITE, torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3), torch.ones(2), (500.0, 0.0))
    found = SimpleNamespace(sampling=[0], timesteps=(750.0, 0.0))
    with pytest.raises(InterpError, match="measure states with the same steps"):
        inspect.unwrap(_distance)(found, [one])


# --- pictures -----------------------------------------------------------------------------------------------------

SCENE = Scene("pink", (Object("ring", "red", "small", "top right"), Object("cross", "green", "large", "top left")), 3)


def seen(ring=("ring", "red", "small"), cross=("cross", "green", "large"), background="pink", third=None):
    cells = (cross, ring, third, None)
    return Reading(background, tuple(None if cell is None else Seen(*cell) for cell in cells))


def test_answers_by_hand():
    goal = PictureGoal((SCENE,), "colour", "blue")
    kept = dict.fromkeys(("shape", "size", "cells", "background", "other object"), True)
    assert answer(goal, 0, seen()) == {"success": False, "damage": False, "garbage": False} | kept
    assert (
        answer(goal, 0, seen(("ring", "blue", "small"))) == {"success": True, "damage": False, "garbage": False} | kept
    )
    spread = answer(goal, 0, seen(("ring", "blue", "small"), ("cross", "blue", "large")))
    assert spread == {"success": True, "damage": True, "garbage": False} | kept | {"other object": False}
    blot = answer(goal, 0, seen(("unclear", "blue", "small"), third=("ring", "red", "small")))
    assert blot == {"success": True, "damage": True, "garbage": True} | kept | {"shape": False, "cells": False}
    gone = answer(goal, 0, seen(None))
    assert not gone["success"] and gone["damage"] and not gone["cells"]
    ground = PictureGoal((SCENE,), "background", "black")
    black = answer(ground, 0, seen(background="black"))
    assert black["success"] and not black["damage"] and "background" not in black
    removal = PictureGoal((SCENE,), "colour", "red", remove=True)
    assert not answer(removal, 0, seen())["success"] and answer(removal, 0, seen(("ring", "green", "small")))["success"]


def test_what_is_given_row_by_row_is_taken_for_the_rows_that_are_drawn():
    value = torch.arange(4.0)[:, None, None]
    edits = [
        Add(SITE, value), Add(SITE, UnderPrompt(("a", "b", "c", "d"))), Add(SITE, 1.0, positions=torch.tensor([[0], [1], [2], [3]])),
        Swap(SITE, value, torch.eye(1)), Add(SITE, UnderPrompt("a")), Add(SITE, torch.ones(4)),
    ]  # fmt: skip
    own = _of_rows(edits, [2, 3], 4)
    assert own[0].value.flatten().tolist() == own[3].source.flatten().tolist() == [2.0, 3.0]
    assert own[1].value.prompt == ("c", "d") and own[2].positions.tolist() == [[2], [3]]
    assert own[4:] == edits[4:] and _of_rows(edits, [0, 1, 2, 3], 4) == edits


def test_scenes_are_those_that_can_be_steered():
    for having in (False, True):
        scenes = scenes_for("colour", "blue", 30, 1, having=having, two=0.5)
        assert all((value_of(scene, "colour") == "blue") is having for scene in scenes)
        assert all(scene.objects[1].colour != "blue" for scene in scenes if len(scene.objects) == 2)
        PictureGoal(scenes, "colour", "blue", remove=having)
    assert scenes_for("size", "small", 3, 1) != scenes_for("size", "small", 3, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PictureGoal((), "colour", "blue"), PairError, "No scenes"),
        (lambda: PictureGoal((SCENE,), "colour", "red"), PairError, "shows 'red' already"),
        (lambda: PictureGoal((SCENE,), "colour", "blue", remove=True), PairError, "does not show 'blue'"),
        (lambda: PictureGoal((SCENE,), "colour", "brown"), SceneError, "no colour 'brown'"),
        (lambda: PictureGoal((SCENE,), "colour", "blue", prompts=("a", "b")), PairError, "2 prompts for 1 scenes"),
        (lambda: scenes_for("hue", "blue", 2), PairError, "colour: red, orange"),
        (lambda: scenes_for("colour", "brown", 2), PairError, "brown"),
    ],
)
def test_refusals_of_pictures(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_a_dose_of_nothing_is_the_model_and_the_prompt_edit_is_another_prompt():
    model = load("shapes")
    goal = PictureGoal(scenes_for("background", "black", 3, 5), "background", "black")
    edits = [Add(Site("latents"), 0.0)]
    found = dose_response(model, goal, {"nothing": lambda dose: edits}, [0.0], steps=8)
    share = found.data["success_by"].sel(dose=0.0)
    assert share.sel(way="nothing", reader="checker") == 0 and share.sel(way="prompt edit", reader="checker") == 1
    plain = run(model, goal.sampling(model, 8)).pictures()
    assert np.array_equal(found.data["pictures"].sel(way="nothing").values[0, 0], np.asarray(plain[0]))
    assert found.title == "Steering to black · 3 pictures · shapes"
