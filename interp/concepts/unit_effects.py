"""Do units cause what they agree with? Take them out where a concept is, put them in where it is not, ask the judge.

The second question of GAN Dissection (Bau et al., ICLR 2019). The units that agree best with a concept are, in the
cells of one quarter of the picture and at the dissected steps,

- *ablated* in pictures of scenes that have the concept there: set to their mean over all pixels (or to zero);
- *inserted* in pictures of the same scenes with another value there: set to their mean over the concept's pixels.

The judge's log-probability of the concept in that quarter is the measure; its answers to the other factors tell
whether the object survived. Controls of equal size: random units, and the units that agree best with the other value.
If only the ranked units move the judge, the concept's representation there is in them; that a few units suffice is no
proof that others do not carry it too.

We differ: channels of a denoiser have no zero that means "off", so ablation sets the mean; and both branches of
guidance are edited unless `branch` says otherwise, because the unconditional one sees the same x_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from interp.concepts.dissection import DissectionResult
from interp.concepts.units import Channels, Units
from interp.errors import InterpError, PairError, nearest
from interp.interventions.edits import Edit, When
from interp.interventions.schedule import Savings
from interp.interventions.sweep import plan_sweep
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.shapes.caption import full_caption
from interp.shapes.scene import CELLS, COLOURS, SHAPES, SIZES, Scene, sample_scene
from interp.statistics import bootstrap_interval
from interp.tasks.image_metrics import JudgeLogProbability

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

_FACTORS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
DIRECTIONS = ("ablated", "inserted")
_CHANNELS = Channels()


@dataclass(frozen=True, repr=False, eq=False)
class UnitEffectResult(Result):
    """What ablating and inserting units does to the judge's answers.

    `.data` holds for each metric `m` (the concept's first, then the other factors' right answers) the value
    [direction, set, size, example] in nats, with `m_base` [direction, example], and `m_effect`, `m_low`, `m_high`
    [direction, set, size]: mean of value − base, with its 95 % bootstrap interval over examples. The last sets are
    random units, a set per draw.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return (
            f"Setting units of {p['site']} in one quarter: {p['concept']!r} and {p['other']!r} · "
            f"{p['n_scored']} scenes · {p['model']}"
        )

    def plot(self, metric: str | None = None) -> Figure:
        """Mean effect over the number of units, ablated and inserted, per set; random draws averaged."""
        import xarray as xr

        from interp.plots import curves

        m = metric or self.provenance["metrics"][0]
        effect, (low, high) = self._pooled(m)
        flat = [x.stack(line=("direction", "set")).transpose("line", "size") for x in (effect, low, high)]
        names = [f"{s}, {d}" for d, s in flat[0]["line"].values]
        effect, low, high = (
            xr.DataArray(x.values, dims=("line", "size"), coords={"size": x["size"].values}) for x in flat
        )
        return curves(
            effect, x="size", line="line", low=low, high=high, line_labels=names, title=self.title,
            unit=self.data[m].attrs["unit"], quantity=f"effect on {m.replace('_', ' ')}", x_title="number of units",
        )  # fmt: skip

    def _pooled(self, m: str) -> tuple[Any, tuple[Any, Any]]:
        """Effects with the random draws as one set, their mean per example."""
        import xarray as xr

        away = self.data[m] - self.data[f"{m}_base"]
        random = [str(s) for s in away["set"].values if str(s).startswith("random")]
        pooled = away.sel(set=random).mean("set").expand_dims(set=["random units"])
        away = xr.concat([away.drop_sel(set=random), pooled], "set").transpose("direction", "set", "size", "example")
        mean = away.mean("example")
        # two bounds, of which a generator does not tell the length
        return mean, tuple(mean.copy(data=x) for x in bootstrap_interval(away.values, seed=self.provenance["seed"]))  # type: ignore[return-value]

    def summary(self) -> str:
        """Mean probability of the concept before, and the effect of the largest and smallest sets."""
        p = self.provenance
        m = p["metrics"][0]
        lines = [
            f"UnitEffectResult: {self.title}",
            f"  {p['rows_run']} rows run, {p['rows_skipped']} known without running",
        ]
        effect, (low, high) = self._pooled(m)
        for direction in DIRECTIONS:
            base = float(np.exp(self.data[f"{m}_base"].sel(direction=direction)).mean())
            lines.append(
                f"  {direction}: probability of {p['concept']!r} before {base:.3f}; effect on log-probability (nats):"
            )
            for name in effect["set"].values:
                cells = [
                    f"{int(size)}: {float(effect.sel(at)):+.2f} "
                    f"({float(low.sel(at)):+.2f} to {float(high.sel(at)):+.2f})"
                    for size in effect["size"].values
                    for at in [{"direction": direction, "set": name, "size": size}]
                ]
                lines.append(f"    {name:22} " + ", ".join(cells))
        return "\n".join(lines)


