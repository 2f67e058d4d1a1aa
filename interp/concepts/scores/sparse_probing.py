"""How many latents does it take to read a value? F1 of logistic regressions that see k latents.

The k latents are those with the largest absolute correlation with the value on the selection rows; the regression and
the threshold of its probability (the one of largest F1) are fitted there, too. F1 is counted on the held-out rows.

Source: Gurnee et al. 2023, "Finding Neurons in a Haystack" (arXiv:2305.01610); SAEBench ranks latents by the difference
of means. A correlation is that difference in units of the code's spread, so that a latent does not win by its scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from interp.concepts.scores.coded import SparseRows
from interp.concepts.scores.detection import best_cuts

KS = (1, 2, 5)
"""Latents that a probe sees."""


def sparse_probes(
    codes: SparseRows,
    wanted: Bool[np.ndarray, "row value"],
    chosen: Bool[np.ndarray, "row"],
    correlation: Float[np.ndarray, "latent value"],
) -> Float[np.ndarray, "value k"]:
    """Held-out F1 by value and k; NaN for a value that all selection rows have, or none.

    Args:
        correlation: of latents with values, on the chosen rows.
    """
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

    columns, out = codes.tocsc(), np.full((wanted.shape[1], len(KS)), np.nan)
    for value in range(wanted.shape[1]):
        y = wanted[:, value]
        if not y[chosen].any() or y[chosen].all():
            continue
        ranked = np.argsort(-np.abs(correlation[:, value]), kind="stable")[: max(KS)]
        x = columns[:, ranked].toarray()
        x = x / np.maximum(x[chosen].std(0), 1e-12)
        for i, k in enumerate(KS):
            model = LogisticRegression(max_iter=1000).fit(x[chosen, :k], y[chosen])
            p = model.predict_proba(x[:, :k])[:, 1:]
            _, cut = best_cuts(csr_array(p[chosen]), y[chosen, None])
            on = p[~chosen, 0] > cut[0, 0]
            out[value, i] = 2 * (on & y[~chosen]).sum() / max(1, on.sum() + y[~chosen].sum())
    return out
