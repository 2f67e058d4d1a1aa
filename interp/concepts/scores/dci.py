"""Disentanglement, completeness, informativeness: what a linear predictor of the factors needs of the codes.

For each factor a logistic regression with an L1 penalty predicts every one of its values (among the rows that have the
factor) from codes of unit variance. Importance R_ij of latent i for factor j is the sum of its absolute weights over
the factor's values.

    disentanglement of i    D_i = 1 − H(R_i· / Σ_j R_ij), entropy to the base of the number of factors
    completeness of j       C_j = 1 − H(R_·j / Σ_i R_ij), to the base of the number of latents
    informativeness of j    the share of held-out rows whose value is predicted rightly

D is the mean of D_i weighted by Σ_j R_ij, C and I are means over factors. D = 1: no latent serves two factors. C = 1: a
factor is told by one latent (which a factor of several values can only be if it is a scale), so C compares
dictionaries, and its height means little.

Source: Eastwood & Williams 2018 (ICLR), with their lasso as a classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.concepts.scores.coded import SparseRows
from interp.tasks.known_factors import KnownFactors

ROWS = 2000
"""Rows that a predictor learns from, at most."""
_PENALTY_C = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Dci:
    """Of one contender.

    Attributes:
        disentanglement, completeness: as the module says.
        informativeness: of each factor; NaN for one that has one value only.
        importance: R.
    """

    disentanglement: float
    completeness: float
    informativeness: Mapping[str, float]
    importance: Float[np.ndarray, "latent factor"]


def dci(codes: SparseRows, known: KnownFactors, chosen: Bool[np.ndarray, "row"], seed: int = 0) -> Dci:
    """Learned on the chosen rows, judged on the others. Factors with a single value take no part."""
    wanted, random = known.indicators(), np.random.default_rng(seed)
    several = [factor for factor, names in known.factors.items() if len(names) > 1]
    columns = codes.tocsc()
    mean = columns.sum(axis=0) / codes.shape[0]
    spread = np.sqrt(np.maximum(columns.power(2).sum(axis=0) / codes.shape[0] - mean**2, 0))
    scaled = codes.multiply(np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-12)[None]).tocsr()
    importance, right = np.zeros((codes.shape[1], len(several))), dict.fromkeys(known.factors, np.nan)
    for j, factor in enumerate(several):
        own = wanted[:, known.columns[factor]]
        has = own.any(1)
        learning, judged = (np.flatnonzero(has & half) for half in (chosen, ~chosen))
        learning = np.sort(random.permutation(learning)[:ROWS])
        weights, scores = _predictors(scaled, own, learning, judged)
        importance[:, j] = weights
        right[factor] = float((scores.argmax(1) == own[judged].argmax(1)).mean()) if len(judged) else np.nan
    d, c = disentanglement(importance), completeness(importance)
    return Dci(d, c, right, importance)


def disentanglement(importance: Float[np.ndarray, "latent factor"]) -> float:
    """The weighted mean of D_i; NaN for fewer than two factors, or where nothing has importance."""
    weight = importance.sum(1)
    if importance.shape[1] < 2 or not weight.sum() > 0:
        return np.nan
    return float(((1 - _entropy(importance.T, importance.shape[1])) * weight).sum() / weight.sum())


def completeness(importance: Float[np.ndarray, "latent factor"]) -> float:
    """The mean of C_j over factors that some latent is important for; NaN if there is none, or one latent only."""
    found = importance[:, importance.sum(0) > 0]
    if not found.shape[1] or len(found) < 2:
        return np.nan
    return float((1 - _entropy(found, len(found))).mean())


def _entropy(importance: Float[np.ndarray, "over of"], base: int) -> Float[np.ndarray, "of"]:
    total = importance.sum(0)
    share = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    return -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(0) / np.log(base)


def _predictors(
    scaled: SparseRows,
    own: Bool[np.ndarray, "row value"],
    learning: Int[np.ndarray, "learning"],
    judged: Int[np.ndarray, "judged"],
) -> tuple[Float[np.ndarray, "latent"], Float[np.ndarray, "judged value"]]:
    """(absolute weights summed over values, scores of the judged rows)."""
    from sklearn.linear_model import LogisticRegression

    weights, scores = np.zeros(scaled.shape[1]), np.full((len(judged), own.shape[1]), -np.inf)
    learned = scaled[learning]
    learned.indices, learned.indptr = learned.indices.astype(np.int32), learned.indptr.astype(np.int32)  # liblinear's
    for value in range(own.shape[1]):
        y = own[learning, value]
        if y.all() or not y.any():  # nothing to learn: it is certain, or cannot be known
            scores[:, value] = np.inf if y.all() and len(y) else -np.inf
            continue
        model = LogisticRegression(l1_ratio=1, C=_PENALTY_C, solver="liblinear", random_state=0)
        model.fit(learned, y)
        weights += np.abs(model.coef_[0])
        if len(judged):
            scores[:, value] = model.decision_function(scaled[judged])
    return weights, scores
