"""A change of weights as a value: low-rank, reversible, in a file that says which weights it belongs to.

`EditedDenoiser` is a `Denoiser` like any other, and knows the model that it was made from. On disk an edit is a
safetensors file of the factors, with a SHA-256 over its contents and the hash of the weights that it changes: an edit
of another model, or a damaged one, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import LoadError, ShapeError
from interp.models.denoiser import Denoiser
from interp.models.reweighted import weights_of, with_weights
from interp.results import replacing

_FORMAT = "interp-weight-edit-1"


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The change of one weight: left · rightᵀ."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "d_in rank"]

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """The change itself, in float64."""
        return self.left.double() @ self.right.double().T

    def norm(self) -> float:
        """Frobenius norm of the change."""
        return float(torch.linalg.matrix_norm(self.matrix())) if self.rank else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class EditedDenoiser(Denoiser):
    """A model with some weights changed, beside the one that it was made from.

    It shares every untouched module with `original`, which stays as it was; going back is using `original`.

    Attributes:
        original: the model before.
        deltas: what was added to which weight, by component and parameter.
        record: how the edit came about; JSON-able.
    """

    original: Denoiser = field(kw_only=True)
    deltas: Mapping[str, LowRank] = field(kw_only=True)
    record: Mapping[str, Any] = field(kw_only=True)

    @property
    def norm(self) -> float:
        """Frobenius norm of all changes together."""
        return sum(delta.norm() ** 2 for delta in self.deltas.values()) ** 0.5

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit (not the model) as a safetensors file, atomically; `load_edit` reads it.

        Raises:
            OSError: the folder is missing, full, or not writable.
        """
        from safetensors.torch import save

        tensors = {  # copies, because maps that are solved together share a factor, and a file shares nothing
            f"{name}.{side}": getattr(delta, side).detach().cpu().clone()
            for name, delta in self.deltas.items()
            for side in ("left", "right")
        }
        about = {"format": _FORMAT, "base": self.original.weights_hash, "record": json.dumps(dict(self.record))}
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, about | {"sha256": _digest(tensors, about)}))

    def __repr__(self) -> str:
        return f"EditedDenoiser({self.name}: {len(self.deltas)} weights changed, norm {self.norm:.4g})"


def edited_with(model: Denoiser, deltas: Mapping[str, LowRank], record: Mapping[str, Any], name: str) -> EditedDenoiser:
    """The model with these changes added to its weights; a change of rank 0 leaves a weight as it is, to the bit.

    Raises:
        SiteError: a weight that the model does not have.
        ShapeError: factors that do not fit it, or that are not finite.
    """
    old = weights_of(model, deltas)
    for path, delta in deltas.items():
        if (delta.left.shape[0], delta.right.shape[0]) != old[path].shape or delta.rank != delta.right.shape[1]:
            raise ShapeError(
                f"{path} is {tuple(old[path].shape)}; its change has factors {tuple(delta.left.shape)} and "
                f"{tuple(delta.right.shape)}."
            )
    new = {
        path: (old[path].double() + delta.matrix().to(old[path].device)).to(old[path].dtype)
        for path, delta in deltas.items()
        if delta.rank
    }
    base = with_weights(model, new, name)
    return EditedDenoiser(
        **{one.name: getattr(base, one.name) for one in fields(Denoiser)}, original=model, deltas=deltas, record=record
    )


def load_edit(model: Denoiser, path: str | os.PathLike[str]) -> EditedDenoiser:
    """Read a saved edit, and apply it to the model that it was made for.

    Raises:
        LoadError: a file that is missing, damaged, of another format, or made for other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = Path(path)
    try:
        content = source.read_bytes()
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        tensors = load(content)
        stated = {key: about[key] for key in ("format", "base", "record")}
        found, expected = _digest(tensors, stated), about["sha256"]
        record = json.loads(stated["record"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, struct.error) as error:
        raise LoadError(f"{source} cannot be read as an edit of weights: {type(error).__name__}: {error}") from error
    if stated["format"] != _FORMAT:
        raise LoadError(f"{source} has the format {stated['format']!r}; this version of interp reads {_FORMAT!r}.")
    if found != expected:
        raise LoadError(f"{source} was altered after it was saved: its digest is {found[:12]}…, not {expected[:12]}….")
    if stated["base"] != model.weights_hash:
        raise LoadError(
            f"{source} changes weights with the hash {stated['base']}; {model.name} has {model.weights_hash}. Give the "
            "model that it was made for."
        )
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    deltas = {name: LowRank(tensors[f"{name}.left"], tensors[f"{name}.right"]) for name in names}
    return edited_with(model, deltas, record, record["name"])


def random_edit(edited: EditedDenoiser, seed: int = 0) -> EditedDenoiser:
    """The control of an edit: random changes of the same weights, each of the same rank and Frobenius norm."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for path, delta in edited.deltas.items():
        left = torch.randn(delta.left.shape, generator=generator, dtype=torch.float64)
        right = torch.randn(delta.right.shape, generator=generator, dtype=torch.float64)
        drawn = LowRank(left, right)
        scale = delta.norm() / drawn.norm() if delta.rank else 1.0
        deltas[path] = LowRank((left * scale).to(delta.left), right.to(delta.right))
    name = f"{edited.original.name}, random edit"
    return edited_with(edited.original, deltas, {"control": "random", "seed": seed, "name": name}, name)


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
