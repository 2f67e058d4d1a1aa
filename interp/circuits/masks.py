"""Masks that are learned: gates on all edges, or on all nodes, trained together to keep the behaviour with few of them.

Scores that look at one edge at a time miss edges that stand in for each other, or need each other. A mask is trained
as a whole. Every gate is drawn anew in every step from a *hard concrete* distribution, which is 0 or 1 with some
probability each and in between otherwise, and has gradients to its location log α (Louizos et al. 2018):

    s = sigmoid((log u − log(1 − u) + log α) / β),  u ~ U(0, 1)        gate = clip(s · (b − a) + a, 0, 1)
    P(gate > 0) = sigmoid(log α − β · log(−a / b)),                    β = 2/3, a = −0.1, b = 1.1

An open gate lets the clean run's own term pass, a closed one shows the corrupted run's (or, of edges, what another
ablation says). The loss is

    − mean metric + penalty · Σ P(gate > 0)

so a gate stays open if that gains more than `penalty`, in the metric's unit: the threshold of `acdc`, but weighed
against all other gates at once. How many stay open follows from it; for a circuit of a wanted size, select from the
scores, or try several penalties.

The score is P(gate > 0), between 0 and 1: how sure the mask is, not how much an edge matters. It has no sign.

Sources: `edge_masks`: Bhaskar, Wettig, Friedman & Chen 2024, "Finding Transformer Circuits with Edge Pruning"
(arXiv:2406.16778). `node_gates`: subnetwork probing, Cao, Sanh & Rush 2021 (arXiv:2104.03514), with corrupted terms
instead of zeros as in Conmy et al. 2023. We differ from the first in that the penalty is fixed, where theirs is trained
until a wanted share of edges is left, and that writers have no second set of gates; from the second in that gates of
heads sit at z and not on weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.ablation import Ablated, Ablation
from interp.circuits.gated import Gated
from interp.circuits.patching import BUDGET, EdgePatching
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import EdgeScores, NodeScores, edge_scores, node_scores
from interp.errors import InterpError
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
START = 4.0
"""log α before training: a gate is 0 in 0.4 % of draws, and less than 1 in 8 %, so that most show a gradient soon."""
SCORE_UNIT = "probability that the gate is open"


def edge_masks(
    model: LanguageModel,
    task: Pairs,
    *,
    penalty: float = 0.01,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 0.1,
    ablation: str | Ablation = "resample",
    metric: str = "negative_kl",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> EdgeScores:
    """The probability that each edge's gate is open, after training all edges' gates together (edge pruning).

    A step is one pass of `EdgePatching` and its gradient.

    Args:
        penalty: what an open edge costs, in the metric's unit.
        steps: of Adam.
        batch: pairs per step.
        learning_rate: of the gates' log α.
        ablation: what a closed gate shows; any but an optimal one.
        budget: as in `EdgePatching`.
        seed: of the draws.

    Raises:
        InterpError: as `Problem.of` and `Ablated`; a penalty that is not positive; no step, or no pairs in it.
        PairError: as `Problem.of` and `Ablated`.
    """
    problem = Problem.of(model, task, metric, only_right)
    edges, ablated = torch.from_numpy(problem.graph.edges), Ablated(problem, ablation)
    cut = EdgePatching(model, problem.encoded.clean, ablated.source, problem.metric, budget)

    def value(gates: Tensor, rows: Tensor) -> Tensor:
        patch = torch.zeros(edges.shape, device=gates.device, dtype=gates.dtype)
        return cut(patch.masked_scatter(edges.to(gates.device), 1 - gates), rows)

    gates = _Gates(problem, int(edges.sum()), penalty, learning_rate, seed)
    opened, facts = gates.train(value, steps, batch, cut.step, progress)
    score = np.full(edges.shape, np.nan)
    score[problem.graph.edges] = opened
    facts |= {"score_unit": SCORE_UNIT, **ablated.facts}
    return edge_scores(problem, "edge masks", score, np.full_like(score, np.nan), **facts)


def node_gates(
    model: LanguageModel,
    task: Pairs,
    *,
    penalty: float = 0.01,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 0.1,
    metric: str = "negative_kl",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> NodeScores:
    """The probability that each node's gate is open, after training all nodes' gates together (subnetwork probing).

    A closed gate puts the corrupted run's activation in the place of a head's z, an MLP's output or the embedding, as
    `exact_nodes` does. A step is one gated forward pass and its gradient: cheaper than one of `edge_masks`.

    Args:
        penalty: what an open node costs, in the metric's unit.
        steps: of Adam.
        batch: pairs per step.
        learning_rate: of the gates' log α.
        budget: bytes that a step's backward pass may hold.
        seed: of the draws.

    Raises:
        InterpError: as `edge_masks`.
    """
    problem = Problem.of(model, task, metric, only_right)
    graph, encoded = problem.graph, problem.encoded
    sites = [Site("resid_pre", 0)]
    sites += [Site(part, layer) for layer in range(graph.n_layers) for part in ("z", "mlp_out")]
    source = run(model, encoded.corrupted, (), sites, logits=False).activations
    gated = Gated(model, encoded.clean, problem.metric, sites, source)

    def value(gates: Tensor, rows: Tensor) -> Tensor:
        by_site = {Site("resid_pre", 0): gates[:1]}
        for layer in range(graph.n_layers):
            by_site[Site("z", layer)] = gates[None, graph.heads(layer)]
            by_site[Site("mlp_out", layer)] = gates[graph.mlp_sender(layer)][None]
        return gated(by_site, rows)[0]

    gates = _Gates(problem, len(graph.senders), penalty, learning_rate, seed)
    opened, facts = gates.train(value, steps, batch, gated.rows_within(budget, 1), progress)
    return node_scores(problem, "node gates", opened, np.full_like(opened, np.nan), score_unit=SCORE_UNIT, **facts)


def hard_concrete(log_alpha: Float[Tensor, "gate"], uniform: Float[Tensor, "gate"]) -> Float[Tensor, "gate"]:
    """Gates drawn with the noise `uniform`, in (0, 1)."""
    stretched = torch.sigmoid((uniform.logit() + log_alpha) / BETA) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "gate"]) -> Float[Tensor, "gate"]:
    """P(gate > 0)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


