"""Reports of edits: answers by hand, prompts that say what they should, a small run of the real model."""

import numpy as np
import pytest
import torch
from models.denoisers import described

from interp.errors import InterpError, PairError
from interp.models.load import load
from interp.results import Result
from interp.shapes.reading import Reading, Seen, ideal
from interp.shapes.scene import Object, Scene
from interp.steering import EditReport, edit_concept, edit_report
from interp.steering.edit_report import CONDITIONS, answers_named, answers_other, report_prompts

SCENE = Scene("pink", (Object("ring", "red", "small", "top right"), Object("cross", "green", "large", "top left")), 3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seen(ring=("ring", "red", "small"), cross=("cross", "green", "large"), background="pink"):
    return Reading(background, (Seen(*cross), None if ring is None else Seen(*ring), None, None))


def test_answers_by_hand():
    assert seen() == ideal(SCENE)
    before = answers_named(SCENE, seen(), "red", "blue", "colour")
    kept = dict.fromkeys(("background", "cells", "shape", "size", "other object's colour"), True)
    assert before == {"concept gone": False, "target shown": False} | kept
    blue = answers_named(SCENE, seen(("ring", "blue", "small")), "red", "blue", "colour")
    assert blue == {"concept gone": True, "target shown": True} | kept
    spoilt = answers_named(
        SCENE, seen(("ring", "unclear", "large"), ("cross", "blue", "large")), "red", "blue", "colour"
    )
    assert spoilt == {"concept gone": True, "target shown": False} | kept | {
        "size": False,
        "other object's colour": False,
    }
    lost = answers_named(SCENE, seen(None), "red", "blue", "colour")
    assert lost["concept gone"] and not lost["cells"] and not lost["shape"]
    ground = answers_named(SCENE, seen(background="black"), "pink", "black", "background")
    assert ground == {
        "concept gone": True,
        "target shown": True,
        "cells": True,
        "shape": True,
        "colour": True,
        "size": True,
    }
    assert answers_other(SCENE, seen())["others: scene"] and not answers_other(SCENE, seen(None))["others: cells"]


@pytest.mark.parametrize(
    ("concept", "factor"), [("red", "colour"), ("circle", "shape"), ("large", "size"), ("white", "background")]
)
def test_half_of_the_prompts_name_the_concept_once(concept, factor):
    scenes, prompts = report_prompts(concept, factor, 20, 0)
    assert len(scenes) == len(prompts) == 40
    assert all(text.split().count(concept) == 1 for text in prompts[:20])
    assert all(concept not in text.split() for text in prompts[20:])
    for scene in scenes[:20]:
        values = [scene.background] if factor == "background" else [getattr(o, factor) for o in scene.objects]
        assert values.count(concept) == 1


def test_the_real_model(tmp_path):
    model = load("shapes")
    edited = edit_concept(model, "red", "blue")
    report = edit_report(edited, n=6)
    share = report.data["share"].sel(reader="checker")
    assert (share.sel(question="target shown") == [0, 1, 1, 0]).all()  # CONDITIONS
    assert share.sel(condition="edited", question=["shape", "size", "cells", "background"]).min() > 0.8
    assert share.sel(condition="edited", question="others: scene") > 0.8
    before, control = (report.data["pictures"].sel(condition=c) for c in ("before", "random edit"))
    assert report.data["pictures"].shape == (4, 8, 32, 32, 3) and not before.equals(control)
    low, high = report.data["low"], report.data["high"]
    assert (low <= report.data["share"]).sum() == (high >= report.data["share"]).sum() > 50
    report.save(tmp_path / "report.nc")
    again = Result.load(tmp_path / "report.nc")
    assert isinstance(again, EditReport) and again.data.identical(report.data)
    assert report.plot().data and all(c in report.summary() for c in CONDITIONS)
    assert report.plot_pictures().layout.images
    assert np.isnan(
        report.data["right"].sel(question="other object's colour")
    ).any()  # of single objects it is not asked


@pytest.mark.parametrize(("concept", "target"), [("red", "circle"), ("red", "red"), ("angular", "round")])
def test_an_edit_that_cannot_be_read_is_refused(concept, target):
    edited = edit_concept(load("shapes"), concept, target, contexts=["a {}"], keep=[""])
    with pytest.raises(PairError, match="two values of one factor"):
        edit_report(edited, n=2)


def test_other_models_are_refused():
    with pytest.raises(InterpError, match="only pictures of the shapes world"):
        edit_report(edit_concept(described("sd"), "red", "blue", contexts=["a {}"]), n=2)
    with pytest.raises(InterpError, match="at least one prompt"):
        edit_report(edit_concept(load("shapes"), "red", "blue", contexts=["a {}"], keep=[""]), n=0)
