"""Edits of a denoiser's attention: against processors written by hand, prompts without the word, and plain runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from models.by_hand import ByHand, processed
from models.denoisers import described, native, options, sampling, texts
from models.pipelines import arguments, pipeline

from interp.errors import InterpError, ShapeError, SiteError, UnfiredError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Ablate, Add, Knockout, Replace, Scale, Swap, UnderPrompt, When
from interp.interventions.sweep import plan_sweep, sweep
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.hooks import replaced
from interp.models.site import Site

COND, UNCOND = Branch.COND, Branch.UNCOND
PLACES = {
    "sd": ("cross", "up.1.1"), "sdxl": ("cross", "up.1.1"), "pixart": ("cross", "block.1"), "dit": ("self", "block.1"),
    "sd3": ("joint", "block.1"), "flux": ("joint", "block.1"), "flux single": ("joint", "single.0"), "sd self": ("self", "down.1.0"),
    "sd3 self": ("self", "block.0"),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def line_of(model, what, step, branch, row) -> tuple[int, int]:
    """(call of a module, line of its batch) of one step, branch and row."""
    calls = model.layout(what).calls
    number = next(n for n, call in enumerate(calls) if branch in call)
    return step * len(calls) + number, calls[number].index(branch) * len(what) + row


def cut(model, what, x):
    x[1, 3:9, 2] = -torch.inf
    x[1, 3:9, 4] = -torch.inf


def lift(model, what, x):
    x[0, :, 1] += 1.5


def halve(model, what, x):
    x[:, 5, [0, 3]] *= 0.5


def write(model, what, x):
    x[:, 2:4] = 0.25


EDITS = {  # what it is, and the same on [head, query, key] scores or pattern by hand
    "knockout": (lambda k, a, **how: Knockout(a, keys=[2, 4], positions=range(3, 9), head=1, attention=k, **how), "scores", cut),
    "renormalised weights": (lambda k, a, **how: Add(Site(f"{k}_scores", a, 0), 1.5, units=[1], **how), "scores", lift),
    "weights as they are": (lambda k, a, **how: Scale(Site(f"{k}_pattern", a), 0.5, positions=5, units=[0, 3], **how), "pattern", halve),
    "a constant": (lambda k, a, **how: Replace(Site(f"{k}_pattern", a), 0.25, positions=[2, 3], **how), "pattern", write),
}  # fmt: skip


@pytest.mark.parametrize("what_kind", EDITS)
@pytest.mark.parametrize("place", PLACES)
def test_edits_by_hand(place, what_kind):
    """One row in one branch of one step, in a processor that takes softmax(Q Kᵀ / √d) itself."""
    family, (kind, address) = place.split()[0], PLACES[place]
    model, what = described(family), sampling(family)
    make, stage, change = EDITS[what_kind]
    step, branch, row = 1, COND, 1
    edit = make(kind, address, rows=[row], when=When(steps=[step], branch=branch))
    number, line = line_of(model, what, step, branch, row)

    def by_hand(call, x):
        if call == number:
            x = x.clone()
            change(model, what, x[line])
        return x

    hand = ByHand(**{stage: by_hand})
    hand.n_text = model.tokens_of(what)
    base = denoise(model, what)
    with processed({model.tap(Site(f"{kind}_pattern", address)).module: hand}):
        theirs = native(family, [0, 0])
    ours = denoise(model, what, [edit], [f"{address}.{kind}_pattern"])
    # Flux rotates in float32: a last bit may become one of these.
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-6 if family == "flux" else 1e-9)
    assert torch.equal(ours.images[0], base.images[0])
    assert (ours.images[1] - base.images[1]).abs().max() > 2e-6
    seen = ours.at(Site(f"{kind}_pattern", address), step, branch)[row]  # captured after the edit
    torch.testing.assert_close(seen, hand.patterns[number][line], rtol=0, atol=1e-6 if family == "flux" else 1e-9)


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart"])
def test_a_word_that_nobody_sees_is_a_prompt_without_its_token(family):
    """Knocked out of every cross-attention in every step: the native call, given embeddings without that token."""
    model, what, token = described(family), sampling(family), 2
    embeds = model.embeddings(what, COND) | model.embeddings(what, UNCOND)
    shorter = {
        name: x if "pooled" in name else torch.cat([x[:, :token], x[:, token + 1 :]], 1) for name, x in embeds.items()
    }
    call = arguments(family, batch=2, num_inference_steps=what.steps, **shorter) | {
        "prompt": None,
        "negative_prompt": None,
    }
    call["generator"] = [torch.Generator().manual_seed(0) for _ in range(2)]
    theirs = model.pipeline(**call).images
    edits = [Knockout(site.layer, keys=token, attention="cross") for site in model.sites("cross_scores")]
    ours = denoise(model, what, edits).images
    torch.testing.assert_close(
        ours, theirs, rtol=0, atol=1e-6 if family == "sdxl" else 1e-9
    )  # Euler's scheduler: float32
    assert (ours - denoise(model, what).images).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_word_that_one_row_does_not_see_in_one_step():
    """The same as the mask that diffusers hands to its own cross-attentions."""
    model, what = described("sd"), sampling("sd")
    mask, calls = torch.ones(4, 12, dtype=torch.float64), []
    mask[3, 2] = 0  # [uncond, uncond, cond, cond]

    def masking(forward):
        def called(*args, **kwargs):
            calls.append(1)
            return forward(*args, **kwargs | ({"encoder_attention_mask": mask} if len(calls) == 2 else {}))

        return called

    with replaced({model.network: masking}):
        theirs = native("sd", [0, 0])
    when = When(steps=[1], branch=COND)
    edits = [Knockout(s.layer, keys=[2], rows=[1], when=when, attention="cross") for s in model.sites("cross_scores")]
    ours = denoise(model, what, edits).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert torch.equal(ours[0], denoise(model, what).images[0])


@pytest.mark.parametrize("place", ["sd", "sd self", "pixart", "sd3", "flux"])
def test_maps_from_another_row(place):
    """Prompt-to-Prompt: the first row gets the second's maps, from its own trajectory or in its own state."""
    family, (kind, address) = place.split()[0], PLACES[place]
    model, what = described(family), sampling(family)
    site = Site(f"{kind}_pattern", address)
    own = denoise(model, what, [], [site])
    swapped = denoise(model, what.select([1, 0]), [], [site])
    step, branch = 1, COND
    when = When(steps=[step], branch=branch)
    (number, first), (_, second) = (line_of(model, what, step, branch, row) for row in (0, 1))

    def by_hand(call, x):
        if call == number:
            x = x.clone()
            x[first], x[second] = x[second].clone(), x[first].clone()
        return x

    hand = ByHand(pattern=by_hand)
    hand.n_text = model.tokens_of(what)
    with processed({model.tap(site).module: hand}):
        theirs = native(family, [0, 0])
    ours = denoise(model, what, [Replace(site, swapped, when=when)]).images
    exact = dict(rtol=0, atol=1e-6 if family in ("flux", "sd3") else 1e-9)  # in float32: rotation, and a scheduler
    torch.testing.assert_close(ours, theirs, **exact)
    assert (ours - own.images).abs().amax((1, 2, 3)).min() > 1e-6
    # At the first step both rows are in the state that they would share under either prompt.
    same = what.select([0, 0])
    other = denoise(model, what.select([1, 1]), [], [site])
    first_step = When(steps=[0], branch=COND)
    matched = [UnderPrompt(what.prompts[1], None if what.negative is None else what.negative[1]), other]
    pictures = [denoise(model, same, [Replace(site, value, when=first_step)]).images for value in matched]
    torch.testing.assert_close(pictures[0], pictures[1], **exact)
    one_token = [denoise(model, same, [Replace(site, value, units=[2], when=first_step)]).images for value in matched]
    torch.testing.assert_close(one_token[0], one_token[1], **exact)
    assert not torch.equal(one_token[0], pictures[0])


