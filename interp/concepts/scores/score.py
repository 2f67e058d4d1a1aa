"""`score_dictionary`: a dictionary, and everything that it must be better than, on one table.

Half of the groups (pictures, texts) *choose*: assignments, latents, thresholds, components, probes. The other half is
*held out*, and scored. What needs no truth (`interp.concepts.scores.intrinsic`) is measured on all activations.

What stands beside a dictionary: random atoms at the same L0, PCA, ICA, the raw channels, a supervised probe, and, if
one is given, a dictionary of a model that was never trained (`interp.concepts.scores.coded`). A score that the random
dictionary reaches as well says nothing about the training, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from interp.concepts.scores.absorption import absorbed
from interp.concepts.scores.coded import (
    LINEAR,
    Coded,
    SparseRows,
    coded,
    linear,
    probe,
    random_dictionary,
    standardised,
)
from interp.concepts.scores.dci import dci
from interp.concepts.scores.detection import counts, detectors
from interp.concepts.scores.intrinsic import DECADES, intrinsic, monosemanticity
from interp.concepts.scores.matching import assigned, correlation_of, correlations, moments
from interp.concepts.scores.result import HIGH, DictionaryScores
from interp.concepts.scores.sparse_probing import KS, sparse_probes
from interp.dictionaries.activations import Activations
from interp.dictionaries.dictionary import Dictionary
from interp.errors import InterpError, ShapeError
from interp.progress import Progress, silent
from interp.results import provenance
from interp.statistics import ratio_interval, statistic_interval
from interp.tasks.known_factors import KnownFactors

if TYPE_CHECKING:
    from xarray import Dataset

COVERED = 0.8
"""F1 above which a value is covered."""
SELDOM = 3
"""A value that fewer groups of either half have is not scored."""


def score_dictionary(
    dictionaries: Dictionary | Mapping[str, Dictionary],
    activations: Activations,
    known: KnownFactors,
    *,
    untrained: tuple[Dictionary, Activations] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> DictionaryScores:
    """Score dictionaries of one site against known factors, beside their baselines.

    Args:
        dictionaries: one, or several by name; all read the same activations.
        activations: rows that the dictionaries were not trained on, if the scores are to hold for others.
        known: what is true of them.
        untrained: a dictionary that was trained on a model with random weights, and that model's activations of the
            same inputs.
        seed: of the halves, random atoms, ICA and intervals.

    Raises:
        InterpError: no dictionary; a name that a baseline has.
        ShapeError: activations that do not fit a dictionary, or are not as many as the table speaks of; too few groups.
    """
    named = {dictionaries.kind: dictionaries} if isinstance(dictionaries, Dictionary) else dict(dictionaries)
    _check(named, activations, known, untrained)
    halves = _Halves.of(known, seed)
    found, made = [], {}
    for name, dictionary in named.items():
        one = coded(name, dictionary, activations)
        k = max(1, round(one.codes.count_nonzero() / max(1, one.codes.shape[0])))
        found.append(one)
        size = dictionary.n_latents, min(k, dictionary.n_latents)
        if size not in made:
            random = random_dictionary(dictionary, size[1], seed)
            made[size] = coded(f"random, {size[0]}, k = {size[1]}", random, activations, "random")
    first = next(iter(named.values()))
    x = standardised(first, activations)
    found += made.values()
    found += [linear(name, x, halves.activations, seed) for name in LINEAR]
    if untrained is not None:
        found.append(coded("untrained model", *untrained, role="control"))
    found.append(probe(halves.pooled @ x, halves.wanted, halves.chosen))
    scores = [_scored(one, x, known, halves, seed) for one in progress(found, f"{len(found)} contenders")]
    record = provenance(
        experiment="scores of dictionaries", sites=list(first.read.sites), seed=seed,
        n_activations=len(activations), n_rows=len(halves.wanted), n_groups=int(halves.group.max()) + 1,
        n_held_out=int((~halves.chosen).sum()), kinds={name: one.kind for name, one in named.items()},
        seldom=[name for name, often in zip(known.names, halves.scored, strict=True) if not often],
    )  # fmt: skip
    return DictionaryScores(_dataset(found, scores, known), record)


@dataclass(frozen=True, slots=True, eq=False)
class _Halves:
    """Rows, their truth, and which of them choose."""

    wanted: Bool[np.ndarray, "row value"]
    group: np.ndarray  # dense, from 0
    chosen: Bool[np.ndarray, "row"]
    scored: Bool[np.ndarray, "value"]
    pooled: SparseRows  # [row, activation], each row's mean
    activations: Bool[np.ndarray, "activation"]  # of rows that choose

    @classmethod
    def of(cls, known: KnownFactors, seed: int) -> _Halves:
        from scipy.sparse import csr_array

        wanted, group = known.indicators(), np.unique(known.group, return_inverse=True)[1]
        n = int(group.max()) + 1
        first = np.zeros(n, bool)
        first[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
        chosen = first[group]
        often = [
            [len(np.unique(group[half & wanted[:, v]])) for v in range(wanted.shape[1])] for half in (chosen, ~chosen)
        ]
        region = np.arange(len(wanted)) if known.region is None else known.region
        inside = np.flatnonzero(region >= 0)
        size = np.bincount(region[inside], minlength=len(wanted))
        pooled = csr_array(
            (1 / size[region[inside]], (region[inside], inside)), shape=(len(wanted), len(region)), dtype=np.float64
        )
        return cls(wanted, group, chosen, np.min(often, axis=0) >= SELDOM, pooled, (region >= 0) & chosen[region])

    @property
    def held_groups(self) -> np.ndarray:
        """Groups of the held-out rows, numbered from 0."""
        return np.unique(self.group[~self.chosen], return_inverse=True)[1]


def _check(
    named: Mapping[str, Dictionary],
    activations: Activations,
    known: KnownFactors,
    untrained: tuple[Dictionary, Activations] | None,
) -> None:
    if not named:
        raise InterpError("No dictionary to score; give at least one.")
    taken = {*LINEAR, "supervised probe", "untrained model"}
    if clash := [name for name in named if name in taken or name.startswith("random")]:
        raise InterpError(f"{clash[0]!r} is the name of a baseline; call the dictionary something else.")
    for rows in (activations, *(() if untrained is None else (untrained[1],))):
        if len(rows) != known.n_activations:
            raise ShapeError(f"{len(rows)} activations, and a table that speaks of {known.n_activations}.")
    if (n := len(np.unique(known.group))) < 2 * SELDOM:
        raise ShapeError(f"The rows come from {n} groups; both halves need {SELDOM}, so give at least {2 * SELDOM}.")
    widths = {name: one.read.width for name, one in named.items()}
    if len(set(widths.values())) > 1:
        raise ShapeError(f"Dictionaries of different widths, {widths}, do not read the same activations.")


def _scored(one: Coded, x: np.ndarray, known: KnownFactors, halves: _Halves, seed: int) -> dict[str, Any]:
    """All scores of a contender, by the names that they have in the result."""
    alone = intrinsic(one)
    out: dict[str, Any] = {name: getattr(alone, name) for name in alone.__slots__}
    out |= _explained(one, known, halves, seed)
    codes = one.codes if one.role == "ceiling" else (halves.pooled @ one.codes).tocsr()
    out |= _against_truth(codes, halves, seed)
    out |= _importance(codes, known, halves, seed)
    meaning = halves.wanted / np.sqrt(np.maximum(halves.wanted.sum(1, keepdims=True), 1))
    ms = monosemanticity(codes, meaning)
    out["monosemanticity"] = float(np.nanmean(ms)) if not np.isnan(ms).all() else np.nan
    out["absorption"] = np.full(len(known.names), np.nan)
    if one.atoms is not None and one.autoencodes and one.role != "control":  # whose activations are others
        out["absorption"] = _absorption(one.atoms, codes, halves.pooled @ x, known, halves, out["unions"])
    return out


def _explained(one: Coded, known: KnownFactors, halves: _Halves, seed: int) -> dict[str, float]:
    if one.error is None or one.total is None:
        return dict.fromkeys(("explained", "explained_low", "explained_high"), np.nan)
    region = np.arange(len(one.error)) if known.region is None else known.region
    group = halves.group[region][region >= 0]
    error, total = (np.bincount(group, weights=part[region >= 0]) for part in (one.error, one.total))
    left, low, high = (float(value) for value in ratio_interval(error, total, seed=seed))
    return {"explained": 1 - left, "explained_low": 1 - high, "explained_high": 1 - low}


def _against_truth(codes: SparseRows, halves: _Halves, seed: int) -> dict[str, Any]:
    chosen, wanted, groups = halves.chosen, halves.wanted, halves.held_groups
    scored = halves.scored
    correlation = correlations(codes[chosen], wanted[chosen])
    latent, sign = assigned(correlation)
    sums = moments(codes[~chosen], latent, wanted[~chosen], groups)
    matched = correlation_of(sums.sum(0), sign)
    out: dict[str, Any] = {"matched_latent": latent, "correlation": np.where(scored, matched, np.nan)}

    def mean_correlation(drawn: np.ndarray) -> np.ndarray:
        return correlation_of(drawn, sign)[..., scored].mean(-1)

    out |= _with_interval("mcc", sums, mean_correlation, seed)
    best = detectors(codes[chosen], wanted[chosen])
    hits = counts(best.on(codes[~chosen]), wanted[~chosen], groups)
    f1, low, high = ratio_interval(np.moveaxis(hits[..., 0], 0, -1), np.moveaxis(hits[..., 1], 0, -1), seed=seed)
    together = counts(best.any_on(codes[~chosen]), wanted[~chosen], groups).sum(0)
    for name, value in {"f1": f1, "f1_low": low, "f1_high": high}.items():
        out[name] = np.where(scored, value, np.nan)
    out["latent"], out["threshold"], out["unions"] = best.latent, best.threshold, best
    out["union_f1"] = np.where(scored, together[:, 0] / np.maximum(together[:, 1], 1), np.nan)
    out["splitting"] = np.where(scored, [float(len(union)) for union in best.unions], np.nan)

    def each_f1(drawn: np.ndarray) -> np.ndarray:
        return (drawn[..., 0] / np.maximum(drawn[..., 1], 1))[..., scored]

    out |= _with_interval("mean_f1", hits, lambda drawn: each_f1(drawn).mean(-1), seed)
    out |= _with_interval("coverage", hits, lambda drawn: (each_f1(drawn) > COVERED).mean(-1), seed)
    probing = sparse_probes(codes, wanted, chosen, correlation)
    out["sparse_probing"] = np.where(scored[:, None], probing, np.nan)
    return out


def _with_interval(name: str, sums: np.ndarray, statistic: Any, seed: int) -> dict[str, float]:
    value = statistic_interval(sums, statistic, seed=seed, resamples=1000)
    return {end: float(number) for end, number in zip((name, f"{name}_low", f"{name}_high"), value, strict=True)}


def _importance(codes: SparseRows, known: KnownFactors, halves: _Halves, seed: int) -> dict[str, Any]:
    found = dci(codes, known, halves.chosen, seed)
    right = np.array([found.informativeness[factor] for factor in known.factors])
    mean = float(np.nanmean(right)) if not np.isnan(right).all() else np.nan
    return {
        "disentanglement": found.disentanglement, "completeness": found.completeness, "informativeness": mean,
        "predicted": right,
    }  # fmt: skip


def _absorption(
    atoms: Float[np.ndarray, "latent width"],
    codes: SparseRows,
    x: Float[np.ndarray, "row width"],
    known: KnownFactors,
    halves: _Halves,
    best: Any,
) -> Float[np.ndarray, "value"]:
    """Of each value that implies another, the share of its held-out rows on which the other is absorbed."""
    out, held = np.full(len(known.names), np.nan), np.flatnonzero(~halves.chosen)
    any_on = best.any_on(codes[held])
    for child, parent in known.parents.items():
        c, p = known.names.index(child), known.names.index(parent)
        has = halves.wanted[:, p] & halves.chosen
        without = ~halves.wanted[:, p] & halves.chosen
        if not (halves.scored[c] and halves.scored[p] and without.any()):
            continue
        direction = x[has].mean(0) - x[without].mean(0)
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        rows = halves.wanted[held, c]
        projection = (x[held[rows]] - x[halves.chosen].mean(0)) @ direction
        lost = absorbed(codes[held[rows]], atoms, projection, direction, ~any_on[rows, p])
        out[c] = lost.mean()
    return out


def _dataset(found: Sequence[Coded], scores: Sequence[Mapping[str, Any]], known: KnownFactors) -> Dataset:
    import xarray as xr

    def stacked(name: str) -> np.ndarray:
        return np.array([one[name] for one in scores])

    single = [name for name, value in scores[0].items() if isinstance(value, float)]
    variables: dict[str, Any] = {name: ("dictionary", stacked(name)) for name in single}
    for name in (
        "correlation", "f1", "f1_low", "f1_high", "union_f1", "splitting", "absorption", "threshold", "latent",
        "matched_latent",
    ):  # fmt: skip
        variables[name] = (("dictionary", "value"), stacked(name))
    variables |= {
        "density": (("dictionary", "decade"), stacked("density")),
        "predicted": (("dictionary", "factor"), stacked("predicted")),
        "sparse_probing": (("dictionary", "value", "k"), stacked("sparse_probing")),
        "n_latents": ("dictionary", [one.n_latents for one in found]),
        "role": ("dictionary", [one.role for one in found]),
        "kind": ("dictionary", [one.kind for one in found]),
    }
    of = [factor for factor, names in known.factors.items() for _ in names]
    decades = [f"{low:g} to {high:g}" for low, high in pairwise(DECADES)]
    data = xr.Dataset(
        variables,
        {
            "dictionary": [one.name for one in found], "value": list(known.names), "factor": list(known.factors),
            "k": list(KS), "decade": decades, "of_factor": ("value", of),
            "parent": ("value", [known.parents.get(name, "") for name in known.names]),
        },
    )  # fmt: skip
    for name in data.data_vars:
        data[name].attrs["units"] = {"l0": "latents per row", "n_latents": "latents"}.get(str(name), "dimensionless")
    assert set(HIGH) <= set(map(str, data.data_vars))
    return data
