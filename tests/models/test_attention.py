"""Attention of denoisers as seen from outside: against processors written by hand, and what cannot be seen."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from models.by_hand import ByHand, processed
from models.denoisers import described, native, sampling, state_of
from models.pipelines import FAMILIES, pipeline
from torch.overrides import TorchFunctionMode

from interp.errors import InterpError, ShapeError, SiteError, UnfiredError
from interp.interventions import denoise as denoise_module
from interp.interventions.denoise import denoise
from interp.interventions.edits import Knockout, Replace, Scale, When
from interp.models.attention import attending
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.site import ATTENTION_MAPS, Site


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def maps_of(model) -> list[Site]:
    parts = [part for part in ATTENTION_MAPS if part in model._parts]
    return [site for part in parts for site in model.sites(part)]


def hand_of(model, what) -> dict:
    """A processor by hand for every attention."""
    hands = {model.tap(site).module: ByHand() for site in maps_of(model)}
    for hand in hands.values():
        hand.n_text = model.tokens_of(what)
    return hands


def by_address(model, calls, run) -> torch.Tensor:
    """[step, branch, row, head, query, key] from the calls of one module."""
    branches = [branch for call in model.layout(run.sampling).calls for branch in call]
    lines = torch.cat(calls).unflatten(0, (len(run.timesteps), len(branches), len(run.sampling)))
    return lines[:, [branches.index(branch) for branch in run.branches]]


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_patterns_by_hand(family, guided):
    """Every attention of every family, on a picture that is not square, and the native picture beside it."""
    model, what = described(family), sampling(family, guided=guided)
    before = state_of(model)
    run = denoise(model, what, [], maps_of(model))
    hands = hand_of(model, what)
    with processed(hands):
        pictures = native(family, [0, 0], guided=guided)
    exact = dict(
        rtol=0, atol=1e-6 if family == "flux" else 1e-9
    )  # Flux rotates in float32: a last bit may become one of these
    torch.testing.assert_close(run.images, pictures, **exact)
    for site in maps_of(model):
        hand = hands[model.tap(site).module]
        seen = by_address(model, hand.patterns if site.part.endswith("pattern") else hand.scores, run)
        torch.testing.assert_close(run[site], seen, **exact)
        assert torch.equal(run[Site(site.part, site.layer, 1)], run[site][..., 1, :, :])
    assert state_of(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_looking_changes_no_bit(family, dtype):
    """Also where the explicit softmax differs from SDPA in the last bits; and writing back what was seen."""
    model = describe_pipeline(pipeline(family, dtype=dtype), family)
    what = sampling(family, model=model, steps=2)
    plain = denoise(model, what).images
    run = denoise(model, what, [], maps_of(model))
    assert torch.equal(run.images, plain)
    for site in {site.part: site for site in maps_of(model)}.values():
        assert run[site].dtype == torch.float32
        assert torch.equal(denoise(model, what, [Replace(site, run)]).images, plain)


def test_only_what_is_asked_for_is_computed():
    model, what = described("sd"), sampling("sd")
    counted = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            counted.append(1) if func is torch.Tensor.softmax else None
            return func(*args, **(kwargs or {}))

    for capture, expected in (
        ([], 0),
        (["up.1.0.cross_pattern"], 2),
        (["up.1.0.cross_pattern", "mid.0.self_scores"], 4),
    ):
        counted.clear()
        with Counting():
            denoise(model, what, [], capture)
        assert len(counted) == expected


@pytest.mark.parametrize("upcast", [False, True])
def test_a_processor_with_a_softmax_of_its_own(upcast):
    """`AttnProcessor`: its weights are seen as they are, in float32 where it computes in float32."""
    model, what = describe_pipeline(pipeline("sd"), "sd"), sampling("sd")
    reference = denoise(described("sd"), what, [], ["cross_pattern", "self_scores"])
    modules = {model.tap(site).module for site in maps_of(model)}
    for module in modules:
        module.processor, module.upcast_attention = AttnProcessor(), upcast
    plain = denoise(model, what).images
    run = denoise(model, what, [], ["cross_pattern", "self_scores"])
    assert torch.equal(run.images, plain)
    site = Site("cross_pattern", "up.1.1")
    assert run[site].dtype == (torch.float32 if upcast else torch.float64)
    torch.testing.assert_close(run[site].double(), reference[site], rtol=0, atol=1e-4 if upcast else 1e-9)
    assert torch.equal(denoise(model, what, [Replace(site, run)]).images, plain)
    edits = [Scale(site, 3.0, units=[2], when=When(steps=[1])), Knockout("mid.0", keys=[1], attention="cross")]
    ours, theirs = denoise(model, what, edits).images, denoise(described("sd"), what, edits).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 if upcast else 1e-9)
    assert not torch.equal(ours, plain)


def test_what_cannot_be_seen_is_refused():
    model = describe_pipeline(pipeline("sd"), "sd")
    model.pipeline.enable_attention_slicing(1)
    with pytest.raises(SiteError, match="runs through SlicedAttnProcessor, and interp sees inside AttnProcessor2_0"):
        denoise(model, sampling("sd"), [], ["mid.0.cross_pattern"])
    assert denoise(model, sampling("sd"), [], ["mid.0.cross_q"]).images is not None  # the rest stays served
    flux = describe_pipeline(pipeline("flux"), "flux")
    flux.tap(Site("joint_pattern", "single.0")).module.processor._attention_backend = "flash"
    with pytest.raises(SiteError, match="backend is flash: call set_attention_backend"):
        denoise(flux, sampling("flux"), [], ["single.0.joint_pattern"])


def test_attention_out_of_sight_is_noticed():
    model = describe_pipeline(pipeline("sd"), "sd")
    site = Site("cross_pattern", "mid.0")

    class AttnProcessor2_0(ByHand):  # the name of one that is seen, which computes otherwise
        pass

    model.tap(site).module.processor = AttnProcessor2_0()
    before = state_of(model)
    with pytest.raises(UnfiredError, match="AttnProcessor2_0 was called, and 0 attentions were seen"):
        denoise(model, sampling("sd"), [], [site])
    assert state_of(model) == before
    with pytest.raises(UnfiredError, match="never reached mid.0.cross_pattern"), attending(
        [(str(site), model.tap(site), lambda x: None)], 0
    ):  # fmt: skip
        pass


@pytest.mark.parametrize("how", [{"is_causal": True}, {"enable_gqa": True}, {"dropout_p": 0.1}])
def test_attention_of_other_kinds_is_refused(how):
    model = describe_pipeline(pipeline("sd"), "sd")
    tap, x = model.tap(Site("cross_pattern", "mid.0")), torch.ones(1, 2, 3, 4)
    tap.module.forward = lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x, **how)
    with pytest.raises(SiteError, match="causal attention, grouped queries and dropout"), attending(
        [("it", tap, lambda x: None)], 0
    ):  # fmt: skip
        tap.module()


def test_a_mask_of_booleans_and_a_scale():
    model = describe_pipeline(pipeline("sd"), "sd")
    tap, x = model.tap(Site("cross_scores", "mid.0")), torch.arange(24.0).view(1, 2, 3, 4)
    mask = torch.tensor([[True, False, True]])
    seen = []
    tap.module.forward = lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x, mask, scale=0.5)
    with attending([("it", tap, lambda s: seen.append(s))], 0):
        tap.module()
    expected = torch.einsum("bhqd,bhkd->bhqk", x, x) * 0.5
    expected[..., 1] = -torch.inf
    assert torch.equal(seen[0], expected)


def test_queries_that_are_left_masked_keys_only():
    """PixArt masks padding by −10,000 and not by −∞: without its tokens a query would attend to padding."""
    model, what = described("pixart"), sampling("pixart")  # the second prompt has three words and an end
    knocked = Knockout("block.1", keys=range(4), attention="cross", rows=[1])
    with pytest.raises(InterpError, match="would see masked keys only; leave them a token"):
        denoise(model, what, [knocked])
    left = Knockout("block.1", keys=range(1, 4), attention="cross", rows=[1])
    seen = denoise(model, what, [left], ["block.1.cross_pattern"]).at(Site("cross_pattern", "block.1"), 1, Branch.COND)
    torch.testing.assert_close(seen[1, ..., 0], torch.ones_like(seen[1, ..., 0]), rtol=0, atol=1e-12)


def test_memory_counts_heads_and_keys(monkeypatch):
    model, what = described("sd"), sampling("sd")
    passing = 4 * 4 * 2 * 96 * 12 * 8  # before and after edits: four lines, two heads, 96 cells, 12 keys of 8 bytes
    kept = 2 * 4 * 2 * 96 * 12 * 8  # two steps
    monkeypatch.setattr(denoise_module, "free_bytes", lambda device: 2 * (passing + kept))
    denoise(model, what, [], ["up.2.0.cross_pattern"])
    monkeypatch.setattr(denoise_module, "free_bytes", lambda device: 2 * (passing + kept) - 1)
    with pytest.raises(InterpError, match="These captures take"):
        denoise(model, what, [], ["up.2.0.cross_pattern"])
    denoise(model, what, [], ["up.2.0.cross_pattern"], when=When(steps=[1]))
    run = denoise(model, what, [], ["up.2.0.cross_pattern"], positions=[3, 5])
    assert run["cross_pattern", "up.2.0"].shape == (2, 2, 2, 2, 2, 12)
    monkeypatch.undo()
    whole = denoise(model, what, [], ["up.2.0.cross_pattern"])
    assert torch.equal(run["cross_pattern", "up.2.0"], whole["cross_pattern", "up.2.0"][..., [3, 5], :])


def test_an_attention_of_another_shape_is_noticed(monkeypatch):
    model = describe_pipeline(pipeline("sd"), "sd")
    monkeypatch.setattr(type(model), "keys_of", lambda self, site, sampling: 5)
    with pytest.raises(ShapeError, match=r"is \[2, 96, 12\] .head, query, key. where \[2, 96, 5\]"):
        denoise(model, sampling("sd"), [], ["up.2.0.cross_pattern"])
