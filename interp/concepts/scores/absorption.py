"""Absorption: a value's own latents are silent, and a latent of something more special stands in for them.

A dictionary that is trained to be sparse saves a latent where it can: if every circle is round, a latent for circles
can carry "round" as well, and the latent for round things falls silent on circles. Then it looks precise and is not
what it seems. A held-out row that has the value is *absorbed* if

1. no latent of the value's union (`interp.concepts.scores.detection`) is on,
2. some latent i stands in: its code pushes along the value's direction d by at least 0.4 of what the row itself has,
   c_i ⟨a_i, d⟩ ≥ 0.4 ⟨x − mean, d⟩ > 0, and its atom is not just orthogonal by luck, cos(a_i, d) ≥ 0.025.

d is the difference of means between selection rows with the value and without it, standardised. The rate is the share
of the rows with a *child* value (one that implies it) that are absorbed.

Source: full absorption of Chanin et al. 2024 (arXiv:2409.14507) and SAEBench, with their two constants. They take d and
the truth from a probe and the union's latents from sparse probes; here the truth is known.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from interp.concepts.scores.coded import SparseRows

SHARE, COSINE = 0.4, 0.025
"""Of the row's own projection that a latent must reach, and of its atom with d."""


def absorbed(
    codes: SparseRows,
    atoms: Float[np.ndarray, "latent width"],
    projection: Float[np.ndarray, "row"],
    direction: Float[np.ndarray, "width"],
    silent: Bool[np.ndarray, "row"],
) -> Bool[np.ndarray, "row"]:
    """Which rows of a value are absorbed.

    Args:
        codes: of rows that have the value.
        atoms: of the dictionary.
        projection: ⟨x − mean, d⟩ of each row.
        direction: d, of unit length.
        silent: whether no latent of the value's union is on.
    """
    from scipy.sparse import diags_array

    along = atoms @ direction
    along[along < COSINE * np.linalg.norm(atoms, axis=1)] = 0
    strongest = (codes @ diags_array(along)).max(axis=1).toarray().ravel()
    return silent & (projection > 0) & (strongest >= SHARE * projection)
