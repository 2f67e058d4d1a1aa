"""One run of a diffusion pipeline, with edits applied and activations captured.

The pipeline's own call runs: its loop, scheduler, guidance, decoder. Around it stands a clock, which knows for every
call of the denoiser the step and, from the layout measured on loading, the branch and row of every line of the batch.
Edits act and captures are taken by that address. What another prompt would have in the same state (`UnderPrompt`) is
computed by *donor* rows, which ride along behind the rows asked for: whatever the scheduler made of them, the denoiser
sees them with the x_t of the row that they serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import InterpError, ShapeError, UnfiredError
from interp.interventions.captured import DenoisingRun, Run
from interp.interventions.edits import Ablate, Edit, LiveRow, Positions, UnderPrompt, When
from interp.interventions.memory import free_bytes
from interp.interventions.plan import Index, KeyAxis, Ops, Plan, compile_variants, position_grid
from interp.models.attention import attending
from interp.models.denoiser import Denoiser, Sampling, refuse_silenced
from interp.models.guidance import Branch
from interp.models.hooks import Forward, Watcher, refuse_held, replaced, stepping, stopping_at, tapped
from interp.models.prompts import Prompts, from_token_lists
from interp.models.site import ATTENTION_PARTS, Site
from interp.models.tap import Tap

_TEXT = -1
"""The pass of the text encoders, before every step."""
_SHARED = ("txt_ids", "img_ids")
"""Arguments of a denoiser that hold one row per token, for the whole batch."""
_VALUES = ("value", "source", "over")
"""Where an edit may hold another run, or another prompt."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Timesteps of a scheduler, and their noise levels σ/α (infinite for pure noise)."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    def admits(self, when: When | None, step: int, branch: Branch) -> bool:
        """Whether an edit acts in this pass."""
        if when is None:
            return True
        if when.branch not in (None, branch) or (when.steps is not None and step not in when.steps):
            return False
        bounds = ((when.timesteps, self.timesteps), (when.sigmas, self.sigmas))
        return all(limit is None or limit[0] <= at[step] <= limit[1] for limit, at in bounds)


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule that a pipeline has set."""
    timesteps = [float(t) for t in scheduler.timesteps]
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) >= len(timesteps):
        sigmas = [float(s) for s in scheduler.sigmas[: len(timesteps)]]
        flow = "FlowMatch" in type(scheduler).__name__ or getattr(scheduler.config, "use_flow_sigmas", False)
        if flow:  # x_t = (1 − σ) x_0 + σ ε
            sigmas = [s / (1 - s) if s < 1 else np.inf for s in sigmas]
    else:
        kept = [float(scheduler.alphas_cumprod[int(t)]) for t in timesteps]
        sigmas = [((1 - a) / a) ** 0.5 if a > 0 else np.inf for a in kept]
    return Schedule(tuple(timesteps), tuple(sigmas))


def denoise(
    model: Denoiser,
    sampling: Sampling,
    edits: Sequence[Edit] = (),
    capture: Sequence[Site | str] = (),
    *,
    when: When | None = None,
    positions: Positions = None,
) -> DenoisingRun:
    """Run a pipeline; `interp.run` on a denoiser.

    Args:
        edits: applied in list order; `rows` are rows of the sampling, `positions` cells (or tokens, in a text encoder
            and for cross-attention's keys and values).
        capture: sites, their names, or part names (every block); recorded after any edit made there.
        when: steps and branch to capture; all if not given.
        positions: keep captures at these positions only (queries, for attention scores and patterns).

    Raises:
        InterpError: as `compile_variants`, before any denoising; an edit or capture in no pass of the run; captures
            that take more than half of the free memory.
        UnfiredError: a place that the run never reached.
    """
    return Denoising(model, sampling, [edits]).run(capture, when, positions)


class Denoising:
    """The rows of some variants of one sampling, compiled: checked in full before anything is denoised.

    Args:
        sampling: the base rows; every variant is a list of edits on them.
        rows: (variant, base row) of every row that is run; by default all rows of every variant.
        steady: donors that every base row has, whether or not its variant uses them (for a base run whose states
            serve other variants).
        checked: the schedule, where these edits have been checked before, with others.
    """

    def __init__(
        self,
        model: Denoiser,
        sampling: Sampling,
        variants: Sequence[Sequence[Edit]],
        *,
        rows: Sequence[tuple[int, int]] | None = None,
        steady: Sequence[UnderPrompt] = (),
        checked: Schedule | None = None,
    ) -> None:
        refuse_silenced(model.network, model.name)
        refuse_held(model.network)
        self.model, self.base, self.variants = model, sampling, variants
        self.layout = model.layout(sampling)
        pairs = [(v, e) for v in range(len(variants)) for e in range(len(sampling))] if rows is None else list(rows)
        self.pairs = pairs
        self.row_of = np.full((len(variants), len(sampling)), -1)
        for row, pair in enumerate(pairs):
            self.row_of[pair] = row
        self.others = list(dict.fromkeys([*steady, *(o for edits in variants for e in edits for o in others_of(e))]))
        self._extend(steady)
        if checked is not None:
            self.schedule = checked
            return
        for edit in dict.fromkeys(e for edits in variants for e in edits):
            self._check(edit)

    @property
    def n_rows(self) -> int:
        """Rows asked for, without donors."""
        return len(self.pairs)

    def _extend(self, steady: Sequence[UnderPrompt]) -> None:
        """Append donor rows: `donor[number, row]` serves `row` with the prompt of `others[number]`."""
        self.donor = np.full((len(self.others), self.n_rows), -1)
        whole = self.base.select([example for _, example in self.pairs])
        prompts: list[Any] = list(whole.prompts)
        negative = None if whole.negative is None else list(whole.negative)
        self.state_of = list(range(self.n_rows))
        for row, (variant, example) in enumerate(self.pairs):
            wanted = [
                *steady,
                *(o for edit in self.variants[variant] if _acts_on(edit, example) for o in others_of(edit)),
            ]
            for other in dict.fromkeys(wanted):
                self.donor[self.others.index(other), row] = len(self.state_of)
                self.state_of.append(row)
                prompts.append(other.prompt[example] if isinstance(other.prompt, tuple) else other.prompt)
                if negative is not None:
                    negative.append(negative[row] if other.negative is None else other.negative)
                elif other.negative is not None:
                    raise InterpError(
                        f"UnderPrompt has the negative prompt {other.negative!r}, this run none: give the run one too."
                    )
        others = [*prompts[self.n_rows :], *(negative or ())[self.n_rows :]]
        self.model.check_prompts([*dict.fromkeys(others)], self.base.options)
        self.sampling = replace(
            whole.select(self.state_of), prompts=tuple(prompts), negative=None if negative is None else tuple(negative)
        )

    # -- what is refused ------------------------------------------------------------------------------

    def _check(self, edit: Edit) -> None:
        site, when = self.model.check(edit.site), edit.when
        text = is_text(site)
        if when is not None and text and (when.steps, when.timesteps, when.sigmas) != (None, None, None):
            raise InterpError(f"{site}: text encoders run before the first step; give no steps, timesteps or sigmas.")
        if not text:
            self._check_when(site, when)
        elif when is not None and when.branch is not None and not self.model.encodes(self.base, when.branch):
            raise InterpError(f"{site}: without a negative prompt {self.model.name} encodes no text in that branch.")
        if others_of(edit) and (text or site.part == "latents"):
            what = "is the state itself" if site.part == "latents" else "sees no x_t"
            raise InterpError(f"{site} {what}, so no other prompt has a value there in the same state; give a run.")
        for other in others_of(edit):
            if isinstance(other.prompt, tuple) and len(other.prompt) != len(self.base):
                raise InterpError(
                    f"UnderPrompt: {len(other.prompt)} prompts for {len(self.base)} rows; give one, or one each."
                )
        passes = [
            (step, branch)
            for step in ([_TEXT] if text else range(len(self.schedule.timesteps)))
            for branch in self._branches
            if self.admits(when, step, branch)
        ]
        source = _source_of(edit)
        if source is not None:
            self._check_source(site, source, edit)
            for step, branch in passes:
                source.at(site.all_heads, None if text else step, branch)
        for step, branch in passes[:1]:
            self._plan(site, [[edit]], step, branch)

    def _check_when(self, site: Site | None, when: When | None) -> None:
        what, last = "The capture" if site is None else f"The edit at {site}", len(self.schedule.timesteps) - 1
        if when is None:
            return
        if when.branch not in (None, *self._branches):
            raise InterpError(
                f"{what} is in branch {when.branch.value!r}, which this run does not have; without guidance there is "
                "only 'cond'."
            )
        if outside := [step for step in when.steps or () if not 0 <= step <= last]:
            raise InterpError(f"{what} names steps {outside}; this run has 0 to {last}.")
        if not self.passes(when):
            raise InterpError(
                f"{what} is in no pass: {when} of steps 0 to {last} (timesteps {self.schedule.timesteps[0]:g} to "
                f"{self.schedule.timesteps[-1]:g}, σ/α {self.schedule.sigmas[0]:g} to {self.schedule.sigmas[-1]:g})."
            )

    def _check_source(self, site: Site, source: DenoisingRun, edit: Edit) -> None:
        if not isinstance(edit, Ablate) and len(source.sampling) not in (1, len(self.base)):
            raise ShapeError(
                f"The source run at {site} has {len(source.sampling)} rows, this one {len(self.base)}; give as many, "
                "or one."
            )
        grids = [self.model.grid_of(site, sampling) for sampling in (source.sampling, self.base)]
        if source.partial or grids[0] != grids[1]:
            kept = "only some positions" if source.partial else "{}×{} of them".format(*grids[0])
            raise ShapeError(
                f"The source run at {site} has {kept}, this one {grids[1][0]}×{grids[1][1]}: positions would not "
                "correspond."
            )
        if site.part in ATTENTION_PARTS:
            theirs, ours = (self.model.keys_of(site, sampling) for sampling in (source.sampling, self.base))
            if theirs != ours:
                raise ShapeError(f"The source run at {site} has {theirs} keys, this one {ours}.")
        if not is_text(site) and source.timesteps != self.schedule.timesteps:
            raise ShapeError(
                f"The source run at {site} has other timesteps, so its steps do not correspond to this run's."
            )

    @property
    def _branches(self) -> tuple[Branch, ...]:
        return tuple(branch for call in self.layout.calls for branch in call)

    def passes(self, when: When | None) -> list[int]:
        """Steps in which something with this `when` acts, in any branch."""
        return [
            step
            for step in range(len(self.schedule.timesteps))
            if any(self.schedule.admits(when, step, branch) for branch in self._branches)
        ]

    # -- what the pipeline would do -------------------------------------------------------------------

    @cached_property
    def schedule(self) -> Schedule:
        """The scheduler's, as the pipeline sets it: seen by starting it and stopping before the first step."""
        one = self.base.select([0])
        with torch.no_grad(), stopping_at(self.model.network):
            self.model.pipeline(**self.model.arguments(one, self._embeddings(one)))
        return schedule_of(self.model.pipeline.scheduler)

    def _embeddings(self, sampling: Sampling) -> dict[str, Tensor]:
        # Every row's, also of equal prompts: in a batch of another size the same text may get other last bits.
        return {k: x for branch in self._branches for k, x in self.model.embeddings(sampling, branch).items()}

    # -- compiling ------------------------------------------------------------------------------------

    def ops(self, site: Site, step: int, branch: Branch) -> tuple[Ops, ...]:
        """The edits of one site in one pass, `example` being the row that is run."""
        variants = self._active(site, step, branch)
        if any(_source_of(edit) is not None for edits in variants for edit in edits):
            return self._compile(site, variants, step, branch)  # with this pass's values, which no other shares
        key = (site, tuple(tuple(map(id, edits)) for edits in variants))
        if key not in self._ops:
            self._ops[key] = self._compile(site, variants, step, branch)
        return self._ops[key]

    def compiled(self, edit: Edit, step: int, branch: Branch) -> tuple[Ops, ...]:
        """One edit alone, on the base rows."""
        return self._compile(edit.site.all_heads, [[edit]], step, branch, alone=True)

    @cached_property
    def _ops(self) -> dict[tuple, tuple[Ops, ...]]:
        return {}

    @cached_property
    def _edits_at(self) -> dict[Site, list[list[Edit]]]:
        found: dict[Site, list[list[Edit]]] = {}
        for number, edits in enumerate(self.variants):
            for edit in edits:
                found.setdefault(edit.site.all_heads, [[] for _ in self.variants])[number].append(edit)
        return found

    def _active(self, site: Site, step: int, branch: Branch) -> list[list[Edit]]:
        variants = self._edits_at.get(site, ())
        return [[edit for edit in edits if self.admits(edit.when, step, branch)] for edits in variants]

    def admits(self, when: When | None, step: int, branch: Branch) -> bool:
        """Whether an edit acts in this pass; the text encoders' is step −1."""
        if step == _TEXT:
            return when is None or when.branch in (None, branch)
        return when is None or self.schedule.admits(when, step, branch)

    def _compile(
        self, site: Site, variants: Sequence[Sequence[Edit]], step: int, branch: Branch, *, alone: bool = False
    ) -> tuple[Ops, ...]:
        if not any(variants):
            return ()
        out = []
        for op in self._plan(site, variants, step, branch).sites.get(site.all_heads, ()):
            row = op.example if alone else self.row_of[op.variant, op.example]
            chosen = row >= 0
            if chosen.any():
                out.append(replace(op.select(chosen), variant=op.variant[chosen] * 0, example=row[chosen]))
        return tuple(out)

    def _plan(self, site: Site, variants: Sequence[Sequence[Edit]], step: int, branch: Branch) -> Plan:
        resolved = [[self._resolved(edit, step, branch) for edit in edits] for edits in variants]
        rows, keys = len(self.base), None
        if site.part in ATTENTION_PARTS:
            keys = KeyAxis(_cell_prompts(self.model.keys_of(site, self.base), rows, self.model.device))
        return compile_variants(self.model, self._cells(site, rows), resolved, keys=keys)

    def _cells(self, site: Site, rows: int) -> Prompts:
        height, width = self.model.grid_of(site, self.base)
        return _cell_prompts(height * width, rows, self.model.device)

    def _resolved(self, edit: Edit, step: int, branch: Branch) -> Edit:
        """The edit with values of this pass."""
        site = edit.site.all_heads
        for name in _VALUES:
            value = getattr(edit, name, None)
            if isinstance(value, UnderPrompt):
                return replace(edit, **{name: LiveRow(self.others.index(value))})
            if isinstance(value, DenoisingRun):
                x = value.at(site, None if step == _TEXT else step, branch)
                return replace(edit, **{name: Run(self._cells(site, len(x)), None, {site: x})})
        return edit

    # -- running --------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(
        self,
        capture: Sequence[Site | str] = (),
        when: When | None = None,
        positions: Positions = None,
        *,
        serve: Serving | None = None,
        record: Record | None = None,
    ) -> DenoisingRun:
        """Run the rows; see `denoise`."""
        model = self.model
        if capture or any(self.variants):
            _ = self.schedule  # looked up now: it cannot be while the pipeline runs
        sites = _capture_sites(model, capture)
        if sites:
            self._check_when(None, when)
        steps = [] if not sites else self.passes(when)
        branches = tuple(b for b in self._branches if when is None or when.branch in (None, b))
        asked = {} if positions is None else {s: position_grid(self._cells(s, self.n_rows), positions) for s in sites}
        self._fits(sites, len(steps), len(branches), asked)
        kept = Kept(sites, set(steps), branches, self.n_rows, {site.all_heads: at for site, at in asked.items()})
        clock = Clock(self, kept, serve, record)
        embeds = clock.encode()
        images = clock.sample(model.arguments(self.sampling, embeds))
        return DenoisingRun(
            self.base.select([example for _, example in self.pairs]), images[: self.n_rows], torch.stack(clock.latents),
            clock.schedule.timesteps, clock.schedule.sigmas, tuple(steps), branches, kept.stacked(), bool(asked),
        )  # fmt: skip

    def _fits(self, sites: Sequence[Site], steps: int, branches: int, asked: Mapping[Site, Tensor]) -> None:
        total = 0
        for site in sites:
            size = self.model.size_of(site, self.base) * item_bytes(self.model, site)
            if site in asked:
                height, width = self.model.grid_of(site, self.base)
                size = size * asked[site].shape[1] // (height * width)
            total += branches * (1 if is_text(site) else steps) * self.n_rows * size
        inside = [s for s in {*sites, *self.sites()} if s.part in ATTENTION_PARTS]
        at_once = max(map(len, self.layout.calls)) * len(self.sampling)  # scores and pattern, before and after edits
        total += (
            4 * at_once * max((self.model.size_of(s, self.base) * item_bytes(self.model, s) for s in inside), default=0)
        )
        free = free_bytes(self.model.device)
        if total > free // 2:
            raise InterpError(
                f"These captures take {total / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free. Capture fewer "
                "steps (`when`), sites or rows."
            )

    def acts(self, step: int, branch: Branch, rows: Index) -> bool:
        """Whether some edit acts on one of these rows in this pass."""
        return any(
            not is_text(edit.site) and self.schedule.admits(edit.when, step, branch) and _acts_on(edit, example)
            for variant, example in (self.pairs[row] for row in rows.tolist())
            for edit in self.variants[variant]
        )

    def asked(self, step: int, branch: Branch, rows: Index) -> list[int]:
        """Donors that edits of these rows take values from in this pass."""
        return [
            int(self.donor[self.others.index(other), row])
            for row in rows.tolist()
            for edit in self.variants[self.pairs[row][0]]
            if self.schedule.admits(edit.when, step, branch) and _acts_on(edit, self.pairs[row][1])
            for other in others_of(edit)
        ]

    def sites(self) -> list[Site]:
        """Every site that some variant edits."""
        return list(dict.fromkeys(edit.site.all_heads for edits in self.variants for edit in edits))


