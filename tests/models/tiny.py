"""Tiny random-init models of every supported family, built from config."""

from __future__ import annotations

import torch
import transformers as tf

_COMMON = dict(
    vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_GATED = _COMMON | dict(intermediate_size=40, num_key_value_heads=2)

CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**_GATED),
    "mistral": lambda: tf.MistralConfig(**_GATED, sliding_window=4),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_COMMON, intermediate_size=40, rotary_pct=0.5),
    "gpt_neox_sequential": lambda: tf.GPTNeoXConfig(**_COMMON, intermediate_size=40, use_parallel_residual=False),
    "gemma2": lambda: tf.Gemma2Config(**_GATED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_GATED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": lambda: tf.Qwen2Config(**_GATED),
    "qwen3": lambda: tf.Qwen3Config(**_GATED, head_dim=8),
    "phi3": lambda: tf.Phi3Config(**_GATED, sliding_window=5),
    "opt": lambda: tf.OPTConfig(**_COMMON, ffn_dim=40, word_embed_proj_dim=24),
    "mixtral": lambda: tf.MixtralConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


def tiny(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.nn.Module:
    """A random-init network whose layers all matter: weights large enough to move the logits."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    if family == "mixtral":
        config._experts_implementation = "eager"  # the grouped matrix product knows no float64
    network = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25 if "embed" not in name and "wte" not in name else 1.0)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return network
