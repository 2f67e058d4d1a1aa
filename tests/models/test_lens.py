"""Bridges come back as the plain network they were made of; adapters name modules that exist."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from interp.errors import LoadError
from interp.models.lens import adapter_paths, is_bridge, unwrap_bridge

pytest.importorskip("transformer_lens")

_SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
_GPT_SIZES = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_CONFIGS = {
    "llama": ("LlamaConfig", {**_SIZES, "num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", _GPT_SIZES),
    "gpt2_untied": ("GPT2Config", {**_GPT_SIZES, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}),
    "gptj": ("GPTJConfig", {**_GPT_SIZES, "rotary_dim": 4}),
    "bloom": ("BloomConfig", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}
_PARTS = {"layers", "embed", "final_norm", "unembed", "attn", "mlp", "ln1", "ln2", "q", "k", "v", "o"}
_IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def _network(name: str):
    kind, settings = _CONFIGS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings)).eval()


def _bridge(network, tokenizer=None):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(network, type(network).__name__, hf_config=network.config, tokenizer=tokenizer)


def _logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network(_IDS).logits


@pytest.mark.parametrize("name", _CONFIGS)
def test_the_unwrapped_network_is_the_original_bit_for_bit(name):
    original = _network(name)
    expected, attention = _logits(original), original.config._attn_implementation
    modules = [path for path, _ in original.named_modules()]
    parameters = dict(original.named_parameters(remove_duplicate=False))

    network, tokenizer = unwrap_bridge(_bridge(original))

    assert torch.equal(_logits(network), expected)
    assert [path for path, _ in network.named_modules()] == modules
    mine = dict(network.named_parameters(remove_duplicate=False))
    assert mine.keys() == parameters.keys()
    assert all(mine[path] is parameter for path, parameter in parameters.items())
    assert network.config._attn_implementation == attention
    assert not network.training
    assert tokenizer is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_bridge_is_left_as_it_was(name):
    bridge = _bridge(_network(name))
    modules = [path for path, _ in bridge.original_model.named_modules()]
    attention = bridge.original_model.config._attn_implementation
    with torch.no_grad():
        before = bridge(_IDS)

    unwrap_bridge(bridge)

    assert [path for path, _ in bridge.original_model.named_modules()] == modules
    assert bridge.original_model.config._attn_implementation == attention
    with torch.no_grad():
        assert torch.equal(bridge(_IDS), before)


def test_a_forced_eager_bridge_comes_back_with_the_default_attention():
    bridge = _bridge(_network("qwen3"))
    assert bridge.original_model.config._attn_implementation == "eager"
    network, _ = unwrap_bridge(bridge)
    assert network.config._attn_implementation == "sdpa"


def test_weights_are_shared_not_copied():
    bridge = _bridge(_network("llama"))
    network, _ = unwrap_bridge(bridge)
    with torch.no_grad():
        before = bridge(_IDS)
        network.model.norm.weight.mul_(2)
        assert not torch.equal(bridge(_IDS), before)


def test_compatibility_mode_without_processing_is_taken():
    original = _network("gpt2")
    expected = _logits(original)
    bridge = _bridge(original)
    bridge.enable_compatibility_mode(no_processing=True)
    assert torch.equal(_logits(unwrap_bridge(bridge)[0]), expected)


def test_processed_weights_are_refused():
    bridge = _bridge(_network("gpt2"))
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(LoadError, match="processed weights"):
        unwrap_bridge(bridge)


def test_offloaded_weights_are_refused():
    bridge = _bridge(_network("llama"))
    norm = bridge.original_model.model.norm._original_component
    norm.weight = torch.nn.Parameter(norm.weight.to("meta"))
    with pytest.raises(LoadError, match=r"model\.norm\.weight.*meta"):
        unwrap_bridge(bridge)


def test_what_is_not_a_bridge():
    network = _network("llama")
    assert not is_bridge(network)
    assert is_bridge(_bridge(network))
    with pytest.raises(LoadError, match="Expected a TransformerBridge, got Linear"):
        unwrap_bridge(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", _CONFIGS)
def test_adapter_paths_name_modules_of_the_network(name):
    network = _network(name)
    paths = adapter_paths(network)

    assert paths.keys() == _PARTS
    assert len(network.get_submodule(paths["layers"])) == 2
    assert network.get_submodule(paths["embed"]) is network.get_input_embeddings()
    assert network.get_submodule(paths["unembed"]) is network.get_output_embeddings()
    layer = network.get_submodule(paths["layers"])[0]
    for part in ("attn", "mlp", "ln1", "ln2", "q", "k", "v", "o"):
        assert paths[part] is None or isinstance(layer.get_submodule(paths[part]), torch.nn.Module)
    assert None not in (paths["attn"], paths["mlp"], paths["ln1"], paths["o"])


def test_adapter_paths_in_full():
    assert adapter_paths(_network("gptj")) == {
        "layers": "transformer.h", "embed": "transformer.wte", "final_norm": "transformer.ln_f",
        "unembed": "lm_head", "attn": "attn", "mlp": "mlp", "ln1": "ln_1", "ln2": None,
        "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
    }  # fmt: skip


def test_fused_projections_have_no_path():
    paths = adapter_paths(_network("gpt2"))
    assert (paths["q"], paths["k"], paths["v"], paths["o"]) == (None, None, None, "attn.c_proj")


def test_an_architecture_without_an_adapter():
    class Strange(type(_network("llama"))):
        pass

    with pytest.raises(LoadError, match="no usable adapter for Strange"):
        adapter_paths(Strange(transformers.LlamaConfig(**_CONFIGS["llama"][1])))


def test_a_network_that_is_not_what_its_class_says():
    network = _network("llama")
    network.model.layers = torch.nn.ModuleList()
    with pytest.raises(LoadError, match="no list of layers"):
        adapter_paths(network)


def test_without_transformer_lens(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match="not installed"):
        adapter_paths(_network("llama"))
