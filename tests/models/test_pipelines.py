"""The tiny pipelines themselves: they run offline, repeat themselves, and every block matters to the picture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from models.pipelines import (
    CLIP_LENGTH,
    FAMILIES,
    LABELS,
    NEGATIVES,
    PROMPTS,
    SCHEDULERS,
    STOCHASTIC,
    T5_LENGTH,
    UNETS,
    WORDS,
    arguments,
    block_names,
    denoiser,
    pipeline,
    scheduler,
    tokenizer,
)

from interp.models.pipelines import family_of, tokens_of_word, tokens_through, word_in_denoiser

SIDES = dict.fromkeys(FAMILIES, (16, 24)) | {"dit": (16, 16)}
INSIDE = (
    "Attention",
    "FluxAttention",
    "FeedForward",
    "ResnetBlock2D",
    "Transformer2DModel",
    "Downsample2D",
    "Upsample2D",
)
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small gain nothing from a second thread, and on a busy machine they wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def made(family: str):
    return pipeline(family)


def images(family: str, **changes) -> torch.Tensor:
    return made(family)(**arguments(family, **changes)).images


def touched(module: torch.nn.Module):
    """Add noise to what a module returns: to the image stream of a block that returns a text stream as well."""

    def hook(module, args, output):
        if torch.is_tensor(output):
            generator = torch.Generator().manual_seed(len(output.shape))
            return output + torch.randn(output.shape, generator=generator, dtype=output.dtype)
        at = 1 if type(module).__name__ in TEXT_FIRST else 0
        edited = hook(module, args, output[at])
        return (*output[:at], edited, *output[at + 1 :])

    # first of all hooks: transformers collects hidden states in a hook of its own, which must see the edit
    return module.register_forward_hook(hook, prepend=True)


TEXT_FIRST = ("JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")
TEXT_LAYERS = ("CLIPEncoderLayer", "T5Block")


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
class TestCall:
    def test_gives_a_picture(self, family, guided):
        picture = images(family, guided=guided)
        assert picture.shape == (1, 3, *SIDES[family])
        assert picture.dtype == torch.float64
        assert picture.isfinite().all()
        assert picture.std() > 0.1
        assert ((picture == 0) | (picture == 1)).double().mean() < 0.2  # an edit must not vanish in the clamp

    def test_repeats_itself(self, family, guided):
        first = images(family, guided=guided)
        assert torch.equal(first, images(family, guided=guided))
        assert not torch.equal(first, images(family, guided=guided, seed=1))
        assert torch.equal(first, pipeline(family)(**arguments(family, guided=guided)).images)

    def test_a_batch_of_two(self, family, guided):
        both = images(family, guided=guided, batch=2)
        assert both.shape == (2, 3, *SIDES[family])
        torch.testing.assert_close(both[:1], images(family, guided=guided), rtol=0, atol=1e-6)  # float32 schedulers

    def test_two_images_per_prompt(self, family, guided):
        if family == "dit":
            return  # it knows no num_images_per_prompt: one repeats the label
        four = images(family, guided=guided, batch=2, num_images_per_prompt=2)
        assert four.shape == (4, 3, *SIDES[family])
        torch.testing.assert_close(four[:1], images(family, guided=guided), rtol=0, atol=1e-6)
        assert not torch.allclose(four[0], four[1], atol=1e-2)

    def test_says_nothing(self, family, guided, capfd):
        made(family)(**arguments(family, guided=guided))
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_and_condition_matter(family):
    picture = images(family)
    changed = {"class_labels": LABELS[1:2]} if family == "dit" else {"prompt": PROMPTS[1:2]}
    assert (picture - images(family, **changed)).abs().max() > 1e-3
    assert (picture - images(family, guided=False)).abs().max() > 1e-3
    if family != "dit":
        assert (picture - images(family, negative_prompt=PROMPTS[2:])).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_of_the_denoiser_matters(family):
    network = denoiser(made(family))
    inside = [name for name, module in network.named_modules() if type(module).__name__ in INSIDE]
    picture = images(family)
    for name in dict.fromkeys([*block_names(made(family)), *inside]):
        handle = touched(network.get_submodule(name))
        edited = images(family)
        handle.remove()
        assert edited.isfinite().all()
        assert (edited - picture).abs().max() > 0.01, name


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "dit"])
def test_every_text_layer_matters(family):
    picture = images(family)
    for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        network = getattr(made(family), encoder, None)
        layers = [] if network is None else [m for m in network.modules() if type(m).__name__ in TEXT_LAYERS]
        assert network is None or len(layers) in (2, 3)
        for k, layer in enumerate(layers):
            handle = touched(layer)
            effect = (images(family) - picture).abs().max()
            handle.remove()
            unread = family == "sdxl" and encoder == "text_encoder" and k == 2  # it reads the last layer's input
            assert (effect == 0) if unread else (effect > 0.01), (encoder, k)


@pytest.mark.parametrize("family", UNETS)
def test_unets_attend_to_text_in_both_halves(family):
    network = denoiser(made(family))
    for half in (network.down_blocks, network.up_blocks):
        with_text = [block for block in half if hasattr(block, "attentions")]
        assert len(with_text) == 2
        assert all(len(block.attentions) >= 2 for block in with_text)
    depths = {len(a.transformer_blocks) for a in network.modules() if type(a).__name__ == "Transformer2DModel"}
    assert depths == ({1, 2} if family == "sdxl" else {1})


@pytest.mark.parametrize("family", ["pixart", "dit", "sd3", "flux"])
def test_more_than_ten_blocks(family):
    deep = pipeline(family, blocks=12)
    assert "transformer_blocks.11" in block_names(deep)
    picture = deep(**arguments(family)).images
    handle = touched(denoiser(deep).transformer_blocks[10])
    assert (deep(**arguments(family)).images - picture).abs().max() > 0.01
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_has_the_same_weights(family):
    single = pipeline(family, torch.float32)
    for narrow, wide in zip(denoiser(single).parameters(), denoiser(made(family)).parameters(), strict=True):
        assert torch.equal(narrow, wide.float())
    assert single(**arguments(family)).images.dtype == torch.float32


def test_another_seed_has_other_weights():
    assert not torch.equal(denoiser(pipeline("dit", seed=1)).proj_out_1.weight, denoiser(made("dit")).proj_out_1.weight)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    pipeline("dit")
    assert torch.equal(before, torch.get_rng_state())


def test_sd3_without_its_t5():
    short = pipeline("sd3", t5=False)
    assert short.text_encoder_3 is None
    assert short(**arguments("sd3")).images.isfinite().all()


def embeddings(family: str, batch: int = 2) -> dict:
    """What a guided call takes instead of its prompts, from the pipeline's own encoder."""
    encode, prompts, negatives = made(family).encode_prompt, PROMPTS[:batch], NEGATIVES[:batch]
    if family == "sd":
        found = encode(prompts, "cpu", 1, True, negatives)
        return dict(zip(EMBEDS[:2], found, strict=True))
    if family == "sdxl":
        return dict(zip(EMBEDS, encode(prompts, negative_prompt=negatives), strict=True))
    if family == "pixart":
        found = encode(prompts, negative_prompt=negatives, max_sequence_length=T5_LENGTH)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        return dict(zip(names, found, strict=True)) | dict(negative_prompt=None)  # whose default is ""
    if family == "sd3":
        found = encode(prompts, None, None, negative_prompt=negatives, max_sequence_length=T5_LENGTH)
        return dict(zip(EMBEDS, found, strict=True))
    branches = [encode(texts, max_sequence_length=T5_LENGTH) for texts in (prompts, negatives)]  # "flux"
    return {name: found[k] for k in (0, 1) for name, found in zip(EMBEDS[2 * k : 2 * k + 2], branches, strict=True)}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "dit"])
