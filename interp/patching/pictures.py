"""Activation patching of pictures: which states of a denoiser, and when, carry an attribute from prompt to prompt?

`interp.patch` on a pipeline. For every cell of a grid (block × window of steps, and heads or groups of channels; layer
× token in a text encoder) the run under one prompt of a pair takes values of the run under the other, which starts from
the same noise:

- *denoising* edits the corrupted run with clean values, *noising* the clean run with corrupted ones, as for text;
- `matching="state"`: what the place would have in this very x_t under the other prompt; `"trajectory"`: what the other
  run, whose x_t has gone its own way, had at the same step.

Every pair has noise of its own, so pairs are independent; of several seeds per pair the mean counts as one example.

When it misleads: as for text, redundant states show nothing alone, and a window shows more than its steps. Two windows
of one length are not alike: early steps move far, late ones hardly. UNet skips pass by what lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.errors import InterpError, PairError
from interp.interventions.exchange import Exchanged, ExchangeGrid, Matching, exchange
from interp.interventions.schedule import Savings
from interp.models.denoiser import Denoiser, Sampling
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import mean_effect, recovered, smallest_p
from interp.tasks.image_metrics import ImageMetric, as_bytes
from interp.tasks.swaps import PicturePair, PictureTask, swap_metrics

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

Metrics = Callable[[Sequence[PicturePair]], Sequence[ImageMetric]]
"""From the pair of each row of the base to the metrics of its pictures."""


@dataclass(frozen=True, repr=False, eq=False)
class PicturePatchResult(Result):
    """Effects of patching every cell of a grid, over pairs of prompts for pictures.

    `.data` holds, for each metric `m`: `m` [axes…, pair, seed], edited values; `m_clean`, `m_corrupted` [pair, seed];
    and over the grid's axes `m_effect` (mean of edited − base), `m_low`, `m_high` (95 % bootstrap interval of it) and
    `m_p` (two-sided sign-flip, Holm-corrected over the grid). Their examples are pairs, of which seeds are averaged;
    with a single pair they are its seeds. Pictures, uint8: `clean`, `corrupted` [drawn, y, x, rgb] of the first rows,
    and `patched` [shown, drawn, y, x, rgb], what the strongest cells make of them.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        pairs, seeds = (
            f"{n} {what}{'s' if n > 1 else ''}" for what, n in (("pair", p["n_pairs"]), ("seed", p["n_seeds"]))
        )
        when = f", {p['window']} steps" if p["window"] else ""
        kind = "" if p["text"] else f" ({p['matching']}-matched{when})"
        return f"{p['direction'].capitalize()} {p['part']}{kind} · {p['task']} ({pairs} × {seeds}) · {p['model']}"

    def recovered(self, metric: str | None = None) -> Dataset:
        """(mean edited − mean corrupted) / (mean clean − mean corrupted), over the grid, with intervals.

        Raises:
            PairError: clean and corrupted do not differ by more than the gap's own uncertainty.
        """
        import xarray as xr

        m, data = metric or self.provenance["metrics"][0], self.data
        axes = self.provenance["axes"]
        clean, corrupted = (_examples(data[f"{m}_{which}"].values) for which in ("clean", "corrupted"))
        edited = _examples(data[m].transpose(*axes, "pair", "seed").values)
        found = recovered(edited, clean, corrupted, m, seed=self.provenance["seed"])
        named = zip(("recovered", "low", "high"), found, strict=True)
        coords = {axis: data.coords[axis] for axis in axes}
        return xr.Dataset({name: (axes, x, {"unit": "share of the gap"}) for name, x in named}, coords)

    def plot(self, metric: str | None = None) -> Figure:
        """Heat map of the mean effect (curves, for a grid of one axis); intervals and p-values on hover."""
        from interp.plots import curves, heatmap

        m = metric or self.provenance["metrics"][0]
        effect, unit = self.data[f"{m}_effect"], self.data[m].attrs["unit"]
        low, high, p = (self.data[f"{m}_{name}"] for name in ("low", "high", "p"))
        unit = f"effect on {m.replace('_', ' ')}" + ("" if unit in m else f" ({unit})")
        axes = [str(axis) for axis in effect.dims]
        if len(axes) == 1:
            labels = self._labels(axes[0])
            return curves(effect, x=axes[0], title=self.title, unit=unit, low=low, high=high, x_labels=labels)
        x = next(axis for axis in ("pos", "window", "head", "group") if axis in axes)
        y = next(axis for axis in ("block", "head", "group", "window") if axis in axes and axis != x)
        facet = next((axis for axis in axes if axis not in (x, y)), None)
        return heatmap(
            effect, x=x, y=y, facet=facet, title=self.title, unit=unit, low=low, high=high, p=p,
            x_labels=self._labels(x), y_labels=self._labels(y),
        )  # fmt: skip

    def plot_pictures(self) -> Figure:
        """Clean, corrupted, and what the strongest cells make of it, with the change that the first of them is."""
        from interp.plots import picture_grid

        p = self.provenance
        base = "corrupted" if p["direction"] == "denoising" else "clean"
        columns = {"clean": self.data["clean"], "corrupted": self.data["corrupted"]}
        columns |= {str(cell): self.data["patched"].isel(shown=i) for i, cell in enumerate(self.data["shown"].values)}
        rows = [f"{clean} → {corrupted}" for clean, corrupted in p["drawn"]]
        return picture_grid(columns, rows=rows, title=self.title, difference=(str(self.data["shown"].values[0]), base))

    def _labels(self, axis: str) -> list[str] | None:
        if axis == "pos":
            return [str(token) for token in self.data["token"].values]
        return [str(entry) for entry in self.data[axis].values] if axis in ("block", "window") else None

    def summary(self) -> str:
        """The strongest cells, and what a p-value could have been."""
        p = self.provenance
        m = p["metrics"][0]
        effect = self.data[f"{m}_effect"]
        clean, corrupted = (float(self.data[f"{m}_{which}"].mean()) for which in ("clean", "corrupted"))
        grid = " × ".join(f"{n} {axis}" for axis, n in effect.sizes.items())
        lines = [
            f"PicturePatchResult: {self.title}",
            f"  {grid}; {m} clean {clean:+.3f}, corrupted {corrupted:+.3f}; {p['rows_run']} rows run, "
            f"{p['rows_skipped']} known without running",
            "  strongest effects (95 % interval):",
        ]
        flat = effect.stack(cell=effect.dims).dropna("cell")
        for i in np.argsort(-np.abs(flat.values))[:4]:
            at = dict(zip(effect.dims, flat.cell.values[i], strict=True))
            low, high = (float(self.data[f"{m}_{end}"].sel(at)) for end in ("low", "high"))
            where = ", ".join(f"{axis} {entry}" for axis, entry in at.items())
            lines.append(f"  {flat.values[i]:+.3f} ({low:+.3f} to {high:+.3f}) {self.data[m].attrs['unit']} at {where}")
        n = _examples(self.data[f"{m}_clean"].values).shape[-1]
        return "\n".join([*lines, f"  smallest p, before correction, of {n} examples: {smallest_p(n):.2g}"])


