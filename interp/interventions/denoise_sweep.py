"""Sweeps of a diffusion pipeline: many variants of one sampling, each computed from where it leaves the base run.

The base run goes once through the whole denoising loop, and keeps what its denoiser (and, at steps in which variants
enter, each of its top-level blocks) returned. A *row* is one variant of one base row. Until its first edit it *is* the
base run:

- in the steps before, the base run's outputs are served in place of the denoiser's (the scheduler, which is cheap,
  runs as ever, so that schedulers with a memory or with noise are right);
- in its first step, the blocks before the first edited one are served likewise, and of guidance's two branches only
  those that are edited are computed;
- an edit that writes what is there changes nothing, and a row of such edits is answered by the base run.

All of it is exact: up to the order of additions, the pictures are those of one plain run per variant (`exact="naive"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.captured import DenoisingRun
from interp.interventions.denoise import Denoising, Record, Schedule, Serving, is_text, item_bytes, others_of
from interp.interventions.edits import Add, Edit, Replace, Scale, When
from interp.interventions.memory import free_bytes
from interp.interventions.plan import Index
from interp.interventions.schedule import Cost, Savings
from interp.interventions.sweep_plan import SweepPlan
from interp.models.denoiser import Denoiser, Sampling
from interp.models.hooks import Forward, replaced
from interp.models.site import ATTENTION_PARTS, Site
from interp.tasks.image_metrics import ImageMetric

MAX_ROWS = 32
"""Rows of one run. More gain nothing on a processor, and make the steps of progress and checkpoints coarse."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageReadout:
    """The metrics of a sweep over pictures."""

    metrics: tuple[ImageMetric, ...]

    def values(self, images: Tensor, example: Index) -> Tensor:
        """[metric, row]."""
        at = torch.from_numpy(np.ascontiguousarray(example)).to(images.device)
        return torch.stack([metric.values(images, at) for metric in self.metrics])


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that have to run: (variant, example), and the step and stage in which each leaves the base, in order."""

    variant: Index
    example: Index
    step: Index
    stage: Index


def plan_denoising_sweep(
    model: Denoiser,
    sampling: Sampling,
    variants: Sequence[Sequence[Edit]],
    metric: ImageMetric | Sequence[ImageMetric],
    *,
    edits: Sequence[Edit] = (),
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
) -> DenoisingSweep:
    """What a sweep over a pipeline would do, after its base run; see `interp.sweep`."""
    metrics = tuple(metric) if isinstance(metric, Sequence) else (metric,)
    for one in metrics:
        if not isinstance(one, ImageMetric):
            raise InterpError(f"{type(one).__name__} is no metric of pictures; see interp.tasks.image_metrics.")
    budget = free_bytes(model.device) // 2 if budget is None else budget
    together = [[*edits, *variant] for variant in variants]
    whole = Denoising(model, sampling, together) if together else None  # every mistake, before anything is denoised
    counts, stage_bytes = _probed(model, sampling)
    n_steps = len(whole.schedule.timesteps) if whole else sampling.steps
    total = float(len(variants) * len(sampling) * n_steps * model.layout(sampling).branches * sum(counts))
    readout = ImageReadout(metrics)
    if exact == "naive" or not variants:
        base = Denoising(model, sampling, [edits]).run()
        rows = _every_row(len(variants), len(sampling))
        parts = [slice(v * len(sampling), (v + 1) * len(sampling)) for v in range(len(variants))]
        cost = Cost(
            len(variants),
            len(sampling),
            len(rows.variant),
            0,
            len(parts),
            total,
            total,
            0,
            "One plain run per variant.",
        )
        return DenoisingSweep(
            model,
            sampling,
            readout,
            len(variants),
            parts,
            cost,
            together,
            rows,
            base,
            None,
            Savings(),
            whole and whole.schedule,
        )
    assert whole is not None
    return _planned(whole, edits, variants, together, readout, exact, budget, counts, stage_bytes, total)


def _planned(
    whole: Denoising,
    edits: Sequence[Edit],
    variants: Sequence[Sequence[Edit]],
    together: list[list[Edit]],
    readout: ImageReadout,
    savings: Savings,
    budget: int,
    counts: Sequence[int],
    stage_bytes: int,
    total: float,
) -> DenoisingSweep:
    model, sampling = whole.model, whole.base
    steady = tuple(whole.others)
    base_rows = Denoising(model, sampling, [edits], steady=steady)
    n_base, branches = len(base_rows.sampling), whole.layout.branches
    entering = {step for edits_of in variants for edit in edits_of for step in _steps(whole, edit)[:1]} - {-1}
    per_row = stage_bytes * branches
    keeps = savings.enter_late and len(entering) * n_base * per_row < budget // 2
    record = Record(frozenset(entering if keeps else ()))
    watched, when = _watched(whole, variants, budget // 4 if savings.skip_noops else 0)
    base = base_rows.run(watched, when, record=record)
    rows, skipped = _scheduled(whole, variants, base if watched else None, savings, record.steps)
    inside = [site for site in whole.sites() if site.part in ATTENTION_PARTS]
    # Besides what blocks keep: scores and pattern of one attention at a time, before and after edits.
    attention = 4 * branches * max((model.size_of(s, sampling) * item_bytes(model, s) for s in inside), default=0)
    a_row = (8 * per_row + attention) * (1 + len(steady))
    at_once = max(1, min(MAX_ROWS if savings.batch else 1, budget // 2 // a_row))
    n = len(rows.variant)
    parts = [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)]
    run = _operations(whole, together, rows, counts)
    used = [name for name in ("enter_late", "skip_noops", "batch") if getattr(savings, name)]
    how = f"Denoising on {model.device}; savings: {', '.join(used) or 'none'}."
    if savings.enter_late and not keeps:
        how += " The blocks' outputs do not fit into the budget, so rows enter at whole steps."
    cost = Cost(
        len(variants), len(sampling), len(rows.variant), skipped, len(parts), float(run.sum()), total,
        len(entering) * n_base * per_row * keeps + at_once * (8 * per_row + attention), how,
    )  # fmt: skip
    served = Served(record, base_rows, n_base)
    return DenoisingSweep(
        model, sampling, readout, len(variants), parts, cost, together, rows, base, served, savings, whole.schedule
    )


def _operations(
    whole: Denoising, variants: list[list[Edit]], rows: Rows, counts: Sequence[int]
) -> Float[np.ndarray, "row"]:
    """Operations of each row: in the step of its departure in the edited branches alone; and of its donors."""
    branches, n_steps = [b for call in whole.layout.calls for b in call], len(whole.schedule.timesteps)
    after = np.array([sum(counts[stage:]) for stage in range(len(counts) + 1)], dtype=float)
    out = np.zeros(len(rows.variant))
    for row, (v, at, stage) in enumerate(zip(rows.variant, rows.step, rows.stage, strict=True)):
        passes = [
            (edit, step, branch)
            for edit in variants[v]
            for step in _steps(whole, edit)
            for branch in branches
            if step >= max(at, 0) and whole.schedule.admits(edit.when, step, branch)
        ]
        departing = {branch for _, step, branch in passes if step == at}
        asked = {(other, step, branch) for edit, step, branch in passes for other in others_of(edit)}
        out[row] = len(branches) * (n_steps - 1 - at) * after[0] + len(departing) * after[stage]
        out[row] += sum(after[stage if step == at else 0] for _, step, _ in asked)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The base run that rows are served from."""

    record: Record
    rows: Denoising
    n: int


