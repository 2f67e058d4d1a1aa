"""What a described model is: the same network, sites where they should be; and what is refused."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as tf
from models.described import FAMILIES, captured, described, hooks_on, parts_of, ragged
from models.tiny import CONFIGS, tiny
from torch import nn

from interp.errors import InterpError, LoadError, SiteError, UnfiredError
from interp.interventions.run import run
from interp.models.load import describe, load
from interp.models.prompts import from_token_lists
from interp.models.site import ATTENTION_PARTS, HEAD_PARTS, LAYER_PARTS, PARTS, Site

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


@torch.no_grad()
def _logits(network, ids, **kwargs):
    return network(input_ids=ids, use_cache=False, **kwargs).logits


# --- the network is not touched -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float64) for family in FAMILIES]
    + [(family, torch.float32) for family in ("llama", "gpt2", "gemma2", "opt")],
)
def test_logits_are_the_networks_own_bit_for_bit(family, dtype):
    model = described(family, dtype)
    whole, prompts = from_token_lists(None, IDS.tolist()), ragged()[0]
    for given, kwargs in ((whole, {}), (prompts, {"attention_mask": prompts.mask.long()})):
        expected = _logits(model.network, given.ids, **kwargs)
        with torch.no_grad():
            assert torch.equal(model.forward(given), expected)
        assert torch.equal(run(model, given).logits, expected)
        sites = [part for part in parts_of(model) if part not in ATTENTION_PARTS]
        assert torch.equal(run(model, given, (), sites).logits, expected)
        assert run(model, given, logits=False).logits is None
    assert model.not_replayable is None


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_prompts_are_each_prompt_alone_and_the_left_padded_batch(family):
    # Explicit attention takes its softmax in float32, and transformers' own float64 mask overflows there.
    explicit = family == "gemma2"
    model, prompts = described(family, torch.float32 if explicit else torch.float64), ragged()[0]
    ours, width = run(model, prompts).logits, prompts.ids.shape[1]
    atol = 1e-4 if explicit else 1e-10
    for row, n in enumerate(prompts.lengths.tolist()):
        alone = _logits(model.network, prompts.ids[row : row + 1, :n])[0]
        torch.testing.assert_close(ours[row, :n], alone, rtol=0, atol=atol)
    pads = [width - n for n in prompts.lengths.tolist()]
    left = torch.stack([row.roll(pad) for row, pad in zip(prompts.ids, pads, strict=True)])
    mask = torch.stack([torch.arange(width) >= pad for pad in pads]).long()
    kwargs = {"attention_mask": mask}
    if "position_ids" in inspect.signature(model.network.forward).parameters:
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = _logits(model.network, left, **kwargs)
    for row, pad in enumerate(pads):
        torch.testing.assert_close(ours[row, : width - pad], theirs[row, pad:], rtol=0, atol=atol)
    from_left = model.prompts(left, mask)
    assert torch.equal(run(model, from_left).logits[from_left.mask], ours[prompts.mask])


# --- sites -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_captured_with_its_documented_shape(family):
    model, whole = described(family), captured(family)
    batch, pos = whole.prompts.ids.shape
    config = model.network.config
    heads, d = config.num_attention_heads, model.d_model
    d_head = getattr(config, "head_dim", None) or d // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    shapes = {
        "q": (heads, d_head), "k": (kv_heads, d_head), "v": (kv_heads, d_head), "z": (heads, d_head),
        "head_result": (heads, d), "mlp_pre": (96 if family == "gpt2" else 40,),
        "mlp_act": (96 if family == "gpt2" else 40,), "logits": (61,),
    }  # fmt: skip
    served = set()
    for site, x in whole.activations.items():
        expected = (
            (batch, heads, pos, pos) if site.part in ATTENTION_PARTS else (batch, pos, *shapes.get(site.part, (d,)))
        )
        assert x.shape == expected, site
        served.add(site.part)
        if site.part in HEAD_PARTS:
            one = run(model, whole.prompts, (), [Site(site.part, site.layer, 1)])[site.part, site.layer, 1]
            same = whole[site.part, site.layer, 1]
            assert torch.equal(same, x.select(1 if site.part in ATTENTION_PARTS else 2, 1))
            mask = whole.prompts.mask  # nothing is promised about columns past a prompt's end
            torch.testing.assert_close(one[mask], same[mask], rtol=0, atol=1e-5)
        assert torch.equal(whole[site.lens_name], x)
    missing = {"gpt_neox": {"resid_mid"}, "mixtral": {"mlp_pre", "mlp_act"}}.get(family, set())
    assert served == set(PARTS) - missing
    for part in missing:
        with pytest.raises(SiteError, match=f"cannot serve '{part}': (attention and MLP read|its neurons sit)"):
            run(model, whole.prompts, (), [part])
    layers = {site.layer for site in whole.activations if site.part in LAYER_PARTS}
    assert layers == {0, 1, 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_networks_hidden_states(family):
    model, whole = described(family), captured(family)
    mask = whole.prompts.mask
    atol = 1e-5 if family == "gemma2" else 1e-10  # its softmax is in float32, where the order of additions shows
    with torch.no_grad():  # another network of the same weights: transformers leaves its own hooks behind
        theirs = tiny(family)(
            input_ids=whole.prompts.ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True
        ).hidden_states
    for layer in range(3):
        torch.testing.assert_close(whole["resid_pre", layer][mask], theirs[layer][mask], rtol=0, atol=atol)
        if layer:
            assert torch.equal(whole["resid_pre", layer], whole["resid_post", layer - 1])
        total = whole["resid_pre", layer] + whole["attn_out", layer] + whole["mlp_out", layer]
        torch.testing.assert_close(total[mask], whole["resid_post", layer][mask], rtol=0, atol=atol)
    torch.testing.assert_close(whole["final_norm"][mask], theirs[3][mask], rtol=0, atol=atol)
    columns = torch.tensor([[3, 60]]).expand(len(whole.prompts), whole.prompts.ids.shape[1], 2)
    some = model.unembed_columns(whole["final_norm"], columns)
    torch.testing.assert_close(some[mask], whole["logits"][..., [3, 60]][mask], rtol=0, atol=atol)
    torch.testing.assert_close(
        model.unembed_columns(whole["final_norm"])[mask], whole["logits"][mask], rtol=0, atol=atol
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_the_attentions_of_the_explicit_network(family):
    whole = captured(family)
    exact = described(family).network.config._attn_implementation != "eager"  # which takes its softmax in float32
    network = tiny(family)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = network(
            input_ids=whole.prompts.ids,
            attention_mask=whole.prompts.mask.long(),
            use_cache=False,
            output_attentions=True,
        ).attentions
    own = run(describe(network, None, family), whole.prompts, (), ["attn_pattern", "attn_scores"])
    kept = whole.prompts.mask[:, None, :, None]
    for layer in range(3):
        for found, tolerance in ((whole["attn_pattern", layer], 1e-6), (own["attn_pattern", layer], 1e-6)):
            torch.testing.assert_close((found * kept), theirs[layer] * kept, rtol=0, atol=tolerance)
        scores = whole["attn_scores", layer]
        torch.testing.assert_close(
            scores.softmax(-1), whole["attn_pattern", layer], rtol=0, atol=1e-12 if exact else 1e-6
        )
        assert scores.isneginf().any()
        assert not scores.isnan().any()


def _hooked(network, ids, modules):
    """{name: (first input, output)} of these modules in a plain forward pass."""
    seen, handles = {}, []
    for name in modules:

        def keep(_module, args, kwargs, output, name=name):
            first = args[0] if args else kwargs["hidden_states"]
            seen[name] = first, output if isinstance(output, torch.Tensor) else output[0]

        handles.append(network.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
    try:
        _logits(network, ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen


_LLAMA_LIKE = {
    "q": lambda s, b: s[b + "self_attn.q_proj"][1].unflatten(-1, (4, -1)),
    "k": lambda s, b: s[b + "self_attn.k_proj"][1].unflatten(-1, (2, -1)),
    "v": lambda s, b: s[b + "self_attn.v_proj"][1].unflatten(-1, (2, -1)),
    "z": lambda s, b: s[b + "self_attn.o_proj"][0].unflatten(-1, (4, -1)),
    "mlp_pre": lambda s, b: s[b + "mlp.gate_proj"][1],
    "mlp_act": lambda s, b: s[b + "mlp.down_proj"][0],
    "resid_pre": lambda s, b: s[b + "input_layernorm"][0],
}
ORACLES = {
    "llama": ("model.layers.{}.", _LLAMA_LIKE | {
        "attn_out": lambda s, b: s[b + "self_attn.o_proj"][1],
        "mlp_out": lambda s, b: s[b + "mlp.down_proj"][1],
        "resid_mid": lambda s, b: s[b + "post_attention_layernorm"][0],
    }),
    "gemma2": ("model.layers.{}.", _LLAMA_LIKE | {
        "attn_out": lambda s, b: s[b + "post_attention_layernorm"][1],
        "mlp_out": lambda s, b: s[b + "post_feedforward_layernorm"][1],
        "resid_mid": lambda s, b: s[b + "pre_feedforward_layernorm"][0],
    }),
    "gpt2": ("transformer.h.{}.", {
        "q": lambda s, b: s[b + "attn.c_attn"][1].split(24, -1)[0].unflatten(-1, (4, 6)),
        "k": lambda s, b: s[b + "attn.c_attn"][1].split(24, -1)[1].unflatten(-1, (4, 6)),
        "v": lambda s, b: s[b + "attn.c_attn"][1].split(24, -1)[2].unflatten(-1, (4, 6)),
        "z": lambda s, b: s[b + "attn.c_proj"][0].unflatten(-1, (4, 6)),
        "attn_out": lambda s, b: s[b + "attn"][1],
        "resid_mid": lambda s, b: s[b + "ln_2"][0],
        "mlp_pre": lambda s, b: s[b + "mlp.c_fc"][1],
        "mlp_act": lambda s, b: s[b + "mlp.act"][1],
        "mlp_out": lambda s, b: s[b + "mlp.c_proj"][1],
    }),
    "gpt_neox": ("gpt_neox.layers.{}.", {
        part: lambda s, b, i=i: s[b + "attention.query_key_value"][1].view(2, 7, 4, 18)[..., 6 * i : 6 * i + 6]
        for i, part in enumerate("qkv")
    } | {"mlp_pre": lambda s, b: s[b + "mlp.dense_h_to_4h"][1], "attn_out": lambda s, b: s[b + "attention.dense"][1]}),
    "opt": ("model.decoder.layers.{}.", {
        "mlp_pre": lambda s, b: s[b + "fc1"][1].view(2, 7, 40),
        "mlp_act": lambda s, b: s[b + "fc1"][1].relu().view(2, 7, 40),
        "mlp_out": lambda s, b: s[b + "fc2"][1].view(2, 7, 24),
        "z": lambda s, b: s[b + "self_attn.out_proj"][0].unflatten(-1, (4, 6)),
    }),
    "phi3": ("model.layers.{}.", {
        "q": lambda s, b: s[b + "self_attn.qkv_proj"][1][..., :24].unflatten(-1, (4, 6)),
        "k": lambda s, b: s[b + "self_attn.qkv_proj"][1][..., 24:36].unflatten(-1, (2, 6)),
        "v": lambda s, b: s[b + "self_attn.qkv_proj"][1][..., 36:].unflatten(-1, (2, 6)),
        "mlp_pre": lambda s, b: s[b + "mlp.gate_up_proj"][1][..., :40],
    }),
}  # fmt: skip


@pytest.mark.parametrize("family", ORACLES)
def test_captures_equal_hand_written_hooks(family):
    model = described(family)
    block, oracle = ORACLES[family]
    names = [n for n, m in model.network.named_modules() if n.startswith(block.format(1)) and n]
    seen = _hooked(model.network, IDS, names)
    ours = run(model, from_token_lists(None, IDS.tolist()), (), [Site(part, 1) for part in oracle])
    for part, read in oracle.items():
        assert torch.equal(ours[part, 1], read(seen, block.format(1))), part


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_results_sum_to_the_projection(family):
    model, whole = described(family), captured(family)
    for layer in range(3):
        output = model.layers[layer].o
        total = whole["head_result", layer].sum(2)
        bias = getattr(output, "bias", None)
        with torch.no_grad():
            expected = output(whole["z", layer].flatten(-2))
            torch.testing.assert_close(total + (0 if bias is None else bias), expected, rtol=0, atol=1e-10)
        one = torch.zeros_like(whole["z", layer])
        one[:, :, 2] = whole["z", layer, 2]
        with torch.no_grad():
            expected = output(one.flatten(-2)) - (0 if bias is None else bias)
        torch.testing.assert_close(whole["head_result", layer, 2], expected, rtol=0, atol=1e-10)


def test_scores_by_hand_for_llama():
    """Rotary embedding, grouped keys, scale and mask, written out."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, whole = described("llama"), captured("llama")
    pos = whole.prompts.ids.shape[1]
    cos, sin = model.network.model.rotary_emb(whole["resid_pre", 0], torch.arange(pos)[None])
    later = torch.ones(pos, pos, dtype=torch.bool).triu(1)
    for layer in range(3):
        q, k, v = (whole[part, layer].transpose(1, 2) for part in "qkv")
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        scores = (q @ k.mT / 6**0.5).masked_fill(later, -torch.inf)
        torch.testing.assert_close(whole["attn_scores", layer], scores, rtol=0, atol=1e-6)  # rotary tables are float32
        z = (scores.softmax(-1) @ v).transpose(1, 2)
        torch.testing.assert_close(whole["z", layer], z, rtol=0, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------


def test_what_is_no_model_is_refused():
    for thing in (3, None, ["gpt2"], object()):
        with pytest.raises(LoadError, match=f"Cannot load a {type(thing).__name__}.*smollm2-135m"):
            load(thing)
    with pytest.raises(LoadError, match="has no config"):
        load(nn.Linear(2, 2), name="linear")


def test_a_module_without_config_needs_no_name_to_be_refused():
    with pytest.raises(LoadError, match="has no config"):
        load(nn.Linear(2, 2))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(LoadError, match="Cannot load .*safetensors"):
        load(tmp_path)


def test_an_encoder_decoder_is_refused():
    config = tf.T5Config(
        vocab_size=61, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    with pytest.raises(LoadError, match="two token axes"):
        load(tf.T5ForConditionalGeneration(config).eval())


def test_a_model_in_training_is_refused():
    with pytest.raises(LoadError, match=r"training mode.*\.eval\(\)"):
        load(tiny("llama").train())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    network = tiny("gpt2")
    with torch.no_grad():
        network.transformer.h[1].mlp.c_fc.weight[0, 0] = value
    with pytest.raises(LoadError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight holds NaN or infinite"):
        load(network)


def test_an_opt_with_norms_after_its_sums_is_refused():
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    with pytest.raises(LoadError, match="normalises after its residual sums"):
        load(tf.OPTForCausalLM(config).eval())


def test_a_model_without_its_head_is_refused():
    with pytest.raises(LoadError, match="language-model head"):
        load(tf.LlamaModel(CONFIGS["llama"]()).eval())


def test_a_family_whose_parts_do_not_add_up_is_refused():
    """Granite is a Llama that scales what it adds: served by the wrong table, the sums must show it."""
    config = tf.GraniteConfig(**CONFIGS["llama"]().to_dict() | {"model_type": "granite", "residual_multiplier": 0.5})
    network = tf.GraniteForCausalLM(config).eval()
    network.config.model_type = "llama"
    with pytest.raises(LoadError, match="resid_pre \\+ attn_out \\+ mlp_out − resid_post is off by"):
        load(network)


def test_a_layer_that_is_not_run_is_refused(monkeypatch):
    network = tiny("llama")
    monkeypatch.setattr(network.model.layers[1].mlp, "forward", lambda x: x * 0.5)
    with pytest.raises(UnfiredError, match=r"L1\.mlp_pre, L1\.mlp_act"):
        load(network)


def test_hooks_that_change_nothing_must_change_nothing(monkeypatch):
    network = tiny("llama")
    mlp = network.model.layers[1].mlp
    own = mlp.forward  # a kernel that takes another path where hooks hang
    monkeypatch.setattr(mlp, "forward", lambda x: own(x) * (2 if hooks_on(mlp) else 1))
    with pytest.raises(LoadError, match="deterministic"):
        load(network)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("z", 3), r"3 layers, numbered 0 to 2; the nearest is 2"),
        (Site("z", -1), r"numbered 0 to 2; the nearest is 0"),
        (Site("z", 1, 4), r"4 heads, numbered 0 to 3; the nearest is 3"),
        (Site("k", 1, 2), r"2 key/value heads \(grouped-query attention\), numbered 0 to 1; the nearest is 1"),
        (Site("q", 1, -1), "the nearest is 0"),
        ("blocks.9.hook_resid_pre", "the nearest is 2"),
    ],
)
def test_sites_beyond_the_model_are_refused_with_the_nearest(site, message):
    with pytest.raises(SiteError, match=message):
        described("llama").check(site)
    with pytest.raises(SiteError, match=message):
        run(described("llama"), ragged()[0], (), [site])


