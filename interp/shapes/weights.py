"""Write weights in half precision, with their digest beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from interp.shapes.pipeline import DIGESTS


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file in float16, and its SHA-256 in `sha256.json` of the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: t.detach().half().contiguous() for name, t in tensors.items() if t.is_floating_point()})
    path.write_bytes(content)
    digests = path.parent / DIGESTS
    known = json.loads(digests.read_text("utf-8")) if digests.exists() else {}
    known[path.name] = hashlib.sha256(content).hexdigest()
    digests.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