def test_embeddings_stand_in_for_the_prompts(family):
    call = arguments(family, batch=2)
    del call["prompt"], call["negative_prompt"]
    assert torch.equal(made(family)(**call, **embeddings(family)).images, images(family, batch=2))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name):
    sd = pipeline("sd")
    sd.scheduler = scheduler(name, sd)
    options = dict(num_inference_steps=3) | (dict(eta=1.0) if name == "ddim_stochastic" else {})
    picture = sd(**arguments("sd", **options)).images
    assert picture.isfinite().all()
    assert torch.equal(picture, sd(**arguments("sd", **options)).images)
    latents = torch.randn(1, 4, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same_start = [sd(**arguments("sd", **options, latents=latents, seed=seed)).images for seed in (0, 1)]
    assert torch.equal(*same_start) == (name not in STOCHASTIC)


class TestTokenizer:
    def test_one_token_per_word(self):
        for style, length in (("clip", CLIP_LENGTH), ("t5", T5_LENGTH)):
            words = tokenizer(style, "<pad>")
            ids = words(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            assert ids.input_ids.shape == ids.attention_mask.shape == (3, length)
            assert words.unk_token_id not in ids.input_ids
            shown = words.convert_ids_to_tokens(ids.input_ids[1])
            start = ["<start>"] if style == "clip" else []
            assert [t for t in shown if t != "<pad>"] == [*start, "two", "green", "stars", "<end>"]

    def test_knows_its_words(self):
        assert len(set(WORDS)) == len(WORDS)
        assert tokenizer().convert_tokens_to_ids("circle") == 4 + WORDS.index("circle")


@pytest.mark.parametrize(("word", "text"), [(0, "a"), (1, "red"), (2, "circle"), (5, "blue")])
@pytest.mark.parametrize("style", ["clip", "t5"])
def test_the_tokens_of_a_word(style, word, text):
    words = tokenizer(style)
    ids = words(PROMPTS[0]).input_ids
    assert [words.decode([ids[i]]).strip() for i in tokens_of_word(words, PROMPTS[0], word)] == [text]
    through = tokens_through(words, " ".join(PROMPTS[0].split()[: word + 1]) + " ")
    assert words.decode([ids[through - 1]]).strip() == text


@pytest.mark.parametrize(
    ("family", "expected"), [("sd", [2]), ("sdxl", [2]), ("pixart", [1]), ("sd3", [2, CLIP_LENGTH + 1]), ("flux", [1])]
)
def test_a_word_among_the_tokens_that_the_denoiser_reads(family, expected):
    """A beginning precedes the words of CLIP, nothing those of T5; SD3's T5 comes behind its CLIPs."""
    pipe = made(family)
    assert word_in_denoiser(pipe, family_of(pipe), PROMPTS[0], 1) == expected
    if family == "sd3":
        without = pipeline("sd3", t5=False)
        assert word_in_denoiser(without, family_of(without), PROMPTS[0], 1) == [2]
