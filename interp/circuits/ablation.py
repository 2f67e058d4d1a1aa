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

Source: zero, mean and resampling as in Zhang & Nanda 2024 (arXiv:2309.16042) and Mueller et al. 2025 (MIB,
arXiv:2504.13151); optimal ablation: Li & Janson 2024 (arXiv:2409.09951). Constants are per sender and position here,
shared by all its edges outside of the circuit, and start at the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.circuits.patching import BUDGET, EdgePatching
from interp.circuits.problem import Problem
from interp.circuits.stream import Terms
from interp.errors import InterpError, PairError, nearest
from interp.interventions.run import run
from interp.models.prompts import Prompts
from interp.progress import Progress, silent
from interp.tasks.metrics import Metric, NegativeKL
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
        model, encoded = problem.model, problem.encoded
        over = encoded if ablation.over is None else ablation.over
        self.over = over if isinstance(over, EncodedTask) else over.encode(model)
        if ablation.kind in ("mean", "optimal"):
            _check_width(encoded, self.over, ablation.kind)
        source: Prompts | Terms = encoded.corrupted
        if ablation.kind == "resample-other":
            source = encoded.corrupted.select(_others(encoded, ablation.seed))
        elif ablation.kind == "zero":
            source = Terms.of(model, encoded.corrupted).zeros()
        elif ablation.kind in ("mean", "optimal"):
            self.means = Terms.of(model, self.over.corrupted)
            source = self.means.mean(self.over.corrupted, len(encoded))
        self.patching = EdgePatching(model, encoded.clean, source, problem.metric, budget)

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
        model, clean = self.problem.model, self.over.clean
        start = self.means.mean(self.over.corrupted, 1)
        weights, groups = {}, []
        for site, mean in start.activations.items():
            weights[site] = mean.clone().requires_grad_()
            groups.append({"params": [weights[site]], "lr": self.ablation.rate * float(mean.square().mean().sqrt())})
        optimiser = torch.optim.Adam(groups)
        metric: Metric = NegativeKL(run(model, clean).last_logits().log_softmax(-1))

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
