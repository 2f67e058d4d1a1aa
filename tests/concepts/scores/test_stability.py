"""Matched atoms: a permutation is the same dictionary, other atoms are not."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from interp.concepts.scores.stability import AtomStability, atom_stability, matched_cosines
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError, ShapeError


def dictionary(seed, latents=40, width=24):
    return TopK(Standardisation.identity(width, "mid"), latents, 2, seed=seed)


def test_the_matching_is_the_best_of_all():
    a, b = np.random.default_rng(0).standard_normal((2, 4, 3))
    cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    best = max(sum(cosine[i, order[i]] for i in range(4)) for order in permutations(range(4)))
    assert abs(matched_cosines(a, b).sum() - best) < 1e-12


def test_a_permutation_is_the_same_and_an_opposite_is_not(tmp_path):
    first, moved, opposite = dictionary(0), dictionary(0), dictionary(0)
    with torch.no_grad():
        moved.atoms.copy_(moved.atoms[torch.randperm(40)])
        opposite.atoms.neg_()
    found = atom_stability({"first": first, "moved": moved, "opposite": opposite, "other": dictionary(1)})
    cosine = found.data["cosine"].sel(first="first")
    assert abs(float(cosine.sel(second="moved")) - 1) < 1e-6
    assert float(cosine.sel(second="opposite")) < 0.7 and float(cosine.sel(second="other")) < 0.7
    assert float(found.data["shared"].sel(first="first", second="moved")) == 1
    chance = float(found.data["random_cosine"].sel(first="first", second="other"))
    assert abs(float(cosine.sel(second="other")) - chance) < 0.05  # untrained dictionaries are random ones
    found.save(tmp_path / "it.nc")
    assert AtomStability.load(tmp_path / "it.nc").plot().data and "random" in str(found)


def test_a_surplus_has_no_partner():
    assert len(matched_cosines(np.eye(3)[:2], np.eye(3))) == 2


def test_refusals():
    with pytest.raises(InterpError, match="at least two"):
        atom_stability({"one": dictionary(0)})
    with pytest.raises(ShapeError, match="'b': 12"):
        atom_stability({"a": dictionary(0), "b": dictionary(0, width=12)})
