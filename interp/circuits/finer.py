"""Nodes in finer parts: which neurons of an MLP, and at which tokens a node, matter?

Attribution patching of parts: (clean − corrupted activation) · gradient at the base run, first-order estimates of what
patching that neuron, or that node at that token, would do. One forward and one backward pass see them all. Parts add
up: a node's scores over positions to its score by `attribution_patching`, a layer's neurons to its MLP's (where no norm
follows the MLP). They mislead as that does: a neuron that a saturated one stands in for scores nothing. Check the few
that matter exactly, by `interp.patch(model, task, "mlp_act", over=("layer", "unit"), units=[…])` and
`interp.patch(model, task, "z", over=("layer", "head", "pos"))`.

Scores of parts and no edges between them: an edge between tokens of two nodes would need receivers of their own per
position (all pairs of them, in attention), and one between neurons d_mlp times as many senders.

Source: Nanda, "Attribution Patching" (2023); of neurons, as there; Kramár et al. 2024, "AtP*" (arXiv:2403.00745), whose
corrections for saturated attention are not made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.circuits.gradients import backward
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Direction, Pairs, Problem, checked_direction
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class PartScores(Result):
    """Scores of parts of nodes.

    `.data` holds over `layer` × `neuron`, or `node` × `pos`: `score`, in the metric's unit: an estimate of how much the
    metric gains when this part carries its clean instead of its corrupted value, mean over the pairs that reach it;
    `error`, the standard error of that mean; and per `example` the metric's `clean` and `corrupted`. Positions count
    from the first token; where all clean prompts have the same `token` there, it is named.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"{p['method'].capitalize()} · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    def table(self, n: int = 10) -> DataFrame:
        """The n parts of the highest |score|, strongest first: where they are, `score` and `error`."""
        import pandas

        score = self.data["score"]
        known = np.flatnonzero(np.isfinite(score.values))
        order = known[np.argsort(-np.abs(score.values.flat[known]), kind="stable")[:n]]
        columns: dict[str, Any] = {
            str(dim): score[dim].values[at]
            for dim, at in zip(score.dims, np.unravel_index(order, score.shape), strict=True)
        }
        columns |= {name: self.data[name].values.flat[order] for name in ("score", "error")}
        return pandas.DataFrame(columns)

    def summary(self) -> str:
        """The strongest parts."""
        dims, unit = self.data["score"].dims, self.data["score"].attrs["unit"]
        ends = (f"{which} {float(self.data[which].mean()):+.3f}" for which in ("clean", "corrupted"))
        lines = [f"PartScores: {self.title}", f"  {self.provenance['metric']} {', '.join(ends)} {unit}"]
        lines.append("  strongest (± standard error):")
        for row in self.table(5).to_dict("records"):
            named = ", ".join(f"{dim} {row[str(dim)]}" for dim in dims)
            lines.append(f"  {row['score']:+.3f} ± {row['error']:.3f} {named}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Heat map of the scores; of neurons, the 40 with the highest |score| in any layer."""
        from interp.plots import heatmap

        score, unit = self.data["score"], self.data["score"].attrs["unit"]
        y, x = (str(dim) for dim in score.dims)
        labels = None
        if x == "neuron" and score.sizes["neuron"] > 40:
            score = score.isel(neuron=np.sort(np.argsort(-np.abs(score.values).max(0), kind="stable")[:40]))
        if x == "neuron":
            labels = [str(number) for number in score["neuron"].values]
            score = score.assign_coords(neuron=np.arange(score.sizes["neuron"]))
        elif "token" in self.data.coords:
            labels = [str(token) for token in self.data["token"].values]
        return heatmap(score, x=x, y=y, title=self.title, unit=unit, x_labels=labels)


def neuron_scores(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
) -> PartScores:
    """Attribution of every MLP neuron (what its output projection reads), all positions together [layer, neuron].

    Raises:
        InterpError: as `Problem.of`.
        SiteError: a model whose MLPs have no such neurons (mixtures of experts).
    """
    for layer in range(model.n_layers):
        model.check(Site("mlp_act", layer))
    problem = Problem.of(model, task, metric, only_right)
    sites = model.sites("mlp_act")
    products = _products(problem, checked_direction(direction), sites, budget)
    values = torch.cat([torch.stack([x.sum(1) for x in some], 1) for _, some in products])
    width = values.shape[-1]
    coords = {"layer": list(range(model.n_layers)), "neuron": list(range(width))}
    return _scores(problem, "attribution patching of neurons", values, coords, direction)


def position_scores(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
) -> PartScores:
    """Attribution of every node (embedding, heads at z, MLPs) at every position [node, pos].

    Raises:
        InterpError: as `Problem.of`.
    """
    problem = Problem.of(model, task, metric, only_right)
    clean = problem.encoded.clean
    width = clean.ids.shape[1]
    sites = [Site("resid_pre", 0)]
    sites += [Site(part, layer) for layer in range(model.n_layers) for part in ("z", "mlp_out")]
    found = []
    for prompts, products in _products(problem, checked_direction(direction), sites, budget):
        columns = [x if x.ndim == 4 else x[..., None, :] for x in products]
        values = torch.cat([x.sum(-1) for x in columns], 2).transpose(1, 2)  # [example, node, pos]
        values = torch.where(prompts.mask[:, None, : values.shape[-1]], values, torch.nan)
        found.append(torch.nn.functional.pad(values, (0, width - values.shape[-1]), value=torch.nan))
    coords: dict[str, Any] = {"node": list(problem.graph.senders), "pos": list(range(width))}
    if shared := _shared_tokens(clean):
        coords["token"] = ("pos", shared)
    return _scores(problem, "attribution patching by position", torch.cat(found), coords, direction)


def _products(
    problem: Problem, direction: str, sites: Sequence[Site], budget: int
) -> Iterator[tuple[Prompts, list[Tensor]]]:
    """Of groups of pairs: the clean prompts, and (clean − corrupted activation) · gradient at every site."""
    model = problem.model
    for rows, clean, corrupted, _ in problem.groups(2, budget):
        ends = [run(model, prompts, (), sites, logits=False).activations for prompts in (clean, corrupted)]
        taps = [model.tap(site) for site in sites]
        base = clean if direction == "noising" else corrupted
        gradients = backward(model, base, problem.readout, rows, taps).gradients
        yield clean, [(ends[0][site] - ends[1][site]) * g for site, g in zip(sites, gradients, strict=True)]


def _shared_tokens(prompts: Prompts) -> list[str]:
    """The token at each position, empty where prompts differ; nothing if they differ in length."""
    if int(prompts.lengths.min()) < prompts.ids.shape[1]:
        return []
    same, tokens = (prompts.ids == prompts.ids[0]).all(0).tolist(), prompts.tokens[0]
    return [f"{pos} {tokens[pos]}" if alike else str(pos) for pos, alike in enumerate(same)]


def _scores(problem: Problem, method: str, values: Tensor, coords: dict[str, Any], direction: str) -> PartScores:
    import xarray as xr

    dims = tuple(name for name in coords if name != "token")
    array = values.double().cpu().numpy()
    n = np.isfinite(array).sum(0)
    mean = np.nansum(array, 0) / np.where(n > 0, n, np.nan)
    squares = np.nansum((array - mean) ** 2, 0)
    error = np.sqrt(squares / np.where(n > 1, (n - 1) * n, np.nan))
    unit = {"unit": problem.metric.unit}
    variables: dict[str, Any] = {"score": (dims, mean, unit), "error": (dims, error, unit)}
    variables |= {which: ("example", x.double().cpu().numpy(), unit) for which, x in problem.values.items()}
    data = xr.Dataset(variables, {**coords, "example": list(range(len(problem.encoded)))})
    return PartScores(data, problem.record(method, direction=direction))
