"""Which module serves which part, by model family: a table, and nothing else that knows module names.

An entry gives dotted paths, those of a layer relative to the layer. Families outside the table are
read off TransformerLens's architecture adapters (`interp.models.lens`); they are served by hooks on
the whole forward pass, while the families here can also be replayed block by block.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Where the parts of an architecture are.

    Attributes:
        layers, embed, final_norm, unembed: paths from the network.
        attn, norm1, norm2, mlp: paths from a layer; `mlp` may be a chain `"fc1 activation_fn fc2"`.
        post_attn_norm, post_mlp_norm: norms applied to what is added to the residual stream (Gemma).
        q, k, v, o: projections, from the layer.
        fused: how q, k, v share one module: `"concat"` (q then k then v) or `"interleaved"` (per head).
        mlp_pre: module whose output enters the non-linearity; `mlp_pre_half`: only its first half.
        mlp_act: module whose input is the MLP's hidden activation.
        parallel: attention and MLP both read `resid_pre`, so there is no `resid_mid`.
        replayable: the block can be run by `interp.models.block`.
    """

    layers: str
    embed: str
    final_norm: str | None
    unembed: str
    attn: str | None = "self_attn"
    norm1: str | None = "input_layernorm"
    norm2: str | None = "post_attention_layernorm"
    mlp: str | None = "mlp"
    post_attn_norm: str | None = None
    post_mlp_norm: str | None = None
    q: str | None = "self_attn.q_proj"
    k: str | None = "self_attn.k_proj"
    v: str | None = "self_attn.v_proj"
    o: str | None = "self_attn.o_proj"
    fused: str | None = None
    mlp_pre: str | None = "mlp.gate_proj"
    mlp_pre_half: bool = False
    mlp_act: str | None = "mlp.down_proj"
    parallel: bool = False
    replayable: bool = True


_LLAMA = Family("model.layers", "model.embed_tokens", "model.norm", "lm_head")
_GEMMA = Family(
    "model.layers", "model.embed_tokens", "model.norm", "lm_head",
    norm2="pre_feedforward_layernorm",
    post_attn_norm="post_attention_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    # A mixture of experts keeps its neurons inside the experts, a different set for every token.
    "mixtral": Family(
        "model.layers", "model.embed_tokens", "model.norm", "lm_head", mlp_pre=None, mlp_act=None
    ),
    "phi3": Family(
        "model.layers", "model.embed_tokens", "model.norm", "lm_head",
        q="self_attn.qkv_proj", k="self_attn.qkv_proj", v="self_attn.qkv_proj", fused="concat",
        mlp_pre="mlp.gate_up_proj", mlp_pre_half=True,
    ),
    "gpt2": Family(
        "transformer.h", "transformer.wte", "transformer.ln_f", "lm_head",
        attn="attn", norm1="ln_1", norm2="ln_2",
        q="attn.c_attn", k="attn.c_attn", v="attn.c_attn", o="attn.c_proj", fused="concat",
        mlp_pre="mlp.c_fc", mlp_act="mlp.c_proj",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head",
        attn="attention",
        q="attention.query_key_value", k="attention.query_key_value", v="attention.query_key_value",
        o="attention.dense", fused="interleaved",
        mlp_pre="mlp.dense_h_to_4h", mlp_act="mlp.dense_4h_to_h", parallel=True,
    ),
    "opt": Family(
        "model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.final_layer_norm", "lm_head",
        norm1="self_attn_layer_norm", norm2="final_layer_norm", mlp="fc1 activation_fn fc2",
        o="self_attn.out_proj", mlp_pre="fc1", mlp_act="fc2",
    ),
}  # fmt: skip

REFUSED = {
    "encoder-decoder": (
        "an encoder-decoder has two token axes (encoder and decoder positions) and cross-attention "
        "between them; positions, prefixes and sweeps here are defined for one causal axis"
    ),
    "bidirectional": "states of a bidirectional model depend on later tokens too",
}
"""Kinds of model that `load` refuses, and why."""