@dataclass(frozen=True, eq=False)
class DenoisingSweep(SweepPlan):
    """A sweep over a pipeline that is ready to run."""

    variants: Sequence[Sequence[Edit]]
    rows: Rows
    base: DenoisingRun
    served: Served | None
    savings: Savings
    schedule: Schedule | None

    def base_values(self) -> Tensor:
        """The metrics of the base run."""
        assert self.base.images is not None
        return self.readout.values(self.base.images, np.arange(len(self.prompts)))

    def part_values(self, part: slice) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """(variant, example, values) of one chunk."""
        variant, example = self.rows.variant[part], self.rows.example[part]
        images = self.images(part)
        return variant, example, self.readout.values(images, example)

    def pictures(self, variant: int, examples: Sequence[int]) -> Tensor:
        """Pictures of one variant for some base rows, [example, 3, height, width]."""
        assert self.base.images is not None
        whole = self.base.images.clone()  # of rows that are the base run's
        chosen = np.flatnonzero((self.rows.variant == variant) & np.isin(self.rows.example, examples))
        if len(chosen):
            whole[torch.from_numpy(self.rows.example[chosen])] = self.images(chosen)
        return whole[list(examples)]

    def images(self, part: slice | Index) -> Tensor:
        """Pictures of some of the rows."""
        variant, example = self.rows.variant[part], self.rows.example[part]
        distinct, local = np.unique(variant, return_inverse=True)
        rows = Denoising(
            self.model, self.prompts, [self.variants[v] for v in distinct],
            rows=list(zip(local.tolist(), example.tolist(), strict=True)), checked=self.schedule,
        )  # fmt: skip
        serve = None
        step, stage = (of[part][rows.state_of] for of in (self.rows.step, self.rows.stage))
        if self.served is not None and (step >= 0).any():
            serve = Serving(self.served.record, self.served.n, self._base_row(rows, example), step, stage)
        images = rows.run(serve=serve).images
        assert images is not None
        return images

    def _base_row(self, rows: Denoising, example: Index) -> Index:
        """Of each row, donors included, the row of the base run that it starts as."""
        assert self.served is not None
        base, at = self.served.rows, list(example)
        donors = {int(d): (number, row) for (number, row), d in np.ndenumerate(rows.donor) if d >= 0}
        for donor in range(rows.n_rows, len(rows.sampling)):
            number, row = donors[donor]
            at.append(base.donor[base.others.index(rows.others[number]), example[row]])
        return np.array(at)

    def hashed(self) -> list[object]:
        """Everything that decides the values."""
        return [
            "denoising", self.model.weights_hash, self.prompts.prompts, self.prompts.negative, self.prompts.seeds,
            self.prompts.steps, self.prompts.guidance, dict(self.prompts.options),
            type(self.model.pipeline.scheduler).__name__, str(sorted(self.model.pipeline.scheduler.config.items())),
            self.savings, self.variants, self.readout,
        ]  # fmt: skip