def unit_effects(
    model: Denoiser,
    dissection: DissectionResult,
    concept: str,
    *,
    other: str | None = None,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    units: Units = _CHANNELS,
    branch: Branch | None = None,
    ablation: Literal["mean", "zero"] = "mean",
    draws: int = 3,
    n: int = 24,
    seed: int = 0,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
) -> UnitEffectResult:
    """Effect of ablating and inserting the units that agree best with a concept, by how many they are.

    Args:
        dissection: of the site whose units are set, at the steps at which they are set; pictures are drawn as its were.
        concept: a shape, colour or size.
        other: the value that stands in the concept's place where units are inserted; another of its factor if not
            given. Its own best units are the second control.
        sizes: numbers of units.
        units: what the dissection looked at.
        branch: of guidance, that is edited; `None`: both.
        ablation: what ablated units are set to.
        draws: sets of random units.
        n: scenes, drawn by `seed`, which are none of the dissection's.
        exact: as in `interp.sweep`; so are budget and progress.

    Raises:
        PairError: a concept that the judge does not know, or that was not dissected; `other` of another factor.
        InterpError: sizes that are not between 1 and the number of units, n below 2, draws below 1.
    """
    from interp.shapes.judge import load_judge

    factor, other = _factor(concept, other)
    count = dissection.data.sizes["unit"]
    if n < 2 or draws < 1 or not sizes or min(sizes) < 1 or max(sizes) > count:
        raise InterpError(
            f"sizes={list(sizes)}, n={n}, draws={draws}: sizes from 1 to {count}, n from 2, draws from 1."
        )
    site, steps = model.check(dissection.provenance["site"]), [int(s) for s in dissection.data["step"].values]
    scenes = _scenes(concept, factor, n, seed)
    swapped = [scene.counterfactual(factor, other) for scene in scenes]
    generator = np.random.default_rng(seed)
    sets = {f"best for {concept}": dissection.ranked(concept), f"best for {other}": dissection.ranked(other)}
    sets |= {f"random {draw}": generator.permutation(count).tolist() for draw in range(draws)}
    cells = [scene.objects[0].cell for scene in scenes]
    judge = load_judge()
    values: dict[str, list[np.ndarray]] = {}
    bases: dict[str, list[np.ndarray]] = {}
    cost = [0, 0]
    for direction, described in zip(DIRECTIONS, (scenes, swapped), strict=True):
        how = {name: dissection.provenance[name] for name in ("steps", "guidance")}
        sampling = model.sampling([full_caption(scene) for scene in described], seeds=0, **how)
        sampling = replace(sampling, seeds=tuple(range(1_000_000 * (seed + 1), 1_000_000 * (seed + 1) + n)))
        metrics = [JudgeLogProbability(factor, [concept] * n, cells, judge)]
        metrics += [
            JudgeLogProbability(name, [getattr(scene.objects[0], name) for scene in described], cells, judge)
            for name in _FACTORS
            if name != factor
        ]
        levels = _levels(dissection, concept, direction, ablation)
        positions = _quarters(model, site, sampling, cells)
        variants: list[list[Edit]] = [
            [
                edit
                for number, step in enumerate(steps)
                for edit in units.setting(
                    site, order[:size], levels[number, order[:size]].to(model.device, model.dtype), positions,
                    When(steps=[step], branch=branch),
                )
            ]
            for order in sets.values()
            for size in sizes
        ]  # fmt: skip
        swept = plan_sweep(model, sampling, variants, metrics, exact=exact, budget=budget).run(progress=progress)
        cost = [cost[0] + swept.cost.rows, cost[1] + swept.cost.skipped]
        for metric in metrics:
            found = swept.values[metric.name].view(len(sets), len(sizes), n).double().cpu().numpy()
            values.setdefault(metric.name, []).append(found)
            bases.setdefault(metric.name, []).append(swept.base[metric.name].double().cpu().numpy())
    record = provenance(
        experiment="effects of units", model=model.name, weights=model.weights_hash, site=str(site), concept=concept,
        other=other, factor=factor, steps=steps, branch=None if branch is None else branch.value, ablation=ablation,
        units={name: order[: max(sizes)] for name, order in sets.items()}, seed=seed, metrics=list(values),
        prompts=[full_caption(scene) for scene in scenes], rows_run=cost[0], rows_skipped=cost[1], exact=str(exact),
        dissection=dict(dissection.provenance), n_attempted=n, n_scored=n,
    )  # fmt: skip
    return UnitEffectResult(_dataset(values, bases, list(sets), list(sizes), seed), record)


