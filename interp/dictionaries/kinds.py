"""Every kind of dictionary by name, and dictionaries on disk.

A dictionary is a folder: `dictionary.json` says which class to call with what, `dictionary.safetensors` holds its
parameters and standardisation. Folders of SAELens are read and written by `interp.dictionaries.saelens`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import BatchTopK, Matryoshka, TopK
from interp.errors import InterpError, LoadError, nearest
from interp.results import replacing

KINDS: Mapping[str, type[Dictionary]] = MappingProxyType(
    {kind.kind: kind for kind in (TopK, BatchTopK, Matryoshka, JumpReLU, Gated, MatchingPursuit)}
)
"""Classes by the name of their kind."""
_FORMAT = "interp-dictionary-1"


def save(dictionary: Dictionary, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a dictionary.

    Args:
        folder: made if it is not there; a dictionary in it is replaced.
        about: JSON-able; kept beside it: a training's provenance, say.

    Raises:
        InterpError: an `about` that JSON cannot hold.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.contiguous() for name, x in dictionary.state_dict().items() if _own(dictionary, name)}
    with replacing(folder / "dictionary.safetensors") as temporary:
        save_file(tensors, temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    record = {
        "format": _FORMAT, "kind": dictionary.kind, "n_latents": dictionary.n_latents, "sha256": digest,
        "settings": dictionary.settings(), "read": _described(dictionary.read),
        "write": None if dictionary.autoencodes else _described(dictionary.write), "about": dict(about or {}),
    }  # fmt: skip
    try:
        text = json.dumps(record, indent=1)
    except TypeError as error:
        raise InterpError(f"`about` cannot be kept: {error}.") from error
    with replacing(folder / "dictionary.json") as temporary:
        temporary.write_text(text)


def load(folder: str | Path) -> Dictionary:
    """Read a dictionary that `save` wrote.

    Raises:
        LoadError: no dictionary, a damaged or changed one, one of an unknown kind or format.
    """
    from safetensors.torch import load as load_tensors

    folder = Path(folder)
    try:
        record = json.loads((folder / "dictionary.json").read_text())
        data = (folder / "dictionary.safetensors").read_bytes()
    except OSError as error:
        raise LoadError(f"There is no dictionary in {folder}: {error}.") from error
    except ValueError as error:
        raise LoadError(f"{folder / 'dictionary.json'} is damaged ({error}).") from error
    if record.get("format") != _FORMAT:
        raise LoadError(f"{folder} is of the format {record.get('format')!r}; this version reads {_FORMAT!r}.")
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise LoadError(f"{folder / 'dictionary.safetensors'} is not what was written with its dictionary.json.")
    if record["kind"] not in KINDS:
        raise LoadError(f"{folder} holds a dictionary of the kind {record['kind']!r}." + nearest(record["kind"], KINDS))
    tensors = load_tensors(data)
    places = {side: _standardisation(record[side], tensors, side) for side in ("read", "write") if record[side]}
    made: Any = KINDS[record["kind"]]
    dictionary = made(n_latents=record["n_latents"], **places, **record["settings"])
    dictionary.to(tensors["atoms"].dtype)
    if "write" not in places:
        tensors |= {f"write.{name}": tensors[f"read.{name}"] for name in ("mean", "scale")}
    dictionary.load_state_dict(tensors)
    return dictionary


def _own(dictionary: Dictionary, name: str) -> bool:
    return not (dictionary.autoencodes and name.startswith("write."))  # the same module as `read`


def _described(standard: Standardisation) -> dict[str, Any]:
    return {"sites": standard.sites, "widths": standard.widths, "steps": standard.steps}


def _standardisation(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], side: str) -> Standardisation:
    mean, scale = tensors[f"{side}.mean"], tensors[f"{side}.scale"]
    return Standardisation(mean, scale, record["sites"], record["widths"], record["steps"])
