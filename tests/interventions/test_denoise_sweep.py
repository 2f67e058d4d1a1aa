"""A sweep over a pipeline against one plain run per variant, for every family and every way of leaving the base run."""

from dataclasses import dataclass, replace

import pytest
import torch
from models.pipelines import CALLS, pipeline, scheduler

from interp.errors import InterpError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.denoise_sweep import DenoisingSweep
from interp.interventions.edits import Add, Gate, Latents, Modulate, Replace, Scale, UnderPrompt, When
from interp.interventions.schedule import Savings
from interp.interventions.sweep import plan_sweep, sweep
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.site import Site

FAMILIES = ["sd", "sdxl", "pixart", "dit", "sd3", "flux"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@dataclass(frozen=True)
class Weighted:
    """A fixed linear reading of all pixels: any change of any pixel shows."""

    name: str = "weighted"
    unit: str = "of full range"

    def values(self, images, example):
        weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view(images[0].shape)
        return (images * weights).sum((1, 2, 3)) + example.to(images)


def samplings(model, family, steps=3):
    """(base, donor) of two rows each."""
    settings = {k: v for k, v in CALLS[family].items() if k in ("height", "width", "max_sequence_length")}
    settings |= dict(steps=steps, guidance=4.0, seeds=[1]) | ({"negative": "dark photo"} if family == "flux" else {})
    prompts = (
        ([3, 5], [4, 4])
        if family == "dit"
        else (["a red circle on a blue square", "two green stars"], ["a green square", "a red circle"])
    )
    return tuple(model.sampling(p, **settings) for p in prompts)


def variants_of(model, donor, other):
    """Every third of: a site's value from another run, or under another prompt, in some steps, branches and rows."""
    sites = [site for part in model._parts for site in model.sites(part)]
    source = denoise(model, donor, (), sites)
    out = []
    for i, site in enumerate(sites):
        branch = Branch.COND if i % 2 else Branch.UNCOND
        out.append([Replace(site, source, when=When(steps=[i % 3]))])
        out.append([Replace(site, source, when=When(steps=[1, 2], branch=branch), rows=[i % 2])])
        out.append([Replace(site, UnderPrompt(other), when=When(steps=[i % 3]))])
        out.append([Scale(site, 1.0)])
        out.append([Replace(site, UnderPrompt(other), when=When(steps=[0, 1], branch=branch)), Add(site, 0.1)])
    out = out[:: max(1, len(out) // 30)]
    site = model.sites("block_out")[1]
    d = torch.linspace(-1, 1, model.width_of(site), dtype=model.dtype)
    gate, units = Gate(d, 0.0), Latents(d[None], d[None])
    out += [[Modulate(site, units, gain, 0.5, gate=gate, when=When(steps=[1]))] for gain in (0.0, 2.0)]
    out.append([Replace(site, UnderPrompt(other), gate=gate), Add(site, d, keep_norm=True, when=When(steps=[2]))])
    out += [[Add(Site(part), 0.1, when=When(steps=[step]))] for part in ("latents", "prediction") for step in (0, 2)]
    return out + [[Scale(site, 0.5)] for site in list(model.text)[:2]] + [[]]


@pytest.mark.parametrize(("family", "shared"), [(f, False) for f in FAMILIES] + [("sd", True), ("flux", True)])
def test_sweep_is_one_plain_run_per_variant(models, family, shared):
    model = models(family)
    base, donor = samplings(model, family)
    variants = variants_of(model, donor, 4 if family == "dit" else "a green square")
    edits = [Scale(model.sites("block_out")[1], 0.7, when=When(steps=[0, 2]))] if shared else []
    plan = plan_sweep(model, base, variants, Weighted(), edits=edits)
    assert isinstance(plan, DenoisingSweep) and plan.cost.skipped >= 2  # the empty variant on both rows, at least
    assert plan.cost.operations < plan.cost.naive_operations
    swept = plan.run()
    naive = sweep(model, base, variants, Weighted(), edits=edits, exact="naive")
    torch.testing.assert_close(swept.values["weighted"], naive.values["weighted"], rtol=0, atol=1e-9)
    torch.testing.assert_close(swept.base["weighted"], naive.base["weighted"], rtol=0, atol=1e-9)
    effect = (naive.values["weighted"] - naive.base["weighted"]).abs()
    assert (effect > 1e-3).float().mean() > 0.3  # the comparison is of something


@pytest.mark.parametrize(
    "savings",
    [
        Savings(enter_late=False),
        Savings(skip_noops=False),
        Savings(batch=False),
        Savings(False, False, False, False, False),
    ],
)
def test_every_saving_can_be_left_out(models, savings):
    model = models("sd")
    base, donor = samplings(model, "sd")
    variants = variants_of(model, donor, "a green square")[::4]
    expected = sweep(model, base, variants, Weighted(), exact="naive").values["weighted"]
    plan = plan_sweep(model, base, variants, Weighted(), exact=savings)
    torch.testing.assert_close(plan.run().values["weighted"], expected, rtol=0, atol=1e-9)
    if not savings.batch:
        assert all(part.stop - part.start == 1 for part in plan.parts)
    if not savings.skip_noops:
        assert plan.cost.rows > plan_sweep(model, base, variants, Weighted()).cost.rows


@pytest.mark.parametrize("name", ["dpm_multistep", "pndm", "euler_ancestral", "heun"])
def test_schedulers_with_memory_and_with_noise(name):
    pipe = pipeline("sd")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(name, pipe)
    model = describe_pipeline(pipe, name)
    base, _ = samplings(model, "sd")
    n = len(denoise(model, base).timesteps)
    variants = [[Add(Site("cross_attn_out", "up.1.0"), 0.3, when=When(steps=[step]))] for step in range(n)]
    swept = sweep(model, base, variants, Weighted())
    naive = sweep(model, base, variants, Weighted(), exact="naive")
    # Euler's schedulers compute in float32.
    torch.testing.assert_close(
        swept.values["weighted"],
        naive.values["weighted"],
        rtol=0,
        atol=1e-4 if "euler" in name or name == "heun" else 1e-9,
    )


def test_without_guidance_and_in_float32(models):
    pipe = pipeline("sd", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    model = describe_pipeline(pipe, "sd")
    base = model.sampling(["a red circle", "two green stars"], steps=3, guidance=1.0, height=16, width=24)
    variants = [
        [Replace(site, UnderPrompt("a blue square"), when=When(steps=[1]))] for site in model.sites("cross_attn_out")
    ]
    swept, naive = (sweep(model, base, variants, Weighted(), exact=e) for e in (Savings(), "naive"))
    torch.testing.assert_close(swept.values["weighted"], naive.values["weighted"], rtol=0, atol=1e-4)


def test_a_killed_sweep_goes_on_from_its_checkpoint(models, tmp_path):
    model = models("sd")
    base, donor = samplings(model, "sd")
    variants = variants_of(model, donor, "a green square")[::5]
    one_by_one = Savings(batch=False)
    expected = sweep(model, base, variants, Weighted(), exact=one_by_one).values["weighted"]

    def dying(parts, _description):
        for number, part in enumerate(parts):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    with pytest.raises(KeyboardInterrupt):
        sweep(model, base, variants, Weighted(), exact=one_by_one, checkpoint=tmp_path, progress=dying)
    plan = plan_sweep(model, base, variants, Weighted(), exact=one_by_one)
    ran = []
    part_values = type(plan).part_values
    object.__setattr__(plan, "part_values", lambda part: ran.append(part) or part_values(plan, part))
    assert torch.equal(plan.run(checkpoint=tmp_path).values["weighted"], expected)
    assert len(ran) == len(plan.parts) - 2


def test_the_plan_says_what_it_costs(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    late = [[Add(Site("block_out", "up.2.2"), 0.1, when=When(steps=[2]))]]
    early = [[Add(Site("block_out", "down.0.0"), 0.1, when=When(steps=[0]))]]
    costs = [plan_sweep(model, base, v, Weighted()).cost for v in (late, early)]
    assert costs[0].operations < costs[1].operations < costs[1].naive_operations * 1.01
    assert "rows to run" in plan_sweep(model, base, late, Weighted()).explain()


def test_what_is_refused(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    with pytest.raises(SiteError, match="no block 'up.9.0'"):
        sweep(model, base, [[Add(Site("block_out", "up.9.0"), 0.1)]], Weighted())
    with pytest.raises(InterpError, match="names steps"):
        sweep(model, base, [[Add(Site("block_out", "up.1.0"), 0.1, when=When(steps=[1, 7]))]], Weighted())


def test_an_edit_that_first_changes_something_in_a_later_step(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    site = Site("block_out", "up.1.1")
    own = denoise(model, base, (), [site])
    later = own[site].clone()
    later[2] += 0.3  # in steps 0 and 1 it holds what is there
    source = replace(own, activations={site: later})
    for when in (None, When(steps=[0, 2]), When(steps=[1, 2], branch=Branch.COND)):
        variants = [[Replace(site, source, when=when)]]
        plan = plan_sweep(model, base, variants, Weighted())
        assert plan.rows.step.tolist() == [2, 2]
        naive = sweep(model, base, variants, Weighted(), exact="naive")
        torch.testing.assert_close(plan.run().values["weighted"], naive.values["weighted"], rtol=0, atol=1e-9)
        assert (naive.values["weighted"] - naive.base["weighted"]).abs().min() > 1e-6


def test_what_the_plan_counts(models):
    model = models("sd")
    base, _ = samplings(model, "sd")
    site = Site("block_out", model.sites("block_out")[0].layer)

    def cost(edit, **settings):
        return plan_sweep(model, base, [[edit]], Weighted(), **settings).cost

    whole = cost(Add(site, 0.1, when=When(steps=[0])), exact=Savings(enter_late=False))
    assert whole.operations == whole.naive_operations
    one, two = (cost(Replace(site, UnderPrompt("a blue square"), when=When(steps=s))) for s in ([1], [1, 2]))
    assert two.operations > one.operations  # the donors of the second step
    assert one.operations > cost(Add(site, 0.1, when=When(steps=[1]))).operations
