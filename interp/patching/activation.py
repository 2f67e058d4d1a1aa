"""Activation patching: which states, written from one prompt into another, carry the answer over?

For every cell of a grid (layer × position, layer × head, …) the run on one prompt of a pair is edited so
that one state takes the value it has on the other prompt:

- *denoising* edits the corrupted run with clean values: does this state suffice to bring the answer back?
- *noising* edits the clean run with corrupted values: is this state needed for it?

Defaults follow Zhang & Nanda, "Towards Best Practices of Activation Patching" (ICLR 2024): symmetric token
replacement, logit difference, single layers. Every cell of every pair is computed exactly, by one sweep.

When it misleads: states that are redundant show no effect alone; a window of layers shows more than
the sum of its layers; an effect says that a difference between these two prompts passes here, not that
"the fact" is stored here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, PairError, SiteError, nearest
from interp.interventions.base_states import states_with_source
from interp.interventions.captured import Run
from interp.interventions.edits import Edit, Replace
from interp.interventions.memory import free_bytes
from interp.interventions.packed import needed_sites
from interp.interventions.run import run
from interp.interventions.schedule import Cost, Savings
from interp.interventions.sweep import groups, plan_sweep
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import HEAD_PARTS, LAYER_PARTS, PARTS, Site
from interp.patching.pictures import PicturePatchResult, patch_pictures
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import mean_effect, recovered, smallest_p
from interp.tasks.metrics import METRICS, Metric, log_probabilities, named_metric
from interp.tasks.pairs import EncodedTask, PromptPair, Task
from interp.tasks.swaps import PicturePair, PictureTask

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

AXES = ("layer", "head", "pos", "unit")


@dataclass(frozen=True, repr=False, eq=False)
class PatchResult(Result):
    """Effects of patching every cell of a grid.

    `.data` holds, for each metric `m`, over the grid's axes: `m` (edited values, per `example`), `m_effect`
    (mean over examples of edited − base, in the metric's unit), `m_low`, `m_high` (95 % bootstrap interval
    of that mean), `m_p` (two-sided sign-flip p-value, Holm-corrected over the grid); and per example
    `m_clean`, `m_corrupted`. A cell that lies beyond a prompt's end is NaN for that example.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        at = f" at position {', '.join(map(str, p['positions']))}" if p["positions"] else ", all positions together"
        where = "" if "pos" in p["axes"] else at
        pairs = f"{p['n_examples']} pair{'s' if p['n_examples'] > 1 else ''}"
        return f"{p['direction'].capitalize()} {p['part']}{where} · {p['task']} ({pairs}) · {p['model']}"

    def recovered(self, metric: str | None = None) -> Dataset:
        """(mean edited − mean corrupted) / (mean clean − mean corrupted), over the grid.

        1 is the clean run's value, 0 the corrupted run's, in either direction of patching. A ratio of means over
        examples (`interp.statistics.recovered` says why), each cell's over the examples it was computed on.

        Returns:
            An xarray.Dataset: `recovered`, and its 95 % bootstrap interval over examples, `low` and `high`.

        Raises:
            PairError: clean and corrupted do not differ by more than the gap's own uncertainty.
        """
        import xarray as xr

        m, data = metric or self.provenance["metrics"][0], self.data
        axes = [axis for axis in data[m].dims if axis != "example"]
        edited = data[m].transpose(*axes, "example").values
        seed = self.provenance["seed"]
        found = recovered(edited, data[f"{m}_clean"].values, data[f"{m}_corrupted"].values, m, seed=seed)
        named = zip(("recovered", "low", "high"), found, strict=True)
        return xr.Dataset({name: (axes, x, {"unit": "share of the gap"}) for name, x in named}).assign_coords(
            {name: x for name, x in data.coords.items() if set(x.dims) <= set(axes)}
        )

    def plot(self, metric: str | None = None) -> Figure:
        """Heat map of the mean effect (curves, for a grid of one axis); intervals and p-values on hover."""
        from interp.plots import curves, heatmap

        m = metric or self.provenance["metrics"][0]
        effect = self.data[f"{m}_effect"]
        low, high, p = (self.data[f"{m}_{name}"] for name in ("low", "high", "p"))
        unit = f"effect on {m.replace('_', ' ')} ({self.data[m].attrs['unit']})"
        axes = [str(axis) for axis in effect.dims]
        if len(axes) == 1:
            labels = self._labels(axes[0])
            return curves(effect, x=axes[0], title=self.title, unit=unit, low=low, high=high, x_labels=labels)
        many = self.data.sizes["example"] > 1
        x = next(axis for axis in ("pos", "unit", "head", "layer") if axis in axes)
        y = next(axis for axis in ("layer", "head", "pos") if axis in axes and axis != x)
        facet = next((axis for axis in axes if axis not in (x, y)), None)
        return heatmap(
            effect, x=x, y=y, title=self.title, unit=unit, facet=facet,
            x_labels=self._labels(x), y_labels=self._labels(y),
            low=low if many else None, high=high if many else None, p=p if many else None,
        )  # fmt: skip

    def _labels(self, axis: str) -> list[str] | None:
        return [str(t) for t in self.data["token"].values] if axis == "pos" and "token" in self.data else None

    def summary(self) -> str:
        """The strongest cells, and what a p-value could have been."""
        p = self.provenance
        m = p["metrics"][0]
        effect = self.data[f"{m}_effect"]
        flat = effect.stack(cell=effect.dims).dropna("cell")
        order = np.argsort(-np.abs(flat.values))[:3]
        cells = []
        for i in order:
            where = dict(zip(effect.dims, flat.cell.values[i], strict=True))
            token = (
                f" {str(self.data['token'].values[where['pos']])!r}" if "pos" in where and "token" in self.data else ""
            )
            names = ", ".join(f"{axis} {value}" for axis, value in where.items())
            cells.append(f"  {flat.values[i]:+.3f} {self.data[m].attrs['unit']} at {names}{token}")
        clean, corrupted = (float(self.data[f"{m}_{which}"].mean()) for which in ("clean", "corrupted"))
        grid = " × ".join(f"{n} {axis}" for axis, n in effect.sizes.items())
        return "\n".join(
            [
                f"PatchResult: {self.title}",
                f"  {grid}; {m} clean {clean:+.3f}, corrupted {corrupted:+.3f}; {p['rows_run']} rows run, "
                f"{p['rows_skipped']} known without running",
                "  strongest effects:",
                *cells,
                f"  smallest p, before correction, of {p['n_examples']} pairs: {smallest_p(p['n_examples']):.2g}",
            ]
        )


