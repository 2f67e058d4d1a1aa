"""What is to be explained: a task, a metric, and the gap between the clean and the corrupted prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.circuits.patching import BUDGET, read
from interp.errors import InterpError, PairError, nearest
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.results import provenance
from interp.tasks.metrics import (
    DIFFERENTIABLE,
    LogitDifference,
    Metric,
    Readout,
    log_probabilities,
    named_metric,
)
from interp.tasks.pairs import EncodedTask, PromptPair, Task

Pairs = Task | PromptPair | EncodedTask
Direction = Literal["noising", "denoising"]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Encoded pairs with their metric.

    Attributes:
        right: which pairs of the task the model gets right: on the clean prompt, the answer's logit is above the
            wrong answer's.
        n_attempted: pairs of the task, before any were left out.
        values: of the metric on clean and corrupted prompts.
    """

    model: LanguageModel
    graph: Graph
    encoded: EncodedTask
    metric: Metric
    readout: Readout
    values: dict[str, Float[Tensor, "example"]]
    right: Bool[Tensor, "attempted"]

    @classmethod
    def of(cls, model: LanguageModel, task: Pairs, metric: str, only_right: bool = False) -> Problem:
        """The problem, checked.

        Args:
            task: a task, a single pair, or a task encoded for this model.
            only_right: leave out pairs that the model gets wrong.

        Raises:
            InterpError: a model whose edges are not defined; an unknown metric.
            PairError: as `Task.encode`; clean and corrupted prompts give the same values, so that there is nothing to
                explain; no pair that the model gets right.
        """
        if isinstance(task, PromptPair):
            task = Task(task.label or "given", (task,), "given by the caller", None)
        graph = Graph.of(model)
        if metric not in DIFFERENTIABLE:
            raise InterpError(f"There is no metric {metric!r} with a gradient." + nearest(str(metric), DIFFERENTIABLE))
        encoded = task if isinstance(task, EncodedTask) else task.encode(model)
        difference = Readout.of(LogitDifference(encoded.answer, encoded.wrong_answer), encoded.clean.lengths)
        clean = values_of(model, difference, encoded.clean)
        right = clean > 0
        if only_right:
            if not right.any():
                raise PairError(f"{model.name} gets none of the {len(encoded)} pairs of {encoded.task.name!r} right.")
            rows = torch.nonzero(right)[:, 0]
            encoded, clean = encoded.select(rows.tolist()), clean[rows]
        reference = partial(_log_probabilities, model, encoded.clean)
        chosen = named_metric(metric, encoded.answer, encoded.wrong_answer, reference)
        readout = Readout.of(chosen, encoded.clean.lengths)
        if metric != "logit_difference":
            clean = values_of(model, readout, encoded.clean)
        values = {"clean": clean, "corrupted": values_of(model, readout, encoded.corrupted)}
        gap = (values["clean"] - values["corrupted"]).abs().max()
        if gap <= 1e3 * torch.finfo(model.dtype).eps * max(1.0, float(values["clean"].abs().max())):
            raise PairError(
                f"The {metric} of clean and corrupted prompts of {encoded.task.name!r} is the same (they differ by at "
                f"most {float(gap):.1e}): there is nothing to explain. Use prompts that the model tells apart."
            )
        return cls(model, graph, encoded, chosen, readout, values, right)

    def groups(
        self, copies: int, budget: int = BUDGET, other: Prompts | None = None
    ) -> Iterator[tuple[Tensor, Prompts, Prompts, int]]:
        """Pairs that are worked on together: (rows, clean, corrupted, first position at which any of them differ).

        Args:
            copies: how many times the terms of all senders are held per pair.
            budget: bytes for them.
            other: prompts in the place of the corrupted ones.
        """
        others = self.encoded.corrupted if other is None else other
        width = self.encoded.clean.ids.shape[1]
        terms = len(self.graph.senders) * width * self.model.d_model * self.model.dtype.itemsize
        step = max(1, int(budget / (copies * terms)))
        for rows in torch.arange(len(self.encoded), device=self.model.device).split(step):
            clean, corrupted = self.encoded.clean.select(rows), others.select(rows)
            differ = ((clean.ids != corrupted.ids) & clean.mask).any(0)
            # A group of identical pairs has no difference anywhere; its last position stands for them.
            first = int(differ.int().argmax()) if differ.any() else clean.ids.shape[1] - 1
            yield rows, clean, corrupted, first

    def record(self, method: str, **facts: Any) -> dict[str, Any]:
        """Provenance of a result about this problem."""
        task = self.encoded.task
        return provenance(
            experiment=f"circuit scores: {method}", method=method, model=self.model.name, task=task.name,
            source=task.source, task_seed=task.seed, metric=self.metric.name, unit=self.metric.unit,
            graph=self.graph.record(), n_attempted=len(self.right), n_right=int(self.right.sum()),
            n_scored=len(task), clean=[pair.clean for pair in task.pairs],
            corrupted=[pair.corrupted for pair in task.pairs], answers=[pair.answer for pair in task.pairs],
            wrong_answers=[pair.wrong_answer for pair in task.pairs], **facts,
        )  # fmt: skip


@torch.no_grad()
def values_of(model: LanguageModel, readout: Readout, prompts: Prompts) -> Float[Tensor, "example"]:
    """The metric of plain runs."""
    states = run(model, prompts, (), ["final_norm"], logits=False)["final_norm"]
    return read(model, readout, states, torch.arange(len(prompts), device=model.device))


def checked_direction(direction: str) -> str:
    """A direction, if it is one.

    Raises:
        InterpError: it is neither noising nor denoising.
    """
    if direction not in ("noising", "denoising"):
        raise InterpError(
            f"Direction {direction!r}: patching is 'noising' (corrupted terms into the clean run) or 'denoising'."
        )
    return direction


def _log_probabilities(model: LanguageModel, prompts: Prompts) -> Float[Tensor, "example d_vocab"]:
    return log_probabilities(run(model, prompts).last_logits())
