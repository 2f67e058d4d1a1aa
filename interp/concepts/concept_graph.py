"""The graph of which concepts compose which, each edge with two weights that were found independently.

Between adjacent levels, and nowhere else, every pair of a parent and a child has

- `predicted`: from how they occur together (`interp.concepts.parents`). The child's coefficient on the parent, given
  the other parents that it needs, times the parent's typical code: by how much the child should rise if the parent went
  from off to on;
- `effect`: by how much it does rise when the parent is clamped (`interp.concepts.clamped`).

Both are in the child's typical code: 1 means that the parent alone brings the child to where it usually is when it is
on. A pair is an edge if both have the same sign and each lies above the `quantile` of its own null: for the one,
examples exchanged; for the other, directions of chance, as long. Frequencies and correlations alone make no edge, and
neither does an effect of something that never occurs.

Start with `concept_graph`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from interp.concepts.clamped import Clamping, Effects, clamp
from interp.concepts.graph_result import ConceptGraph
from interp.concepts.levels import ConceptLevel, Observed, check_order, observe
from interp.concepts.parents import exchanged, sparse_coefficients
from interp.concepts.quantified import breadth, decodable, spread
from interp.errors import InterpError
from interp.models.denoiser import Denoiser, Sampling
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.progress import Progress, silent
from interp.results import provenance
from interp.statistics import bootstrap_interval


def concept_graph(
    model: LanguageModel | Denoiser,
    inputs: Any,
    levels: Sequence[ConceptLevel],
    *,
    quantile: float = 0.99,
    shuffles: int = 25,
    clamping: Clamping = Clamping(),
    first: int = 1,
    progress: Progress = silent,
) -> ConceptGraph:
    """Parents and children among the latents of levels, on some inputs.

    Args:
        inputs: prompts, or a sampling of a pipeline: what the statistics are taken over, and the places are drawn from.
        levels: in the order in which the model computes them; two or more.
        quantile: of its null, above which a weight counts.
        shuffles: exchanges of examples, for the statistical null.
        clamping: how many places and directions of chance, and from which seed.
        first: position of a prompt from which on places count; of pictures, all cells do.

    Raises:
        InterpError: as `check_order` and `observe`; fewer than two examples; too few shuffles or draws to tell the
            `quantile`; more cells than an example has.
    """
    check_order(model, levels)
    given = model.sampling(inputs) if isinstance(model, Denoiser) else model.prompts(inputs)
    smallest = min(len(lv.latents) for lv in levels[:-1])
    if not 0 < quantile < 1 or min(shuffles, clamping.draws) * smallest * (1 - quantile) < 1 or clamping.examples < 2:
        raise InterpError(
            f"quantile={quantile} with {shuffles} shuffles and {clamping.draws} draws of {smallest} parents: a null "
            f"has as many entries as draws times parents, and needs {1 / max(1e-9, 1 - quantile):.0f}. At least 2 rows."
        )
    seen = observe(model, given, levels, clamping.branch, first)
    places = np.unique(seen.example.numpy(), return_counts=True)[1]
    if len(places) < 2 or places.min() < clamping.cells:
        raise InterpError(
            f"{len(places)} examples with {places.min()} places or more: at least 2 and {clamping.cells}."
        )
    codes = [c.double().cpu().numpy() for c in seen.codes]
    typical = [_typical(c) for c in codes]
    tables = []
    for number, (parents, children) in enumerate(pairwise(codes)):
        effects = clamp(model, seen, levels, number, typical[number], clamping, progress)
        scale = typical[number][:, None] / typical[number + 1]
        predicted, chance = _predicted(parents, children, seen, shuffles, clamping.seed)
        tables.append(_pairs(predicted * scale, chance * scale, effects, typical[number + 1], quantile))
    record = provenance(
        experiment="concept graph", model=model.name, weights=model.weights_hash,
        prompts=_asked(given),
        levels=[{"name": lv.name, "site": str(lv.site), "step": lv.step, "dictionary": lv.mark} for lv in levels],
        quantile=quantile, shuffles=shuffles, clamping=asdict(clamping) | {"branch": clamping.branch.value},
        seed=clamping.seed, first=first, n_attempted=len(seen.example), n_scored=len(seen.example),
    )  # fmt: skip
    return ConceptGraph(_dataset(levels, seen, codes, typical, tables), record)


def _asked(inputs: Prompts | Sampling) -> list[str]:
    if isinstance(inputs, Prompts):
        return ["".join(tokens) for tokens in inputs.tokens]
    return [str(prompt) for prompt in inputs.prompts]


def _typical(codes: Float[np.ndarray, "place latent"]) -> Float[np.ndarray, "latent"]:
    """Mean code where a latent is on; NaN if it never is."""
    on = (codes > 0).sum(0)
    return np.where(on > 0, codes.sum(0) / np.maximum(on, 1), np.nan)


def _predicted(
    parents: np.ndarray, children: np.ndarray, seen: Observed, shuffles: int, seed: int
) -> tuple[Float[np.ndarray, "parent child"], Float[np.ndarray, "shuffle parent child"]]:
    """Coefficients, and those after examples were exchanged."""

    def fitted(order: Any) -> np.ndarray:
        return np.stack([sparse_coefficients(parents, child[order]) for child in children.T], 1)

    orders = [exchanged(seen.example.numpy(), seed + draw) for draw in range(shuffles)]
    return fitted(slice(None)), np.stack([fitted(order) for order in orders])


def _pairs(
    predicted: Float[np.ndarray, "parent child"],
    chance: Float[np.ndarray, "shuffle parent child"],
    effects: Effects,
    typical: Float[np.ndarray, "child"],
    quantile: float,
) -> dict[str, np.ndarray]:
    """Every variable of an edge, [parent, child]."""
    by_example = effects.effect / typical[:, None]
    scored = (~np.isnan(by_example)).sum(-1)
    effect = np.where(scored > 0, np.nansum(by_example, -1) / np.maximum(scored, 1), np.nan)
    low, high = bootstrap_interval(by_example)
    # Effects of chance grow with the length of what is added: those of another parent are brought to this one's.
    null = np.abs(effects.null / typical[:, None]) / effects.length[:, None, None]
    own = np.abs(effect) / effects.length[:, None]
    statistical = _quantile(np.abs(predicted), np.abs(chance).transpose(2, 0, 1).reshape(chance.shape[2], -1))
    interventional = _quantile(own, null.transpose(1, 0, 2).reshape(null.shape[1], -1))
    return {
        "predicted": predicted, "effect": effect, "effect_low": low, "effect_high": high,
        "predicted_quantile": statistical, "effect_quantile": interventional,
        "edge": _both(predicted, effect, statistical, interventional, quantile),
    }  # fmt: skip


def _both(
    predicted: np.ndarray, effect: np.ndarray, statistical: np.ndarray, interventional: np.ndarray, quantile: float
) -> Bool[np.ndarray, "parent child"]:
    counts = (statistical >= quantile) & (interventional >= quantile)
    return counts & (np.sign(predicted) == np.sign(effect)) & (predicted != 0)


def _quantile(value: Float[np.ndarray, "parent child"], null: Float[np.ndarray, "child draw"]) -> np.ndarray:
    """Share of a child's null that lies below a value; NaN where either was not measured."""
    out = np.full(value.shape, np.nan)
    for c, draws in enumerate(null):
        known = draws[~np.isnan(draws)]
        if len(known):
            out[:, c] = (known[None] < value[:, c, None]).mean(1)
    return np.where(np.isnan(value), np.nan, out)


