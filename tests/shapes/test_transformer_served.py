"""`interp.load("shapes-dit")`: the trained transformer draws what it is asked for, and the toolkit serves it as any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.interventions.denoise import denoise
from interp.interventions.denoise_sweep import DenoisingSweep
from interp.interventions.edits import Add, Replace, Scale, UnderPrompt, When
from interp.interventions.sweep import plan_sweep, sweep
from interp.models.load import load
from interp.models.site import Site
from interp.shapes.checker import check
from interp.shapes.evaluate import draw, evaluation_set
from interp.shapes.pipeline import load_pipeline
from interp.shapes.reading import compare, ideal
from interp.shapes.transformer import GUIDANCE, STEPS, ShapesTransformerPipeline
from interp.tracing import trace

PROMPTS = ["a large red circle at top left on a white background", "a small ring at bottom right and a green cross"]
OTHER = "a large blue circle at top left on a white background"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return load("shapes-dit")


@pytest.fixture(scope="module")
def plain(model):
    return denoise(model, model.sampling(PROMPTS, seeds=[5], steps=3))


def every_site(model):
    parts = dict.fromkeys(part for block in model.blocks.values() for part in block.taps)
    own = [Site("latents"), Site("prediction")]
    return [*model.text, *own, *(site for part in parts for site in model.sites(part))]


def test_it_draws_what_it_is_asked_for(model):
    assert isinstance(model.pipeline, ShapesTransformerPipeline)
    scenes, prompts = evaluation_set(12, seed=5)
    readings = [check(picture) for picture in draw(model.pipeline, prompts, 0, STEPS, GUIDANCE)]
    right = [compare(seen, ideal(scene)) for seen, scene in zip(readings, scenes, strict=True)]
    for factor, least in (("background", 11), ("cells", 11)):
        assert sum(r[factor][0] for r in right) >= least, factor
    for factor in ("shape", "colour", "size"):
        assert np.mean([x for r in right for x in r[factor]]) > 0.8, factor


def test_it_borrows_the_text_encoder_of_the_unet(model):
    theirs, ours = load_pipeline().text_encoder.state_dict(), model.pipeline.text_encoder.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


def test_no_edit_is_the_pipelines_own_call(model, plain):
    generators = [torch.Generator().manual_seed(5) for _ in PROMPTS]
    own = model.pipeline(PROMPTS, generator=generators, num_inference_steps=3, output_type="pt").images
    assert torch.equal(plain.images, own)
    captured = denoise(model, plain.sampling, (), every_site(model))
    assert torch.equal(captured.images, own)


def test_edits_that_change_nothing_change_nothing(model, plain):
    sites = every_site(model)
    captured = denoise(model, plain.sampling, (), sites)
    half = [[Add(s, 0.0) if (i + shift) % 2 else Scale(s, 1.0) for i, s in enumerate(sites)] for shift in (0, 1)]
    firsts = {site.part: site for site in reversed(sites)}.values()
    for edits in [[], *half, *([Replace(site, captured)] for site in firsts)]:
        assert torch.equal(denoise(model, plain.sampling, edits).images, plain.images), edits
    for site in firsts:  # and those that change something are felt, in their own row only
        edited = denoise(model, plain.sampling, [Add(site, 1.0, rows=[1])]).images
        assert torch.equal(edited[0], plain.images[0]) and not torch.equal(edited[1], plain.images[1]), site


class Pixels:
    """A fixed linear reading of all pixels: any change of any pixel shows."""

    name, unit = "pixels", "of full range"

    def values(self, images, example):
        return (images * torch.linspace(-1, 1, images[0].numel()).view(images[0].shape)).mean((1, 2, 3))


def test_a_sweep_is_one_plain_run_per_variant(model):
    sampling = model.sampling(PROMPTS[0], seeds=[1, 2], steps=4)
    variants = [
        [Replace(site, UnderPrompt(OTHER), when=When(steps=steps))]
        for part in ("cross_attn_out", "block_out", "self_v")
        for site in model.sites(part)[::2]
        for steps in ([0], [2, 3])
    ]
    variants += [[Scale(Site("final_norm", "text"), 0.5)], [Add(Site("latents"), 0.1, when=When(steps=[1]))], []]
    plan = plan_sweep(model, sampling, variants, Pixels())
    assert isinstance(plan, DenoisingSweep) and plan.cost.operations < plan.cost.naive_operations
    fast, slow = plan.run(), sweep(model, sampling, variants, Pixels(), exact="naive")
    torch.testing.assert_close(fast.values["pixels"], slow.values["pixels"], rtol=0, atol=1e-6)
    effect = (slow.values["pixels"] - slow.base["pixels"]).abs()
    assert (effect > 1e-4).float().mean() > 0.5  # the comparison is of something


def test_a_trace_of_a_colour(model):
    found = trace(model, PROMPTS[0], attribute="red", seeds=1, window=10)
    data, m = found.data, found.provenance["metrics"][0]
    assert found.provenance["model"] == "shapes-dit" and found.provenance["corrupted"] != PROMPTS[0]
    assert list(data["block"].values) == [f"block.{i}" for i in range(6)] and data.sizes["window"] == 3
    clean, corrupted = (float(data[f"{m}_{which}"].mean()) for which in ("clean", "corrupted"))
    assert m == "colour_probability" and clean > 0.6 and corrupted < 0.05  # red where asked for, and nowhere else
    # No block alone brings the probability back here; in the judge's logits some do bring something.
    nats = "colour_logit_difference"
    restored = data[f"{nats}_mean"].values - float(data[f"{nats}_corrupted"].mean())
    assert np.isfinite(data[m].values).all() and restored.max() > 0.1