# -- where rows leave the base run -----------------------------------------------------------------------------


def _every_row(n_variants: int, n_examples: int) -> Rows:
    variant, example = np.divmod(np.arange(n_variants * n_examples), n_examples)
    return Rows(variant, example, np.full(len(variant), -1), np.zeros(len(variant), dtype=np.int64))


def _steps(whole: Denoising, edit: Edit) -> list[int]:
    """Steps in which an edit acts; −1 stands for the text encoders, before all."""
    return [-1] if is_text(edit.site) else whole.passes(edit.when)


def _scheduled(
    whole: Denoising,
    variants: Sequence[Sequence[Edit]],
    base: DenoisingRun | None,
    savings: Savings,
    kept: frozenset[int],
) -> tuple[Rows, int]:
    """The rows that run, by step and stage of departure, and how many need not.

    Only of the `kept` steps the base run left its blocks' outputs; in others a row departs at the first block.
    """
    found = []
    for v, edits in enumerate(variants):
        for e in range(len(whole.base)):
            first = min(
                (
                    place
                    for edit in edits
                    if edit.rows is None or e in edit.rows
                    for place in _departure(whole, edit, e, base)
                ),
                default=None,
            )
            if first is not None:
                step, stage = first if savings.enter_late else (-1, 0)
                found.append((step, stage if step in kept else 0, e, v))
    order = np.array(sorted(found), dtype=np.int64).reshape(-1, 4)
    step, stage, example, variant = (np.ascontiguousarray(column) for column in order.T)
    return Rows(variant, example, step, stage), len(variants) * len(whole.base) - len(found)


