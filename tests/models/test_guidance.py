"""Where the branches of guidance lie is measured: on every family, and refused where it is of another kind."""

from __future__ import annotations

import diffusers as df
import pytest
import torch
from models.denoisers import described, sampling, scheduled
from models.pipelines import FAMILIES, SCHEDULERS, pipeline

from interp.errors import LoadError
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import UNGUIDED, Branch, Guidance, measure

COND, UNCOND = Branch.COND, Branch.UNCOND
LAYOUTS = dict.fromkeys(FAMILIES, ((UNCOND, COND),)) | {"dit": ((COND, UNCOND),), "flux": ((COND,), (UNCOND,))}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_of_each_family(family):
    assert described(family).guidance == Guidance(LAYOUTS[family])
    assert described(family).layout(sampling(family)) == Guidance(LAYOUTS[family])
    assert described(family).layout(sampling(family, guided=False)) == UNGUIDED


def test_flux_without_a_negative_prompt_has_one_branch():
    assert described("flux").layout(described("flux").sampling("red dot")) == UNGUIDED


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_does_not_matter(name):
    assert scheduled(name).guidance == Guidance(LAYOUTS["sd"])


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_leaves_nothing_behind(family):
    model = described(family)
    assert "step" not in vars(model.pipeline.scheduler)
    for module in model.network.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# -- a toy: two rows of a "denoiser", combined by any rule ----------------------------------------------------------


class Recorder:
    """A scheduler that only counts."""

    def __init__(self):
        self.steps = 0

    def step(self, output, _timestep=None):
        self.steps += 1
        return output


def toy(combine, calls):
    """(sample, network, scheduler): `calls` gives the rows of each call of a linear network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, counter = torch.nn.Linear(6, 6).double(), Recorder()

    def sample():
        rows = torch.cat([network(torch.ones(n, 6, dtype=torch.float64) * (1 + k)) for k, n in enumerate(calls)])
        counter.step(combine(*rows.split(1)))

    return sample, network, counter


def plain(scale):
    return lambda u, c: u + scale * (c - u)


@pytest.mark.parametrize("scale", [2.0, 3.0, 7.5])
@pytest.mark.parametrize("calls", [(2,), (1, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_orders_and_calls(scale, calls, swapped):
    rule = plain(scale)
    sample, network, counter = toy((lambda a, b: rule(b, a)) if swapped else rule, calls)
    order = (COND, UNCOND) if swapped else (UNCOND, COND)
    with torch.no_grad():
        found = measure(sample, network, counter, scale)
    assert found.calls == ((order,) if calls == (2,) else tuple((branch,) for branch in order))
    assert found.branches == 2
    assert counter.steps == 0  # the probe ends before the scheduler's own step
    assert vars(counter) == {"steps": 0}
    assert "forward" not in vars(network)


def test_one_row_of_weight_one_is_no_guidance():
    sample, network, counter = toy(lambda c: c, (1,))
    with torch.no_grad():
        assert measure(sample, network, counter, 3.0) == UNGUIDED


def rescaled(u, c):
    guided = u + 3 * (c - u)
    return 0.7 * guided * c.std() / guided.std() + 0.3 * guided


OTHER_KINDS = {
    "rescaled": (rescaled, (2,)),
    "three branches": (lambda u, c, p: u + 3 * (c - u) + 2 * (c - p), (3,)),
    "three calls": (lambda u, c, p: u + 3 * (c - u) + 2 * (c - p), (1, 1, 1)),
    "a constant besides": (lambda u, c: 0.5 * (u + 3 * (c - u)), (2,)),
    "two rows that count as one": (lambda a, b: (a + b) / 2, (2,)),
    "a row that is not used": (lambda a, b: a, (2,)),
    "one row doubled": (lambda c: 2 * c, (1,)),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_refused(kind):
    sample, network, counter = toy(*OTHER_KINDS[kind])
    with torch.no_grad(), pytest.raises(LoadError, match=r"enters the guidance of this pipeline with weight .*served"):
        measure(sample, network, counter, 3.0)
    assert vars(counter) == {"steps": 0}
    assert "forward" not in vars(network)


def test_a_pipeline_without_a_scheduler_is_refused():
    network = torch.nn.Linear(2, 2)
    with pytest.raises(LoadError, match="never called its scheduler's step"):
        measure(lambda: network(torch.ones(1, 2)), network, Recorder(), 3.0)


class Rescaled(df.StableDiffusionPipeline):
    """As several people ship it: the rescaling of guidance built in."""

    def __call__(self, *args, num_inference_steps=50, guidance_scale=7.5, **kwargs):
        settings = dict(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, guidance_rescale=0.7)
        return super().__call__(*args, **settings, **kwargs)


class Plainer(df.StableDiffusionPipeline):
    """A subclass that guides as its parent."""


def test_subclasses_are_measured_too():
    components = pipeline("sd").components
    rest = dict(requires_safety_checker=False)
    quiet = Plainer(**components, **rest)
    quiet.set_progress_bar_config(disable=True)
    assert describe_pipeline(quiet, "plain").guidance == Guidance(LAYOUTS["sd"])
    other = Rescaled(**components, **rest)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(LoadError, match="enters the guidance"):
        describe_pipeline(other, "rescaled")
    assert "step" not in vars(other.scheduler)
    assert "forward" not in vars(other.unet)


def test_guidance_that_is_an_input_of_the_network():
    """A latent consistency model: its scale is embedded, and there is one row whatever it is."""
    sd = pipeline("sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = df.UNet2DConditionModel.from_config(sd.unet.config, time_cond_proj_dim=8)
    sd.unet = torch.nn.Module.to(unet, torch.float64).eval()
    model = describe_pipeline(sd, "lcm")
    assert model.guidance == UNGUIDED
    call = dict(height=16, width=24)
    from interp.interventions.run import run

    images = [run(model, "red dot", steps=1, guidance=scale, **call).images for scale in (2.0, 8.0)]
    assert not torch.equal(*images)
    for scale, ours in zip((2.0, 8.0), images, strict=True):
        one = [torch.Generator().manual_seed(0)]
        theirs = sd("red dot", num_inference_steps=1, guidance_scale=scale, generator=one, output_type="pt", **call)
        assert torch.equal(ours, theirs.images)


def test_the_printed_form():
    assert str(Guidance(((UNCOND, COND),))) == "guided [uncond | cond]"
    assert str(Guidance(((COND,), (UNCOND,)))) == "guided [cond] then [uncond]"
