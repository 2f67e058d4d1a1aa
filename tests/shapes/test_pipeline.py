"""The pipeline: plain diffusers around a latent that is the picture, and weights that are checked before they are used."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from interp.errors import LoadError, PairError
from interp.shapes.packing import write_weights
from interp.shapes.pipeline import (
    GUIDANCE,
    STEPS,
    PixelUnshuffle,
    ShapesPipeline,
    assets,
    load_pipeline,
    new_pipeline,
    new_scheduler,
    new_text_encoder,
    new_unet,
    read_weights,
)

PROMPTS = ["a large red circle at top left on a white background", "a small ring and a cross"]


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return new_pipeline(new_text_encoder(), new_unet())


def draw(pipeline, prompts, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, output_type="np", **options).images


def test_the_latent_is_the_picture_exactly():
    vae, picture = PixelUnshuffle(), torch.randn(2, 3, 32, 32)
    latent = vae.encode(picture).latent_dist.sample()
    assert latent.shape == (2, 12, 16, 16)
    assert torch.equal(vae.decode(latent).sample, picture)
    assert torch.equal(vae.decode(vae.encode(picture, return_dict=False)[0].mode(), return_dict=False)[0], picture)
    assert torch.equal(latent[0, ::4, 3, 5], picture[0, :, 6, 10]) and not list(vae.parameters())


def test_the_schedule_ends_in_pure_noise():
    scheduler = new_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.alphas_cumprod[0] > 0.99
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == STEPS


def test_it_takes_the_code_path_of_hub_models(untrained):
    plain = StableDiffusionPipeline(**untrained.components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    ours = draw(untrained, PROMPTS, (1, 2), num_inference_steps=2)
    theirs = draw(plain, PROMPTS, (1, 2), num_inference_steps=2, guidance_scale=GUIDANCE)
    assert ours.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(ours, theirs)


def test_rows_do_not_touch_each_other(untrained):
    together = draw(untrained, PROMPTS, (1, 2), num_inference_steps=2)
    alone = draw(untrained, PROMPTS[1:], (2,), num_inference_steps=2)
    np.testing.assert_allclose(together[1:], alone, atol=1e-4)


def test_a_word_that_it_does_not_know_is_refused(untrained):
    with pytest.raises(PairError, match="'crimson'"):
        untrained("a crimson circle", num_inference_steps=1)
    with pytest.raises(PairError, match="'crimson'"):
        untrained(["a red circle", "a crimson circle"], num_inference_steps=1)
    with pytest.raises(PairError, match="'ugly'"):
        untrained("a red circle", negative_prompt="ugly", num_inference_steps=1)


def saved(folder):
    torch.manual_seed(3)
    modules = {"text_encoder": new_text_encoder(), "unet": new_unet()}
    tensors = {f"{part}.{name}": t for part, m in modules.items() for name, t in m.state_dict().items()}
    write_weights(folder / "model.safetensors", tensors)
    return tensors


def test_weights_survive_in_half_precision(tmp_path):
    tensors = saved(tmp_path)
    pipeline = load_pipeline(tmp_path)
    for part in ("text_encoder", "unet"):
        for name, tensor in getattr(pipeline, part).state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, tensors[f"{part}.{name}"].half().float())


def test_damaged_weights_are_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadError, match="is damaged: its SHA-256"):
        load_pipeline(tmp_path)
    path.write_bytes(content[:1000])
    with pytest.raises(LoadError, match="is damaged"):
        load_pipeline(tmp_path)
    (tmp_path / "sha256.json").write_text("{}")
    with pytest.raises(LoadError, match=r"model\.safetensors cannot be read: KeyError"):
        load_pipeline(tmp_path)
    path.unlink()
    with pytest.raises(LoadError, match="cannot be read: FileNotFoundError"):
        load_pipeline(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    tensors = saved(tmp_path)
    name = "unet.conv_in.weight"
    write_weights(tmp_path / "model.safetensors", tensors | {name: tensors[name][:1]})
    with pytest.raises(LoadError, match="another unet"):
        load_pipeline(tmp_path)
    write_weights(tmp_path / "model.safetensors", tensors | {name: tensors[name] * float("nan")})
    with pytest.raises(LoadError, match="not finite: conv_in.weight"):
        load_pipeline(tmp_path)


def test_the_digests_of_the_committed_weights_are_right():
    names = json.loads((assets() / "sha256.json").read_text())
    assert "model.safetensors" in names and "judge.safetensors" in names
    for name in names:
        assert read_weights(assets() / name)


def test_the_trained_pipeline_draws_what_it_is_asked_for():
    from interp.shapes.checker import check
    from interp.shapes.evaluate import evaluation_set
    from interp.shapes.reading import compare, ideal

    pipeline = load_pipeline()
    assert isinstance(pipeline, ShapesPipeline)
    scenes, prompts = evaluation_set(12, seed=5)
    images = draw(pipeline, prompts, range(12))
    readings = [check(np.rint(image * 255).astype(np.uint8)) for image in images]
    right = [compare(seen, ideal(scene)) for seen, scene in zip(readings, scenes, strict=True)]
    assert sum(r["background"][0] for r in right) >= 11
    assert sum(r["cells"][0] for r in right) >= 10
