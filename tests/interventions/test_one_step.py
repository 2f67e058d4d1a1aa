"""One step of a denoiser at fixed states, against the pipeline's own, for every family."""

from dataclasses import replace

import pytest
import torch
from models.pipelines import CALLS, pipeline

from interp.errors import InterpError, ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Replace
from interp.interventions.one_step import OneStep, States, trajectory
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.site import Site

FAMILIES = ["sd", "sdxl", "pixart", "dit", "sd3", "flux"]
PREDICTION = Site("prediction")


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(family):
        if family not in made:
            pipe = pipeline(family)
            pipe.set_progress_bar_config(disable=True)
            made[family] = describe_pipeline(pipe, family)
        return made[family]

    return get


def samplings(model, family, guidance=1.0):
    """(base, other) of two rows each."""
    settings = {k: v for k, v in CALLS[family].items() if k in ("height", "width", "max_sequence_length")}
    settings |= {"negative": "dark photo"} if family == "flux" and guidance > 1 else {}
    prompts = (
        ([3, 5], [4, 6])
        if family == "dit"
        else (["a red circle on a blue square", "two green stars"], ["a green square", "a red circle"])
    )
    return tuple(
        replace(model.sampling(p, steps=3, guidance=guidance, **settings), seeds=(1, 2)) for p in prompts
    )  # fmt: skip


def read(model, prediction):
    return model.tap(PREDICTION).read(prediction)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_at_a_site_does_what_replacing_it_does(models, family):
    model = models(family)
    base, other = samplings(model, family)
    for site in (model.sites("block_out")[-2], model.sites("ff_out")[0]):
        plain = denoise(model, base, [], [site, PREDICTION])
        value = denoise(model, other, [], [site]).at(site, 1, Branch.COND)
        edited = denoise(model, base, [Replace(site, value)], [PREDICTION])
        states = trajectory(model, base, [0])
        step = OneStep(model, base, states, site)
        torch.testing.assert_close(step.values, plain.at(site, 0, Branch.COND), rtol=0, atol=1e-5)
        own = plain.at(PREDICTION, 0, Branch.COND)
        torch.testing.assert_close(read(model, step.prediction), own, rtol=0, atol=1e-5)
        found = read(model, step(value, torch.arange(2)))
        torch.testing.assert_close(found, edited.at(PREDICTION, 0, Branch.COND), rtol=0, atol=1e-5)
        assert (found - own).abs().max() > 1e-3  # the comparison is of something


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trajectory_is_what_the_guided_run_passes_through(models, family):
    model = models(family)
    base, _ = samplings(model, family, guidance=4.0)
    run = denoise(model, base)
    states = trajectory(model, base, [0, 2])
    torch.testing.assert_close(states.x, torch.cat([run.latents[0], run.latents[2]]), rtol=0, atol=1e-5)
    assert len(states) == 4 and states.time[0] != states.time[2] and states.time[0] == states.time[1]


def test_rows_of_other_steps_are_those_of_the_run(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    site = model.sites("block_out")[3]
    states = trajectory(model, base, [0, 1, 2])
    step = OneStep(model, base.select([0, 1] * 3), states, site)
    run = denoise(model, base, [], [site, PREDICTION])
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        torch.testing.assert_close(step.values[rows], run.at(site, k, Branch.COND), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            read(model, step.prediction[rows]), run.at(PREDICTION, k, Branch.COND), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("n", ["tokens", "cells"])
def test_what_a_batch_shares_is_never_taken_for_rows(models, n):
    model = models("flux")
    base, _ = samplings(model, "flux")
    site = model.sites("block_out")[-2]
    states = trajectory(model, base, [0])
    count = model.tokens_of(base) if n == "tokens" else model.grid_of(site, base)[0] * model.grid_of(site, base)[1]
    order = torch.arange(count) % 2
    many = States(states.x[order], states.time[order])
    few, whole = OneStep(model, base, states, site), OneStep(model, base.select(order.tolist()), many, site)
    torch.testing.assert_close(whole.prediction, few.prediction[order], rtol=0, atol=1e-9)
    rows = torch.tensor([count - 1, 0])  # positions of the shared ids, were they rows
    torch.testing.assert_close(whole(whole.values[rows], rows), few.prediction[order[rows]], rtol=0, atol=1e-9)


def test_only_what_follows_is_run_and_gradients_are_those_of_the_whole(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    site = next(site for site in model.sites("block_out") if str(site.layer) == "up.0.0")
    states = trajectory(model, base, [1])
    step = OneStep(model, base, states, site)
    seen = []
    first = model.network.down_blocks[0].resnets[0].conv1
    last = model.network.up_blocks[1].resnets[0].conv1
    hooks = [
        m.register_forward_hook(lambda *_, name=name: seen.append(name)) for m, name in ((first, "a"), (last, "b"))
    ]
    value = (step.values * 1.1).requires_grad_()
    (ours,) = torch.autograd.grad(step(value, torch.arange(2)).square().sum(), value)
    assert seen == ["b"]
    for hook in hooks:
        hook.remove()

    own = (step.values * 1.1).requires_grad_()
    tap = model.tap(site)
    embeds = model.embeddings(base, Branch.COND)["prompt_embeds"]
    hook = tap.module.register_forward_hook(lambda _m, _a, output: own.transpose(1, 2).reshape(output.shape))
    whole = model.network(states.x, states.time, encoder_hidden_states=embeds).sample
    hook.remove()
    (theirs,) = torch.autograd.grad(whole.square().sum(), own)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours.abs().max() > 0


def test_what_is_refused(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    states = trajectory(model, base, [0])
    with pytest.raises(InterpError, match="Steps \\[3\\]: name some of 0 to 2"):
        trajectory(model, base, [3])
    with pytest.raises(SiteError, match="can be put at parts of a denoiser's blocks"):
        OneStep(model, base, states, "latents")
    with pytest.raises(ShapeError, match="1 prompts for 2 states"):
        OneStep(model, base.select([0]), states, model.sites("block_out")[0])
    with pytest.raises(ShapeError, match="for a denoiser that receives"):
        OneStep(model, base, States(states.x[..., :1], states.time), model.sites("block_out")[0])
    step = OneStep(model, base, states, model.sites("block_out")[0])
    with pytest.raises(ShapeError, match="was expected"):
        step(step.values[:1], torch.arange(2))