@dataclass(frozen=True)
class Weighted:
    """A fixed linear reading of all pixels: any change of any pixel shows."""

    name: str = "weighted"
    unit: str = "of full range"

    def values(self, images, example):
        weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view(images[0].shape)
        return (images * weights).sum((1, 2, 3)) + example.to(images)


@pytest.mark.parametrize("place", PLACES)
def test_sweeps_are_plain_runs(place):
    family, (kind, address) = place.split()[0], PLACES[place]
    model, what = described(family), sampling(family, steps=3)
    site = Site(f"{kind}_pattern", address)
    own = denoise(model, what, [], [site])
    source = denoise(model, what.select([1, 0]), [], [site])
    other = 4 if family == "dit" else "a red circle"
    variants = [
        [make(kind, address, rows=rows, when=When(steps=steps, branch=branch))]
        for make, _, _ in EDITS.values()
        for rows, steps, branch in (([0], [1], COND), (None, [1, 2], None))
    ]
    variants += [[Replace(site, source, when=When(steps=[step], branch=UNCOND))] for step in (0, 1)]
    variants += [[Replace(site, UnderPrompt(other), when=When(steps=[1], branch=COND), positions=[0, 7])]]
    variants += [[Replace(site, own)], [Scale(site, 1.0)], [Add(Site(f"{kind}_scores", address), 0.0)], []]
    plan = plan_sweep(model, what, variants, Weighted())
    assert plan.cost.skipped >= 8  # the last four on both rows write what is there
    swept, naive = plan.run().values["weighted"], sweep(model, what, variants, Weighted(), exact="naive")
    torch.testing.assert_close(swept, naive.values["weighted"], rtol=0, atol=1e-9)
    effect = (naive.values["weighted"] - naive.base["weighted"]).abs()
    assert (effect > 1e-6).float().mean() > 0.4


