"""How high a concept is, in numbers: how far it spreads, how much it moves, from when on it can be told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from interp.concepts.levels import Observed

_TOLD = 0.5
"""Share of a code's variance from which on states tell it."""
_RIDGE = 1e-2


def spread(codes: Float[np.ndarray, "place latent"], example: Int[np.ndarray, "place"]) -> Float[np.ndarray, "latent"]:
    """Entropy of where a latent is on within an example, divided by the largest possible: 0 one place, 1 everywhere.

    The mean over examples in which it is on, and which have two places or more; NaN if there are none.
    """
    total, count = np.zeros(codes.shape[1]), np.zeros(codes.shape[1])
    for own in np.unique(example):
        here = codes[example == own]
        if len(here) < 2:
            continue
        mass = here.sum(0)
        share = here / np.where(mass > 0, mass, 1)
        entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(0) / np.log(len(here))
        total += np.where(mass > 0, entropy, 0)
        count += mass > 0
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def breadth(effects: Sequence[Float[np.ndarray, "parent child"]], n_nodes: int) -> Float[np.ndarray, "node"]:
    """How many children a latent moves: (Σ |effect|)² / Σ effect², from 1 to their number. NaN in the last level."""
    out, start = np.full(n_nodes, np.nan), 0
    for effect in effects:
        size = np.abs(np.nan_to_num(effect))  # a parent that is never on was not clamped, and has no breadth
        squares = (size**2).sum(1)
        out[start : start + len(effect)] = np.where(
            squares > 0, size.sum(1) ** 2 / np.where(squares > 0, squares, 1), np.nan
        )
        start += len(effect)
    return out


def decodable(seen: Observed, codes: Sequence[Float[np.ndarray, "place latent"]]) -> Float[np.ndarray, "node"]:
    """The first level whose states tell a latent's code at the same place: R² of half or more, on held-out examples.

    By ridge regression, fitted on every other example. NaN where no level tells it, its own included.
    """
    names = np.unique(seen.example.numpy())
    fitted = np.isin(seen.example.numpy(), names[::2])
    target = np.concatenate(codes, 1)
    out = np.full(target.shape[1], np.nan)
    centre = target[fitted].mean(0)
    variance = ((target[~fitted] - centre) ** 2).sum(0)
    for number, states in reversed(list(enumerate(seen.states))):
        x = states.double().cpu().numpy()
        x = x - x[fitted].mean(0)
        gram = x[fitted].T @ x[fitted]
        ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram + ridge, x[fitted].T @ (target[fitted] - centre))
        left = ((target[~fitted] - centre - x[~fitted] @ weights) ** 2).sum(0)
        out[(variance > 0) & (left < _TOLD * variance)] = number
    return out