def patch_pictures(
    model: Denoiser,
    task: PictureTask | PicturePair,
    part: str = "cross_attn_out",
    *,
    over: Sequence[str] | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    matching: Matching = "state",
    metrics: Metrics = swap_metrics,
    blocks: Sequence[str] | None = None,
    window: int | Sequence[range] | None = None,
    stride: int | None = None,
    groups: int = 8,
    seeds: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> PicturePatchResult:
    """Patch every cell of a grid of states, for every pair of a task; `interp.patch` on a denoiser.

    Args:
        task: pairs that swap one factor (`interp.tasks.swaps`).
        part: of the blocks, of the whole denoiser (`prediction`: the prompt itself is swapped), or of a text encoder.
        over: the grid's axes, of `block window head group` (`block pos group` in a text encoder); what is not among
            them is patched together. Default: `("block", "window")`, `("window",)`, `("block", "pos")`.
        direction: `"denoising"` (clean values into the corrupted run) or `"noising"`.
        matching: `"state"` or `"trajectory"`; in a text encoder they are the same.
        metrics: from the pairs, one for each row, to metrics of their pictures, higher for clean; the first is the
            one that is reported. By default the shapes judge's.
        blocks: addresses; all that have the part if not given.
        window: steps patched together, half of them if not given; or the windows themselves.
        stride: from one window to the next, half a window if not given.
        groups: of channels, where `group` is an axis.
        seeds: draws of the starting noise for each pair; pair i takes those from i · seeds on.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.
        exact: as in `interp.sweep`; so are budget, progress and checkpoint.
        seed: of the bootstrap and the sign flips.

    Raises:
        SiteError: a part, block or axis that does not fit the model.
        PairError: no pair; in a text encoder, pairs of unequal token length.
        InterpError: another direction or matching; a window that does not fit the run; fewer than one seed.
    """
    if direction not in ("denoising", "noising"):
        raise InterpError(f"Direction {direction!r}: patching is 'denoising' or 'noising'.")
    if isinstance(task, PicturePair):
        task = PictureTask("given", (task,), "given by the caller")
    if not isinstance(task, PictureTask) or not task.pairs:
        raise PairError("Patching pictures needs pairs of prompts for pictures: see interp.tasks.swaps.")
    if seeds < 1:
        raise InterpError(f"{seeds} seeds for each pair: at least 1.")
    pairs = [pair for pair in task.pairs for _ in range(seeds)]
    clean, corrupted = (
        _own_noise(model.sampling([getattr(pair, which) for pair in task.pairs], steps=steps, guidance=guidance), seeds)
        for which in ("clean", "corrupted")
    )
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    grid = ExchangeGrid.of(model, base, part, over, blocks, window, stride, groups)
    found = exchange(
        grid, base, source, matching, lambda *_: metrics(pairs),
        exact=exact, budget=budget, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    drawn = list({pair: row for row, pair in reversed(list(enumerate(pairs)))}.values())[::-1][:4]
    record = provenance(
        experiment="activation patching of pictures", model=model.name, weights=model.weights_hash, task=task.name,
        source=task.source, task_seed=task.seed, n_pairs=len(task), n_seeds=seeds, part=part, axes=list(grid.axes),
        text=bool(grid.tokens), window=_length(grid),
        direction=direction, matching="source run" if grid.tokens else matching,
        metrics=[metric.name for metric in found.metrics], seed=seed, exact=str(exact),
        steps=base.steps, guidance=base.guidance, seeds=list(base.seeds),
        scheduler=type(model.pipeline.scheduler).__name__,
        clean=[pair.clean for pair in task.pairs], corrupted=[pair.corrupted for pair in task.pairs],
        drawn=[[pairs[row].answer, pairs[row].wrong_answer] for row in drawn],
        rows_run=found.plan.cost.rows, rows_skipped=found.plan.cost.skipped,
        n_attempted=len(pairs), n_scored=len(pairs),
    )  # fmt: skip
    return PicturePatchResult(_dataset(found, direction, len(task), seeds, drawn, seed), record)


def _length(grid: ExchangeGrid) -> int | None:
    """Steps of every window, if they all have as many."""
    lengths = {len(steps) for steps in grid.windows} if "window" in grid.axes else set()
    return lengths.pop() if len(lengths) == 1 else None


def _own_noise(sampling: Sampling, seeds: int) -> Sampling:
    """Every prompt with as many seeds, which no other prompt has."""
    rows = [row for row in range(len(sampling)) for _ in range(seeds)]
    return replace(sampling.select(rows), seeds=tuple(range(len(rows))))


def _dataset(found: Exchanged, direction: str, n_pairs: int, seeds: int, drawn: list[int], seed: int) -> Dataset:
    import xarray as xr

    grid, axes = found.grid, found.grid.axes
    coords: dict[str, Any] = {**grid.coords, "pair": list(range(n_pairs)), "seed": list(range(seeds))}
    variables: dict[str, Any] = {}
    ends = {"clean": found.source, "corrupted": found.base}
    pictures = {"clean": found.source_images, "corrupted": found.base_images}
    if direction == "noising":
        ends = dict(zip(ends, reversed(ends.values()), strict=True))
        pictures = dict(zip(pictures, reversed(pictures.values()), strict=True))
    for metric in found.metrics:
        m, attrs = metric.name, {"unit": metric.unit}
        edited = found.values[m].reshape(*found.values[m].shape[:-1], n_pairs, seeds)
        effect = edited - found.base[m].reshape(n_pairs, seeds)
        variables[m] = ((*axes, "pair", "seed"), edited, attrs)
        for name, x in zip(("effect", "low", "high", "p"), mean_effect(_examples(effect), seed), strict=True):
            variables[f"{m}_{name}"] = (axes, x, {"unit": "adjusted p"} if name == "p" else attrs)
        for which, end in ends.items():
            variables[f"{m}_{which}"] = (("pair", "seed"), end[m].reshape(n_pairs, seeds), attrs)
    for which, images in pictures.items():
        variables[which] = (("drawn", "y", "x", "rgb"), as_bytes(images[drawn]), {"unit": "0 to 255"})
    names, patched = found.strongest(drawn)
    variables["patched"] = (("shown", "drawn", "y", "x", "rgb"), patched, {"unit": "0 to 255"})
    coords |= {"shown": names, "drawn": drawn}
    if grid.tokens:
        coords["token"] = ("pos", [token for token, _ in grid.tokens]) if "pos" in axes else len(grid.tokens)
    return xr.Dataset(variables, coords)


def _examples(values: np.ndarray) -> np.ndarray:
    """[…, example] of [..., pair, seed]: pairs, averaged over their seeds, or the seeds of a single pair."""
    return values[..., 0, :] if values.shape[-2] == 1 else values.mean(-1)
