"""Intrinsic scores of codes that were written by hand; monosemanticity against its sum over pairs."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from interp.concepts.scores.coded import Coded
from interp.concepts.scores.intrinsic import intrinsic, monosemanticity


def contender(codes, atoms):
    return Coded("it", "dictionary", csr_array(np.array(codes, float)), np.array(atoms, float), None, None)


def test_twins_and_the_dead_by_hand():
    codes = [[1, 2, 0, 0, 0], [0, 0, 3, 0, 0], [2, 4, 0, 0, 0], [0, 0, 0, 1, 0]]
    atoms = [[1, 0, 0], [0, 1, 0], [2, 0.1, 0], [0, 0, 1], [0, 0, -1]]
    found = intrinsic(contender(codes, atoms))
    assert found.l0 == 6 / 4 and found.dead == 1 / 5
    assert found.duplicate_atoms == 1 / 5  # the third is the first; the last is the opposite of the fourth
    assert found.duplicate_codes == 1 / 5  # the second is twice the first
    assert found.density.tolist() == [1, 0, 0, 0, 0, 4]
    own = np.corrcoef(np.array(codes, float)[:, :4].T)
    assert abs(found.decorrelation - (1 - np.abs(own[~np.eye(4, dtype=bool)]).mean())) < 1e-12


def test_three_of_a_kind_are_two_twins():
    codes = np.tile([[1.0], [0], [2]], (1, 3))
    assert intrinsic(contender(codes, np.eye(3))).duplicate_codes == 2 / 3


def test_nothing_alive():
    found = intrinsic(contender(np.zeros((3, 2)), np.eye(2)))
    assert found.dead == 1 and found.l0 == 0 and np.isnan(found.decorrelation)


def test_monosemanticity_is_the_sum_over_pairs():
    random = np.random.default_rng(0)
    codes = random.random((12, 4)) * (random.random((12, 4)) < 0.6)
    codes[:, 3] = 0
    codes[2, 3] = 1
    meaning = random.standard_normal((12, 5))
    meaning /= np.linalg.norm(meaning, axis=1, keepdims=True)
    found = monosemanticity(csr_array(codes), meaning)
    for latent in range(3):
        top = bottom = 0.0
        for n in range(12):
            for m in range(12):
                if n != m:
                    weight = codes[n, latent] * codes[m, latent]
                    top, bottom = top + weight * (meaning[n] @ meaning[m]), bottom + weight
        assert abs(found[latent] - top / bottom) < 1e-12
    assert np.isnan(found[3])  # on in one row only