def test_captures_are_a_list_and_parts_exist():
    model, prompts = described("llama"), ragged()[0]
    for capture in ("z", Site("z", 1)):
        with pytest.raises((InterpError, TypeError), match="is a list of sites|z"):
            run(model, prompts, (), capture)
    with pytest.raises(SiteError, match="resid_pre"):
        run(model, prompts, (), ["resid_per"])
    with pytest.raises(SiteError, match="was not captured in this run. Captured: L0.z, L1.z, L2.z"):
        run(model, prompts, (), ["z"])["q", 1]
    with pytest.raises(SiteError, match="kept no logits"):
        run(model, prompts, logits=False).last_logits()


def test_the_weights_hash_tells_weights_apart():
    model = described("llama")
    assert model.weights_hash == describe(tiny("llama"), None, "again").weights_hash
    assert model.weights_hash != describe(tiny("llama", seed=1), None, "other").weights_hash
    assert model.weights_hash != described("llama", torch.float32).weights_hash


# --- families that TransformerLens's adapters name ---------------------------------------------------------------

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
ADAPTED = {
    "gptj": lambda: tf.GPTJConfig(vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=64, rotary_dim=4),
    "cohere": lambda: tf.CohereConfig(
        **_SIZES, num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None
    ),
    "stablelm": lambda: tf.StableLmConfig(**_SIZES, num_key_value_heads=2, partial_rotary_factor=0.5),
    "bloom": lambda: tf.BloomConfig(vocab_size=61, hidden_size=24, n_layer=3, n_head=4),
}