class Kept:
    """Captured activations as they arrive."""

    def __init__(
        self,
        sites: Sequence[Site],
        steps: set[int],
        branches: tuple[Branch, ...],
        rows: int,
        positions: Mapping[Site, Tensor],
    ) -> None:
        self.sites = dict.fromkeys(site.all_heads for site in sites)
        self.asked, self.steps, self.branches, self.rows = sites, steps, branches, rows
        self.positions = positions
        self.found: dict[tuple[Site, int, Branch], Tensor] = {}

    def keep(self, site: Site, step: int, branch: Branch, x: Tensor) -> None:
        """Record one branch's rows [row, pos, …]; of attention [row, query, head, key]."""
        if site in self.sites and branch in self.branches and (step == _TEXT or step in self.steps):
            x = x[: self.rows]
            at = self.positions.get(site)
            x = x.clone() if at is None else x[torch.arange(len(x))[:, None], at]
            self.found[site, step, branch] = x.transpose(1, 2) if site.part in ATTENTION_PARTS else x

    def stacked(self) -> dict[Site, Tensor]:
        """[step, branch, row, pos, …] of each site asked for; of text encoders without the steps."""
        out = {}
        passes = {(s, step, b) for s in self.sites for step in _steps(s, self.steps) for b in self.branches}
        if missing := sorted({f"{s} in step {step}" for s, step, _ in passes - self.found.keys()}):
            raise UnfiredError(f"Nothing was captured at {', '.join(missing)}.")
        for site in self.asked:
            steps = _steps(site, self.steps)
            x = torch.stack([torch.stack([self.found[site.all_heads, s, b] for b in self.branches]) for s in steps])
            if site.head is not None:
                x = x.select(-3 if site.part in ATTENTION_PARTS else -2, site.head)
            out[site] = x[0] if is_text(site) else x
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a base run leaves for its variants: the denoiser's outputs, and its stages' at some steps.

    Attributes:
        steps: steps of which the stages' outputs are kept.
        outputs: by (step, call, stage); stage −1 is the whole denoiser.
    """

    steps: frozenset[int]
    outputs: dict[tuple[int, int, int], Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """What rows need not compute, because they still are the base run's.

    Attributes:
        record: of the base run.
        base_rows: rows of the base run, donors included.
        row: of each row, donors included, the row of the base run that it is until it departs.
        step: of each row, the first step that is computed; −1: all are.
        stage: of each row, the first stage of that step that is computed.
    """

    record: Record
    base_rows: int
    row: Index
    step: Index
    stage: Index

    def outputs(self, key: tuple[int, int, int], branches: int, wanted: Sequence[tuple[int, Index]]) -> Any:
        """An output of the base run, for these (branch, rows) of a call."""
        at = np.concatenate([branch * self.base_rows + self.row[rows] for branch, rows in wanted])
        return select_rows(self.record.outputs[key], torch.from_numpy(at), branches * self.base_rows)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Lines of a call that are computed together: rows that are as far as each other.

    Attributes:
        stage: the first stage that is computed.
        branches: numbers of the call's branches that are.
        lines: of each of them, the rows, and behind them the donors that they ask.
        line_of: of each of them, where a row of the run lies among its lines; −1: nowhere.
    """

    stage: int
    branches: tuple[int, ...]
    lines: tuple[Index, ...]
    line_of: tuple[Index, ...]

    @classmethod
    def of(cls, n: int, stage: int, lines: Mapping[int, Index]) -> Group:
        """The group of the lines of some branches, of a run of `n` rows."""
        places = []
        for rows in lines.values():
            places.append(np.full(n, -1))
            places[-1][rows] = np.arange(len(rows))
        return cls(stage, tuple(lines), tuple(lines.values()), tuple(places))


