"""Values that take one latent, or two."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from interp.concepts.scores.matching import correlations
from interp.concepts.scores.sparse_probing import sparse_probes


def test_a_value_that_is_either_of_two_latents_takes_two():
    random = np.random.default_rng(0)
    codes = (random.random((400, 8)) < 0.3) * random.uniform(1, 2, (400, 8))
    wanted = np.stack([codes[:, 0] > 0, (codes[:, 1] > 0) | (codes[:, 2] > 0), np.zeros(400, bool)], 1)
    chosen = np.arange(400) < 200
    both = csr_array(codes)
    found = sparse_probes(both, wanted, chosen, correlations(both[chosen], wanted[chosen]))
    assert found[0].min() > 0.99
    assert 0.6 < found[1, 0] < 0.85 and found[1, 1:].min() > 0.97
    assert np.isnan(found[2]).all()
