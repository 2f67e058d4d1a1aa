"""x₀ alone, against denoising loops written by hand; a sign for each branch."""

from __future__ import annotations

import pytest
import torch
from models.denoisers import described, pipeline, scheduled

from interp.errors import InterpError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Add, Replace, Scale, When
from interp.models.guidance import Branch
from interp.models.load import load
from interp.models.site import Site
from interp.steering import antisymmetric, x0_only

SETTINGS = dict(steps=3, height=16, width=24, seeds=[5])


def ddim_by_hand(model, sampling, edits):
    """The last latents of DDIM where x₀ is estimated from edited predictions and the noise from unedited ones."""
    pipe = model.pipeline
    generator = torch.Generator().manual_seed(sampling.seeds[0])
    embeds = model.embeddings(sampling, Branch.COND)["prompt_embeds"]
    negative = model.embeddings(sampling, Branch.UNCOND)["negative_prompt_embeds"]
    scheduler = pipe.scheduler
    scheduler.set_timesteps(sampling.steps)
    x = torch.randn(1, 4, 8, 12, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    kept = [float(a) for a in scheduler.alphas_cumprod]
    for step, t in enumerate(scheduler.timesteps.tolist()):
        with torch.no_grad():
            whole = model.network(torch.cat([x, x]), t, torch.cat([negative, embeds])).sample
        plain = whole[:1] + sampling.guidance * (whole[1:] - whole[:1])
        shift = 0.0
        for edit in edits:  # additions to the prediction, in one branch or both
            if edit.when.steps is None or step in edit.when.steps:
                cond = edit.when.branch in (None, Branch.COND)
                uncond = edit.when.branch in (None, Branch.UNCOND)
                shift += edit.scale * (uncond + sampling.guidance * (cond - uncond))
        before = t - scheduler.config.num_train_timesteps // sampling.steps
        now, then = kept[t], kept[before] if before >= 0 else float(scheduler.final_alpha_cumprod)
        x0 = (x - (1 - now) ** 0.5 * (plain + shift)) / now**0.5
        x = then**0.5 * x0 + (1 - then) ** 0.5 * plain
    return x


@pytest.mark.parametrize("branch", [None, Branch.COND])
def test_x0_alone_is_a_loop_by_hand(branch):
    check_ddim(described("sd"), branch, **SETTINGS)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_x0_alone_goes_by_ddims_own_stride_whatever_the_spacing(spacing):
    check_ddim(spaced(spacing), Branch.COND, **SETTINGS | {"steps": 7})


def spaced(spacing):
    made = pipeline("sd")
    made.scheduler = type(made.scheduler).from_config(
        made.scheduler.config, timestep_spacing=spacing, set_alpha_to_one=False
    )
    return load(made, name=spacing)


def test_a_step_that_keeps_the_noise_has_no_x0_of_its_own():
    model = spaced("linspace")  # the last step, at t = 0, arrives where it is
    sampling = model.sampling("a red circle", **SETTINGS)
    with pytest.raises(InterpError, match="Step 2 leaves the noise"):
        x0_only(model, sampling, [Add(Site("prediction"), 1.0)])


def check_ddim(model, branch, **settings):
    assert type(model.pipeline.scheduler).__name__ == "DDIMScheduler"
    sampling = model.sampling("a red circle", guidance=3.0, **settings)
    edits = [Add(Site("prediction"), 1.0, 0.3, when=When(steps=[0, 1], branch=branch))]
    ours = x0_only(model, sampling, edits)
    assert len(ours) > len(edits)
    expected = ddim_by_hand(model, sampling, edits)
    pictures = model.pipeline.vae.decode(expected / model.pipeline.vae.config.scaling_factor).sample
    found = denoise(model, sampling, ours).images
    torch.testing.assert_close(found, (pictures / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-7)
    assert (found - denoise(model, sampling, edits).images).abs().max() > 1e-3  # the plain form is another


@pytest.mark.parametrize("name", ["euler", "flux"])
def test_every_step_of_x0_alone_puts_edited_pictures_and_unedited_noise_together(name):
    """With what the denoiser says, unedited, in the very states of the edited run."""
    model = described("flux") if name == "flux" else scheduled(name)
    sampling = model.sampling("a red circle", guidance=1.0, **SETTINGS | {"steps": 4})
    latents, prediction = Site("latents"), Site("prediction")
    edits = [Add(prediction, 1.0, 0.3, when=When(steps=[0, 1]))]
    found = denoise(model, sampling, x0_only(model, sampling, edits), [latents])
    x = found[latents][:, 0]
    plain = denoise(model, sampling, [Replace(latents, found)], [prediction])[prediction][:, 0]
    for step in range(3):
        steered = plain[step] + 0.3 * (step < 2)
        now, then = found.sigmas[step : step + 2]
        if name == "flux":  # x = (1 − σ) x₀ + σ ε, and the network says ε − x₀
            now, then = (1.0 if r == float("inf") else r / (1 + r) for r in (now, then))
            picture, noise = x[step] - now * steered, x[step] + (1 - now) * plain[step]
            expected = (1 - then) * picture + then * noise
        else:  # x = x₀ + σ ε, shown to the network with a variance of 1, which says ε
            picture = x[step] * (now**2 + 1) ** 0.5 - now * steered
            expected = (picture + then * plain[step]) / (then**2 + 1) ** 0.5
        torch.testing.assert_close(x[step + 1], expected, rtol=1e-5, atol=1e-5)  # Euler's sampler works in float32


@pytest.mark.parametrize("name", ["ddim", "euler", "flux"])
def test_edits_that_change_nothing_change_nothing_in_x0_alone(name):
    model = {"ddim": lambda: described("sd"), "flux": lambda: described("flux")}.get(name, lambda: scheduled(name))()
    sampling = model.sampling("a red circle", **SETTINGS)
    edits = x0_only(model, sampling, [Scale(model.sites("block_out")[1], 1.0)])
    assert len(edits) > 3
    found, plain = (denoise(model, sampling, given).images for given in (edits, ()))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-7)


def test_other_samplers_are_refused():
    for name in ("dpm_multistep", "unipc", "pndm", "euler_ancestral", "heun"):
        model = scheduled(name)
        sampling = model.sampling("a red circle", guidance=3.0, **SETTINGS)
        with pytest.raises(InterpError, match="deterministic and unclipped"):
            x0_only(model, sampling, [Scale(model.sites("block_out")[1], 0.5)])
    sampling = described("sd").sampling("a red circle", guidance=3.0, eta=0.5, **SETTINGS)
    with pytest.raises(InterpError, match="with added noise"):
        x0_only(described("sd"), sampling, [Scale(described("sd").sites("block_out")[1], 0.5)])


def test_a_push_has_opposite_signs_in_the_branches():
    value = torch.ones(4, dtype=torch.float64)

    def push(strength, **how):
        return [Add(Site("prediction"), value, strength, **how)]

    up, down = antisymmetric(push, 0.5, when=When(steps=[1]), positions=[0])
    assert (up.scale, up.when) == (0.5, When(steps=[1], branch=Branch.COND))
    assert (down.scale, down.when) == (-0.5, When(steps=[1], branch=Branch.UNCOND))
    assert up.positions == down.positions == [0]
    with pytest.raises(InterpError, match="both branches"):
        antisymmetric(push, 0.5, when=When(branch=Branch.COND))
    # At the prediction that is an addition to both, amplified by guidance: s·(+v) and (1 − s)·(−v).
    model = described("sd")
    sampling = model.sampling("a red circle", guidance=3.0, **SETTINGS)
    both = denoise(model, sampling, antisymmetric(push, 0.1)).images
    whole = denoise(model, sampling, [Add(Site("prediction"), value, 0.1 * (3 - (1 - 3)))]).images
    torch.testing.assert_close(both, whole, rtol=0, atol=1e-9)
