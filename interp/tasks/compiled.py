"""Compiled RASP programs: transformers whose every weight, and so whose circuit, is known.

Weights and circuits were written once by `compile_programs.py`, with DeepMind's compiler, and are read from
`data/compiled`: a few kilobytes a program, because most weights are zero and only the others are stored.
"""

from __future__ import annotations

import hashlib
import json
import struct
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from interp.errors import LoadError
from interp.models.load import describe
from interp.tasks.pairs import check_choice
from interp.tasks.programs import PROGRAMS, program_pairs
from interp.tasks.truth import ABLATIONS, GroundTruth

DIGESTS = "sha256.json"


def compiled(name: str, n: int = 32, seed: int = 0, *, folder: Path | None = None) -> GroundTruth:
    """A compiled program: its model, pairs of prompts, and the true edges.

    The answer is the token with the highest logit at the prompt's last word. A program with a numerical output has a
    token for each number that it may give ("1/3"); the logit difference of two of them is linear in the output.

    Args:
        name: one of `interp.tasks.PROGRAMS`.
        n: number of pairs.
        seed: same seed, same pairs.
        folder: holds the files; the ones that come with interp if not given.

    Raises:
        PairError: an unknown program, or `n` below 1.
        LoadError: a file that is missing, damaged, or of another program.

    Source: Lindner et al. 2023, "Tracr" (arXiv:2301.05062). Programs here are causal, so that they run as any language
    model does; `reverse` therefore answers after its letters, in slots, where the paper's answers in place.
    """
    from interp.models.normless import normless_gpt2, word_tokenizer

    check_choice("compiled program", name, PROGRAMS)
    home = files("interp.tasks") / "data" / "compiled" if folder is None else folder
    digests = _json(_content(home, DIGESTS), home / DIGESTS)
    known = _json(_checked(home, f"{name}.json", digests), home / f"{name}.json")
    weights = _sparse(_checked(home, f"{name}.safetensors", digests), home / f"{name}.safetensors")
    try:
        shape, vocabulary = known["config"], known["vocabulary"]
        circuits = {ablation: frozenset(known["circuits"][ablation]) for ablation in ABLATIONS}
        carried = {edge: tuple(variables) for edge, variables in known["carried"].items()}
        found = known["name"]
    except (KeyError, TypeError) as error:
        raise LoadError(f"{home / name}.json does not describe a compiled program: {error!r}.") from error
    if found != name:
        raise LoadError(f"{home / name}.json describes the program {found!r}, not {name!r}.")
    network = normless_gpt2(shape, weights)
    model = describe(network, word_tokenizer(vocabulary), f"compiled-{name}")
    return GroundTruth(name, PROGRAMS[name].says, model, program_pairs(name, n, seed), circuits, carried)


def _content(home: Traversable, file: str) -> bytes:
    try:
        return (home / file).read_bytes()
    except OSError as error:
        raise LoadError(f"{home / file} cannot be read: {error}") from error


def _json(content: bytes, where: object) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise LoadError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{where} must hold a JSON object; got {type(found).__name__}.")
    return found


def _checked(home: Traversable, file: str, digests: dict[str, Any]) -> bytes:
    """The content of a file whose SHA-256 is the one recorded."""
    content = _content(home, file)
    found = hashlib.sha256(content).hexdigest()
    if found != digests.get(file):
        raise LoadError(f"{home / file} is damaged: its SHA-256 is {found}, and {DIGESTS} says {digests.get(file)}.")
    return content


def _sparse(content: bytes, where: object) -> dict[str, Tensor]:
    """Dense weights from their shapes and the places and values of what is not zero."""
    try:
        parts = load_safetensors(content)
        weights = {}
        for name in sorted({key.rpartition("/")[0] for key in parts}):
            place, value, shape = (parts[f"{name}/{part}"] for part in ("place", "value", "shape"))
            dense = torch.zeros(prod(shape.tolist()))
            dense[place.long()] = value
            weights[name] = dense.view(shape.tolist())
    except (SafetensorError, struct.error, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise LoadError(f"{where} does not hold sparse weights: {type(error).__name__}: {error}") from error
    return weights
