"""The transformer under rectified flow: PixArt's own code path, an exact schedule, and two architectures in one trainer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PixArtAlphaPipeline

from interp.errors import InterpError, LoadError, PairError
from interp.shapes.architecture import ARCHITECTURES, architecture_named, noised_for_flow, noised_for_v
from interp.shapes.packing import pack, unpacked, write_weights
from interp.shapes.pipeline import load_pipeline, new_scheduler, new_text_encoder, new_unet
from interp.shapes.train import CHECKPOINT, Recipe, Training
from interp.shapes.transformer import (
    GUIDANCE,
    SHIFT,
    STEPS,
    load_transformer,
    new_flow_scheduler,
    new_transformer,
    new_transformer_pipeline,
)

PROMPTS = ["a large red circle at top left on a white background", "a small ring and a cross"]
TINY = Recipe(steps=6, batch=4, warmup=2, cooldown=2, easy=3, text_steps=2, bfloat16=False, architecture="dit")


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return new_transformer_pipeline(new_text_encoder(), new_transformer())


def draw(pipeline, prompts, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, output_type="np", **options).images


# -- the schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, STEPS])
def test_with_the_true_velocity_the_sampler_ends_at_the_picture(steps):
    torch.manual_seed(0)
    picture, noise = torch.randn(2, 12, 16, 16), torch.randn(2, 12, 16, 16)
    scheduler, x = new_flow_scheduler(), noise
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == 1000 and len(scheduler.timesteps) == steps
    for t in scheduler.timesteps:
        torch.testing.assert_close(x, (1 - t / 1000) * picture + t / 1000 * noise, rtol=0, atol=1e-5)
        x, foreseen = scheduler.step(noise - picture, t, scheduler.scale_model_input(x, t), return_dict=False)
        torch.testing.assert_close(foreseen, picture, rtol=0, atol=1e-5)
    torch.testing.assert_close(x, picture, rtol=0, atol=1e-5)


def test_no_step_is_wasted():
    """The schedule is even before the shift. Diffusers' own moves σ by 0.002 in its last step."""
    scheduler, theirs = new_flow_scheduler(), FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(STEPS)
    theirs.set_timesteps(STEPS)
    even = scheduler.sigmas / (SHIFT - (SHIFT - 1) * scheduler.sigmas)
    torch.testing.assert_close(even, torch.linspace(1, 0, STEPS + 1), rtol=0, atol=1e-6)
    assert theirs.sigmas[-2] < 0.005 < 0.09 < scheduler.sigmas[-2]