@pytest.mark.parametrize("family", ADAPTED)
def test_families_of_transformer_lenss_adapters(family):
    pytest.importorskip("transformer_lens")
    torch.manual_seed(0)
    network = tf.AutoModelForCausalLM.from_config(ADAPTED[family]()).double().eval()
    model = load(network, name=family)
    prompts = ragged()[0]
    mask = prompts.mask
    whole = run(model, prompts, (), parts_of(model))
    assert torch.equal(whole.logits, _logits(network, prompts.ids, attention_mask=mask.long()))
    states = network(
        input_ids=prompts.ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True
    ).hidden_states
    for layer in range(3):
        torch.testing.assert_close(whole["resid_pre", layer][mask], states[layer][mask], rtol=0, atol=1e-10)
        if "attn_out" not in model.untouchable:
            total = sum(whole[part, layer] for part in ("resid_pre", "attn_out", "mlp_out"))
            torch.testing.assert_close(total[mask], whole["resid_post", layer][mask], rtol=0, atol=1e-10)
    for part in ("attn_scores", "attn_pattern"):
        with pytest.raises(SiteError, match="only families of interp.models.families route"):
            model.check(Site(part, 0))
    if family == "bloom":  # its modules return the sum with the stream
        with pytest.raises(SiteError, match="at layer 2, resid_pre .* attn_out .* is off by"):
            model.check(Site("attn_out", 0))
    assert "adapter" in model.not_replayable


@pytest.mark.parametrize(
    ("wrong", "right"), [("shapes-dti", "shapes-dit"), ("shape", "shapes"), ("smollm2-135", "smollm2-135m")]
)
def test_a_misspelt_embedded_name_gets_the_nearest_without_asking_the_hub(wrong, right, monkeypatch):
    monkeypatch.setattr("interp.models.load._is_pipeline", lambda x: pytest.fail("the hub was asked"))
    with pytest.raises(LoadError, match=f"no embedded model '{wrong}'.*Did you mean '{right}'"):
        load(wrong)


def test_a_folder_named_like_an_embedded_model_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shape").mkdir()
    with pytest.raises(LoadError, match="Cannot load 'shape'"):
        load("shape")
