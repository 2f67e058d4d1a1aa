"""Dissection of pipelines: maps are plain captures, an untrained network is at chance, latents show the picture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.denoisers import described
from models.pipelines import PROMPTS, WORDS

from interp.concepts import Channels, Directions, dissect
from interp.concepts.agreement import agree
from interp.concepts.dissection import DissectionResult
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import When
from interp.models.guidance import Branch
from interp.models.load import load
from interp.results import Result
from interp.shapes.caption import full_caption
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.scene import sample_scenes
from interp.tasks.concept_masks import ConceptMasks, scene_masks

COND = When(branch=Branch.COND)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes():
    return load("shapes")


def prompts(n=12):
    return [f"a {colour} {shape}" for colour in WORDS[20:26] for shape in ("circle", "star")][:n]


def halves(n=12, side=16):
    """Concepts that have nothing to do with a picture: its left half, its right half, in every other row."""
    masks = np.zeros((n, 2, side, side), bool)
    masks[::2, 0, :, : side // 2] = masks[1::2, 1, :, side // 2 :] = True
    return ConceptMasks(("left", "right"), masks)


def sampled(model, **changes):
    sampling = model.sampling(prompts(), seeds=0, steps=2, guidance=3.0, height=16, width=16, **changes)
    return replace(sampling, seeds=tuple(range(len(sampling))))


@pytest.mark.parametrize("branch", [Branch.COND, Branch.UNCOND])
def test_a_dissection_is_agreement_of_plain_captures(branch):
    model = described("sd")
    when = When(steps=[1], branch=branch)
    found = dissect(model, "up.2.1.block_out", sampled(model), masks=halves(), when=when, shuffles=2, seed=3)
    run = denoise(model, sampled(model), (), ["up.2.1.block_out"], when=when)
    maps = run["up.2.1.block_out"][0, 0].float().transpose(1, 2).unflatten(2, (8, 8)).contiguous()
    plain = agree(maps, torch.from_numpy(halves().masks), 6, 2, 3 + 1)
    data = found.data.sel(step=1)
    np.testing.assert_allclose(data["threshold"], plain.threshold, rtol=1e-5)
    np.testing.assert_array_equal(data["intersection"], plain.intersection)
    np.testing.assert_array_equal(data["union"], plain.union)
    np.testing.assert_allclose(data["iou"], plain.intersection.sum(-1) / plain.union.sum(-1))
    assert (data["low"] <= data["iou"]).all() and (data["iou"] <= data["high"]).all()


def test_directions_along_the_axes_are_the_channels():
    model = described("sd")
    site, width = "up.2.1.block_out", 8
    axes = Directions(torch.eye(width, dtype=torch.float64), names=[f"axis {i}" for i in range(width)])
    settings = dict(masks=halves(), when=COND, shuffles=1)
    own, theirs = (dissect(model, site, sampled(model), units=units, **settings) for units in (Channels(), axes))
    np.testing.assert_array_equal(own.data["iou"], theirs.data["iou"])
    assert theirs.data["unit_name"].values[2] == "axis 2"


def test_an_untrained_network_is_at_chance():
    """Its own pictures, against the scenes that its prompts describe: nothing in it knows them."""
    torch.manual_seed(0)
    model = load(new_pipeline(new_text_encoder(), new_unet()), name="untrained")
    scenes = sample_scenes(60, 2)
    found = dissect(
        model, "up.1.0.block_out", [full_caption(s) for s in scenes], masks=scene_masks(scenes), steps=2, shuffles=3
    )
    data = found.data[["iou", "chance", "chance_max", "low"]].dropna("concept", how="all", subset=["iou"])
    assert data.sizes["concept"] > 15
    assert abs(float((data["iou"] - data["chance"]).mean())) < 0.01
    assert float((data["low"] > data["chance_max"]).mean()) < 0.01


def test_the_trained_network_is_not(shapes):
    found = dissect(shapes, "up.1.0.block_out", n=60, steps=4, shuffles=3, when=When(steps=[3], branch=Branch.COND))
    best = found.best()
    assert float(best["low"].sel(concept="object")) > 2 * float(best["chance_max"].sel(concept="object"))
    assert int(found.found().sel(concept="object", step=3)) > 10
    assert "unit" in found.summary() and found.ranked("object")[0] in range(96)
    assert (
        found.plot().data and found.plot_steps(["object", "large"]).data and found.plot_units(["object"]).layout.images
    )


def test_a_result_is_saved_and_loaded(tmp_path):
    model = described("sd")
    found = dissect(model, "up.2.1.block_out", sampled(model), masks=halves(), shuffles=1)
    found.save(tmp_path / "units.nc")
    again = Result.load(tmp_path / "units.nc")
    assert isinstance(again, DissectionResult) and again.data.identical(found.data)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(site="text.0.mlp_out"), SiteError, "no map of one value"),
        (dict(site="up.1.0.cross_k"), SiteError, "no map of one value"),
        (dict(site="up.1.0.self_z"), SiteError, "no map of one value"),
        (dict(when=When(steps=[0])), InterpError, "one branch"),
        (dict(shuffles=0), InterpError, "at least one shuffle"),
        (dict(masks=halves(10)), ShapeError, "10 masks for 12 pictures"),
        (dict(prompts=None), InterpError, "needs `prompts`"),
        (dict(prompts=PROMPTS), InterpError, "at least 8"),
    ],
)
def test_what_is_refused(changes, error, message):
    model = described("sd")
    settings = dict(site="up.2.1.block_out", prompts=sampled(model), masks=halves()) | changes
    with pytest.raises(error, match=message):
        dissect(model, settings.pop("site"), settings.pop("prompts"), **settings)


def test_a_concept_that_was_not_dissected_has_no_ranking():
    model = described("sd")
    found = dissect(model, "up.2.1.block_out", sampled(model), masks=halves(), shuffles=1)
    with pytest.raises(PairError, match="'lefty'.*left"):
        found.ranked("lefty")


@pytest.mark.parametrize(
    ("axes", "units", "message"),
    [(torch.ones(2, 3), None, "unit length"), (torch.eye(3)[[0, 0]], [0, 1], "depend linearly")],
)
def test_directions_that_are_refused(axes, units, message):
    from interp.models.site import Site

    with pytest.raises(ShapeError, match=message):
        Directions(axes).setting(Site("block_out", "mid.0"), units, torch.zeros(2), None, COND)
