"""How much does each node, or each edge, matter? One function per answer, from exact to estimated.

Every score has the same unit and sign: **how much the metric gains when this node or edge carries its clean instead
of its corrupted term**, mean over pairs. (Instead of another term, under another `ablation`: methods that take one say
what an edge carries in the place of its clean term, see `interp.circuits.ablation`.) What the rest of the run is at
decides the `direction`:

- *noising*: the rest is clean. An edge that is needed scores high, as in ACDC (Conmy et al. 2023, arXiv:2304.14997).
- *denoising*: the rest is corrupted. An edge that suffices scores high.

| function | what it is | passes |
|---|---|---|
| `exact_nodes` | activation patching of each node | one row of a sweep per node |
| `exact_edges` | path patching of each edge: its direct effect, and what follows from its receiver | one row per edge |
| `attribution_patching` | first-order estimate of `exact_nodes` | one backward pass |
| `eap` | first-order estimate of `exact_edges` | one backward pass |
| `eap_ig` | the same, gradients averaged from corrupted to clean embeddings | `steps` |
| `eap_ig_activations` | the same, each layer's terms moved from corrupted to clean | `steps` × (2 · layers + 1) |
| `edge_masks` | no effect but the probability that the edge stays, trained together with all others | hundreds |
| `information_flow` | share of the receiver's input, blind to the metric (its unit is another: 0 to 1) | one pass |
| `random_scores` | the control | none |

Estimates see no threshold and no saturation: an AND of two edges, each of them blocked by the other, or an OR, is
invisible to any method that moves one edge at a time from one end. Compare directions, and check with `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.circuits.ablation import Ablated, Ablation
from interp.circuits.exact import edge_effects, node_effects
from interp.circuits.gradients import Start, backward, receiver_gradients
from interp.circuits.information_flow import information_flow
from interp.circuits.masks import edge_masks
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Direction, Pairs, Problem, checked_direction
from interp.circuits.results import EdgeScores, NodeScores, edge_scores, node_scores
from interp.circuits.stream import Terms
from interp.errors import InterpError, nearest
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.progress import Progress, silent

Points = Literal["midpoint", "right", "left", "shifted"]
GOLDEN = (5**0.5 - 1) / 2


def score(model: LanguageModel, task: Pairs, method: str = "eap-ig", **options: Any) -> EdgeScores:
    """Scores of every edge, by the name of a method.

    Args:
        method: `"eap-ig"`, `"eap-ig-activations"`, `"eap"`, `"exact"`, `"edge-masks"`, `"information-flow"` or
            `"random"`. (`acdc` scores no edges: it takes some away and leaves a circuit.)
        **options: of the method's function: `metric`, `steps`, `direction`, `ablation` …

    Raises:
        InterpError: an unknown method; an option that it does not take.
    """
    if method not in METHODS:
        raise InterpError(f"There is no method {method!r} that scores edges." + nearest(str(method), METHODS))
    check_options(method, METHODS[method], options)
    return METHODS[method](model, task, **options)


def attribution_patching(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
) -> NodeScores:
    """(clean − corrupted activation) · gradient at the base run, for every node: heads at z, MLPs at their output.

    Source: Nanda, "Attribution Patching" (2023); gradients at the clean run by default, where theirs are at the
    corrupted one (`direction="denoising"`).

    Raises:
        InterpError: as `Problem.of`.
    """
    problem = Problem.of(model, task, metric, only_right)
    graph, checked = problem.graph, checked_direction(direction)
    sites = [Site("resid_pre", 0)]
    sites += [Site(part, layer) for layer in range(graph.n_layers) for part in ("z", "mlp_out")]
    found = []
    for rows, clean, corrupted, _ in problem.groups(2, budget):
        ends = Terms.of(model, clean), Terms.of(model, corrupted)
        base = clean if checked == "noising" else corrupted
        taps = [model.tap(site) for site in sites]
        gradients = backward(model, base, problem.readout, rows, taps).gradients
        columns = []
        for site, gradient in zip(sites, gradients, strict=True):
            product = (ends[0].activations[site] - ends[1].activations[site]) * gradient
            summed = product.sum(1)
            columns.append(summed.sum(-1) if site.part == "z" else summed.sum(-1, keepdim=True))
        found.append(torch.cat(columns, 1))
    mean, error = _mean_and_error(torch.cat(found))
    return node_scores(problem, "attribution patching", mean, error, direction=direction)


def eap(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    ablation: str | Ablation = "resample",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
) -> EdgeScores:
    """Edge attribution patching: (clean − corrupted term of the sender) · gradient at the receiver's input.

    That is the derivative of `EdgePatching` by the edge's weight, at the base run.

    Source: Syed, Rager & Conmy 2023 (arXiv:2310.10348); their gradient is taken at the clean run, as here by default.

    Raises:
        InterpError: as `Problem.of` and `Ablated`.
        PairError: as `Problem.of` and `Ablated`.
    """
    problem = Problem.of(model, task, metric, only_right)
    ablated, sums = Ablated(problem, ablation, direction), _Sums(problem)
    for rows, clean, other, first in ablated.groups(2, budget):
        terms = Terms.of(model, clean).minus(_terms(model, other), problem.graph, first)
        base = _base(direction, clean, other)
        one = sums.of(len(rows))
        for receivers, gradient in receiver_gradients(model, problem.graph, base, problem.readout, rows, first=first):
            one.add(terms, receivers, gradient)
        sums.close(one)
    return edge_scores(problem, "EAP", *sums.result(), direction=direction, **ablated.facts)


def eap_ig(
    model: LanguageModel,
    task: Pairs,
    *,
    steps: int = 5,
    points: Points = "midpoint",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> EdgeScores:
    """EAP with integrated gradients over inputs: gradients averaged between corrupted and clean embeddings.

    Embeddings are corrupted + α · (clean − corrupted). The scores of the embedding's outgoing edges add up to
    metric(clean) − metric(corrupted), but for the error of the rule: with midpoints it falls as 1/steps².

    Args:
        steps: number of points α.
        points: `"midpoint"`: α = (k − ½)/steps; `"right"`: α = k/steps, the paper's rule; `"left"`: α = (k − 1)/steps,
            that of its code. The error of these two falls as 1/steps. `"shifted"`: each pair has midpoints shifted by
            an amount of its own, α = (k − 1 + u)/steps with u = ½ + number of the pair · 0.618… modulo 1 (the golden
            ratio keeps any number of them apart), so that a mean over n pairs has seen n · steps points of the path and
            not `steps`. Where the metric rises in narrow steps this finds what equal points fall beside; single
            pairs' errors fall as 1/steps and cancel in the mean, more or less as pairs are alike.

    `provenance["missing"]` is what the scores of the embedding's edges lack of the difference, as a share of it. Where
    the metric rises in steps narrower than 1/`steps`, points fall beside them: take more until little is missing.

    Source: Hanna, Pezzelle & Belinkov 2024 (arXiv:2403.17806).

    Raises:
        InterpError: as `Problem.of`; no step, or an unknown rule.
    """
    problem = Problem.of(model, task, metric, only_right)
    graph, moments = problem.graph, alphas(steps, points, len(problem.encoded))
    sums = _Sums(problem)
    for rows, clean, corrupted, first in progress(list(problem.groups(3, budget)), "groups of pairs"):
        ends = Terms.of(model, clean), Terms.of(model, corrupted)
        terms = ends[0].minus(ends[1], graph, first)
        away = ends[0].embedding - ends[1].embedding
        del ends
        mean = terms.new_zeros(len(graph.receivers), *terms.shape[:1], *terms.shape[2:])
        for alpha in _columns(moments, rows, away):
            start = Start(Site("resid_pre", 0), lambda x, alpha=alpha, away=away: x - (1 - alpha) * away)
            for receivers, gradient in receiver_gradients(model, graph, clean, problem.readout, rows, start, first):
                mean[receivers].add_(gradient, alpha=1 / steps)
        one = sums.of(len(rows))
        for receivers in _blocks(problem):
            one.add(terms, receivers, mean[receivers])
        sums.close(one)
    mean, error = sums.result()
    gap = float((problem.values["clean"] - problem.values["corrupted"]).double().mean())
    missing = 1 - float(mean[0].sum()) / gap if gap else np.nan
    facts = {"steps": steps, "points": points, "alphas": moments[0].tolist(), "missing": missing}
    return edge_scores(problem, "EAP-IG (inputs)", mean, error, **facts)


def eap_ig_activations(
    model: LanguageModel,
    task: Pairs,
    *,
    steps: int = 5,
    points: Points = "midpoint",
    direction: Direction = "noising",
    ablation: str | Ablation = "resample",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> EdgeScores:
    """EAP with integrated gradients over activations: each layer's terms moved from corrupted to clean, one by one.

    For the embedding, each layer's heads (together) and each MLP, the run is the base run but for these terms, which
    are corrupted + α · (clean − corrupted); gradients are averaged over α. The scores of a layer's outgoing edges add
    up to what patching that layer's terms does, but for the error of the rule.

    Args:
        steps: number of points.
        points: as in `eap_ig`.
        ablation: under `"zero"` scores of the embedding's edges are wrong: norms are blind to scale, so that all that
            happens on its way to zero happens next to zero, where no point falls.

    Source: Hanna, Pezzelle & Belinkov 2024 (arXiv:2403.17806), the variant of their code and of MIB
        (arXiv:2504.13151).

    Raises:
        InterpError: as `Problem.of` and `Ablated`; no step, or an unknown rule.
        PairError: as `Problem.of` and `Ablated`.
    """
    problem = Problem.of(model, task, metric, only_right)
    graph, ablated = problem.graph, Ablated(problem, ablation, direction)
    moments = alphas(steps, points, len(problem.encoded))
    writers = [(Site("resid_pre", 0), slice(0, 1))]
    for layer in range(graph.n_layers):
        at = graph.mlp_sender(layer)
        writers += [(Site("attn_out", layer), graph.heads(layer)), (Site("mlp_out", layer), slice(at, at + 1))]
    sums = _Sums(problem)
    for rows, clean, other, first in ablated.groups(2, budget):
        terms = Terms.of(model, clean).minus(_terms(model, other), graph, first)
        base = _base(direction, clean, other)
        one = sums.of(len(rows))
        for site, senders in progress(writers, "layers"):
            away = F.pad(terms[:, senders].sum(1), (0, 0, first, 0))
            for alpha in _columns(moments, rows, away):
                moved = alpha - 1 if direction == "noising" else alpha
                start = Start(site, lambda x, moved=moved, away=away: x + moved * away)
                for receivers, gradient in receiver_gradients(model, graph, base, problem.readout, rows, start, first):
                    one.add(terms, receivers, gradient / steps, senders)
        sums.close(one)
    facts = {"steps": steps, "points": points, "alphas": moments[0].tolist(), "direction": direction, **ablated.facts}
    return edge_scores(problem, "EAP-IG (activations)", *sums.result(), **facts)


def exact_nodes(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> NodeScores:
    """Activation patching of every node: a head's z, an MLP's output, the embedding. Exact.

    Args:
        budget: as in `sweep`.
        progress: as in `sweep`.
        checkpoint: as in `sweep`.

    Raises:
        InterpError: as `Problem.of`.
    """
    problem = Problem.of(model, task, metric, only_right)
    effects = node_effects(problem, checked_direction(direction), budget, progress, checkpoint)
    return node_scores(problem, "exact patching", *_mean_and_error(effects), direction=direction)


def exact_edges(
    model: LanguageModel,
    task: Pairs,
    *,
    direction: Direction = "noising",
    ablation: str | Ablation = "resample",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> EdgeScores:
    """Path patching of every edge: `EdgePatching` with a single 1, for all edges, as rows of sweeps. Exact.

    Args:
        budget: as in `sweep`.
        progress: over layers.
        checkpoint: as in `sweep`.

    Raises:
        InterpError: as `Problem.of` and `Ablated`.
        PairError: as `Problem.of` and `Ablated`.
    """
    problem = Problem.of(model, task, metric, only_right)
    ablated = Ablated(problem, ablation, direction)
    effects = edge_effects(ablated, direction, budget, progress, checkpoint)
    return edge_scores(problem, "exact patching", *_mean_and_error(effects), direction=direction, **ablated.facts)


def random_scores(
    model: LanguageModel,
    task: Pairs,
    *,
    seed: int = 0,
    metric: str = "logit_difference",
    only_right: bool = False,
) -> EdgeScores:
    """Standard normal numbers: what a score that knows nothing looks like.

    Raises:
        InterpError: as `Problem.of`.
    """
    problem = Problem.of(model, task, metric, only_right)
    drawn = np.random.default_rng(seed).standard_normal(problem.graph.edges.shape)
    return edge_scores(problem, "random", drawn, np.zeros_like(drawn), seed=seed)


METHODS: Mapping[str, Callable[..., EdgeScores]] = {
    "eap-ig": eap_ig,
    "eap-ig-activations": eap_ig_activations,
    "eap": eap,
    "exact": exact_edges,
    "edge-masks": edge_masks,
    "information-flow": information_flow,
    "random": random_scores,
}
"""Methods that score edges, by name."""


def check_options(method: str, function: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse options that a method does not take.

    Raises:
        InterpError: such an option; the message names the methods that take it, or those that this one takes.
    """
    takes = [name for name, one in signature(function).parameters.items() if one.kind is Parameter.KEYWORD_ONLY]
    for option in options:
        if option in takes:
            continue
        others = [name for name, other in METHODS.items() if option in signature(other).parameters]
        hint = f"; {', '.join(others)} do{'es' * (len(others) == 1)}." if others else "." + nearest(option, takes)
        raise InterpError(f"{method} takes no {option!r}{hint}")


