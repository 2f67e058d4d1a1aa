"""What edges outside a circuit carry: the same circuit may pass under one ablation and fail under another.

| kind | an edge outside carries | the circuit of no edges is |
|---|---|---|
| `"resample"` | the term of the pair's own corrupted run | the corrupted run |
| `"resample-other"` | the term of another pair's corrupted run, of the same length | that run |
| `"mean"` | the mean term over stated prompts, at each position | a run that knows positions only |
| `"zero"` | nothing | biases only |
| `"optimal"` | constants at each position, learned for the good of this circuit | the best constant answer |

The first asks for what tells clean from corrupted, given everything that they share. The others take that away too,
so that circuits under them are larger; zero throws the network out of the range that it was trained in. Under an
optimal ablation what is lost is what the circuit lacks, and not what an unlucky constant broke.

`Cut` ablates all edges outside of a circuit; scores of edges (`interp.circuits.score`) say what ablating each of them
alone does, under any kind but the last: its constants are learned for a circuit, and scores come before there is one.

Source: zero, mean and resampling as in Zhang & Nanda 2024 (arXiv:2309.16042) and Mueller et al. 2025 (MIB,
arXiv:2504.13151); optimal ablation: Li & Janson 2024 (arXiv:2409.09951). Constants are per sender and position here,
shared by all its edges outside of the circuit, and start at the means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.circuits.patching import BUDGET, EdgePatching
from interp.circuits.problem import Problem, checked_direction
from interp.circuits.stream import Terms
from interp.errors import InterpError, PairError, nearest
from interp.interventions.run import run
from interp.models.prompts import Prompts
from interp.progress import Progress, silent
from interp.tasks.metrics import Metric, NegativeKL, log_probabilities
from interp.tasks.pairs import EncodedTask, Task

ABLATIONS = ("resample", "resample-other", "mean", "zero", "optimal")


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """How the edges outside of a circuit are ablated.

    Attributes:
        kind: see the table of `interp.circuits.ablation`.
        over: pairs over whose corrupted prompts means are taken (the evaluated ones, if not given), or on whose clean
            prompts optimal constants are learned (others than the evaluated ones, so that nothing is fitted to those).
            Position p is the p-th token: take prompts of one template.
        seed: which other pair.
        steps: of Adam, for optimal constants.
        rate: its learning rate, in root mean squares of each kind of term.

    Raises:
        InterpError: an unknown kind; an optimal ablation without pairs to learn on.
    """

    kind: str = "resample"
    over: Task | EncodedTask | None = None
    seed: int = 0
    steps: int = 50
    rate: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in ABLATIONS:
            raise InterpError(f"There is no ablation {self.kind!r}." + nearest(str(self.kind), ABLATIONS))
        if self.kind == "optimal" and self.over is None:
            raise InterpError(
                "Optimal constants are learned: give the pairs to learn on, Ablation('optimal', over=task), and "
                "evaluate on others."
            )

    @classmethod
    def of(cls, ablation: str | Ablation) -> Ablation:
        """From its kind."""
        return cls(ablation) if isinstance(ablation, str) else ablation

    def pairs(self, problem: Problem) -> EncodedTask:
        """Those that means are taken over, or constants learned on."""
        over = problem.encoded if self.over is None else self.over
        return over if isinstance(over, EncodedTask) else over.encode(problem.model)

    def source(self, problem: Problem) -> Prompts | Terms:
        """What ablated edges carry: the terms of runs on these prompts, or these terms.

        Of an optimal ablation, the means from which learning starts.

        Raises:
            PairError: as `Cut`.
        """
        corrupted = problem.encoded.corrupted
        if self.kind == "resample-other":
            return corrupted.select(_others(problem.encoded, self.seed))
        if self.kind == "zero":
            return Terms.of(problem.model, corrupted).zeros()
        if self.kind in ("mean", "optimal"):
            over = self.pairs(problem)
            _check_width(problem.encoded, over, self.kind)
            return Terms.of(problem.model, over.corrupted).mean(over.corrupted, len(problem.encoded))
        return corrupted

    def record(self) -> dict[str, Any]:
        """For provenance."""
        task = self.over.task if isinstance(self.over, EncodedTask) else self.over
        over = None if task is None else f"{task.name}, {len(task)} pairs, seed {task.seed}"
        facts: dict[str, Any] = {"ablation": self.kind, "ablated_over": over}
        if self.kind == "resample-other":
            facts["ablation_seed"] = self.seed
        if self.kind == "optimal":
            facts |= {"ablation_steps": self.steps, "ablation_rate": self.rate}
        return facts


class Cut:
    """The model with edges taken away, under an ablation: the metric of each pair's clean prompt.

    Args:
        budget: as in `EdgePatching`.
        progress: over the steps of learning, for an optimal ablation.

    Raises:
        PairError: a pair whose length no other has, for `"resample-other"`; prompts to take means over, or to learn
            on, that are shorter than those of the problem.
    """

    def __init__(self, problem: Problem, ablation: Ablation, budget: int = BUDGET, progress: Progress = silent) -> None:
        self.problem, self.ablation, self.budget, self.progress = problem, ablation, budget, progress
        self.over, self.source = ablation.pairs(problem), ablation.source(problem)
        self.patching = EdgePatching(problem.model, problem.encoded.clean, self.source, problem.metric, budget)

    def without(self, edges: np.ndarray) -> np.ndarray:
        """The metric [example] with these edges [sender, receiver] ablated."""
        patching, model = self.patching, self.problem.model
        taken = torch.from_numpy(edges & self.problem.graph.edges).to(model.device, model.dtype)
        if self.ablation.kind == "optimal" and edges.any():
            constants = self._learned(taken)
            patching = EdgePatching(model, self.problem.encoded.clean, constants, self.problem.metric, self.budget)
        with torch.no_grad():
            return patching(taken).double().cpu().numpy()

    def kept(self, edges: np.ndarray) -> np.ndarray:
        """The metric [example] of the circuit of these edges."""
        return self.without(self.problem.graph.edges & ~edges)

    def _learned(self, taken: torch.Tensor) -> Terms:
        """Constants under which the model without these edges is as much as possible as the model with them.

        They minimise the Kullback–Leibler divergence of the next token's distribution, mean over the pairs learned on.
        """
        assert isinstance(self.source, Terms)
        model, clean = self.problem.model, self.over.clean
        weights, groups = {}, []
        for site, mean in self.source.activations.items():
            weights[site] = mean[:1].clone().requires_grad_()
            groups.append({"params": [weights[site]], "lr": self.ablation.rate * float(mean[0].square().mean().sqrt())})
        optimiser = torch.optim.Adam(groups)
        metric: Metric = NegativeKL(log_probabilities(run(model, clean).last_logits()))

        def constants(n: int) -> Terms:
            return Terms(model, {site: x.expand(n, *x.shape[1:]) for site, x in weights.items()}, True)

        patching = EdgePatching(model, clean, constants(len(clean)), metric, self.budget)
        with torch.enable_grad():
            for _ in self.progress(range(self.ablation.steps), "constants"):
                patching.source = constants(len(clean))
                loss = -patching(taken).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        for x in weights.values():
            x.requires_grad_(False)
        return constants(len(self.problem.encoded))


class Ablated:
    """What edges carry that are ablated one at a time, for scores.

    Args:
        direction: from which end; under constants there is no run in which all edges carry them, so only `"noising"`.

    Raises:
        InterpError: an unknown direction, or an optimal ablation; denoising under a mean or zero ablation.
        PairError: as `Cut`.
    """

    def __init__(self, problem: Problem, ablation: str | Ablation, direction: str = "noising") -> None:
        chosen = Ablation.of(ablation)
        if chosen.kind == "optimal":
            raise InterpError(
                "Optimal constants are learned for a circuit, and scores come before there is one; score under 'mean', "
                "where learning starts, and evaluate under 'optimal'."
            )
        if checked_direction(direction) == "denoising" and chosen.kind in ("mean", "zero"):
            raise InterpError(
                f"Denoising starts from a run on the prompts whose terms ablated edges carry, and {chosen.kind} terms "
                "are of no prompts; take direction='noising', or ablation='resample'."
            )
        self.problem, self.facts, self.source = problem, chosen.record(), chosen.source(problem)

    def groups(self, copies: int, budget: int) -> Iterator[tuple[Tensor, Prompts, Prompts | Terms, int]]:
        """As `Problem.groups`, with what ablated edges carry in the place of the corrupted prompts."""
        other = self.source if isinstance(self.source, Prompts) else None
        for rows, clean, prompts, first in self.problem.groups(copies, budget, other):
            if isinstance(self.source, Terms):
                yield rows, clean, self.source.select(rows, clean.ids.shape[1]), 0
            else:
                yield rows, clean, prompts, first


def _others(encoded: EncodedTask, seed: int) -> list[int]:
    """For each pair another one of the same length, no one twice."""
    generator = np.random.default_rng(seed)
    lengths = encoded.clean.lengths.tolist()
    others = list(range(len(lengths)))
    for length in sorted(set(lengths)):
        rows = generator.permutation([row for row, n in enumerate(lengths) if n == length])
        if len(rows) == 1:
            raise PairError(
                f"Pair {rows[0]} of {encoded.task.name!r} is the only one of {length} tokens, so no other pair's terms "
                "fit its positions. Use prompts of one template, or ablation='resample'."
            )
        for row, other in zip(rows, np.roll(rows, 1), strict=True):
            others[row] = int(other)
    return others


def _check_width(encoded: EncodedTask, over: EncodedTask, kind: str) -> None:
    longest, reached = int(encoded.clean.lengths.max()), int(over.clean.lengths.max())
    if reached < longest:
        raise PairError(
            f"{kind} ablation: the prompts of {over.task.name!r} have up to {reached} tokens, those of "
            f"{encoded.task.name!r} up to {longest}; their last positions have no {kind} term."
        )