def test_the_two_ways_to_weaken_a_word():
    """On the scores the rest of a row is renormalised; on the pattern, as Prompt-to-Prompt does it, it is not."""
    model, what = described("sd"), sampling("sd")
    site, factor = Site("cross_pattern", "mid.0"), 3.0
    before = denoise(model, what, [], [site])[site]
    scores = Site("cross_scores", "mid.0")
    added = denoise(model, what, [Add(scores, math.log(factor), units=[2])], [site])[site]
    scaled = denoise(model, what, [Scale(site, factor, units=[2])], [site])[site]
    weights = before[0].clone()  # at the first step, where the runs still are in the same state
    weights[..., 2] *= factor
    torch.testing.assert_close(scaled[0], weights, rtol=0, atol=1e-12)
    torch.testing.assert_close(added[0], weights / weights.sum(-1, keepdim=True), rtol=0, atol=1e-9)
    assert (scaled.sum(-1) > 1.01).any()


SITE = Site("cross_pattern", "mid.0")
REFUSED = {
    "a token": ([Knockout("mid.0", keys=[12], attention="cross")], InterpError, "position 12 is outside"),
    "every token": ([Knockout("mid.0", keys=range(12), attention="cross")], InterpError, "query 0 would see no key"),
    "a cell": ([Knockout("mid.0", keys=[1], positions=[6], attention="cross")], InterpError, "position 6 is outside"),
    "a head": ([Knockout("mid.0", keys=[1], head=2, attention="cross")], SiteError, "2 heads there"),
    "an attention": ([Knockout("mid.0", keys=[1], attention="joint")], SiteError, "no 'joint_scores' at 'mid.0'"),
    "a block without": ([Knockout("down.2.0", keys=[1], attention="cross")], SiteError, "no 'cross_scores' at 'down.2.0'"),
    "a key": ([Scale(SITE, 2.0, units=[12])], InterpError, "units 12 to 12 of a width of 12"),
    "a shape": ([Replace(SITE, torch.ones(11))], ShapeError, r"must broadcast to \[row=2, position=6, 2, 12\]"),
    "a subspace": ([Swap(SITE, 0.0, torch.eye(12, dtype=torch.float64))], SiteError, "keys span no space"),
    "minus infinity as a weight": ([Replace(SITE, torch.full((2, 12), -torch.inf))], ShapeError, "NaN or infinite"),
    "no pass": ([Knockout("mid.0", keys=[1], attention="cross", when=When(steps=[7]))], InterpError, r"names steps \[7\]"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_impossible_edits_are_refused(what):
    edits, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        denoise(described("sd"), sampling("sd"), edits)


def test_a_source_with_other_keys_or_a_mean_is_refused():
    model, what = described("flux"), sampling("flux", guided=False)
    more = options("flux") | {"max_sequence_length": 12}
    site = Site("joint_pattern", "single.0")
    longer = model.sampling(texts("flux"), steps=2, guidance=1.0, **more)
    with pytest.raises(ShapeError, match="positions would not correspond"):
        denoise(model, what, [Replace(site, denoise(model, longer, [], [site]))])
    pixart = described("pixart")
    short = sampling("pixart", guided=False)
    long = pixart.sampling(texts("pixart"), steps=3, guidance=1.0, **options("pixart") | {"max_sequence_length": 12})
    cross = Site("cross_pattern", "block.1")
    with pytest.raises(ShapeError, match="has 12 keys, this one 10"):
        denoise(pixart, short, [Replace(cross, denoise(pixart, long, [], [cross]))])
    with pytest.raises(SiteError, match="no common mean"):
        denoise(pixart, short, [Ablate(cross, "mean", denoise(pixart, short, [], [cross]))])


@pytest.mark.parametrize(("layer", "attention"), [("mid.0", None), (1, "cross")])
def test_a_knockout_says_which_attention(layer, attention):
    with pytest.raises(SiteError, match="say which" if attention is None else "leave it out"):
        Knockout(layer, keys=[1], attention=attention)


class Once(torch.nn.Module):
    """A module that takes another path from its second call on."""

    def __init__(self, module):
        super().__init__()
        self.own, self.calls = module, 0

    def forward(self, x, **kwargs):
        self.calls += 1
        return self.own(x, **kwargs) if self.calls == 1 else 0 * x


def test_an_edit_of_an_attention_that_is_skipped_raises():
    model = describe_pipeline(pipeline("sd"), "sd")
    block = model.blocks["mid.0"].taps["block_out"].module.transformer_blocks[0]
    block.attn2 = Once(block.attn2)
    with pytest.raises(UnfiredError, match="met nothing in step 1"):
        denoise(model, sampling("sd"), [Scale(SITE, 0.5)])
