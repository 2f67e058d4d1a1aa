"""Does one latent detect one value? F1 of "the code exceeds a threshold", latent and threshold chosen on other rows.

    F1 = 2 TP / (2 TP + FP + FN)

For every latent and value the threshold is the one with the largest F1 on the *selection* rows, of all that separate
two codes; the latent of a value is the one whose F1 is then largest. What is reported is counted on the held-out rows.

A value may be *split* over several latents. `union` adds latents to the best one, each the one that raises the F1 of
"any of them is on" most, as long as it rises by more than 0.03 (on selection rows). Their number is the value's
`splitting`: 1 where one latent says it all.

Source of the splitting: Chanin et al. 2024 (arXiv:2409.14507), who take the number of inputs of a sparse probe up to
which its F1 jumps by 0.03; the union needs no probe, and its latents are what absorption is asked of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.concepts.scores.coded import SparseRows

GAIN = 0.03
"""How much F1 a further latent must add."""
_CANDIDATES, _MOST = 50, 10


@dataclass(frozen=True, slots=True, eq=False)
class Detectors:
    """Of every value the latents that detect it, chosen on selection rows.

    Attributes:
        latent: the best one; −1 where no latent is on in a selection row.
        threshold: what its code must exceed.
        unions: the best one and those that the value is split over, with their thresholds.
    """

    latent: Int[np.ndarray, "value"]
    threshold: Float[np.ndarray, "value"]
    unions: tuple[tuple[tuple[int, float], ...], ...]

    def on(self, codes: SparseRows) -> Bool[np.ndarray, "row value"]:
        """Where each value's latent is on."""
        chosen = codes.tocsc()[:, np.maximum(self.latent, 0)].toarray()
        return (chosen > self.threshold) & (self.latent >= 0)

    def any_on(self, codes: SparseRows) -> Bool[np.ndarray, "row value"]:
        """Where any latent of each value's union is on."""
        columns, out = codes.tocsc(), np.zeros((codes.shape[0], len(self.latent)), bool)
        for value, union in enumerate(self.unions):
            for latent, threshold in union:
                out[:, value] |= columns[:, [latent]].toarray()[:, 0] > threshold
        return out


def detectors(codes: SparseRows, wanted: Bool[np.ndarray, "row value"]) -> Detectors:
    """Choose latents and thresholds; the rows given are those of the selection."""
    f1, threshold = best_cuts(codes, wanted)
    latent = np.where(f1.max(0, initial=0) > 0, f1.argmax(0), -1)
    at = np.maximum(latent, 0), np.arange(wanted.shape[1])
    columns = codes.tocsc()
    unions = tuple(
        _union(columns, wanted[:, value], f1[:, value], threshold[:, value]) if latent[value] >= 0 else ()
        for value in range(wanted.shape[1])
    )
    return Detectors(latent, threshold[at], unions)


def best_cuts(
    codes: SparseRows, wanted: Bool[np.ndarray, "row value"]
) -> tuple[Float[np.ndarray, "latent value"], Float[np.ndarray, "latent value"]]:
    """(F1, threshold) of every latent for every value: the best of all thresholds, not below 0.

    A threshold lies midway between two codes that occur (0 is one of them), so that no code is on it.
    """
    columns, positive = codes.tocsc(), wanted.sum(0)
    f1, threshold = np.zeros((codes.shape[1], wanted.shape[1])), np.zeros((codes.shape[1], wanted.shape[1]))
    value = np.arange(wanted.shape[1])
    for latent in range(codes.shape[1]):
        own = slice(columns.indptr[latent], columns.indptr[latent + 1])
        order = np.argsort(-columns.data[own], kind="stable")
        code = columns.data[own][order]
        if not len(code):
            continue
        hit = wanted[columns.indices[own][order]].cumsum(0)
        score = 2 * hit / (np.arange(1, len(code) + 1)[:, None] + positive)
        below = np.append(code[1:], 0)
        score[code == below] = -1  # equal codes fall on the same side
        at = score.argmax(0)
        f1[latent], threshold[latent] = score[at, value], (code[at] + below[at]) / 2
    return f1, threshold


def counts(
    on: Bool[np.ndarray, "row value"], wanted: Bool[np.ndarray, "row value"], group: Int[np.ndarray, "row"]
) -> Int[np.ndarray, "group value 2"]:
    """Of each group 2 TP, and 2 TP + FP + FN: F1 is the ratio of their sums."""
    both = np.stack([2 * (on & wanted), on.astype(int) + wanted], -1)
    out = np.zeros((group.max() + 1, *both.shape[1:]), int)
    np.add.at(out, group, both)
    return out


def _union(
    columns: SparseRows, wanted: Bool[np.ndarray, "row"], f1: Float[np.ndarray, "latent"], cut: np.ndarray
) -> tuple[tuple[int, float], ...]:
    """Greedily, of the latents that detect best alone."""
    candidates = np.argsort(-f1, kind="stable")[:_CANDIDATES]
    on = columns[:, candidates].toarray() > cut[candidates]
    chosen, best = [0], f1[candidates[0]]
    covered = on[:, 0]
    while len(chosen) < min(_MOST, len(candidates)):
        more = on | covered[:, None]
        score = 2 * (more & wanted[:, None]).sum(0) / (more.sum(0) + wanted.sum())
        if not score.max() > best + GAIN:
            break
        chosen.append(int(score.argmax()))
        best, covered = score.max(), more[:, chosen[-1]]
    return tuple((int(candidates[i]), float(cut[candidates[i]])) for i in chosen)
