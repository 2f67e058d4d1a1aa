"""What codes say of a dictionary without any truth: how much it explains, with how many latents, which of them repeat.

| score | definition | better |
|---|---|---|
| explained | 1 − Σ ‖x − x̂‖² / Σ ‖x − mean‖², standardised | high |
| L0 | latents on per row | low |
| dead | share of latents that are on in no row | low |
| duplicate atoms | share of latents that have a twin before them: cosine of atoms above 0.95 | low |
| duplicate codes | the same by the correlation of codes | low |
| density | share of rows in which a latent is on; a histogram over latents, by decades | |
| decorrelation | 1 − mean absolute correlation of two different latents | high |

Decorrelation is the proxy of monosemanticity of Yan et al. 2024 (arXiv:2406.17969), who use it as a regulariser; they
correlate neurons of a layer, and we latents that are alive. It rewards latents that are hardly ever on: a random
dictionary does well by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.concepts.scores.coded import Coded, SparseRows

TWIN = 0.95
"""Cosine of atoms, or correlation of codes, from which two latents are the same."""
DECADES = np.array([0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
"""Bounds of the density histogram; the first bin also holds dead latents."""
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Intrinsic:
    """Of one contender.

    Attributes:
        l0, dead, duplicate_atoms, duplicate_codes, decorrelation: as the module says. NaN: it has no atoms, or fewer
            than two live latents.
        density: latents in each decade.
    """

    l0: float
    dead: float
    duplicate_atoms: float
    duplicate_codes: float
    decorrelation: float
    density: Int[np.ndarray, "decade"]


def intrinsic(one: Coded) -> Intrinsic:
    """The scores of a contender that need no truth (but for `explained`, which has an interval)."""
    rows, latents = one.codes.shape
    share = one.codes.count_nonzero(axis=0) / rows
    alive = np.flatnonzero(share > 0)
    twins, size, pairs = 0, 0.0, len(alive) * (len(alive) - 1)
    if len(alive) > 1:
        for start, block in _correlations(one.codes[:, alive]):
            own = np.abs(block)
            own[np.arange(len(own)), start + np.arange(len(own))] = 0
            size += float(own.sum())
            twins += _with_earlier(block, start)
    atoms = np.nan
    if one.atoms is not None:
        unit = one.atoms / np.maximum(np.linalg.norm(one.atoms, axis=1, keepdims=True), 1e-12)
        blocks = ((s, unit[s : s + _AT_ONCE] @ unit.T) for s in range(0, latents, _AT_ONCE))
        atoms = sum(_with_earlier(block, start) for start, block in blocks) / latents
    return Intrinsic(
        l0=float(one.codes.count_nonzero() / rows),
        dead=(latents - len(alive)) / latents,
        duplicate_atoms=atoms,
        duplicate_codes=twins / latents,
        decorrelation=1 - size / pairs if pairs else np.nan,
        density=np.histogram(share, DECADES)[0],
    )


def _with_earlier(block: Float[np.ndarray, "some latent"], start: int) -> int:
    """How many latents of a block have a twin before themselves."""
    before = np.arange(block.shape[1]) < start + np.arange(len(block))[:, None]
    return int(((block > TWIN) & before).any(1).sum())


def _correlations(codes: SparseRows) -> Iterator[tuple[int, Float[np.ndarray, "some latent"]]]:
    """(where a block begins, correlation of its latents with all); all must be alive."""
    rows = codes.shape[0]
    columns = codes.tocsc()
    mean = columns.sum(axis=0) / rows
    deviation = np.sqrt(np.maximum(columns.power(2).sum(axis=0) / rows - mean**2, 1e-24))
    for start in range(0, codes.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        both = (columns[:, part].T @ columns).toarray() / rows
        yield start, (both - np.outer(mean[part], mean)) / np.outer(deviation[part], deviation)


def monosemanticity(codes: SparseRows, meaning: Float[np.ndarray, "row meaning"]) -> Float[np.ndarray, "latent"]:
    """How alike the rows are in which a latent is on: the mean similarity of two of them, weighted by both codes.

        MS = Σ_{n≠m} c_n c_m ⟨e_n, e_m⟩ / Σ_{n≠m} c_n c_m

    e are unit vectors that say what rows mean; here they come from known factors, so that two rows are as similar as
    the share of factors that they have in common. The sums over pairs follow from sums over rows. NaN where a latent is
    on in fewer than two rows. What a latent that is always on reaches is the mean similarity of two rows: chance.

    Source: Pach et al. 2025 (arXiv:2504.02821), who take e from an image encoder, and codes after scaling each latent
        to 0 … 1; codes here begin at 0, and a scale cancels.
    """
    columns = codes.tocsc()
    weighted, squares = columns.T @ meaning, columns.power(2)
    same = squares.T @ np.square(meaning).sum(1)
    total = columns.sum(axis=0) ** 2 - squares.sum(axis=0)
    pairs = np.square(weighted).sum(1) - same
    several = columns.count_nonzero(axis=0) > 1
    return np.divide(pairs, total, out=np.full(codes.shape[1], np.nan), where=several & (total > 0))