def _dataset(
    levels: Sequence[ConceptLevel],
    seen: Observed,
    codes: Sequence[np.ndarray],
    typical: Sequence[np.ndarray],
    tables: Sequence[dict[str, np.ndarray]],
) -> Any:
    import xarray as xr

    names = np.concatenate([[lv.name] * len(lv.latents) for lv in levels])
    latents = np.concatenate([list(lv.latents) for lv in levels])
    whole = np.concatenate(codes, 1)
    starts = np.cumsum([0, *(c.shape[1] for c in codes)])
    node = {
        "frequency": ("node", (whole > 0).mean(0), {"units": "share of places"}),
        "typical": ("node", np.concatenate(typical), {"units": "code"}),
        "spread": ("node", spread(whole, seen.example.numpy()), {"units": "share of the largest entropy"}),
        "breadth": ("node", breadth([t["effect"] for t in tables], len(whole.T)), {"units": "children"}),
        "decodable": ("node", decodable(seen, codes), {"units": "level, counted from 0"}),
        "covariance": (("node", "other"), np.cov(whole.T), {"units": "code²"}),
    }
    pairs = [np.indices(table["edge"].shape).reshape(2, -1) for table in tables]
    ends = np.concatenate([own + starts[number : number + 2, None] for number, own in enumerate(pairs)], axis=1)
    unit = {"units": "the child's typical code"}
    pair = {
        name: ("pair", np.concatenate([t[name].ravel() for t in tables]), {} if "quantile" in name else unit)
        for name in tables[0]
    }
    return xr.Dataset(
        node | pair,  # type: ignore[arg-type]  (tuples of two and of three)
        {
            "level": ("node", names),
            "latent": ("node", latents),
            "parent": ("pair", ends[0]),
            "child": ("pair", ends[1]),
        },
    )
