"""Checkpoints of a sweep: one small file per finished chunk, each written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import InterpError, LoadError


def fingerprint(parts: Sequence[object]) -> str:
    """SHA-256 over everything that decides a sweep's values."""
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, x: object) -> None:
    digest.update(type(x).__name__.encode())
    if isinstance(x, Tensor):
        # One number is contiguous with any stride, but has bytes only with stride 1: so a copy, not `contiguous()`.
        x = x.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(x, nn.Module):  # a judge, by its weights
        _feed(digest, type(x).__name__)
        _feed(digest, x.state_dict())
    elif isinstance(x, np.ndarray):
        digest.update(f"{x.shape} {x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    elif isinstance(x, Mapping):
        for key, value in x.items():
            digest.update(str(key).encode())
            _feed(digest, value)
    elif isinstance(x, list | tuple):
        for item in x:
            _feed(digest, item)
    elif dataclasses.is_dataclass(x):
        for item in dataclasses.fields(x):
            digest.update(item.name.encode())
            _feed(digest, getattr(x, item.name))
    elif isinstance(x, CodeType):
        _feed(digest, [x.co_code, x.co_consts, x.co_names])
    elif isinstance(x, FunctionType):
        # Its code, and the values that it closes over; what it reads from its module is not seen.
        _feed(digest, [x.__code__, x.__defaults__, [cell.cell_contents for cell in x.__closure__ or ()]])
    else:
        digest.update(repr(x).encode())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with `sweep.json` (what is swept, in which chunks) and one file per finished chunk.

    The chunks of the first call are kept: sums over other chunks could differ in the last bit.
    """

    folder: Path
    mark: str
    parts: tuple[tuple[int, int], ...]

    @classmethod
    def open(cls, folder: str | Path, mark: str, parts: Sequence[tuple[int, int]]) -> Checkpoint:
        """The checkpoint in a folder, begun if there is none.

        Raises:
            InterpError: the folder holds a different sweep.
            LoadError: its header cannot be read.
        """
        folder = Path(folder)
        header = folder / "sweep.json"
        if header.exists():
            try:
                known = json.loads(header.read_text())
                found, parts = known["mark"], [(int(a), int(b)) for a, b in known["parts"]]
            except (ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{header} is damaged ({error}); delete the folder to start over.") from error
            if found != mark:
                raise InterpError(
                    f"{folder} holds the checkpoint of another sweep (other model, prompts, edits, metric or savings); "
                    "give another folder, or delete it."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(header, json.dumps({"mark": mark, "parts": list(parts)}).encode())
        return cls(folder, mark, tuple(parts))

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray, Tensor] | None:
        """A finished chunk's (variant, example, values), or None; a damaged file counts as unfinished."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(number)
        if not path.exists():
            return None
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        try:
            tensors = load(data[32:])
        except SafetensorError:
            return None
        return tensors["variant"].numpy(), tensors["example"].numpy(), tensors["values"]

    def write(self, number: int, variant: np.ndarray, example: np.ndarray, values: Tensor) -> None:
        """Keep a finished chunk."""
        from safetensors.torch import save

        tensors = {"variant": torch.from_numpy(variant), "example": torch.from_numpy(example)}
        data = save({**tensors, "values": values.detach().cpu().contiguous()})
        _write(self._path(number), hashlib.sha256(data).digest() + data)

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk_{number:05d}.bin"


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
