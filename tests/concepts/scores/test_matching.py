"""Correlations against numpy's, the assignment against all permutations, and luck that does not survive other rows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy.sparse import csr_array

from interp.concepts.scores.matching import assigned, correlation_of, correlations, moments


def drawn(seed, rows=60, latents=4, values=3):
    random = np.random.default_rng(seed)
    codes = random.random((rows, latents)) * (random.random((rows, latents)) < 0.5)
    return codes, random.random((rows, values)) < 0.4


def test_correlations_are_numpys():
    codes, wanted = drawn(0)
    codes[:, 3] = 0
    found = correlations(csr_array(codes), wanted)
    for latent in range(3):
        for value in range(3):
            assert abs(found[latent, value] - np.corrcoef(codes[:, latent], wanted[:, value])[0, 1]) < 1e-12
    assert (found[3] == 0).all()


def test_the_assignment_is_the_best_of_all():
    found = correlations(csr_array(drawn(1)[0]), drawn(1)[1])
    latent, sign = assigned(found)
    best = max(sum(abs(found[order[v], v]) for v in range(3)) for order in permutations(range(4), 3))
    assert abs(sum(sign[v] * found[latent[v], v] for v in range(3)) - best) < 1e-12 and len(set(latent)) == 3


def test_fewer_latents_than_values_leave_some_without():
    latent, sign = assigned(np.array([[0.2, -0.9, 0.1]]))
    assert latent.tolist() == [-1, 0, -1] and sign.tolist() == [0, -1, 0]


def test_sums_over_groups_make_correlations():
    codes, wanted = drawn(2)
    latent, sign = np.array([2, 0, -1]), np.array([1.0, -1, 0])
    sums = moments(csr_array(codes), latent, wanted, np.arange(60) // 6)
    found = correlation_of(sums.sum(0), sign)
    assert sums.shape == (10, 3, 5)
    assert abs(found[0] - np.corrcoef(codes[:, 2], wanted[:, 0])[0, 1]) < 1e-12
    assert abs(found[1] + np.corrcoef(codes[:, 0], wanted[:, 1])[0, 1]) < 1e-12
    assert found[2] == 0


def test_luck_in_the_selection_is_worth_nothing_on_other_rows():
    codes, wanted = drawn(3, rows=400, latents=200, values=20)
    correlation = correlations(csr_array(codes[:200]), wanted[:200])
    latent, sign = assigned(correlation)
    lucky = np.abs(correlation[latent, np.arange(20)]).mean()
    held = correlation_of(moments(csr_array(codes[200:]), latent, wanted[200:], np.arange(200)).sum(0), sign).mean()
    assert lucky > 0.15 and abs(held) < 0.05
