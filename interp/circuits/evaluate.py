"""How far to trust a circuit: does it do alone what the whole model does, and do random ones not?

A circuit runs on the clean prompts; every edge outside of it carries the corrupted run's term (`EdgePatching`). With
m the mean of the metric over pairs,

    faithfulness f(C) = (m(C) − m(corrupted)) / (m(clean) − m(corrupted))

is 1 where the circuit does as well as the model, 0 where it is as good as none; it may exceed 1, where what was cut
away spoke against the answer. Over circuits of growing size, a share k of the edges,

    CPR = ∫ f dk (higher is better)        CMD = ∫ |1 − f| dk (lower is better)

by the trapezoid rule between the first and the last size, so that f = 1 everywhere gives CPR = last − first size.

Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (arXiv:2504.13151). Like there, sizes are
counted before dead ends are pruned. Intervals and random circuits are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.circuits.patching import BUDGET, EdgePatching
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.select import MIB_SIZES, nested, random_like
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result
from interp.statistics import recovered

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_RESAMPLES = 2000


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Result):
    """Faithfulness of circuits of growing size, and of random ones.

    `.data` holds over `size` (share of the edges): `edges`, their number; `value`, the metric of each circuit per
    `example`; `faithfulness`, with its 95 % bootstrap interval over pairs, `low` and `high`; `random`, the faithfulness
    of `draw` random circuits with as many edges of every type, and `p`, the share of circuits (this one counted among
    the random ones) that are at least as faithful. Scalars `cpr` and `cmd`, with `_low` and `_high`, exist from two
    sizes on; per `example` the metric's `clean` and `corrupted`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Faithfulness of circuits by {p['method']} · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    def summary(self) -> str:
        """A line per size, and whether it beats chance."""
        data, p = self.data, self.provenance
        lines = [f"Evaluation: {self.title}"]
        if "cpr" in data:
            low, high = float(data["cpr_low"]), float(data["cpr_high"])
            lines.append(
                f"  CPR {float(data['cpr']):.3f} ({low:.3f} to {high:.3f}), CMD {float(data['cmd']):.3f} "
                f"({float(data['cmd_low']):.3f} to {float(data['cmd_high']):.3f}), sizes {float(data['size'][0]):g} to "
                f"{float(data['size'][-1]):g}"
            )
        for i, size in enumerate(data["size"].values):
            chance = ""
            if "random" in data and not np.isnan(data["p"].values[i]):
                # With few random circuits the smallest p there is says as much as it can.
                passed = data["p"].values[i] <= max(0.05, 1 / (1 + p["n_random"]))
                chance = f"; random {data['random'].values[i].mean():.3f}, p {data['p'].values[i]:.2g}"
                chance += "" if passed else ": NOT better than random"
            lines.append(
                f"  {size:.2%} ({int(data['edges'].values[i]):,} edges): {data['faithfulness'].values[i]:.3f} "
                f"({data['low'].values[i]:.3f} to {data['high'].values[i]:.3f}){chance}"
            )
        if p["n_random"] and 1 / (1 + p["n_random"]) > 0.05:
            lines.append(
                f"  {p['n_random']} random circuits cannot give p below {1 / (1 + p['n_random']):.2g}; take 19 or more"
            )
        lines.append(f"  the model gets {p['n_right']} of {p['n_attempted']} pairs right, {p['n_scored']} scored")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Faithfulness over size, with its interval; random circuits with the range of their middle 95 %."""
        import xarray as xr

        from interp.plots import curves

        data = self.data
        rows = [[data[name].values for name in ("faithfulness", "low", "high")]]
        lines = [self.provenance["method"]]
        if "random" in data:
            drawn = data["random"].values
            rows.append([drawn.mean(1), np.quantile(drawn, 0.025, axis=1), np.quantile(drawn, 0.975, axis=1)])
            lines.append("random, same types")
        stacked = np.array(rows).transpose(1, 0, 2)
        y, low, high = (
            xr.DataArray(x, dims=("circuits", "size"), coords={"circuits": lines, "size": data["size"].values})
            for x in stacked
        )
        figure = curves(
            y, x="size", line="circuits", low=low, high=high, title=self.title, unit="share of the gap",
            quantity="faithfulness", x_title="edges in the circuit (share)", baseline=1.0, bars=False,
        )  # fmt: skip
        figure.update_xaxes(type="log")
        return figure


def evaluate(
    model: LanguageModel,
    task: Pairs,
    circuits: EdgeScores | Circuit | Sequence[Circuit],
    *,
    sizes: Sequence[float] = MIB_SIZES,
    absolute: bool = True,
    grow: bool = False,
    n_random: int = 19,
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> Evaluation:
    """Faithfulness of nested circuits, against random circuits of the same types of edges.

    Scores that were found on the same pairs have been fitted to them: evaluate on others.

    Args:
        circuits: scores, from which circuits of `sizes` are taken (`nested`); or a circuit, or some of growing size.
        sizes: shares of the edges.
        absolute: as in `top_n`.
        grow: as in `nested`.
        n_random: random circuits per size; 0 for none. 19 allow p = 0.05.
        budget: as in `EdgePatching`.
        seed: of the random circuits and the bootstrap.

    Raises:
        InterpError: as `Problem.of` and `nested`; a circuit of another model; circuits that do not grow.
        PairError: as `Problem.of`; a gap between clean and corrupted that is within its own uncertainty.
    """
    problem = Problem.of(model, task, metric, only_right)
    found = [circuits] if isinstance(circuits, Circuit) else circuits
    for one in [found] if isinstance(found, EdgeScores) else found:
        if (one.graph.weights, one.graph.model) != (problem.graph.weights, problem.graph.model):
            raise InterpError(f"This is of {one.graph.model}; {model.name} has other weights.")
    if isinstance(found, EdgeScores):
        shares, chosen = list(sizes), nested(found, sizes, absolute=absolute, grow=grow)
        method = found.provenance["method"]
    else:
        chosen = list(found)
        shares = [float(one.edges.sum() / problem.graph.n_edges) for one in chosen]
        method = chosen[0].provenance["method"] if chosen else ""
    if not shares or shares != sorted(set(shares)):
        raise InterpError(f"Give at least one circuit, and several by growing size; got shares of the edges {shares}.")
    clean, corrupted = (problem.values[which].double().cpu().numpy() for which in ("clean", "corrupted"))
    recovered(
        corrupted[None], clean, corrupted, problem.metric.name, seed=seed
    )  # refuses pairs without a gap before any work
    cut = EdgePatching(model, problem.encoded.clean, problem.encoded.corrupted, problem.metric, budget)
    generator = np.random.default_rng(seed)
    values = np.empty((len(chosen), len(problem.encoded)))
    drawn = np.full((len(chosen), n_random, len(problem.encoded)), np.nan)
    for i, one in enumerate(progress(chosen, "circuits")):
        values[i] = _kept(cut, one.edges)
        for j in range(n_random):
            # All edges: there is only one such circuit.
            drawn[i, j] = (
                values[i] if one.edges.sum() == problem.graph.n_edges else _kept(cut, random_like(one, generator))
            )
    return _result(problem, np.array(shares), chosen, method, values, drawn, seed)


def _kept(cut: EdgePatching, edges: np.ndarray) -> np.ndarray:
    """The metric of the circuit of these edges."""
    outside = torch.from_numpy(cut.graph.edges & ~edges).to(cut.model.device, cut.model.dtype)
    return cut(outside).double().cpu().numpy()


def _result(
    problem: Problem,
    shares: np.ndarray,
    chosen: Sequence[Circuit],
    method: str,
    values: np.ndarray,
    drawn: np.ndarray,
    seed: int,
) -> Evaluation:
    import xarray as xr

    name, unit = problem.metric.name, {"unit": problem.metric.unit}
    clean, corrupted = (problem.values[which].double().cpu().numpy() for which in ("clean", "corrupted"))
    f, low, high = recovered(values, clean, corrupted, name, seed=seed)
    share = {"unit": "share of the gap"}
    variables: dict[str, Any] = {
        "edges": ("size", [int(one.edges.sum()) for one in chosen]),
        "value": (("size", "example"), values, unit),
        "faithfulness": ("size", f, share), "low": ("size", low, share), "high": ("size", high, share),
        "clean": ("example", clean, unit), "corrupted": ("example", corrupted, unit),
    }  # fmt: skip
    if drawn.shape[1]:
        chance = (drawn.mean(-1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
        whole = np.array([one.edges.sum() == problem.graph.n_edges for one in chosen])
        p = (1 + (chance >= f[:, None]).sum(1)) / (1 + drawn.shape[1])
        variables["random"] = (("size", "draw"), chance, share)
        variables["p"] = ("size", np.where(whole, np.nan, p), {"unit": "share of random circuits"})
    if len(shares) > 1:
        for key, (value, *ends) in areas(shares, values, clean, corrupted, seed).items():
            for suffix, x in zip(("", "_low", "_high"), (value, *ends), strict=True):
                variables[key + suffix] = ((), x, {"unit": "area"})
    data = xr.Dataset(variables, {"size": shares, "example": list(range(len(clean)))})
    record = problem.record(
        method, selection=[one.provenance["selection"] for one in chosen], n_random=drawn.shape[1], seed=seed,
        ablation="corrupted run",
    )  # fmt: skip
    return Evaluation(data, {**record, "experiment": "circuit evaluation"})


def areas(
    shares: np.ndarray, values: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """CPR and CMD, each with a 95 % percentile bootstrap interval over pairs (NaN for a single pair).

    Args:
        shares: [size], growing.
        values: metric of each circuit [size, example].
        clean: of the model on clean prompts [example].
        corrupted: on corrupted ones [example].
        seed: of the draws.
    """
    from scipy.integrate import trapezoid

    n = len(clean)

    def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(CPR, CMD) of draws [draw, example]."""
        gap = (clean - corrupted)[rows].mean(-1)
        f = (values[:, rows].mean(-1) - corrupted[rows].mean(-1)) / gap
        return trapezoid(f, shares, axis=0), trapezoid(np.abs(1 - f), shares, axis=0)

    means = of(np.arange(n)[None])
    found = {}
    draws = of(np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))) if n > 1 else None
    for number, name in enumerate(("cpr", "cmd")):
        ends = (np.nan, np.nan) if draws is None else np.quantile(draws[number], [0.025, 0.975])
        found[name] = (float(means[number][0]), float(ends[0]), float(ends[1]))
    return found
