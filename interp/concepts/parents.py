"""Which parents a child has, told from how they occur together: the statistical basis of an edge.

For each child, a lasso over all latents of the level above it in the graph, whose penalty is the one with the smallest
BIC along the whole path; the chosen parents' coefficients are then those of least squares without a penalty, which
would shrink them. A parent without a coefficient is, given the chosen ones, not needed: in a linear world this is the
conditional-independence skeleton between two adjacent levels, whose arrows are known.

The null is the same procedure after the examples of the child have been exchanged (whole examples, so that what holds
within one stays): what a child seems to have of parents with which it has nothing in common.

Source: Zou, Hastie, Tibshirani 2007 for BIC along the path of the lasso; that edges between concepts are to be found
by sparse regression between adjacent levels is suggested by Kong et al. 2025 (arXiv:2512.10720), whose own procedure is
not published in what we could read.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int


def sparse_coefficients(
    parents: Float[np.ndarray, "place parent"], child: Float[np.ndarray, "place"]
) -> Float[np.ndarray, "parent"]:
    """Least-squares coefficients on the parents that a lasso chooses by BIC; 0 for all others.

    A parent or child that is constant has no coefficient.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LassoLarsIC

    out = np.zeros(parents.shape[1])
    deviation = parents.std(0)
    varies = np.flatnonzero(deviation > 1e-9 * max(1.0, np.abs(parents).max(initial=0)))
    if child.std() < 1e-9 * max(1.0, np.abs(child).max()) or not len(varies):
        return out
    centred = parents[:, varies] - parents[:, varies].mean(0)
    target = child - child.mean()
    ordinary = np.linalg.lstsq(centred, target, rcond=None)[0]
    left = target - centred @ ordinary
    variance = float(left @ left) / max(1, len(child) - len(varies) - 1)
    if variance < 1e-12 * float(target.var()):  # explained exactly: BIC has no noise to weigh parents against
        chosen = np.flatnonzero(np.abs(ordinary) * deviation[varies] > 1e-6 * child.std())
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of parents that are equal, one is dropped
            path = LassoLarsIC("bic", noise_variance=variance).fit(centred / deviation[varies], target)
        chosen = np.flatnonzero(path.coef_)
    if len(chosen):
        out[varies[chosen]] = np.linalg.lstsq(centred[:, chosen], target, rcond=None)[0]
    return out


def exchanged(example: Int[np.ndarray, "place"], seed: int) -> Int[np.ndarray, "place"]:
    """For each place, the place in another example that it changes with.

    Every example gets the places of another one, in order; those of a shorter one are begun again.
    """
    generator = np.random.default_rng(seed)
    names = np.unique(example)
    at = {name: np.flatnonzero(example == name) for name in names}
    order = generator.permutation(len(names))
    other = np.roll(order, 1)  # along one cycle, so that no example keeps its own places
    out = np.empty(len(example), dtype=int)
    for own, theirs in zip(names[order], names[other], strict=True):
        places = at[own]
        out[places] = at[theirs][np.arange(len(places)) % len(at[theirs])]
    return out
