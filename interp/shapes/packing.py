"""Weights as they are committed: half precision, and digests beside them.

`model.safetensors` is what `load_pipeline` reads: the averaged weights in float16. `resume.safetensors` lets another
machine train on: the raw weights in float16, momenta in bfloat16 (they are too small for float16). That is a
rounding away from the checkpoint that it was made of: training continues, but not bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from interp.shapes.pipeline import DIGESTS, WEIGHTS, read_weights

RESUME = "resume.safetensors"


def write_weights(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> None:
    """A safetensors file, and its SHA-256 in `sha256.json` of the same folder.

    Args:
        tensors: written in float16, unless they are bfloat16.
        state: what else to say, JSON-able.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: (tensor if tensor.dtype == torch.bfloat16 else tensor.half()).detach().contiguous()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    content = save(halves, None if state is None else {"state": json.dumps(state)})
    path.write_bytes(content)
    digests = path.parent / DIGESTS
    known = json.loads(digests.read_text("utf-8")) if digests.exists() else {}
    known[path.name] = hashlib.sha256(content).hexdigest()
    digests.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def pack(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write both files from the tensors and the state of a checkpoint."""
    average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
    rest = {
        name: tensor.bfloat16() if name.startswith("optimizer.") else tensor
        for name, tensor in tensors.items()
        if not name.startswith("average.")
    }
    write_weights(folder / WEIGHTS, average, state)
    write_weights(folder / RESUME, rest, state)


def unpacked(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint, as far as `pack` kept them.

    Raises:
        LoadError: a file that is missing or damaged.
    """
    tensors = read_weights(folder / RESUME)
    tensors |= {f"average.{name}": tensor for name, tensor in read_weights(folder / WEIGHTS).items()}
    with safe_open(folder / RESUME, "pt") as file:
        return tensors, json.loads(file.metadata()["state"])
