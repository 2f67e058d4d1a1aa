"""`sweep`: the metric of many variants of one run.

The value of a variant is defined as the metric of `run` with its edits. How few operations that takes is
this module's affair: `plan_sweep` runs the base once, finds which rows have to run and from where
(`schedule`), and says what they cost; `SweepPlan.run` computes them in chunks that fit the memory budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.base_states import BaseStates, base_states
from interp.interventions.denoise_sweep import plan_denoising_sweep
from interp.interventions.edits import Edit
from interp.interventions.memory import free_bytes
from interp.interventions.packed import Chunk, needed_sites
from interp.interventions.plan import Plan, compile_variants
from interp.interventions.run import run_plan
from interp.interventions.schedule import (
    Cost,
    Savings,
    Schedule,
    base_bytes,
    bytes_per_token,
    chunks,
    naive_operations,
    operations,
    part_of,
    schedule,
)
from interp.interventions.sweep_plan import SweepPlan, Swept
from interp.interventions.ways import ways
from interp.models.block import Blocks
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.tasks.image_metrics import ImageMetric
from interp.tasks.metrics import Metric, Readout

MAX_TOKENS = 2048
"""Live tokens per pass. Larger matrices gain nothing more, leave the caches, and are mapped anew by the allocator."""


def sweep(
    model: LanguageModel | Denoiser,
    inputs: Any,
    variants: Sequence[Sequence[Edit]],
    metric: Metric | ImageMetric | Sequence[Metric] | Sequence[ImageMetric],
    *,
    edits: Sequence[Edit] = (),
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> Swept:
    """Metrics of every variant on every prompt (or, of a pipeline, on every picture).

    Args:
        inputs: prompts; for a pipeline what `Denoiser.sampling` takes.
        variants: lists of edits; each is applied to all prompts (or to the rows it names).
        metric: one or several; all are computed from the same passes.
        edits: of the base run, shared by all variants and applied before theirs (the noise of a causal
            trace, say).
        exact: which savings to use; `"naive"` runs one plain hooked forward pass per variant.
        budget: bytes of activations at most, beside the model; half of the free memory if not given.
        progress: wraps the chunks, like `rich.progress.track`.
        checkpoint: a folder; finished chunks are kept there, and a later call with the same arguments
            goes on after them.
        **settings: of a pipeline's sampling: `negative`, `seeds`, `steps`, `guidance` …

    Raises:
        InterpError: as `compile_variants`, before any forward pass; a metric that is not finite.
    """
    plan = plan_sweep(model, inputs, variants, metric, edits=edits, exact=exact, budget=budget, **settings)
    return plan.run(progress=progress, checkpoint=checkpoint)


def plan_sweep(
    model: LanguageModel | Denoiser,
    inputs: Any,
    variants: Sequence[Sequence[Edit]],
    metric: Metric | ImageMetric | Sequence[Metric] | Sequence[ImageMetric],
    *,
    edits: Sequence[Edit] = (),
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    base: BaseStates | None = None,
    **settings: Any,
) -> SweepPlan:
    """What `sweep` would do, after the base run and before everything else; see `SweepPlan.explain`.

    Args:
        base: the base run's states, where they are known already (`states_with_source`).
    """
    if isinstance(model, Denoiser):
        sampling = model.sampling(inputs, **settings)
        of_images = cast("ImageMetric | Sequence[ImageMetric]", metric)
        return plan_denoising_sweep(model, sampling, variants, of_images, edits=edits, exact=exact, budget=budget)
    if settings:
        raise InterpError(f"{', '.join(settings)}: only a sweep over a diffusion pipeline has such a setting.")
    prompts = model.prompts(inputs)
    if any(edit.when is not None for edit in [*edits, *(e for v in variants for e in v)]):
        raise InterpError("`when` names generated steps; a sweep has none. Leave it out.")
    readout = Readout.of(cast("Metric | Sequence[Metric]", metric), prompts.lengths)
    budget = free_bytes(model.device) // 2 if budget is None else budget
    if exact == "naive" or model.not_replayable:
        if exact == "naive" or not exact.batch:
            at_once, how = 1, "One plain forward pass per variant."
        else:
            at_once = max(1, budget // (forward_bytes(model, prompts.ids.shape[1]) * len(prompts)))
            how = f"Up to {at_once} variants as rows of one plain forward pass: {model.not_replayable}."
        return ForwardSweep.of(model, prompts, variants, edits, readout, at_once, how)
    return PackedSweep.of(model, prompts, variants, edits, readout, exact, budget, base)


@dataclass(frozen=True, eq=False)
class PackedSweep(SweepPlan):
    """The engine: rows join late, live tokens only, all in one matrix."""

    plan: Plan
    shared: Plan
    base: BaseStates
    rows: Schedule
    savings: Savings

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        prompts: Prompts,
        variants: Sequence[Sequence[Edit]],
        edits: Sequence[Edit],
        readout: Readout,
        savings: Savings,
        budget: int,
        base: BaseStates | None,
    ) -> PackedSweep:
        """The sweep, planned."""
        plan = compile_variants(model, prompts, variants)
        shared = compile_variants(model, prompts, [edits])
        base = base or base_states(model, shared, needed_sites(plan.sites, model.n_layers))
        rows = schedule(model, plan, base, readout.positions.cpu().numpy(), savings)
        width = prompts.ids.shape[1]
        kept = base.nbytes
        per_token = bytes_per_token(model, width)
        max_tokens = min(MAX_TOKENS, max(0, budget - kept) // per_token)
        longest = int(rows.live.max()) if len(rows) else 0
        parts = chunks(rows, max(max_tokens, min(longest, (budget - kept) // per_token)), savings)
        most = max((int(rows.live[part].sum()) for part in parts), default=0)
        n_columns = model.d_vocab if readout.columns is None else readout.columns.shape[1]
        used = [
            name for name in ("enter_late", "skip_prefix", "skip_noops", "read_late", "batch") if getattr(savings, name)
        ]
        cost = Cost(
            plan.n_variants,
            len(prompts),
            len(rows),
            rows.skipped,
            len(parts),
            operations(model, rows, n_columns, readout.positions.shape[1], savings),
            naive_operations(model, plan),
            kept + most * per_token,
            f"Packed on {model.device}; savings: {', '.join(used) or 'none'}.",
        )
        return cls(model, prompts, readout, plan.n_variants, parts, cost, plan, shared, base, rows, savings)

    def explain(self) -> str:
        """Rows, passes, operations and bytes, and which way edits and attention go, in words."""
        return "\n".join(
            [str(self.cost), *ways(self.model.device, self.model.dtype, self.base, (self.shared, self.plan))]
        )

    @torch.no_grad()
    def base_values(self) -> Tensor:
        """The metrics of the base run."""
        example = torch.arange(len(self.prompts), device=self.model.device)
        return self.readout.values(base_logits(self.model, self.base, self.readout, example), example)

    @torch.no_grad()
    def part_values(self, part: slice) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """(variant, example, values) of one chunk."""
        rows = part_of(self.rows, part, self.shared, self.model.n_layers)
        logits = ChunkLogits(self.model, self.plan, self.base, rows, self.readout, self.savings)
        found = [self.readout.values(block, example) for block, example in logits.blocks()]
        return rows.variant, rows.example, torch.cat(found, 1)

    def hashed(self) -> list[object]:
        """Everything that decides the values."""
        return [
            "packed", self.model.weights_hash, self.prompts.ids, self.prompts.lengths, self.savings,
            self.plan.sites, self.shared.sites, self.readout,
        ]  # fmt: skip


def base_logits(
    model: LanguageModel, base: BaseStates, readout: Readout, example: Tensor
) -> Float[Tensor, "row read column"]:
    """Logits of the base run where the metric reads, for these examples."""
    reads = readout.positions[example]
    blocks = Blocks(model)
    normed = base.sites.get(Site("final_norm"))
    if normed is None:
        read = blocks.final_norm(base.resid[model.n_layers][example[:, None], reads])
    else:
        read = normed[example[:, None], reads]
    whole = base.sites.get(Site("logits"))
    if whole is not None:
        logits = whole[example[:, None], reads]
        if readout.columns is None:
            return logits
        return logits.gather(-1, readout.columns[example][:, None].expand(-1, reads.shape[1], -1))
    columns = None if readout.columns is None else readout.columns[example][:, None].expand(-1, reads.shape[1], -1)
    return model.unembed_columns(read, columns)


class ChunkLogits:
    """Logits of a chunk's rows where the metric reads: a row's own where it is live, else the base's."""

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        base: BaseStates,
        rows: Schedule,
        readout: Readout,
        savings: Savings,
    ) -> None:
        self.model, self.base, self.rows, self.readout, self.savings = model, base, rows, readout, savings
        self.chunk = Chunk(model, plan, base, rows, readout.positions.cpu().numpy(), savings)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits [row, read, column], example [row]) in blocks of rows that bound the vocabulary's memory."""
        normed, tokens = self.chunk.final_norm()
        reads = self.readout.positions.cpu().numpy()[self.rows.example]
        row = np.repeat(np.arange(len(self.rows)), reads.shape[1])
        at = torch.from_numpy(tokens.find(row, reads.reshape(-1), self.chunk.width)).view(len(self.rows), -1)
        wide = self.readout.columns is None or Site("logits") in self.rows.sites
        per_row = reads.shape[1] * (self.model.d_vocab if wide else self.model.d_model) * 16
        step = max(1, 2**26 // per_row)
        for i in range(0, len(self.rows), step):
            example = torch.from_numpy(self.rows.example[i : i + step]).to(normed.device)
            yield self._block(i, at[i : i + step].to(normed.device), normed, example, wide), example

    def _block(self, first: int, at: Tensor, normed: Tensor, example: Tensor, wide: bool) -> Tensor:
        columns = self.readout.columns
        narrow = None if columns is None else columns[example][:, None].expand(-1, at.shape[1], -1)
        own = self.model.unembed_columns(normed[at.clamp(min=0)], None if wide else narrow)
        if Site("logits") in self.rows.sites:
            own = self._edit_logits(own, first)
        if wide and narrow is not None:
            own = own.gather(-1, narrow)
        if (at >= 0).all():
            return own
        base = base_logits(self.model, self.base, self.readout, example)
        return torch.where((at >= 0)[..., None], own, base)

    def _edit_logits(self, logits: Tensor, first: int) -> Tensor:
        reads = self.readout.positions.cpu().numpy()[self.rows.example[first : first + len(logits)]]
        for op in self.rows.sites[Site("logits")]:
            row = self.chunk.row_of(op) - first
            here = np.flatnonzero((row >= 0) & (row < len(logits)))
            entry, column = np.nonzero(reads[row[here]] == op.position[here][:, None])
            if len(entry):
                token = row[here][entry] * reads.shape[1] + column
                logits = op.select(here[entry]).apply(logits.flatten(0, 1), token).view(logits.shape)
        return logits


@dataclass(frozen=True, eq=False)
class ForwardSweep(SweepPlan):
    """The oracle, and the way for models whose blocks cannot be run one by one: whole forward passes."""

    variants: Sequence[Sequence[Edit]]
    edits: Sequence[Edit]
    plan: Plan

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        prompts: Prompts,
        variants: Sequence[Sequence[Edit]],
        edits: Sequence[Edit],
        readout: Readout,
        at_once: int,
        how: str,
    ) -> ForwardSweep:
        """The sweep, planned."""
        together = [[*edits, *variant] for variant in variants]
        plan = compile_variants(model, prompts, together)  # every mistake, before any forward pass
        parts = [slice(i, min(i + at_once, len(variants))) for i in range(0, len(variants), at_once)]
        total = naive_operations(model, plan)
        rows = len(variants) * len(prompts)
        peak = forward_bytes(model, prompts.ids.shape[1]) * min(rows, at_once * len(prompts))
        cost = Cost(len(variants), len(prompts), rows, 0, len(parts), total, total, peak, how)
        return cls(model, prompts, readout, len(variants), parts, cost, together, edits, plan)

    def base_values(self) -> Tensor:
        """The metrics of the base run."""
        return self._values([self.edits])

    def part_values(self, part: slice) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """(variant, example, values) of one chunk."""
        batch = len(self.prompts)
        variants = np.arange(part.start, part.stop)
        return np.repeat(variants, batch), np.tile(np.arange(batch), len(variants)), self._values(self.variants[part])

    @torch.no_grad()
    def _values(self, variants: Sequence[Sequence[Edit]]) -> Tensor:
        """Variant after variant, the prompts repeated as rows of one forward pass."""
        batch, copies = len(self.prompts), len(variants)
        plan = compile_variants(self.model, self.prompts, variants)
        tiled = self.prompts.select(list(range(batch)) * copies)
        as_rows = {
            site: tuple(replace(op, variant=op.variant * 0, example=op.variant * batch + op.example) for op in ops)
            for site, ops in plan.sites.items()
        }
        run = run_plan(self.model, Plan(tiled, 1, as_rows), ())
        assert run.logits is not None
        example = torch.arange(batch, device=run.logits.device).repeat(copies)
        reads = self.readout.positions[example]
        logits = run.logits[torch.arange(len(example), device=reads.device)[:, None], reads]
        if self.readout.columns is not None:
            logits = logits.gather(-1, self.readout.columns[example][:, None].expand(-1, reads.shape[1], -1))
        return self.readout.values(logits, example)

    def hashed(self) -> list[object]:
        """Everything that decides the values."""
        return [
            "forward", self.model.weights_hash, self.prompts.ids, self.prompts.lengths, self.plan.sites, self.readout
        ]  # fmt: skip


def forward_bytes(model: LanguageModel, width: int) -> int:
    """Memory of one prompt of this many tokens in a plain forward pass, logits included."""
    return width * (bytes_per_token(model, width) + 2 * model.d_vocab * torch.finfo(model.dtype).bits // 8)


def groups(model: LanguageModel, width: int, n: int, copies: int, budget: int) -> list[range]:
    """Ranges of examples whose base and source runs take at most half of a budget.

    Args:
        width: tokens of the longest; n: number of examples; copies: runs that each example needs.

    Raises:
        InterpError: not even one example fits.
    """
    one = copies * (2 * base_bytes(model, width) + width * bytes_per_token(model, width))
    if one > budget // 2:
        raise InterpError(
            f"A budget of {budget / 2**20:.0f} MiB does not hold the runs of one prompt of {width} tokens; it takes "
            f"{2 * one / 2**20:.0f} MiB."
        )
    size = max(1, min(n, budget // 2 // one))
    return [range(i, min(i + size, n)) for i in range(0, n, size)]
