"""Alignment of a denoiser: the numbers against hand-written hooks, the pictures against plain edited runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.alignment.fit import Training
from interp.alignment.pictures import PictureAlignment, align_pictures
from interp.errors import InterpError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Swap, UnderPrompt, When
from interp.interventions.one_step import trajectory
from interp.models.guidance import Branch
from interp.models.reset import reset
from interp.models.site import Site
from interp.shapes.caption import full_caption
from interp.shapes.judge import load_judge
from interp.shapes.scene import CELLS
from interp.tasks.causal_models.pictures import picture_interchange
from interp.tasks.image_metrics import as_bytes

SITE = Site.parse("up.1.1.cross_attn_out")
TRAIN, TEST = picture_interchange(6, 0, split="train"), picture_interchange(4, 1, split="held out")
BRIEF = Training(steps=4, batch=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def shapes():
    return interp.load("shapes")


@pytest.fixture(scope="module")
def found(shapes):
    return align_pictures(
        shapes, TRAIN, TEST, sites=[SITE], ranks=(2,), steps=range(5, 20), train_steps=2, training=BRIEF, drawn=2
    )


def plain(model, prompts, states, change=None):
    """The prediction, by the network's own forward pass and one torch hook; and what stands at the site."""
    embeds = model.embeddings(model.sampling(list(prompts)), Branch.COND)["prompt_embeds"]
    seen = []

    def hook(_module, _args, output):
        seen.append(output.detach().clone())
        return None if change is None else change(output)

    handle = model.tap(SITE).module.register_forward_hook(hook)
    with torch.no_grad():
        prediction = model.network(states.x, states.time, encoder_hidden_states=embeds).sample
    handle.remove()
    return prediction, seen[0]


def test_what_a_subspace_explains_is_what_hooks_say(shapes, found):
    base, source, label = (
        [e.prompt for e in TEST], [e.source_prompts[0] for e in TEST], [full_caption(e.scene) for e in TEST]
    )  # fmt: skip
    seeds = tuple(range(len(TEST)))
    both = [
        trajectory(shapes, replace(shapes.sampling(prompts), seeds=seeds), [5, 19]) for prompts in (label, base)
    ]  # fmt: skip
    states = both[0].joined(both[1])
    base, source, label = (prompts * 4 for prompts in (base, source, label))
    basis = found.basis(SITE, 2)
    _, theirs = plain(shapes, source, states)
    wanted, _ = plain(shapes, label, states)
    unchanged, _ = plain(shapes, base, states)
    edited, _ = plain(shapes, base, states, lambda x: x + (theirs - x) @ basis @ basis.T)
    explained = 1 - (edited - wanted).square().sum() / (unchanged - wanted).square().sum()
    assert found.data["explained"].sel(way="fitted").item() == pytest.approx(float(explained), abs=1e-4)
    full, _ = plain(shapes, base, states, lambda x: theirs)
    explained = 1 - (full - wanted).square().sum() / (unchanged - wanted).square().sum()
    assert found.data["explained"].sel(way="full swap").item() == pytest.approx(float(explained), rel=1e-4, abs=1e-4)


def test_pictures_are_those_of_plain_edited_runs_read_by_the_judge(shapes, found):
    basis = found.basis(SITE, 2)
    sampling = replace(shapes.sampling([e.prompt for e in TEST]), seeds=tuple(range(len(TEST))))
    source = UnderPrompt(tuple(e.source_prompts[0] for e in TEST))
    for way, columns in (("fitted", basis), ("full swap", torch.eye(96))):
        edit = Swap(SITE, source, columns, when=When(steps=range(5, 20), branch=Branch.COND))
        pictures = as_bytes(denoise(shapes, sampling, [edit]).images)
        difference = pictures[:2].astype(int) - found.data[way.replace(" ", "_")].values.astype(int)
        assert np.abs(difference).max() <= 1
        for row, (e, seen) in enumerate(zip(TEST, load_judge().judge(pictures).readings(), strict=True)):
            (thing,) = e.scene.objects
            there = seen.cells[CELLS.index(thing.cell)]
            here = found.data.sel(way=way).isel(site=0, rank=0, example=row)
            assert bool(here["changed"]) == (there is not None and there.colour == thing.colour)
            alone = sum(cell is not None for cell in seen.cells) == 1
            kept = there is not None and alone and (there.shape, there.size) == (thing.shape, thing.size)
            assert bool(here["kept"]) == (kept and seen.background == e.scene.background)


def test_a_fit_lowers_the_loss_and_random_weights_explain_nothing(found):
    loss = found.data["loss"].values[0, 0]
    explained = found.data["explained"].isel(site=0, rank=0)
    assert loss[-1] < loss[0] and float(explained.sel(way="fitted")) > float(explained.sel(way="before training"))
    assert abs(float(explained.sel(way="random model"))) < 0.2
    assert np.isnan(found.data["iia"].sel(way="random model")).all()


def test_a_result_says_its_controls_and_survives_a_file(found, tmp_path):
    text = repr(found)
    for words in (
        "4 held-out examples",
        "full swap",
        "before training",
        "shuffled labels",
        "random model",
        "explained",
    ):
        assert words in text
    found.save(tmp_path / "a.nc")
    again = PictureAlignment.load(tmp_path / "a.nc")
    assert repr(again) == text and torch.equal(again.basis(SITE, 2), found.basis(SITE, 2))
    assert len(found.plot().data) and found.plot_pictures().layout.title.text
    with pytest.raises(InterpError, match="was not searched"):
        found.basis(SITE, 3)


def test_a_fit_goes_on_from_its_checkpoint(shapes, tmp_path):
    settings = dict(sites=[SITE], ranks=(2,), train_steps=1, training=BRIEF, controls=())
    first = align_pictures(shapes, TRAIN, TEST, checkpoint=tmp_path, **settings)
    assert {path.name for path in tmp_path.iterdir()} >= {f"{SITE} task.safetensors", "pictures"}
    again = align_pictures(shapes, TRAIN, TEST, checkpoint=tmp_path, **settings)
    np.testing.assert_array_equal(first.data["loss"].values, again.data["loss"].values)
    np.testing.assert_array_equal(first.data["changed"].values, again.data["changed"].values)


def test_a_reset_denoiser_leaves_the_old_one_alone(shapes):
    before = shapes.weights_hash
    other = reset(shapes, 1)
    assert other.weights_hash != before and other.pipeline.unet is other.network is not shapes.pipeline.unet
    assert other.pipeline.text_encoder is shapes.pipeline.text_encoder
    del shapes.__dict__["weights_hash"]
    assert shapes.weights_hash == before


def test_what_is_refused(shapes):
    with pytest.raises(InterpError, match="is empty"):
        align_pictures(shapes, TRAIN, TEST, sites=[])
    with pytest.raises(InterpError, match="There is no control 'luck'"):
        align_pictures(shapes, TRAIN, TEST, sites=[SITE], controls=("luck",))
    with pytest.raises(InterpError, match="exchanges"):
        align_pictures(shapes, TRAIN, picture_interchange(2, 1, ("shape",)), sites=[SITE])
    with pytest.raises(InterpError, match="is not held out"):
        align_pictures(shapes, TRAIN, TRAIN[2:4], sites=[SITE])
    with pytest.raises(InterpError, match="has steps 0 to 19"):
        align_pictures(shapes, TRAIN, TEST, sites=[SITE], steps=[20])
    with pytest.raises(SiteError, match="can be put at parts"):
        align_pictures(shapes, TRAIN, TEST, sites=["latents"])
