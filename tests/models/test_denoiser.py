"""A pipeline's handle: addresses and sites that mean what they say, samplings, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import diffusers as df
import pytest
import torch
from models.denoisers import SIDES, described, every_site, native, options, sampling, texts
from models.pipelines import FAMILIES, NEGATIVES, PROMPTS, pipeline

from interp.errors import InterpError, LoadError, PairError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.run import run
from interp.models.denoiser import Denoiser, Sampling, describe_pipeline
from interp.models.guidance import Branch
from interp.models.load import load
from interp.models.site import ATTENTION_PARTS, Site

COND, UNCOND = Branch.COND, Branch.UNCOND


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_RUNS = {}


def everything(family: str):
    """One unguided row with every site captured."""
    if family not in _RUNS:
        _RUNS[family] = denoise(described(family), sampling(family, 1, guided=False), [], every_site(described(family)))
    return _RUNS[family]


# -- addresses ---------------------------------------------------------------------------------------------------


def test_addresses_of_unets():
    pairs = ["down.0.0", "down.0.1", "down.0", "down.1.0", "down.1.1", "down.1", "down.2.0", "down.2.1", "down.2",
             "mid.0", "mid.1", "mid", "up.0.0", "up.0.1", "up.0.2", "up.0"]  # fmt: skip
    assert [a for a in described("sd").blocks if a in pairs] == pairs
    assert list(described("sd").blocks)[-8:] == [
        "up.1.0",
        "up.1.1",
        "up.1.2",
        "up.1",
        "up.2.0",
        "up.2.1",
        "up.2.2",
        "up.2",
    ]
    deep = [a for a in described("sdxl").blocks if a.count(".") == 3 or a.startswith("mid.0.")]
    assert deep == ["down.2.0.0", "down.2.0.1", "down.2.1.0", "down.2.1.1", "mid.0.0", "mid.0.1",
                    *(f"up.0.{j}.{k}" for j in range(3) for k in range(2))]  # fmt: skip
    assert len(described("sd").stages) == len(described("sdxl").stages) == 7


def test_addresses_of_transformers_count_as_numbers():
    deep = describe_pipeline(pipeline("dit", blocks=12), "deep")
    assert list(deep.blocks) == [f"block.{i}" for i in range(12)]
    assert [str(site) for site in deep.sites("ff_out")][-2:] == ["block.10.ff_out", "block.11.ff_out"]
    assert deep.stage_of(Site("ff_out", "block.11")) == 11
    assert deep.stage_of(Site("prediction")) == 12
    assert deep.stage_of(Site("latents")) == 0
    assert list(described("flux").blocks) == ["block.0", "block.1", "single.0", "single.1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_has_the_shape_it_claims(family):
    """Widths and grids as the handle states them before a run, on a picture that is not square."""
    model, found = described(family), everything(family)
    for site, x in found.activations.items():
        height, width = model.grid_of(site, found.sampling)
        heads = model.heads_of(site)
        if site.part in ATTENTION_PARTS:
            tail = [heads, height * width, model.keys_of(site, found.sampling)]
        else:
            tail = [height * width, *([] if heads is None else [heads]), model.width_of(site)]
        lead = [1, 1] if str(site.layer).startswith("text") else [len(found.timesteps), 1, 1]
        assert list(x.shape) == [*lead, *tail], site
        assert x.isfinite().all()
    assert model.grid_of(Site("latents"), found.sampling) == (SIDES[family] if family != "flux" else (4, 6))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_skips_carry_the_down_path(family):
    """What up.i.j takes over is, last first, what the down path left: the spatial layout included."""
    found = everything(family)
    states = []
    for i in range(3):
        states += [found["block_out", f"down.{i}.{j}"] for j in range(2)]
        states += [found["block_out", f"down.{i}"]] if i < 2 else []
    skips = [found["skip", f"up.{i}.{j}"] for i in range(3) for j in range(3)]
    assert len(skips) == len(states) + 1  # the last one is conv_in's
    for state, skip in zip(reversed(states), skips, strict=False):
        assert torch.equal(state, skip)


@pytest.mark.parametrize("family", FAMILIES)
def test_z_and_the_heads_make_the_attention_output(family):
    model, found = described(family), everything(family)
    for kind in ("self", "cross"):
        for site in found.activations:
            if site.part != f"{kind}_z":
                continue
            attention = model.tap(Site(f"{kind}_attn_out", site.layer)).module
            out = attention.to_out[0](found[site].flatten(-2))
            torch.testing.assert_close(out, found[f"{kind}_attn_out", site.layer], rtol=0, atol=1e-12)
            q, k, v = (found[f"{kind}_{what}", site.layer].transpose(-2, -3) for what in "qkv")
            if family in ("sd", "sdxl", "dit"):  # the others mask tokens, or normalise q and k
                z = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3)
                torch.testing.assert_close(z, found[site], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_updates_and_blocks_add_up(family):
    model, found = described(family), everything(family)
    for site in model.sites("block_update"):
        total = found["resnet_out", site.layer] + found[site]
        torch.testing.assert_close(total, found["block_out", site.layer], rtol=0, atol=1e-12)


def test_the_last_state_gives_the_prediction():
    model, found = described("sd"), everything("sd")
    network, x = model.network, found["block_out", "up.2"][0, 0].transpose(-1, -2).unflatten(-1, (8, 12))
    out = network.conv_out(network.conv_act(network.conv_norm_out(x)))
    torch.testing.assert_close(out.flatten(2).transpose(1, 2), found["prediction",][0, 0], rtol=0, atol=1e-12)
    assert torch.equal(found["latents",][:, 0], found.latents.flatten(3).transpose(-1, -2))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "dit"])
def test_text_sites_end_in_what_the_denoiser_reads(family):
    model, found = described(family), everything(family)
    embeds = model.embeddings(found.sampling, COND)["prompt_embeds"]
    cross = next((site for site in found.activations if site.part == "cross_k"), None)
    if cross is not None:
        assert found[cross].shape[3] == embeds.shape[1]
    if family in ("sd", "pixart"):
        assert torch.equal(found["final_norm", "text"][0], embeds)
    if family == "sdxl":  # the states before the last layers, side by side
        assert torch.equal(torch.cat([found["resid_post", "text.1"], found["resid_post", "text2.1"]], -1)[0], embeds)
    if family == "flux":
        assert torch.equal(found["final_norm", "text2"][0], embeds)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name", "message"), [
    ("sd", "up.9.0.ff_out", "no block 'up.9.0'. Did you mean 'up.2.0'|no block 'up.9.0'. Did you mean"),
    ("sd", "block.0.ff_out", "no block 'block.0'"),
    ("sd", "up.1.1.joint_attn_out", "no 'joint_attn_out' at 'up.1.1'. It has: .*cross_attn_out"),
    ("sd", "down.0.1.skip", "no 'skip' at 'down.0.1'"),
    ("sdxl", "mid.0.self_z", "no 'self_z' at 'mid.0'. Name one of mid.0.0, mid.0.1"),
    ("sd", "mid.0.H2.self_z", "2 heads there, numbered 0 to 1"),
    ("sd", "text.7.mlp_out", "no text.7.mlp_out. Did you mean 'text.*mlp_out'"),
    ("sd", "text2.embed", "no text2.embed"),
    ("dit", "text.embed", "no text.embed"),
    ("dit", "time_embed", "no time_embed"),
    ("sd", "embed", "no embed: it is a diffusion pipeline"),
    ("sd", "L1.resid_pre", "no block '1'"),
    ("sd", "logits", "no logits: it is a diffusion pipeline"),
    ("flux", "single.0.ff_out", "no 'ff_out' at 'single.0'"),
])  # fmt: skip
def test_impossible_sites(family, name, message):
    with pytest.raises(SiteError, match=message):
        described(family).check(name)


def test_impossible_parts():
    with pytest.raises(SiteError, match="no part 'mlp_out' in a denoiser"):
        described("sd").sites("mlp_out")
    with pytest.raises(SiteError, match="dit has no 'cross_attn_out' anywhere. It has: self_attn_out, ff_out"):
        described("dit").sites("cross_attn_out")


CAT = "a cat"
SAMPLINGS = {
    "no prompt": ("sd", [], {}, PairError, "No prompt"),
    "a label": ("sd", 3, {}, PairError, "takes texts; got"),
    "a text": ("dit", CAT, {}, PairError, "takes class labels"),
    "a truth": ("dit", True, {}, PairError, "takes class labels"),
    "no such class": ("dit", 1000, {}, PairError, r"class labels 0 to 999; got \[1000\]"),
    "unknown words": ("sd", "a zebra and a yak", {}, PairError, "tokenizer knows no word 'zebra', 'yak'"),
    "unknown negative": ("sd", CAT, dict(negative="zebra"), PairError, "knows no word 'zebra'"),
    "too long": ("sd", "a " * 11, {}, PairError, "13 tokens, and tokenizer cuts off at 12"),
    "longer than asked": ("pixart", "a " * 10, dict(max_sequence_length=10), PairError, "11 tokens, .* cuts off at 10"),
    "longer than T5": ("pixart", "a " * 17, {}, PairError, "18 tokens, and tokenizer cuts off at 16"),
    "negatives": ("sd", [CAT, CAT, CAT], dict(negative=["a", "dog"]), PairError, "2 negative prompts for 3 prompts"),
    "negative, unguided": ("sd", CAT, dict(negative="dog", guidance=1.0), PairError, "needs guidance above 1; got 1.0"),
    "flux, unguided": ("flux", CAT, dict(negative="dog"), PairError, "needs guidance above 1; got 1.0"),
    "flux, no negative": ("flux", CAT, dict(guidance=4.0), PairError, "guided by a negative prompt only"),
    "no step": ("sd", CAT, dict(steps=0), InterpError, "0 denoising steps"),
    "no seed": ("sd", CAT, dict(seeds=[]), InterpError, "No seed"),
    "unknown option": ("sd", CAT, dict(heigth=16), InterpError, "no option 'heigth'. Did you mean 'height'"),
    "of another": ("dit", 3, dict(height=16), InterpError, "DiTPipeline has no option 'height'"),
    "scale twice": ("sd", CAT, dict(guidance_scale=3.0), InterpError, "'guidance_scale' is no option"),
    "images": ("sd", CAT, dict(num_images_per_prompt=2), InterpError, "'num_images_per_prompt' is no option"),
    "generator": ("sd", CAT, dict(generator=None), InterpError, "'generator' is no option"),
    "second prompt": ("sdxl", CAT, dict(prompt_2="a dog"), InterpError, "'prompt_2' is no option"),
    "latents": ("sd", [CAT, CAT], dict(latents=torch.zeros(3, 4, 8, 8)), InterpError, "3 starting latents for 2 rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAMPLINGS)
def test_impossible_samplings(what):
    family, prompts, settings, error, message = SAMPLINGS[what]
    with pytest.raises(error, match=message):
        described(family).sampling(prompts, **settings)


def test_a_finished_sampling_takes_no_more_settings():
    done = sampling("sd")
    assert described("sd").sampling(done) is done
    for settings in (dict(steps=3), dict(guidance=2.0), dict(negative="dog"), dict(seeds=1), dict(height=8)):
        with pytest.raises(InterpError, match=f"{next(iter(settings))} cannot be given beside it"):
            run(described("sd"), done, **settings)


def test_rows_of_a_sampling():
    made = described("sd").sampling(PROMPTS[:2], negative="dark", seeds=[5, 6], steps=3, guidance=2.0, height=16)
    assert made.prompts == (PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1])
    assert made.seeds == (5, 6, 5, 6)
    assert made.negative == ("dark",) * 4
    assert len(made) == 4
    part = made.select([3, 0, 3])
    assert (part.prompts, part.seeds) == ((PROMPTS[1], PROMPTS[0], PROMPTS[1]), (6, 5, 6))
    assert described("dit").sampling([1, 2], seeds=3).seeds == (3, 3)
    bare = described("sd").sampling("a cat")
    assert (bare.steps, bare.guidance, bare.negative) == (50, 7.5, None)


# -- options -----------------------------------------------------------------------------------------------------


def test_starting_latents_go_with_their_rows():
    model = described("sd")
    latents = torch.randn(2, 4, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    what = sampling("sd", latents=latents)
    both = run(model, what).images
    assert torch.equal(both, native("sd", [0, 0], latents=latents))
    torch.testing.assert_close(run(model, what.select([1])).images[0], both[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "more"), [
    ("sdxl", dict(clip_skip=1)), ("sd", dict(guidance_rescale=0.7)), ("sdxl", dict(eta=0.0)),
    ("sdxl", dict(original_size=(32, 32), crops_coords_top_left=(2, 0))), ("sd3", dict(clip_skip=1)),
])  # fmt: skip
def test_options_reach_the_pipeline(family, more):
    ours = run(described(family), sampling(family, **more)).images
    assert torch.equal(ours, native(family, [0, 0], **more))
    if more != dict(eta=0.0):
        assert not torch.equal(ours, run(described(family), sampling(family)).images)


def test_sdxl_without_a_negative_prompt():
    """Its "no prompt" is zeros, not the empty text."""
    model = described("sdxl")
    ours = run(model, model.sampling(PROMPTS[:2], steps=2, guidance=4.0, **options("sdxl"))).images
    assert torch.equal(ours, native("sdxl", [0, 0], negative_prompt=None))
    assert not torch.equal(ours, run(model, sampling("sdxl", negative=["", ""])).images)


@pytest.mark.parametrize("family", ["sd", "pixart", "sd3"])
def test_others_without_a_negative_prompt(family):
    model = described(family)
    ours = run(model, model.sampling(PROMPTS[:2], steps=3, guidance=4.0, **options(family))).images
    changes = dict(negative_prompt="") if family == "pixart" else dict(negative_prompt=None)
    assert torch.equal(ours, native(family, [0, 0], num_inference_steps=3, **changes))


# -- loading -----------------------------------------------------------------------------------------------------


def broken(what: str):
    made = pipeline("dit" if what == "cache" else "sd")
    network = made.unet if what != "cache" else made.transformer
    if what == "training":
        made.text_encoder.train()
    elif what == "nan":
        with torch.no_grad():
            network.conv_in.weight[0, 0] = torch.nan
    elif what == "text nan":
        with torch.no_grad():
            made.text_encoder.get_input_embeddings().weight[3] = torch.inf
    elif what == "fused":
        made.fuse_qkv_projections(vae=False)
    elif what == "compiled":
        made.unet = torch.compile(network, backend="eager")
    elif what == "a block compiled":
        network.up_blocks[1] = torch.compile(network.up_blocks[1], backend="eager")
    elif what == "cache":
        made = pipeline("flux")
        made.transformer.enable_cache(df.FirstBlockCacheConfig(threshold=0.1))
    return made


@pytest.mark.parametrize(("what", "message"), [
    ("training", "its text_encoder is in training mode"), ("nan", r"unet.conv_in.weight holds NaN or infinite"),
    ("text nan", "text_encoder.*token_embedding.weight holds NaN or infinite"),
    ("fused", "fused projections at down_blocks.0.attentions.0.transformer_blocks.0.attn1"),
    ("compiled", "compiled by torch.compile"), ("a block compiled", "compiled by torch.compile at up_blocks.1"),
    ("cache", "has a step cache, which skips blocks"),
])  # fmt: skip
def test_what_cannot_be_measured_is_not_loaded(what, message):
    with pytest.raises(LoadError, match=message):
        load(broken(what))


def test_unknown_pipelines_are_not_loaded():
    parts = pipeline("sd").components
    parts.pop("image_encoder")
    image = df.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(LoadError, match="StableDiffusionImg2ImgPipeline is no pipeline that interp knows how to call"):
        load(image)


def test_load_from_a_folder(tmp_path):
    made = pipeline("sd", torch.float32)
    made.save_pretrained(tmp_path / "sd", safe_serialization=True)
    again = load(tmp_path / "sd")
    assert isinstance(again, Denoiser)
    assert again.dtype == torch.float32
    own = describe_pipeline(made, "own")
    assert again.weights_hash == own.weights_hash != described("sd").weights_hash
    what = own.sampling(PROMPTS[0], negative=NEGATIVES[0], steps=2, height=16, width=24)
    assert torch.equal(run(again, what).images, run(own, what).images)


def test_weights_hash_sees_every_part():
    made = pipeline("sd")
    before = describe_pipeline(made, "sd").weights_hash
    with torch.no_grad():
        next(made.text_encoder.parameters())[0, 0] += 1e-9
    assert describe_pipeline(made, "sd").weights_hash != before


def test_half_precision():
    """Guidance is measured on half-precision weights as well."""
    for family in ("sd", "flux"):
        made = pipeline(family, torch.bfloat16)
        assert describe_pipeline(made, family).guidance == described(family).guidance


def test_the_printed_form():
    assert repr(described("dit")).startswith(
        "Denoiser(dit: DiTPipeline, DiTTransformer2DModel, 3 blocks, guided [cond | uncond]"
    )
    assert repr(everything("dit")).startswith("DenoisingRun(1 rows × 3 steps; captured: latents, prediction")
    assert len(everything("sd").pictures()) == 1
    assert everything("sd").pictures()[0].size == (24, 16)
    assert replace(sampling("sd"), seeds=(1, 2)).seeds == (1, 2)
    assert isinstance(sampling("sd"), Sampling)
    assert texts("dit") == [3, 7]