@overload
def patch(
    model: Denoiser, task: PictureTask | PicturePair, part: str | None = None, **settings: Any
) -> PicturePatchResult: ...


@overload
def patch(
    model: LanguageModel,
    task: Task | PromptPair,
    part: str | None = None,
    *,
    over: Sequence[str] | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    metric: str | Sequence[str] = "logit_difference",
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    window: int | None = None,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> PatchResult: ...


def patch(
    model: LanguageModel | Denoiser,
    task: Task | PromptPair | PictureTask | PicturePair,
    part: str | None = None,
    *,
    over: Sequence[str] | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    metric: str | Sequence[str] = "logit_difference",
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    window: int | Sequence[range] | None = None,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> PatchResult | PicturePatchResult:
    """Patch every cell of a grid of states, for every pair of a task.

    On a diffusion pipeline the task's pairs are `PicturePair`s, and the arguments those of
    `interp.patching.patch_pictures`.

    Args:
        part: which state (`interp.models.site`), as a part or a TransformerLens hook name's part;
            `resid_pre` if not given.
        over: the grid's axes, of `layer`, `head`, `pos`, `unit`; what is not among them is patched
            together. Default: `("layer", "pos")`, or `("layer", "head")` for parts with heads. For
            `attn_scores` and `attn_pattern`, `pos` is the query.
        direction: `"denoising"` (clean values into the corrupted run) or `"noising"`.
        metric: names, of `interp.tasks.metrics.METRICS`; all are computed from the same passes.
        layers: layers of the grid, all if not given.
        positions: positions patched together, when `pos` is not an axis; all if not given. Negative ones
            count from each prompt's end.
        units: neurons of the grid or, when `unit` is not an axis, patched together.
        window: number of adjacent layers patched together (1 if not given), centred on the cell's layer and
            cut off at the model's ends. Do not compare effects of different windows.
        exact: as in `sweep`.
        budget: as in `sweep`.
        progress: as in `sweep`.
        checkpoint: as in `sweep`.
        seed: of the bootstrap and the sign flips.

    Raises:
        SiteError: a part, layer or axis that does not fit the model.
        PairError: pairs of unequal token length, answers of more than one token.
        InterpError: a metric, direction or window that there is not; settings of the other kind of model.
    """
    if isinstance(model, Denoiser):
        given = {"metric": None if metric == "logit_difference" else metric, "layers": layers, "units": units}
        if foreign := [name for name, value in {**given, "positions": positions}.items() if value is not None]:
            raise InterpError(f"{', '.join(foreign)}: only patching of texts has such a setting.")
        if isinstance(task, Task | PromptPair):
            raise PairError("These pairs ask for words, and a pipeline answers with pictures: see interp.tasks.swaps.")
        return patch_pictures(
            model, task, part or "cross_attn_out", over=over, direction=direction, window=window, exact=exact,
            budget=budget, progress=progress, checkpoint=checkpoint, seed=seed, **settings,
        )  # fmt: skip
    if settings:
        raise InterpError(f"{', '.join(settings)}: only patching of pictures has such a setting.")
    if isinstance(task, PictureTask | PicturePair):
        raise PairError("These pairs ask for pictures, and a language model answers in words: see interp.tasks.ioi.")
    if not isinstance(window, int | None):
        raise InterpError(f"window={window!r}: only pictures have windows of steps; of layers give their number.")
    part, window = part or "resid_pre", 1 if window is None else window
    task = Task(task.label or "given", (task,), "given by the caller", None) if isinstance(task, PromptPair) else task
    site_part = Site.parse(part).part if part not in PARTS else part
    grid = _Grid.of(model, site_part, over, layers, positions, units, window)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    for name in metrics:
        if name not in METRICS:
            raise InterpError(f"There is no metric {name!r}." + nearest(name, METRICS))
    if direction not in ("denoising", "noising"):
        raise InterpError(f"Direction {direction!r}: patching is 'denoising' or 'noising'.")
    encoded = task.encode(model)
    budget = free_bytes(model.device) // 2 if budget is None else budget
    edited, clean, corrupted, costs = [], [], [], []
    for number, rows in enumerate(groups(model, encoded.clean.ids.shape[1], len(encoded.clean), 2, budget)):
        folder = None if checkpoint is None else Path(checkpoint) / f"pairs_{number:04d}"
        group = _PatchGroup(model, grid, encoded, rows, direction, metrics)
        found, ends, cost = group.run(exact, budget, progress, folder)
        edited.append(found)
        clean.append(ends["clean"])
        corrupted.append(ends["corrupted"])
        costs.append(cost)
    names = list(edited[0])
    values = {name: torch.cat([group[name] for group in edited], -1) for name in names}
    ends = {
        which: {name: torch.cat([group[name] for group in groups]) for name in names}
        for which, groups in (("clean", clean), ("corrupted", corrupted))
    }
    return _result(model, task, encoded, grid, direction, values, ends, costs, exact, seed)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """The cells to patch: every combination of the axes' values."""

    model: LanguageModel
    part: str
    axes: tuple[str, ...]
    layers: tuple[int, ...]
    positions: int | Sequence[int] | None
    units: tuple[int, ...] | None
    window: int

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        part: str,
        over: Sequence[str] | None,
        layers: Sequence[int] | None,
        positions: int | Sequence[int] | None,
        units: Sequence[int] | None,
        window: int,
    ) -> _Grid:
        if part not in LAYER_PARTS:
            model.check(Site(part))
            axes = tuple(over) if over is not None else ("pos",)
            layers = (0,)
        else:
            axes = tuple(over) if over is not None else ("layer", "head" if part in HEAD_PARTS else "pos")
            layers = tuple(range(model.n_layers)) if layers is None else tuple(layers)
            for layer in layers:
                model.check(Site(part, layer))
        for axis in axes:
            if axis not in AXES:
                raise SiteError(f"There is no axis {axis!r}." + nearest(str(axis), AXES))
        if len(set(axes)) < len(axes) or not axes:
            raise SiteError(f"The grid's axes are {axes}; name each one once, and at least one.")
        if "head" in axes and part not in HEAD_PARTS:
            raise SiteError(f"{part!r} has no heads, so 'head' cannot be an axis of its grid.")
        if "layer" in axes and part not in LAYER_PARTS:
            raise SiteError(f"{part!r} belongs to no layer, so 'layer' cannot be an axis of its grid.")
        if "pos" in axes and positions is not None:
            raise SiteError(
                "`positions` are patched together; with 'pos' among the axes every position has its own cell."
            )
        if "unit" in axes and units is None:
            width = model.width_of(part)
            if width is None:
                raise SiteError(f"{part!r} has keys on its last axis, not units.")
            units = range(width)
        if window < 1:
            raise InterpError(f"A window of {window} layers patches nothing; the smallest is 1.")
        order = tuple(axis for axis in AXES if axis in axes)
        return cls(model, part, order, tuple(layers), positions, None if units is None else tuple(units), window)

    def values(self, axis: str, width: int) -> list[int]:
        """Coordinates along one axis."""
        heads = self.model.heads_of(self.part) or 1
        return {
            "layer": list(self.layers),
            "head": list(range(heads)),
            "pos": list(range(width)),
            "unit": list(self.units or ()),
        }[axis]

    def sites(self, layer: int | None, head: int | None) -> list[Site]:
        """What one cell patches: a layer's site, with the neighbours of its window."""
        if self.part not in LAYER_PARTS:
            return [Site(self.part)]
        centres = self.layers if layer is None else (layer,)
        found: dict[int, None] = {}
        for centre in centres:
            first = centre - self.window // 2
            for near in range(max(0, first), min(self.model.n_layers, first + self.window)):
                found[near] = None
        return [Site(self.part, near, head) for near in found]

    def all_sites(self) -> list[Site]:
        """Every site that some cell patches."""
        cells = [None] if "layer" not in self.axes else self.layers
        return list(dict.fromkeys(site for layer in cells for site in self.sites(layer, None)))


class _PatchGroup:
    """The pairs that are swept together, as many as the memory budget holds."""

    def __init__(
        self, model: LanguageModel, grid: _Grid, task: EncodedTask, rows: range, direction: str, metrics: list[str]
    ) -> None:
        self.model, self.grid, self.direction = model, grid, direction
        self.clean, self.corrupted = task.clean.select(rows), task.corrupted.select(rows)
        self.answer, self.wrong_answer = task.answer[list(rows)], task.wrong_answer[list(rows)]
        self.metrics: list[Metric] = [
            named_metric(name, self.answer, self.wrong_answer, self._log_probabilities) for name in metrics
        ]
        self.width = int(task.clean.lengths.max())

    def _log_probabilities(self) -> Tensor:
        return log_probabilities(run(self.model, self.clean).last_logits())

    def run(self, exact: Savings | Literal["naive"], budget: int, progress: Progress, checkpoint: Path | None):
        """(metric → [axes…, example], clean and corrupted metric → [example], cost)."""
        base, source = (self.corrupted, self.clean) if self.direction == "denoising" else (self.clean, self.corrupted)
        sites = self.grid.all_sites()
        states = source_states = None
        if exact == "naive" or self.model.not_replayable:
            values = run(self.model, source, (), sites, logits=False)
        else:
            needed = needed_sites(sites, self.model.n_layers) | set(sites)
            states, source_states = states_with_source(self.model, base, source, needed)
            values = source_states.as_run(source, sites)
        axes = self.grid.axes
        coords = [self.grid.values(axis, self.width) for axis in axes]
        variants = [self._cell(dict(zip(axes, cell, strict=True)), values, base) for cell in product(*coords)]
        plan = plan_sweep(self.model, base, variants, self.metrics, exact=exact, budget=budget, base=states)
        swept = plan.run(progress=progress, checkpoint=checkpoint)
        shape = (*map(len, coords), len(base))
        found = {name: self._scored(x.view(shape), base) for name, x in swept.values.items()}
        other = plan_sweep(self.model, source, [], self.metrics, exact=exact, base=source_states).run().base
        ends = {"corrupted": swept.base, "clean": other}
        if self.direction == "noising":
            ends = {"corrupted": other, "clean": swept.base}
        return found, ends, swept.cost

    def _cell(self, cell: dict[str, int], source: Run, base: Prompts) -> list[Edit]:
        rows = None
        positions = cell.get("pos", self.grid.positions)
        if "pos" in cell and cell["pos"] >= int(base.lengths.min()):
            rows = [b for b, length in enumerate(base.lengths.tolist()) if cell["pos"] < length]
            if not rows:
                return []
        units = [cell["unit"]] if "unit" in cell else None if self.grid.units is None else list(self.grid.units)
        return [
            Replace(site, source, positions=positions, rows=rows, units=units)
            for site in self.grid.sites(cell.get("layer"), cell.get("head"))
        ]

    def _scored(self, values: Tensor, base: Prompts) -> Tensor:
        """NaN where a position lies beyond a prompt's end."""
        if "pos" not in self.grid.axes:
            return values
        beyond = torch.arange(self.width)[:, None] >= base.lengths[None].cpu()
        axis = self.grid.axes.index("pos")
        shape = [1] * values.ndim
        shape[axis], shape[-1] = beyond.shape
        return values.masked_fill(beyond.view(shape), torch.nan)


def _result(
    model: LanguageModel,
    task: Task,
    encoded: EncodedTask,
    grid: _Grid,
    direction: str,
    values: dict[str, Tensor],
    ends: dict[str, dict[str, Tensor]],
    costs: list[Cost],
    exact: Any,
    seed: int,
) -> PatchResult:
    import xarray as xr

    width = int(encoded.clean.lengths.max())
    coords: dict[str, Any] = {axis: grid.values(axis, width) for axis in grid.axes}
    coords["example"] = list(range(len(task)))
    variables: dict[str, Any] = {}
    units = dict.fromkeys(values, "")
    for name, x in values.items():
        edited = x.double().cpu().numpy()
        base = ends["corrupted" if direction == "denoising" else "clean"][name].double().cpu().numpy()
        effect = edited - base
        mean, low, high, p = mean_effect(effect, seed)
        units[name] = _unit(name)
        attrs = {"unit": units[name]}
        variables[name] = ((*grid.axes, "example"), edited, attrs)
        variables[f"{name}_effect"] = (grid.axes, mean, attrs)
        variables[f"{name}_low"], variables[f"{name}_high"] = (grid.axes, low, attrs), (grid.axes, high, attrs)
        variables[f"{name}_p"] = (grid.axes, p, {"unit": "adjusted p"})
        for which, both in ends.items():
            variables[f"{name}_{which}"] = ("example", both[name].double().cpu().numpy(), attrs)
    data = xr.Dataset(variables, coords)
    if "pos" in grid.axes:
        data = data.assign_coords(token=("pos", token_labels(encoded.clean, encoded.corrupted)))
    record = provenance(
        experiment="activation patching", model=model.name, weights=model.weights_hash, task=task.name,
        source=task.source,
        task_seed=task.seed, n_examples=len(task), part=grid.part, axes=list(grid.axes), window=grid.window,
        positions=None if grid.positions is None else np.atleast_1d(np.asarray(grid.positions)).tolist(),
        direction=direction, metrics=list(values), seed=seed, exact=str(exact),
        rows_run=sum(c.rows for c in costs), rows_skipped=sum(c.skipped for c in costs),
        clean=[pair.clean for pair in task.pairs], corrupted=[pair.corrupted for pair in task.pairs],
        answers=[pair.answer for pair in task.pairs], wrong_answers=[pair.wrong_answer for pair in task.pairs],
        n_attempted=len(task), n_scored=len(task),
    )  # fmt: skip
    return PatchResult(data, record)


def _unit(name: str) -> str:
    return {
        "logit_difference": "logits", "probability": "probability", "log_probability": "nats", "negative_kl": "nats",
        "negative_rank": "tokens", "accuracy": "share",
    }[name]  # fmt: skip


def token_labels(clean: Prompts, corrupted: Prompts) -> list[str]:
    """A label per position: the token where all prompts agree, both where a single pair differs, else `·`."""
    labels = []
    for position in range(int(clean.lengths.max())):
        seen = [
            tokens[position] for prompts in (clean, corrupted) for tokens in prompts.tokens if position < len(tokens)
        ]
        distinct = list(dict.fromkeys(seen))
        if len(distinct) == 1:
            labels.append(distinct[0])
        elif len(clean) == 1:
            labels.append(f"{distinct[0]} |{distinct[1]}")
        else:
            labels.append("·")
    return labels
