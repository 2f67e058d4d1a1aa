"""Disentanglement and completeness by hand; planted factors, and the same shuffled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from interp.concepts.scores.dci import completeness, dci, disentanglement
from interp.tasks.known_factors import KnownFactors


@pytest.mark.parametrize(
    ("importance", "d", "c"),
    [
        (np.eye(3), 1, 1),
        (np.ones((3, 3)), 0, 0),
        ([[1, 0], [1, 0], [0, 2]], 1, (1 - np.log(2) / np.log(3) + 1) / 2),
        ([[3, 1], [0, 0]], 1 + (0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2), 1),
    ],
)
def test_by_hand(importance, d, c):
    importance = np.array(importance, float)
    assert abs(disentanglement(importance) - d) < 1e-12 and abs(completeness(importance) - c) < 1e-12


def test_undefined():
    assert np.isnan(disentanglement(np.ones((3, 1)))) and np.isnan(disentanglement(np.zeros((3, 2))))
    assert np.isnan(completeness(np.ones((1, 2)))) and np.isnan(completeness(np.zeros((3, 2))))


def planted(shuffle):
    random = np.random.default_rng(0)
    values = random.integers(0, 3, (600, 2))
    known = KnownFactors({"a": ("a0", "a1", "a2"), "b": ("b0", "b1", "b2")}, values, np.arange(600) // 4)
    codes = known.indicators() * random.uniform(1, 2, (600, 6))
    noise = random.random((600, 4)) * (random.random((600, 4)) < 0.3)
    return csr_array(np.concatenate([codes, noise], 1)), known.shuffled(1) if shuffle else known


def test_planted_factors_are_disentangled():
    found = dci(*planted(False), np.arange(600) < 300)
    assert found.disentanglement > 0.95 and min(found.informativeness.values()) > 0.97
    assert found.completeness > 0.4  # three latents for three values: 1 − ln 3 / ln 10 = 0.52


def test_shuffled_factors_are_not():
    found = dci(*planted(True), np.arange(600) < 300)
    assert max(found.informativeness.values()) < 0.45 and not found.disentanglement > 0.6


def test_a_factor_of_one_value_takes_no_part():
    codes, known = planted(False)
    both = KnownFactors({**known.factors, "c": ("c0",)}, np.pad(known.values, ((0, 0), (0, 1))), known.group)
    found = dci(codes, both, np.arange(600) < 300)
    assert found.importance.shape == (10, 2) and np.isnan(found.informativeness["c"])
