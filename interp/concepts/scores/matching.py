"""Mean correlation coefficient: latents assigned to values one to one, and how well they go with them.

The correlation of a code with "the row has the value" is measured for every latent and value. The assignment is the one
to one that makes the sum of absolute correlations largest (Hungarian method), chosen on the *selection* rows. What is
reported is measured on the held-out rows, with the sign that it had in the selection: a latent that was chosen by luck
then counts for about 0, and may count against. Values without a latent count 0.

Source: the mean correlation coefficient of Hyvärinen & Morioka 2016 ("Unsupervised Feature Extraction by
Time-Contrastive Learning and Nonlinear ICA"), who assign and measure on the same rows. (Matthews' coefficient shares
the initials.)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.concepts.scores.coded import SparseRows


def correlations(codes: SparseRows, wanted: Bool[np.ndarray, "row value"]) -> Float[np.ndarray, "latent value"]:
    """Of every latent with every value; 0 where one of them is constant."""
    rows, columns = codes.shape[0], codes.tocsc()
    mean, share = columns.sum(axis=0) / rows, wanted.mean(0)
    spread = np.sqrt(np.maximum(columns.power(2).sum(axis=0) / rows - mean**2, 0))
    covariance = (columns.T @ wanted.astype(float)) / rows - np.outer(mean, share)
    scale = np.outer(spread, np.sqrt(share * (1 - share)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def assigned(
    correlation: Float[np.ndarray, "latent value"],
) -> tuple[Int[np.ndarray, "value"], Float[np.ndarray, "value"]]:
    """(latent, sign) of each value; −1 where there are fewer latents than values."""
    from scipy.optimize import linear_sum_assignment

    latents, values = linear_sum_assignment(np.abs(correlation), maximize=True)
    latent = np.full(correlation.shape[1], -1)
    latent[values] = latents
    sign = np.zeros(correlation.shape[1])
    sign[values] = np.sign(correlation[latents, values])
    return latent, sign


def moments(
    codes: SparseRows,
    latent: Int[np.ndarray, "value"],
    wanted: Bool[np.ndarray, "row value"],
    group: Int[np.ndarray, "row"],
) -> Float[np.ndarray, "group value 5"]:
    """Of each group the sums that the correlation of a value with its latent is made of: 1, c, y, c², c·y."""
    c = codes.tocsc()[:, np.maximum(latent, 0)].toarray() * (latent >= 0)
    parts = np.stack([np.ones_like(c), c, wanted, c**2, c * wanted], -1)
    out = np.zeros((group.max() + 1, *parts.shape[1:]))
    np.add.at(out, group, parts)
    return out


def correlation_of(
    sums: Float[np.ndarray, "*draw value 5"], sign: Float[np.ndarray, "value"]
) -> Float[np.ndarray, "*draw value"]:
    """From sums of `moments` the correlations, with their signs; 0 where a code or a value is constant."""
    n = np.maximum(sums[..., 0], 1)
    c, y, cc, cy = (sums[..., i] / n for i in range(1, 5))
    scale = np.sqrt(np.maximum(cc - c**2, 0) * np.maximum(y - y**2, 0))
    return np.divide(cy - c * y, scale, out=np.zeros_like(scale), where=scale > 1e-12) * sign