def test_training_noise_is_the_schedulers_own():
    """Against diffusers' forward processes, and the flow's target against a difference quotient."""
    torch.manual_seed(0)
    latents, noise = torch.randn(5, 12, 16, 16), torch.randn(5, 12, 16, 16)
    u = torch.tensor([0.0, 0.2345, 0.5, 0.9, 0.999])
    given, times, wanted = noised_for_v(latents, noise, u)
    ddim = DDIMScheduler.from_config(new_scheduler().config)
    assert times.tolist() == [0, 234, 500, 900, 999]
    torch.testing.assert_close(given, ddim.add_noise(latents, noise, times), rtol=0, atol=1e-6)
    torch.testing.assert_close(wanted, ddim.get_velocity(latents, noise, times), rtol=0, atol=1e-6)

    flow = new_flow_scheduler()
    flow.set_timesteps(20)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.05])  # the scheduler's own places
    given, times, wanted = noised_for_flow(latents, noise, u)
    torch.testing.assert_close(times, flow.timesteps[[0, 5, 10, 15, 19]], rtol=0, atol=1e-3)
    own = flow.scale_noise(latents, flow.timesteps[[0, 5, 10, 15, 19]], noise)
    torch.testing.assert_close(given, own, rtol=0, atol=1e-5)
    x, n, place = latents.double(), noise.double(), u.double()
    (here, now, wanted), (there, then, _) = noised_for_flow(x, n, place), noised_for_flow(x, n, place - 1e-4)
    slope = (there - here) / ((then - now) / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(wanted, slope, rtol=0, atol=1e-9)


# -- the pipeline ----------------------------------------------------------------------------------------------


def test_it_takes_the_code_path_of_hub_models(untrained):
    plain = PixArtAlphaPipeline(**untrained.components)
    plain.set_progress_bar_config(disable=True)
    ours = draw(untrained, PROMPTS, (1, 2), num_inference_steps=2)
    theirs = draw(
        plain, PROMPTS, (1, 2), num_inference_steps=2, guidance_scale=GUIDANCE, max_sequence_length=24,
        clean_caption=False, use_resolution_binning=False,
    )  # fmt: skip
    assert ours.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(ours, theirs)


def test_rows_do_not_touch_each_other(untrained):
    together = draw(untrained, PROMPTS, (1, 2), num_inference_steps=2)
    alone = draw(untrained, PROMPTS[1:], (2,), num_inference_steps=2)
    np.testing.assert_allclose(together[1:], alone, atol=1e-4)


def test_it_reads_what_the_unet_reads(untrained):
    """The same states for the same prompt, padding included: the mask of the tokenizer hides nothing."""
    ids = untrained.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = untrained.text_encoder(ids).last_hidden_state
        embeds, mask, _, _ = untrained.encode_prompt(PROMPTS, False)
    torch.testing.assert_close(embeds, states, rtol=0, atol=1e-6)
    assert mask.shape == (2, 24) and (mask == 1).all()


def test_a_word_that_it_does_not_know_is_refused(untrained):
    with pytest.raises(PairError, match="'crimson'"):
        untrained(["a red circle", "a crimson circle"], num_inference_steps=1)
    with pytest.raises(PairError, match="'ugly'"):
        untrained("a red circle", negative_prompt="ugly", num_inference_steps=1)


def test_weights_survive_in_half_precision_and_those_of_the_unet_are_refused(tmp_path):
    parts = {"text_encoder": new_text_encoder(), "transformer": new_transformer()}
    tensors = {f"{part}.{name}": t for part, m in parts.items() for name, t in m.state_dict().items()}
    write_weights(tmp_path / "model.safetensors", tensors)
    pipeline = load_transformer(tmp_path)
    for part in parts:
        for name, tensor in getattr(pipeline, part).state_dict().items():
            assert torch.equal(tensor, tensors[f"{part}.{name}"].half().float())
    tensors = {name: t for name, t in tensors.items() if name.startswith("text_encoder")}
    write_weights(
        tmp_path / "model.safetensors", tensors | {f"unet.{n}": t for n, t in new_unet().state_dict().items()}
    )
    with pytest.raises(LoadError, match="another transformer"):
        load_transformer(tmp_path)


# -- training --------------------------------------------------------------------------------------------------


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path):
    straight = Training(TINY)
    straight.start()
    losses = [straight.advance() for _ in range(4)]
    first = Training(TINY)
    first.start()
    assert [first.advance() for _ in range(2)] == losses[:2]
    first.save(tmp_path / CHECKPOINT)
    second = Training(TINY)
    torch.manual_seed(99)  # what a new process draws must not matter
    second.load(tmp_path / CHECKPOINT)
    assert [second.advance() for _ in range(2)] == losses[2:]
    expected, found = straight.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_text_encoder_is_the_unets_and_stays_it(tmp_path):
    training = Training(TINY)
    assert training.start() == {"step": 0, "read": "borrowed"}
    training.advance()
    pack(tmp_path, training.tensors(), training.state())
    theirs, ours = load_pipeline().text_encoder.state_dict(), load_transformer(tmp_path).text_encoder.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    before = Training(TINY).model["transformer"].state_dict()
    after = unpacked(tmp_path)[0]
    moved = [name for name, t in before.items() if not torch.equal(t.half(), after[f"model.transformer.{name}"])]
    # A softmax does not see what is added to all keys: the gradient of their bias is rounding, and may be nothing at all.
    still = [name for name in before if name not in moved and not name.endswith("to_k.bias")]
    assert not still, still


def test_every_architecture_overfits_one_batch():
    """The loss of either falls on its own task; that both learn the same data is what makes them comparable."""
    for name in ARCHITECTURES:
        training = Training(replace(TINY, architecture=name, steps=200, warmup=1, cooldown=1, rate=2e-3))
        training.start()
        latents, ids = training._examples()
        u, noise = torch.linspace(0.1, 0.9, 4), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        losses = []
        for _ in range(8):
            loss = training._loss(training.model, latents, ids, u, noise)
            loss.backward()
            for optimizer in training.optimizers.values():
                optimizer.step(2e-3)
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0], (name, losses)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    Training(TINY).save(tmp_path / CHECKPOINT)
    with pytest.raises(LoadError, match="architecture='dit', and 'unet' is wanted"):
        Training(replace(TINY, architecture="unet")).load(tmp_path / CHECKPOINT)


def test_states_older_than_the_second_architecture_are_of_the_first():
    training = Training(replace(TINY, architecture="unet"))
    state = training.state()
    del state["recipe"]["architecture"]
    training.restore(training.tensors(), state)
    with pytest.raises(LoadError, match="architecture='unet', and 'dit' is wanted"):
        Training(TINY).restore({}, state)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(InterpError, match="no architecture 'dti'.*Did you mean 'dit'"):
        architecture_named("dti")
    with pytest.raises(InterpError, match="no architecture 'gan'"):
        Training(Recipe(architecture="gan"))