def _departure(whole: Denoising, edit: Edit, example: int, base: DenoisingRun | None) -> list[tuple[int, int]]:
    """(step, stage) of the first pass in which an edit changes the base run's row; empty if there is none."""
    stage = 0 if is_text(edit.site) else whole.model.stage_of(edit.site)
    for step in _steps(whole, edit):
        if base is None or _changes(whole, edit, example, step, base):
            return [(step, stage)]
    return []


def _changes(whole: Denoising, edit: Edit, example: int, step: int, base: DenoisingRun) -> bool:
    """Whether an edit, applied to the base run, changes a single bit of it in this step."""
    site = edit.site.all_heads
    text = is_text(site)
    if site not in base.activations or not (text or step in base.steps):
        return True
    for branch in base.branches:
        if not whole.admits(edit.when, step, branch):
            continue
        x = base.at(site, None if text else step, branch)
        x = x.transpose(1, 2) if site.part in ATTENTION_PARTS else x
        for op in whole.compiled(edit, step, branch):
            chosen = op.select(op.example == example)
            if len(chosen) and not torch.equal(
                chosen.apply(x.flatten(0, 1), chosen.example * x.shape[1] + chosen.position).view(x.shape)[example],
                x[example],
            ):
                return True
    return False


def _watched(whole: Denoising, variants: Sequence[Sequence[Edit]], budget: int) -> tuple[list[Site], When | None]:
    """Sites whose base activations tell edits that change nothing, and the steps to keep them at.

    What another prompt would have is a donor's, and is not compared.
    """
    sites: dict[Site, None] = {}
    steps: set[int] = set()
    for edits in variants:
        for edit in edits:
            if isinstance(edit, Replace | Add | Scale) and not others_of(edit):
                sites[edit.site.all_heads] = None
                steps |= set(_steps(whole, edit)) - {-1}
    size = sum(
        whole.model.size_of(site, whole.base) * item_bytes(whole.model, site) * (1 if is_text(site) else len(steps))
        for site in sites
    )
    size *= whole.layout.branches * len(whole.base)
    return (list(sites) if 0 < size <= budget else []), When(steps=frozenset(steps)) if steps else None


# -- what things cost ------------------------------------------------------------------------------------------


def _probed(model: Denoiser, sampling: Sampling) -> tuple[tuple[int, ...], int]:
    """(operations of each stage, bytes of all stages' outputs) for one row in one branch, counted while a step runs.

    What stands outside the stages (the first and last convolution, the embeddings) is counted with the last stage.
    """
    from torch.utils.flop_counter import FlopCounterMode

    one = Sampling(sampling.prompts[:1], None, (0,), 1, 0.0, sampling.options)
    counter = FlopCounterMode(display=False)
    counts, sizes = [0] * len(model.stages), []

    def counting(number: int):
        def wrap(forward: Forward) -> Forward:
            def called(*args: Any, **kwargs: Any) -> Any:
                before = counter.get_total_flops()
                output = forward(*args, **kwargs)
                counts[number] += counter.get_total_flops() - before
                sizes.append(_bytes_of(output))
                return output

            return called

        return wrap

    with counter, replaced({stage: counting(number) for number, stage in enumerate(model.stages)}):
        Denoising(model, one, [()]).run()
    counts[-1] += counter.get_total_flops() - sum(counts)
    return tuple(counts), sum(sizes)


def _bytes_of(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.nbytes
    return sum(_bytes_of(x) for x in output) if isinstance(output, tuple | list) else 0
