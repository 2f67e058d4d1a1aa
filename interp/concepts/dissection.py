"""Dissection: which units of a site light up where a concept is, in the pictures that a denoiser makes?

The first question of GAN Dissection (Bau et al., ICLR 2019), for channels of a denoiser, or directions, at every step
asked for. The pictures are drawn from prompts, what they show is known pixel by pixel (`interp.tasks.concept_masks`),
and each unit's map is compared with each concept's masks (`interp.concepts.agreement`). Whether a unit does anything is
the second question: `interp.unit_effects`.

When it misleads: a unit that follows brightness agrees with every bright concept; an untrained network reads x_t, in
which late in denoising the picture can be seen; and with a hundred units the best of them looks good by luck, which
is why thresholds are chosen on one half of the pictures, IoU counted on the other, and chance is that of the luckiest
unit when masks have changed places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.concepts.agreement import Agreement, agree, is_here
from interp.concepts.units import Channels, Units
from interp.errors import InterpError, PairError, ShapeError, SiteError, nearest
from interp.interventions.captured import DenoisingRun
from interp.interventions.denoise import denoise
from interp.interventions.edits import When
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import ratio_interval
from interp.tasks.concept_masks import ConceptMasks, seen_masks
from interp.tasks.image_metrics import as_bytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import DataArray, Dataset

SHOWN = 6
"""Held-out pictures that are kept for each concept."""
_AT_ONCE = 32
_CHANNELS, _CONDITIONAL = Channels(), When(branch=Branch.COND)


@dataclass(frozen=True, repr=False, eq=False)
class DissectionResult(Result):
    """How well each unit agrees with each concept, at each step.

    `.data` holds, by [step, unit, concept]: `iou` on held-out pictures with its 95 % bootstrap interval `low`, `high`
    over pictures; `selection_iou`; `threshold` and `below` ("here" is what is above the threshold, or not above it);
    `chance`, the same for shuffled masks; `mean_in`, the mean of the unit's map over the concept's pixels; and with
    `example` `intersection` and `union` in pixels. `chance_max` [step, concept] is the luckiest unit of all shuffles,
    `mean` [step, unit] the mean over all pixels. A concept that hardly a picture shows is NaN.

    `best_step`, `best_unit` [concept] are those with the largest `selection_iou`; `pictures`, `here` and `shows`
    [concept, shown, y, x] are the first held-out pictures that show the concept, where that unit is, and its masks.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Units of {p['site']} against what pictures show · {p['n_held_out']} held out · {p['model']}"

    def best(self) -> Dataset:
        """Of each concept the unit and step with the largest `selection_iou`: held-out `iou`, interval, chance."""
        import xarray as xr

        data = self.data
        at = {"step": data["best_step"], "unit": data["best_unit"]}
        columns = {name: data[name].sel(at).drop_vars(["step", "unit"]) for name in ("iou", "low", "high", "chance")}
        chance = data["chance_max"].sel(step=data["best_step"]).drop_vars("step")
        return xr.Dataset(columns | {"chance_max": chance, "step": data["best_step"], "unit": data["best_unit"]})

    def found(self) -> DataArray:
        """[step, concept]: how many units agree beyond chance: their interval lies above `chance_max`."""
        return (self.data["low"] > self.data["chance_max"]).sum("unit")

    def ranked(self, concept: str) -> list[int]:
        """Units from the one that agrees best with a concept on held-out pictures, mean over steps, to the worst.

        Raises:
            PairError: a concept that was not scored.
        """
        known = [str(c) for c in self.data["concept"].values]
        if concept not in known or bool(self.data["iou"].sel(concept=concept).isnull().all()):
            raise PairError(f"No unit was scored for {concept!r}." + nearest(concept, known))
        order = np.argsort(-self.data["iou"].sel(concept=concept).mean("step").values, kind="stable")
        return [int(unit) for unit in order]

    def plot(self) -> Figure:
        """The best unit of each concept: IoU with its interval, and what shuffled masks reach at most."""
        import xarray as xr

        from interp.plots import bars

        best = self.best().dropna("concept", subset=["iou"])
        units, steps = best["unit"].values, best["step"].values
        names = [f"{c} · {u} at step {s}" for c, u, s in zip(best["concept"].values, units, steps, strict=True)]
        both = xr.concat([best["iou"], best["chance_max"]], "which")
        low, high = (xr.concat([best[end], best["chance_max"]], "which") for end in ("low", "high"))
        return bars(
            both, y="concept", bar="which", low=low, high=high, y_labels=names, title=f"{self.title}: best units",
            bar_labels=["best unit", "luckiest, shuffled masks"], unit="dimensionless", quantity="IoU",
        )  # fmt: skip

    def plot_steps(self, concepts: Sequence[str] | None = None) -> Figure:
        """Over the steps, the largest IoU of any unit (chosen by `selection_iou`) for each concept."""
        from interp.plots import curves

        data = self.data if concepts is None else self.data.sel(concept=list(concepts))
        data = data.dropna("concept", how="all", subset=["iou"])
        unit = data["selection_iou"].argmax("unit")
        iou, low, high = (
            data[name].isel(unit=unit).drop_vars("unit").transpose("concept", "step") for name in ("iou", "low", "high")
        )
        return curves(
            iou, x="step", line="concept", low=low, high=high, title=f"{self.title}: best unit at each step",
            unit="dimensionless", quantity="IoU", x_title="step (0 is the noisiest)",
        )  # fmt: skip

    def plot_units(self, concepts: Sequence[str]) -> Figure:
        """Held-out pictures with a concept, darkened where its best unit is not."""
        from interp.plots import picture_grid

        data = self.data.sel(concept=list(concepts))
        dark = np.where(data["here"].values[..., None], data["pictures"].values, data["pictures"].values // 4)
        best = self.best()
        at = [best.sel(concept=c) for c in concepts]
        labels = [
            f"{c}: unit {int(b['unit'])}, step {int(b['step'])}, IoU {float(b['iou']):.2f}"
            for c, b in zip(concepts, at, strict=True)
        ]
        columns = {f"picture {number + 1}": dark[:, number] for number in range(dark.shape[1])}
        return picture_grid(columns, rows=labels, title=f"{self.title}: where the best units are")

    def summary(self) -> str:
        """The best unit of each concept."""
        lines = [f"DissectionResult: {self.title}"]
        best = self.best()
        for concept in best["concept"].values:
            row = best.sel(concept=concept)
            if np.isnan(float(row["iou"])):
                lines.append(f"  {concept:14} shown by too few pictures")
                continue
            beyond = "" if float(row["low"]) > float(row["chance_max"]) else "  (not beyond chance)"
            lines.append(
                f"  {concept:14} unit {int(row['unit']):4} at step {int(row['step']):2}: IoU {float(row['iou']):.2f} "
                f"({float(row['low']):.2f}–{float(row['high']):.2f}), "
                f"shuffled at most {float(row['chance_max']):.2f}{beyond}"
            )
        return "\n".join(lines)


def dissect(
    model: Denoiser,
    site: Site | str,
    prompts: Sequence[str] | Sampling | None = None,
    *,
    masks: ConceptMasks | None = None,
    units: Units = _CHANNELS,
    when: When = _CONDITIONAL,
    n: int = 192,
    seed: int = 0,
    shuffles: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    progress: Progress = silent,
) -> DissectionResult:
    """Agreement of every unit of a site with every concept.

    Args:
        prompts: one picture each, prompt i from the noise of seed `seed` + i (or a finished `Sampling`); captions of
            scenes drawn by `seed` for the shapes model, if not given. The first half chooses thresholds, the second is
            held out.
        masks: what the pictures show, row by row; read from the generated pictures by the shapes checker if not given.
            Maps are brought to their size.
        units: the site's channels, or other units (`interp.concepts.units`).
        when: steps, and the one branch of guidance, to look at.
        n: pictures, where no prompts are given.
        seed: of scenes, noise, shuffles and the bootstrap.
        shuffles: of the masks, for chance.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.

    Raises:
        SiteError: a site without cells (of a text encoder, or of tokens), or with heads.
        InterpError: no single branch in `when`; fewer than 8 pictures; no prompts for a model other than the shapes
            world's; shuffles below 1.
        ShapeError: masks of another number of pictures.
    """
    site = model.check(site)
    if site in model.text or site.part in ("cross_k", "cross_v", "time_embed") or model.heads_of(site):
        raise SiteError(
            f"{site} has no map of one value per cell and unit; dissect outputs of blocks, like 'up.1.0.block_out'."
        )
    if when.branch is None or shuffles < 1:
        raise InterpError(f"when={when}, shuffles={shuffles}: name one branch of guidance, and at least one shuffle.")
    sampling = _sampling(model, prompts, n, seed, steps, guidance)
    if len(sampling) < 8:
        raise InterpError(f"{len(sampling)} pictures: half of them choose thresholds; give at least 8.")
    runs = [
        denoise(model, sampling.select(range(start, min(start + _AT_ONCE, len(sampling)))), (), [site], when=when)
        for start in progress(range(0, len(sampling), _AT_ONCE), f"{len(sampling)} pictures")
    ]
    pictures = np.concatenate([as_bytes(run.images) for run in runs if run.images is not None])
    known = seen_masks(pictures) if masks is None else masks
    if len(known.masks) != len(pictures):
        raise ShapeError(f"{len(known.masks)} masks for {len(pictures)} pictures; give one row for each.")
    selected, grid = len(pictures) // 2, model.grid_of(site, sampling)
    shown = torch.from_numpy(known.masks)
    found, maps = [], []
    for number, step in enumerate(progress(runs[0].steps, "steps")):
        maps.append(_maps(runs, number, site, units, grid))
        found.append(agree(maps[-1], shown, selected, shuffles, seed + step))
    data = _dataset(found, maps, known, pictures, runs[0].steps, selected, units, seed)
    record = provenance(
        experiment="unit dissection", model=model.name, weights=model.weights_hash, site=str(site),
        units=type(units).__name__, branch=when.branch.value, when=str(when), prompts=list(sampling.prompts),
        seeds=list(sampling.seeds), steps=sampling.steps, guidance=sampling.guidance, seed=seed, shuffles=shuffles,
        masks="seen by the checker" if masks is None else "given", n_selection=selected,
        n_held_out=len(pictures) - selected, n_attempted=len(pictures), n_scored=len(pictures),
    )  # fmt: skip
    return DissectionResult(data, record)


def _sampling(
    model: Denoiser,
    prompts: Sequence[str] | Sampling | None,
    n: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
) -> Sampling:
    if isinstance(prompts, Sampling):
        return model.sampling(prompts, seeds=(), steps=steps, guidance=guidance)
    if prompts is None:
        from interp.shapes.caption import full_caption
        from interp.shapes.pipeline import ShapesPipeline
        from interp.shapes.scene import sample_scenes

        if not isinstance(model.pipeline, ShapesPipeline):
            raise InterpError(f"{model.name} needs `prompts`, and `masks` of what its pictures show.")
        prompts = [full_caption(scene) for scene in sample_scenes(n, seed)]
    sampling = model.sampling(list(prompts), seeds=0, steps=steps, guidance=guidance)
    return replace(sampling, seeds=tuple(range(seed, seed + len(sampling))))


def _maps(runs: Sequence[DenoisingRun], step: int, site: Site, units: Units, grid: tuple[int, int]) -> Tensor:
    """The maps of one step [row, unit, y, x]."""
    values = [units.activations(run[site][step, 0]) for run in runs]
    return torch.cat(values).float().cpu().transpose(1, 2).unflatten(2, grid).contiguous()


def _dataset(
    found: Sequence[Agreement], maps: Sequence[Tensor], known: ConceptMasks, pictures: np.ndarray, steps: Sequence[int],
    selected: int, units: Units, seed: int,
) -> Dataset:  # fmt: skip
    import xarray as xr
    from torch.nn.functional import interpolate

    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(one, name) for one in found])

    intersection, union, selection = stacked("intersection"), stacked("union"), stacked("selection_iou")
    unscored = np.isnan(selection)
    iou, low, high = (np.where(unscored, np.nan, x) for x in ratio_interval(intersection, union, seed=seed))
    concepts = len(known.concepts)
    flat = np.where(unscored, -1, selection).reshape(-1, concepts).argmax(0)
    best_step, best_unit = np.unravel_index(flat, selection.shape[:2])
    size = known.masks.shape[-2:]
    kept = np.zeros((concepts, SHOWN, *pictures.shape[1:]), np.uint8)
    here, shows = (np.zeros((concepts, SHOWN, *size), bool) for _ in range(2))
    for c in range(concepts):
        rows = selected + np.flatnonzero(known.masks[selected:, c].any((1, 2)))[:SHOWN]
        s, u = best_step[c], best_unit[c]
        if len(rows):
            large = interpolate(maps[s][rows, u : u + 1], size, mode="bilinear").flatten(2)
            cut = found[s].threshold[u : u + 1, c], found[s].below[u : u + 1, c]
            here[c, : len(rows)] = is_here(large, *cut).view(-1, *size).numpy()
            kept[c, : len(rows)], shows[c, : len(rows)] = pictures[rows], known.masks[rows, c]
    axes, unit = ("step", "unit", "concept"), {"unit": "dimensionless"}
    variables: dict[str, Any] = {
        "iou": (axes, iou, unit), "low": (axes, low, unit), "high": (axes, high, unit),
        "selection_iou": (axes, selection, unit), "chance": (axes, stacked("chance"), unit),
        "chance_max": (("step", "concept"), stacked("chance_max"), unit),
        "threshold": (axes, stacked("threshold"), {"unit": "of the activation"}), "below": (axes, stacked("below")),
        "mean": (("step", "unit"), stacked("mean")), "mean_in": (axes, stacked("mean_in")),
        "intersection": ((*axes, "example"), intersection.astype(np.int32), {"unit": "pixels"}),
        "union": ((*axes, "example"), union.astype(np.int32), {"unit": "pixels"}),
        "best_step": ("concept", np.array(steps)[best_step]), "best_unit": ("concept", best_unit),
        "pictures": (("concept", "shown", "row", "column", "rgb"), kept, {"unit": "0 to 255"}),
        "here": (("concept", "shown", "y", "x"), here), "shows": (("concept", "shown", "y", "x"), shows),
        "prevalence": ("concept", known.masks[selected:].mean((0, 2, 3)), {"unit": "of pixels"}),
    }  # fmt: skip
    coords: dict[str, Any] = {
        "step": list(steps),
        "unit": list(range(len(found[0].mean))),
        "concept": list(known.concepts),
    }
    if units.names is not None:
        coords["unit_name"] = ("unit", list(units.names))
    return xr.Dataset(variables, coords)
