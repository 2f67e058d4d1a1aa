"""A sweep that is ready to run, in parts: what every engine's plan can say and do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.checkpoint import Checkpoint, fingerprint
from interp.interventions.schedule import Cost
from interp.progress import Progress, silent


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """Values of a sweep: `values[name]` [variant, example], `base[name]` [example], in the metric's unit."""

    values: Mapping[str, Float[Tensor, "variant example"]]
    base: Mapping[str, Float[Tensor, "example"]]
    cost: Cost


@dataclass(frozen=True, eq=False)
class SweepPlan(ABC):
    """A sweep that is ready to run.

    Attributes:
        prompts: the base rows (for a pipeline, its sampling); readout: holds the metrics.
        parts: the chunks, in order: units of progress and of checkpoints.
        cost: what they will take.
    """

    model: Any
    prompts: Any
    readout: Any
    n_variants: int
    parts: Sequence[slice]
    cost: Cost

    @abstractmethod
    def base_values(self) -> Float[Tensor, "metric example"]:
        """The metrics of the base run."""

    @abstractmethod
    def part_values(self, part: slice) -> tuple[np.ndarray, np.ndarray, Float[Tensor, "metric row"]]:
        """(variant, example, values) of one chunk."""

    @abstractmethod
    def hashed(self) -> list[object]:
        """Everything that decides the values, for a checkpoint."""

    def explain(self) -> str:
        """Rows, passes, operations and bytes, in words."""
        return str(self.cost)

    def run(self, *, progress: Progress = silent, checkpoint: str | Path | None = None) -> Swept:
        """Compute the values; see `sweep`."""
        base = self.base_values()
        self._finite(base, "base run")
        values = base[:, None].repeat(1, self.n_variants, 1)
        saved = None
        parts = list(self.parts)
        if checkpoint is not None:
            saved = Checkpoint.open(checkpoint, fingerprint(self.hashed()), [(p.start, p.stop) for p in parts])
            parts = [slice(*bounds) for bounds in saved.parts]
        for number, part in enumerate(progress(parts, f"{self.n_variants} variants × {len(self.prompts)} prompts")):
            done = saved.read(number) if saved else None
            if done is None:
                done = self.part_values(part)
                self._finite(done[2], f"rows {part.start} to {part.stop}")
                if saved:
                    saved.write(number, *done)
            variant, example, found = done
            values[:, torch.from_numpy(variant), torch.from_numpy(example)] = found.to(values)
        names = [metric.name for metric in self.readout.metrics]
        return Swept(dict(zip(names, values, strict=True)), dict(zip(names, base, strict=True)), self.cost)

    def _finite(self, values: Tensor, where: str) -> None:
        for metric, row in zip(self.readout.metrics, values, strict=True):
            if torch.isnan(row).any():
                raise InterpError(
                    f"Metric {metric.name!r} is not a number in the {where}: an edit left a query without keys, or "
                    "drove a state to infinity."
                )