def alphas(steps: int, points: str, n: int = 1) -> Float[np.ndarray, "pair step"]:
    """Where between corrupted (0) and clean (1) the gradients of each of n pairs are taken.

    Raises:
        InterpError: no step, or an unknown rule.
    """
    if steps < 1:
        raise InterpError(f"{steps} steps make no average; take at least 1.")
    fixed = {"midpoint": 0.5, "right": 1.0, "left": 0.0}
    offsets = {rule: np.full(n, offset) for rule, offset in fixed.items()}
    offsets["shifted"] = (0.5 + np.arange(n) * GOLDEN) % 1
    if points not in offsets:
        raise InterpError(f"There is no rule {points!r}." + nearest(str(points), offsets))
    return (np.arange(steps) + offsets[points][:, None]) / steps


def _columns(
    moments: Float[np.ndarray, "pair step"], rows: Int[Tensor, "row"], like: Tensor
) -> Iterator[Float[Tensor, "row 1 1"]]:
    """The points of some pairs, step by step."""
    for column in moments.T:
        yield torch.from_numpy(column).to(like)[rows, None, None]


def _terms(model: LanguageModel, other: Prompts | Terms) -> Terms:
    return other if isinstance(other, Terms) else Terms.of(model, other)


def _base(direction: str, clean: Prompts, other: Prompts | Terms) -> Prompts:
    """The prompts that run."""
    if direction == "noising":
        return clean
    assert isinstance(other, Prompts), "checked by Ablated"
    return other


