"""Pictures with noise against diffusers' own schedulers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from interp.errors import InterpError, ShapeError
from interp.interventions.noised import noised
from interp.interventions.one_step import OneStep
from interp.models.load import load
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.render import render
from interp.shapes.scene import sample_scenes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load(new_pipeline(new_text_encoder(), new_unet()))


PICTURES = render(sample_scenes(3, seed=1))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_states_and_targets_are_those_of_the_scheduler(model, monkeypatch, kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    monkeypatch.setattr(model.pipeline, "scheduler", scheduler)
    found = noised(model, PICTURES, 300, seed=4)
    x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
    clean = torch.nn.functional.pixel_unshuffle(x, 2)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    time = torch.full((3,), 300)
    torch.testing.assert_close(found.states.x, scheduler.add_noise(clean, noise, time), atol=1e-6, rtol=0)
    wanted = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, time), "sample": clean}[kind]
    torch.testing.assert_close(found.target, wanted, atol=1e-6, rtol=0)
    assert found.states.time.tolist() == [300] * 3


def test_the_trained_model_predicts_the_target_and_the_untrained_does_not(model):
    scenes = sample_scenes(8, seed=3)
    from interp.shapes.caption import full_caption

    prompts, losses = [full_caption(scene) for scene in scenes], []
    for one in (load("shapes"), model):
        given = noised(one, render(scenes), 500, seed=0)
        step = OneStep(one, one.sampling(prompts, seeds=0), given.states, "mid.block_out")
        losses.append(float((step.prediction - given.target).square().mean()))
    assert losses[0] < 0.05 < 0.3 < losses[1]


def test_refusals(model, monkeypatch):
    with pytest.raises(ShapeError, match="uint8"):
        noised(model, PICTURES.astype(np.float32), 3)
    with pytest.raises(InterpError, match="0 to 999"):
        noised(model, PICTURES, 1000)
    monkeypatch.setattr(model.pipeline, "scheduler", DDIMScheduler(prediction_type="score"))
    with pytest.raises(InterpError, match="'score'"):
        noised(model, PICTURES, 3)
    monkeypatch.setattr(model.pipeline, "scheduler", FlowMatchEulerDiscreteScheduler())
    with pytest.raises(InterpError, match="rectified flow"):
        noised(model, PICTURES, 3)