class _Gates:
    """Gates in training, and what they cost."""

    def __init__(self, problem: Problem, n: int, penalty: float, learning_rate: float, seed: int) -> None:
        if not penalty > 0:
            raise InterpError(f"A penalty of {penalty} closes no gate; take one greater than 0.")
        self.problem, self.n, self.penalty, self.learning_rate, self.seed = problem, n, penalty, learning_rate, seed
        device = problem.model.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.log_alpha = torch.full((n,), START, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log_alpha], learning_rate)

    def train(
        self, value: Callable[[Tensor, Tensor], Tensor], steps: int, batch: int, within: int, progress: Progress
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(P(gate > 0) in the end, facts for the provenance).

        Args:
            value: gates, rows → the metric of these pairs.
            within: rows that run at once.
        """
        if steps < 1 or batch < 1:
            raise InterpError(f"{steps} steps of {batch} pairs train nothing; take at least one of one.")
        rows = self._rows(min(batch, len(self.problem.encoded)))
        means = []
        for _ in progress(list(range(steps)), "steps"):
            uniform = torch.rand(self.n, generator=self.generator, device=self.log_alpha.device)
            gates = hard_concrete(self.log_alpha, uniform.clamp(1e-6, 1 - 1e-6))
            leaf = gates.detach().to(self.problem.model.dtype).requires_grad_()
            chosen, gradient, total = next(rows), torch.zeros_like(leaf), 0.0
            for some in chosen.split(within):  # each group's states are gone before the next one's begin
                values = value(leaf, some).sum() / len(chosen)
                gradient += torch.autograd.grad(values, leaf)[0]
                total += float(values.detach())
            means.append(total)
            cost = self.penalty * open_probability(self.log_alpha).sum()
            self.optimizer.zero_grad()
            (cost - (gates * gradient.to(gates.dtype)).sum()).backward()
            self.optimizer.step()
        last = means[-max(1, steps // 10) :]
        facts = {
            "penalty": self.penalty, "steps": steps, "batch": batch, "learning_rate": self.learning_rate,
            "seed": self.seed, "trained_metric": float(np.mean(last)),
        }  # fmt: skip
        return open_probability(self.log_alpha.detach().double()).cpu().numpy(), facts

    def _rows(self, batch: int) -> Iterator[Int[Tensor, "row"]]:
        """Rows of each step: every pair once before any comes again, in random order."""
        device, waiting = self.log_alpha.device, torch.empty(0, dtype=torch.long)
        while True:
            while len(waiting) < batch:
                order = torch.randperm(len(self.problem.encoded), generator=self.generator, device=device).cpu()
                waiting = torch.cat([waiting, order])
            yield waiting[:batch].to(device)
            waiting = waiting[batch:]