def _blocks(problem: Problem) -> list[slice]:
    """Receivers that read the same senders."""
    graph = problem.graph
    blocks = []
    for layer in range(graph.n_layers):
        blocks += [graph.attention(layer), slice(graph.mlp(layer), graph.mlp(layer) + 1)]
    return [*blocks, slice(len(graph.receivers) - 1, len(graph.receivers))]


class _Sums:
    """Mean and standard error over pairs of scores [sender, receiver], without keeping them for each pair."""

    def __init__(self, problem: Problem) -> None:
        self.edges, self.dtype = problem.graph.edges, problem.model.dtype
        self.n, self.total, self.squares = 0, np.zeros(self.edges.shape), np.zeros(self.edges.shape)

    def of(self, n: int) -> _Scored:
        """Scores of n more pairs, to be filled."""
        return _Scored(n, self.edges, torch.promote_types(self.dtype, torch.float32))

    def close(self, scored: _Scored) -> None:
        """Count them."""
        values = scored.values.double()
        self.n += len(values)
        self.total += values.sum(0).cpu().numpy()
        self.squares += values.square().sum(0).cpu().numpy()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard error); the error of a single pair is not known."""
        mean = self.total / self.n
        if self.n < 2:
            return mean, np.full_like(mean, np.nan)
        variance = np.maximum(self.squares / self.n - mean**2, 0) * self.n / (self.n - 1)
        return mean, np.sqrt(variance / self.n)


class _Scored:
    def __init__(self, n: int, edges: np.ndarray, dtype: torch.dtype) -> None:
        self.edges, self.values = edges, torch.zeros(n, *edges.shape, dtype=dtype)

    def add(
        self,
        terms: Float[Tensor, "batch sender pos d_model"],
        receivers: slice,
        gradient: Float[Tensor, "receiver batch pos d_model"],
        senders: slice | None = None,
    ) -> None:
        """Add term · gradient, summed over positions, for all senders that these receivers read (or some)."""
        n = int(self.edges[:, receivers.start].sum())
        chosen = slice(0, n) if senders is None else senders
        products = torch.bmm(terms[:, chosen].flatten(2), gradient.permute(1, 2, 3, 0).flatten(1, 2))
        self.values[:, chosen, receivers] += products.cpu()


def _mean_and_error(values: Float[Tensor, "example ..."]) -> tuple[np.ndarray, np.ndarray]:
    values = values.double().cpu()
    n = len(values)
    error = values.std(0) / n**0.5 if n > 1 else torch.full_like(values[0], torch.nan)
    return values.mean(0).numpy(), error.numpy()