def _dataset(
    values: dict[str, list[np.ndarray]],
    bases: dict[str, list[np.ndarray]],
    sets: list[str],
    sizes: list[int],
    seed: int,
) -> Dataset:
    import xarray as xr

    axes, unit, variables = ("direction", "set", "size"), {"unit": "nats"}, {}
    for m, found in values.items():
        value, base = np.stack(found), np.stack(bases[m])
        away = value - base[:, None, None]
        low, high = bootstrap_interval(away, seed=seed)
        variables |= {
            m: ((*axes, "example"), value, unit),
            f"{m}_base": (("direction", "example"), base, unit),
            f"{m}_effect": (axes, away.mean(-1), unit),
            f"{m}_low": (axes, low, unit),
            f"{m}_high": (axes, high, unit),
        }
    return xr.Dataset(variables, {"direction": list(DIRECTIONS), "set": sets, "size": sizes})


def _factor(concept: str, other: str | None) -> tuple[str, str]:
    known = [value for values in _FACTORS.values() for value in values]
    factor = next((name for name, values in _FACTORS.items() if concept in values), None)
    if factor is None:
        raise PairError(f"The judge tells no {concept!r} of an object." + nearest(concept, known))
    values = _FACTORS[factor]
    other = other or values[(values.index(concept) + len(values) // 2) % len(values)]
    if other == concept or other not in values:
        raise PairError(f"{other!r} is no other {factor} than {concept!r}." + nearest(other, values))
    return factor, other


def _scenes(concept: str, factor: str, n: int, seed: int) -> list[Scene]:
    """Scenes whose first object has the concept, and no other object."""
    random = Random(f"unit effects {seed}")
    out: list[Scene] = []
    while len(out) < n:
        scene = sample_scene(random).counterfactual(factor, concept)
        if all(getattr(thing, factor) != concept for thing in scene.objects[1:]):
            out.append(scene)
    return out


def _levels(dissection: DissectionResult, concept: str, direction: str, ablation: str) -> torch.Tensor:
    """What units are set to, [step, unit]."""
    mean = dissection.data["mean"].values
    if direction == "inserted":
        mean = dissection.data["mean_in"].sel(concept=concept).transpose("step", "unit").values
    elif ablation == "zero":
        mean = np.zeros_like(mean)
    return torch.tensor(mean)


def _quarters(model: Denoiser, site: Site, sampling: Sampling, cells: Sequence[str]) -> torch.Tensor:
    """Of each row, the positions of the quarter in which its object is."""
    height, width = model.grid_of(site, sampling)
    grid = torch.arange(height * width).view(height, width)
    corner = [divmod(CELLS.index(cell), 2) for cell in cells]
    return torch.stack(
        [
            grid[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2].flatten()
            for y, x in corner
        ]
    )
