"""Absorption by hand: who is silent, who stands in, and by how much."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from interp.concepts.scores.absorption import absorbed


def test_every_condition_by_hand():
    direction = np.array([1.0, 0, 0])
    atoms = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0.02, 1, 0], [-1, 0, 0]])
    rows = [  # codes, what the row has of the direction, whether the value's latents are silent; absorbed?
        ([0, 1.0, 0, 0], 1.0, True, True),  # 0.6 of 1
        ([0, 1.0, 0, 0], 1.0, False, False),  # its own latent is on
        ([0, 0.6, 0, 0], 1.0, True, False),  # 0.36 of 1 is too little
        ([0, 0, 50, 0], 1.0, True, False),  # as good as orthogonal: the cosine is 0.02
        ([0, 0, 0, 2.0], 1.0, True, False),  # the other way
        ([0, 1.0, 0, 0], -0.2, True, False),  # there is nothing to stand in for
        ([0, 0, 0, 0], 1.0, True, False),  # nobody
        ([0.5, 0.1, 0, 0], 1.0, True, True),  # any latent will do, if it is none of the value's
    ]
    codes, projection, silent, wanted = (np.array(part) for part in zip(*rows, strict=True))
    found = absorbed(csr_array(codes), atoms, projection, direction, silent)
    assert found.tolist() == wanted.tolist()