class Clock:
    """Steps, calls and branches while a pipeline runs; edits, captures and serves by them.

    Of a call's batch only the lines that matter are computed: rows from the step on in which they leave the base run,
    in that step only the blocks and branches that are edited, and donors only in passes where an edit asks for them.
    So the batch grows from step to step, as rows depart.
    """

    def __init__(self, rows: Denoising, kept: Kept, serve: Serving | None, record: Record | None) -> None:
        self.rows, self.model, self.kept, self.serve, self.record = rows, rows.model, kept, serve, record
        self.step, self.call = 0, -1
        self.latents: list[Tensor] = []
        self.schedule = Schedule((), ())
        self.n = len(rows.sampling)
        self.everyone = np.arange(self.n)
        self.group = Group.of(self.n, 0, {})
        self.visited: set[tuple[Site, int, Branch]] = set()

    def encode(self) -> dict[str, Tensor]:
        """The text stage, branch by branch, edited and captured."""
        rows = self.rows
        sites = [site for site in dict.fromkeys([*rows.sites(), *self.kept.sites]) if is_text(site)]
        if not sites:
            return rows._embeddings(rows.sampling)
        embeds: dict[str, Tensor] = {}
        whole = Group.of(self.n, 0, {0: self.everyone})
        for branch in rows._branches:

            def watch(site: Site, branch: Branch = branch) -> Watcher:
                return lambda x: self._visit(site, x, _TEXT, (branch,), whole)

            watchers = [(str(site), self.model.tap(site), watch(site)) for site in sites]
            with tapped(watchers, self.n, first=True):
                embeds |= self.model.embeddings(rows.sampling, branch)
        return embeds

    def sample(self, arguments: dict[str, Any]) -> Tensor:
        """The denoising loop; returns the pictures."""
        model = self.model
        wrapped: dict[nn.Module, Any] = {model.network: self._network}
        if self.serve is not None or (self.record is not None and self.record.steps):
            wrapped |= {stage: self._stage(number) for number, stage in enumerate(model.stages)}
        with ExitStack() as stack:
            inside, at_sides = self._watchers()
            stack.enter_context(tapped(at_sides, None))
            if inside:
                stack.enter_context(attending(inside, model.tokens_of(self.rows.base)))
            stack.enter_context(replaced(wrapped))
            stack.enter_context(stepping(model.pipeline.scheduler, lambda x: x, self._next))
            images = model.pipeline(**arguments, return_dict=False)[0]
        self._check_passes()
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return images

    def _next(self) -> None:
        if self.call + 1 < len(self.rows.layout.calls):
            raise UnfiredError(
                f"Step {self.step} called the denoiser {self.call + 1} times, not {len(self.rows.layout.calls)}: "
                f"{self.rows.layout}."
            )
        self.step, self.call = self.step + 1, -1

    def _branches(self, call: int, x: Tensor) -> tuple[Branch, ...]:
        """Branches of a call of the denoiser, which has as many rows as it should."""
        calls = self.rows.layout.calls
        if call >= len(calls) or len(x) != self.n * len(calls[call]):
            raise InterpError(
                f"Call {call} of the denoiser in step {self.step} has {len(x)} rows; this run has {self.n}, "
                f"{self.rows.layout}. Options that add rows or calls (skipped layers, image prompts) are not "
                "served."
            )
        return calls[call]

    def _check_passes(self) -> None:
        """Every step ran, and every edit of every pass met its activation."""
        if self.step != len(self.schedule.timesteps):
            raise UnfiredError(
                f"The pipeline ended after {self.step} of the {len(self.schedule.timesteps)} steps of its schedule, so "
                "edits and captures of the others would be missing."
            )
        for site in (site for site in self.rows.sites() if not is_text(site)):
            for step, branch in ((s, b) for s in range(self.step) for b in self.rows._branches):
                if (site, step, branch) in self.visited:
                    continue
                if any(self._departed(site, step, op.example).any() for op in self.rows.ops(site, step, branch)):
                    raise UnfiredError(f"The edit at {site} met nothing in step {step}, branch {branch.value!r}.")

    def _departed(self, site: Site, step: int, rows: Index) -> np.ndarray:
        """Which of some rows are computed at a site in this step, and not served from the base run."""
        serve = self.serve
        if serve is None:
            return np.ones(len(rows), dtype=bool)
        entering = (serve.step[rows] == step) & (serve.stage[rows] <= self.model.stage_of(site))
        return (serve.step[rows] < step) | entering

    # -- the denoiser and its stages ------------------------------------------------------------------

    def _network(self, forward: Forward) -> Forward:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.call += 1
            x = args[0] if args else kwargs["hidden_states"]
            branches = self._branches(self.call, x)
            if self.step == 0 and self.call == 0:
                self.schedule = schedule_of(self.model.pipeline.scheduler)
            if self.call == 0:
                self.latents.append(x[: self.rows.n_rows].clone())
            if self.rows.n_rows < self.n:
                state = torch.tensor([b * self.n + s for b in range(len(branches)) for s in self.rows.state_of])
                x = x[state.to(x.device)]
                args, kwargs = ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})
            found: list[tuple[Group, Any]] = []
            for group in self._groups(branches):
                self.group = group
                found.append((group, self._computed(forward, args, kwargs, group, len(branches))))
            output = self._assembled(found, len(branches))
            self._recorded(-1, output)
            return output

        return called

    def _computed(self, forward: Forward, args: Any, kwargs: Any, group: Group, branches: int) -> Any:
        """What the denoiser makes of a group's lines."""
        at = np.concatenate([b * self.n + rows for b, rows in zip(group.branches, group.lines, strict=True)])
        if len(at) < self.n * branches:  # in order, so as many are all of them
            lines, size = torch.from_numpy(at), self.n * branches
            args, kwargs = select_arguments(args, kwargs, lines, size)
        return forward(*args, **kwargs)

    def _groups(self, branches: tuple[Branch, ...]) -> list[Group]:
        """The lines of a call that are computed, those together that are as far as each other."""
        rows, serve = np.arange(self.rows.n_rows), self.serve
        if serve is None:
            return [self._group(0, rows, range(len(branches)), branches)]
        step, stage = serve.step[: len(rows)], serve.stage[: len(rows)]
        found = []
        for first in np.unique(stage[step == self.step]).tolist():
            entering = rows[(step == self.step) & (stage == first)]
            edited = [b for b, branch in enumerate(branches) if self.rows.acts(self.step, branch, entering)]
            found += [(first, entering, edited)] if edited else []
        if len(going := rows[step < self.step]):
            found.append((0, going, range(len(branches))))
        groups = []
        for first, some, chosen in found:
            lines = self._group(first, some, chosen, branches).lines
            pieces = -(-sum(map(len, lines)) // _most_lines(self.model.device))
            groups += [self._group(first, piece, chosen, branches) for piece in np.array_split(some, pieces)]
        return groups

    def _group(self, stage: int, rows: Index, chosen: Sequence[int], branches: tuple[Branch, ...]) -> Group:
        lines = {b: np.concatenate([rows, self._donors(branches[b], rows)]) for b in chosen}
        return Group.of(self.n, stage, lines)

    def _donors(self, branch: Branch, rows: Index) -> Index:
        """Donors that these rows ask in a pass of this step; of a record, those that later rows start as."""
        if self.record is None:
            return np.unique(np.array(self.rows.asked(self.step, branch, rows), dtype=np.int64))
        return np.arange(self.rows.n_rows, self.n if self.step in self.record.steps else self.rows.n_rows)

    def _assembled(self, found: list[tuple[Group, Any]], branches: int) -> Any:
        """A whole call's output: computed lines, the base run's, and of donors that nobody asked their row's."""
        serve, n_rows = self.serve, self.rows.n_rows
        if len(found) == 1 and sum(map(len, found[0][0].lines)) == self.n * branches:
            return found[0][1]
        source, count, outputs = np.full((branches, self.n), -1), 0, []
        for group, output in found:
            for b, rows in zip(group.branches, group.lines, strict=True):
                source[b, rows] = count + np.arange(len(rows))
                count += len(rows)
            outputs.append(output)
        if (source[:, :n_rows] < 0).any():
            assert serve is not None
            wanted = [(b, np.flatnonzero(source[b, :n_rows] < 0)) for b in range(branches)]
            served = serve.outputs((self.step, self.call, -1), branches, wanted)
            for b, rows in wanted:
                source[b, rows] = count + np.arange(len(rows))
                count += len(rows)
            outputs.append(served)
        source = np.where(source < 0, source[:, self.rows.state_of], source)
        return select_rows(_joined(outputs), torch.from_numpy(source.ravel()), count)

    def _stage(self, number: int):
        def wrap(forward: Forward) -> Forward:
            def called(*args: Any, **kwargs: Any) -> Any:
                group = self.group
                if number < group.stage:
                    assert self.serve is not None
                    wanted = list(zip(group.branches, group.lines, strict=True))
                    branches = len(self.rows.layout.calls[self.call])
                    return self.serve.outputs((self.step, self.call, number), branches, wanted)
                output = forward(*args, **kwargs)
                self._recorded(number, output)
                return output

            return called

        return wrap

    def _recorded(self, stage: int, output: Any) -> None:
        if self.record is not None and (stage < 0 or self.step in self.record.steps):
            self.record.outputs[self.step, self.call, stage] = output

    # -- edits and captures ---------------------------------------------------------------------------

    def _watchers(self) -> tuple[list[tuple[str, Tap, Watcher]], list[tuple[str, Tap, Watcher]]]:
        """Watchers of what is inside an attention, and of what is met at a module's side."""
        sites = [site for site in dict.fromkeys([*self.rows.sites(), *self.kept.sites]) if not is_text(site)]
        sites = [site for site in sites if not self._inside_served(site)]
        sites.sort(key=lambda site: site.part == "block_out")  # at a shared tap the update comes before its sum
        inside: list[tuple[str, Tap, Watcher]] = []
        at_sides: list[tuple[str, Tap, Watcher]] = []
        for site in sites:
            tap = self.model.tap(site)
            if site.part in ATTENTION_PARTS:
                inside.append((str(site), tap, lambda x, site=site: self._attention(site, x)))
            elif site.part == "block_update":
                at_sides += self._update(site, tap)
            else:
                at_sides.append((str(site), tap, lambda x, site=site: self.visit(site, x)))
        return inside, at_sides

    def _inside_served(self, site: Site) -> bool:
        """Whether a site lies inside a block that is served to all rows in all steps, so that no hook fires."""
        last = len(self.rows.schedule.timesteps) - 1 if self.serve is not None else 0
        if site.layer is None or self._departed(site, last, np.arange(self.rows.n_rows)).any():
            return False
        return self.model.tap(site).module is not self.model.stages[self.model.stage_of(site)]

    def _update(self, site: Site, tap: Tap) -> list[tuple[str, Tap, Watcher]]:
        """What a stage changes is no tensor of the network: output minus input, and back."""
        before: list[Tensor] = []

        def watch(x: Tensor) -> Tensor | None:
            entered = before.pop()
            own = x - entered
            update = self.visit(site, own)
            return None if update is None else x + (update - own)  # so that the same update changes no bit

        return [(str(site), replace(tap, side="input"), lambda x: before.append(x)), (str(site), tap, watch)]

    def _attention(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit and keep [branch · row, head, query, key]."""
        height, width = self.model.grid_of(site, self.rows.base)
        expected = (self.model.heads_of(site), height * width, self.model.keys_of(site, self.rows.base))
        if tuple(x.shape[1:]) != expected:
            raise ShapeError(f"{site} is {list(x.shape[1:])} [head, query, key] where {list(expected)} was expected.")
        new = self.visit(site, x.transpose(1, 2))
        return None if new is None else new.transpose(1, 2)

    def visit(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit and keep [branch · row, pos, …] of the current call; None if nothing changes."""
        group, calls = self.group, self.rows.layout.calls
        if site.part in ("latents", "prediction"):  # met before and after the denoiser's forward, with every line
            branches = self._branches(self.call + 1, x) if site.part == "latents" else calls[self.call]
            group = Group.of(self.n, 0, dict.fromkeys(range(len(branches)), self.everyone))
        else:
            branches = tuple(calls[self.call][b] for b in group.branches)
        return self._visit(site, x, self.step, branches, group)

    def _visit(self, site: Site, x: Tensor, step: int, branches: tuple[Branch, ...], group: Group) -> Tensor | None:
        out, changed = [], False
        parts = x.split([len(rows) for rows in group.lines])
        for branch, part, line_of in zip(branches, parts, group.line_of, strict=True):
            for op in self.rows.ops(site, step, branch):
                line = line_of[op.example]
                if (line < 0).any():
                    op, line = op.select(line >= 0), line[line >= 0]
                if not len(op):
                    continue
                op = self._live(op, part, line_of) if op.live else op
                part = op.apply(part.flatten(0, 1), line * part.shape[1] + op.position).view(part.shape)
                changed = True
            self.visited.add((site, step, branch))
            self.kept.keep(site, step, branch, part)
            out.append(part)
        return torch.cat(out) if changed else None

    def _live(self, op: Ops, x: Tensor, line_of: Index) -> Ops:
        """The op with what its donor rows have here."""
        donor = line_of[self.rows.donor[op.operand, op.example]]
        place = donor * x.shape[1] + op.position
        groups = int(np.prod(x.shape[2:] if op.by_unit else x.shape[2:-1]))
        table = x.reshape(-1, 1) if op.by_unit else x.reshape(-1, x.shape[-1])
        return replace(op, operand=place * groups + op.group, table=table)


def item_bytes(model: Denoiser, site: Site) -> int:
    """Bytes of one number of a captured site: attention is seen in float32, or wider."""
    wide = torch.promote_types(model.dtype, torch.float32) if site.part in ATTENTION_PARTS else model.dtype
    return torch.finfo(wide).bits // 8


def _most_lines(device: torch.device) -> int:
    """Lines of one forward pass of the denoiser.

    A processor's cache holds what some dozens have in a block: the shapes model takes 5.2 ms for a line among 16 or 32,
    5.9 ms among 64, 6.1 ms among 128 (and 9.4 ms among two).
    """
    return 32 if device.type == "cpu" else 4096


@lru_cache(maxsize=64)
def _cell_prompts(cells: int, rows: int, device: torch.device) -> Prompts:
    """Cells as the compiler's tokens."""
    return from_token_lists(None, [[0] * cells] * rows, device=device)


def others_of(edit: Edit) -> list[UnderPrompt]:
    """The other prompts that an edit takes values from, in the state at hand."""
    values = [getattr(edit, name, None) for name in _VALUES]
    return [value for value in values if isinstance(value, UnderPrompt)]


def _source_of(edit: Edit) -> DenoisingRun | None:
    """The run that an edit takes its values from."""
    values = [getattr(edit, name, None) for name in _VALUES]
    return next((value for value in values if isinstance(value, DenoisingRun)), None)


def _acts_on(edit: Edit, example: int) -> bool:
    return edit.rows is None or example in edit.rows


def _steps(site: Site, steps: set[int]) -> list[int]:
    return [_TEXT] if is_text(site) else sorted(steps)


def is_text(site: Site) -> bool:
    """Whether a site lies in a text encoder."""
    return str(site.layer).startswith("text")


def _capture_sites(model: Denoiser, capture: Sequence[Site | str]) -> tuple[Site, ...]:
    if isinstance(capture, str | Site):
        raise InterpError(f"`capture` is a list of sites; write [{capture!r}].")
    sites: list[Site] = []
    for item in capture:
        named = isinstance(item, str) and "." not in item
        sites += model.sites(str(item)) if named else [model.check(item)]
    return tuple(dict.fromkeys(sites))


def select_rows(output: Any, at: Tensor, size: int) -> Any:
    """Rows of every tensor in arguments or an output whose first axis is the batch, of this size."""
    if isinstance(output, Tensor):
        return output[at.to(output.device)] if output.ndim and len(output) == size else output
    if isinstance(output, Mapping):  # arguments, and diffusers' output objects
        return type(output)(**{key: select_rows(value, at, size) for key, value in output.items()})
    if isinstance(output, tuple | list):
        return type(output)(select_rows(value, at, size) for value in output)
    return output


def select_arguments(args: tuple, kwargs: Mapping[str, Any], at: Tensor, size: int) -> tuple[tuple, dict[str, Any]]:
    """Rows of a denoiser's arguments; what a batch shares stays whole, whatever its length."""
    own = {name: value if name in _SHARED else select_rows(value, at, size) for name, value in kwargs.items()}
    return select_rows(args, at, size), own


def _joined(outputs: Sequence[Any]) -> Any:
    """Outputs of a denoiser, the rows of one behind the other's."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, tuple):
        return (torch.cat([output[0] for output in outputs]), *first[1:])
    return type(first)(sample=torch.cat([output.sample for output in outputs]))
