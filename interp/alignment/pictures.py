"""Where does a denoiser hold an attribute of a scene? Subspaces fitted to one step, judged on whole pictures.

A base prompt, a source prompt, and the prompt of the scene that should come out: the base with the source's value of
one attribute (or of several, each from a source of its own). At a state x_t the denoiser v̂ runs under the base prompt,
and at a site, in every cell of the picture, the part of the activation in a subspace is taken from what the source
prompt would have there in the same state. The subspace is trained so that one step says what it would say under the
counterfactual prompt:

    ‖ v̂(x_t | base, interchanged) − v̂(x_t | label) ‖²  /  mean ‖ v̂(x_t | base) − v̂(x_t | label) ‖²

over states that the sampling of the label and that of the base pass through. (1 − this) is called `explained`: 0 is
what the base alone does. No step of the training runs the denoising loop. Whether the subspace *is* the attribute is
then asked of whole pictures: held-out bases are sampled with the interchange in every step, and the judge reads them.

Beside each site and rank stand, on the same held-out examples:

- *full swap*: the whole state exchanged, which carries over the attribute and whatever else the site holds;
- *before training*: the map as it starts, a random subspace of its rank;
- *shuffled labels*: a map fitted to labels with a random value of the attribute. That is no zero: with squared errors,
  half of the source's colour and half of the base's are nearer to a random third than either, so such a map carries
  over some of it;
- *random model*: of a denoiser with random weights, what a map fitted there explains (its pictures show nothing).

When it misleads: an interchange may succeed by putting the right colour on a broken shape, so `changed` is reported
beside `kept`; the judge can be fooled by what it never saw; a site of high accuracy is one of several that suffice.

Source: the objective is ours, after distributed alignment search (Geiger et al. 2023, arXiv:2303.02536).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.fit import Cells, Training, fit
from interp.alignment.maps import AlignmentMap, LowRank, Subspace, Whole
from interp.errors import InterpError
from interp.interventions.denoise import denoise
from interp.interventions.denoise_sweep import DenoisingSweep
from interp.interventions.edits import Edit, Replace, Swap, UnderPrompt, When
from interp.interventions.one_step import OneStep, States, settable, trajectory
from interp.interventions.sweep import plan_sweep
from interp.interventions.sweep_plan import Swept
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.reset import reset
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.shapes.caption import full_caption
from interp.statistics import bootstrap_interval
from interp.tasks.causal_models.pictures import EXCHANGED, PictureInterchange, attributes_of
from interp.tasks.image_metrics import Shows, as_bytes

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

WAYS = ("fitted", "full swap", "before training", "shuffled labels", "random model")
"""What is exchanged: the fitted subspace, or one of the controls."""


class DenoiserContinuation(Continuation):
    """One step of a denoiser at fixed states, as a function of what stands at a site in all its cells.

    Args:
        bases: prompts of every state; sources: the same, of each variable.
        states: x_t.
    """

    def __init__(
        self, model: Denoiser, bases: Sampling, sources: Sequence[Sampling], states: States, site: Site
    ) -> None:
        self.step = OneStep(model, bases, states, site)
        self.base = self.step.values[None]
        self.sources = tuple(OneStep(model, prompts, states, site).values[None] for prompts in sources)
        self.check([str(site)])

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """Predictions with these values."""
        return self.step(values, example)

    def base_outputs(self, example: Tensor) -> Tensor:
        """Predictions under the base prompts."""
        return self.step.prediction[example]

    def parts(self, place: Tensor, example: Tensor) -> list[Tensor]:
        """Rows in order, some dozens at once (more are slower on a processor)."""
        return list(torch.arange(len(place), device=place.device).split(48))


@dataclass(frozen=True, repr=False, eq=False)
class PictureAlignment(Result):
    """Accuracy of interchanges on pictures, by site and rank (per variable), beside the controls.

    `.data` holds over `site` × `rank` × `way` × `example`, by the judge: `changed` (the picture shows the sources'
    values of the variables) and `kept` (all else is the base's), NaN for the random model; their means `iia` and
    `kept_mean`, and of the former the 95 % interval `low` to `high`. Over `site` × `rank` × `way`: `explained`, the
    share of the way to the counterfactual's prediction, on held-out states. Over `example`: `base_changed` and
    `base_kept` of the pictures without an interchange, `label_changed` and `label_kept` of the counterfactual prompt's
    own: what the model itself can do. Over `site` × `rank` × `step`: the training `loss`. `basis`
    [site, rank, d_model, column], NaN beyond a site's width or a rank. Pictures, uint8 [drawn, y, x, rgb]: `base`,
    `source`, `label`, and of the best cell `fitted`, `full_swap`, `before_training`.
    """

    @property
    def title(self) -> str:
        """One line that states what was searched for."""
        p = self.provenance
        return f"{' and '.join(p['variables'])} of {p['task']} · {p['model']}, steps {p['when']}"

    @property
    def best(self) -> dict[str, Any]:
        """Site and rank at which most pictures show the variables changed and all else kept."""
        whole = (self.data["changed"] * self.data["kept"]).mean("example").sel(way="fitted").transpose("rank", "site")
        rank, site = (int(i) for i in np.unravel_index(int(whole.values.argmax()), whole.shape))
        return {"site": str(whole["site"].values[site]), "rank": int(whole["rank"].values[rank])}

    def basis(self, site: Site | str, rank: int) -> Float[Tensor, "d_model column"]:
        """The columns that were found at a site, those of the variables side by side.

        Raises:
            InterpError: a site or rank that was not searched.
        """
        try:
            found = self.data["basis"].sel(site=str(site), rank=rank).values
        except KeyError as error:
            raise InterpError(f"{site} with rank {rank} was not searched.") from error
        return torch.from_numpy(found[~np.isnan(found[:, 0])][:, : rank * len(self.provenance["variables"])].copy())

    def summary(self) -> str:
        """A line per site at its best rank, the controls of the best, and what the model itself can do."""
        data, best, p = self.data, self.best, self.provenance
        n = data.sizes["example"]
        lines = [
            f"PictureAlignment: {self.title}",
            f"  {n} held-out examples, read by the judge: share with the variables changed / with all else kept",
            f"  prompt of the counterfactual {float(data['label_changed'].mean()):.3f} / "
            f"{float(data['label_kept'].mean()):.3f}, no interchange {float(data['base_changed'].mean()):.3f} / "
            f"{float(data['base_kept'].mean()):.3f}",
        ]
        for site in map(str, data["site"].values):
            both = (data["changed"] * data["kept"]).mean("example").sel(way="fitted", site=site)
            rank = int(data["rank"].values[int(both.values.argmax())])
            lines.append(f"  {site}, rank {rank}: {self._told(site, rank, 'fitted')}")
        lines.append(f"  beside {best['site']}, rank {best['rank']}:")
        lines += [
            f"    {way}: {self._told(best['site'], best['rank'], way)}" for way in map(str, data["way"].values[1:])
        ]
        lines += [f"  stopped: {why}" for why in p["stopped"][:4]]
        return "\n".join(lines)

    def _told(self, site: str, rank: int, way: str) -> str:
        here = self.data.sel(site=site, rank=rank, way=way)
        explained = f"explained {float(here['explained']):+.3f}"
        if bool(np.isnan(here["iia"])):
            return explained
        return (
            f"{float(here['iia']):.3f} [{float(here['low']):.3f}, {float(here['high']):.3f}] / "
            f"{float(here['kept_mean']):.3f}, {explained}"
        )

    def plot(self) -> Figure:
        """Share of pictures with the variables changed, by site and rank, one panel for each way."""
        from interp.plots import heatmap

        data = self.data["iia"].sel(way=[way for way in WAYS if way in self.data["way"].values and way != WAYS[-1]])
        title = f"Pictures that show the source's value: {self.title}"
        return heatmap(data, x="rank", y="site", facet="way", title=title, unit="IIA", diverging=False)

    def plot_pictures(self) -> Figure:
        """Base, source, the counterfactual prompt's picture, and interchanges at the best site."""
        from interp.plots import picture_grid

        names = ("base", "source", "label", "fitted", "full_swap", "before_training")
        told = {"label": "counterfactual prompt", "fitted": "interchanged", "full_swap": "whole state exchanged",
                "before_training": "random subspace"}  # fmt: skip
        columns = {told.get(name, name): self.data[name] for name in names if name in self.data}
        rows = [str(row) for row in self.data["drawn"].values]
        best = self.best
        return picture_grid(
            columns, rows=rows, title=f"Interchange at {best['site']}, rank {best['rank']}: {self.title}"
        )


def align_pictures(
    model: Denoiser,
    task: PictureInterchange,
    held_out: PictureInterchange,
    *,
    sites: Sequence[Site | str],
    ranks: Sequence[int] = (8,),
    steps: Sequence[int] | None = None,
    train_steps: int = 7,
    training: Training = Training(steps=200, batch=48, learning_rate=1e-2),
    controls: Sequence[str] = WAYS[1:],
    drawn: int = 4,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> PictureAlignment:
    """Fit subspaces at some sites of a denoiser, and interchange them in whole pictures.

    Args:
        task: what subspaces are fitted to; held_out: what they are judged on.
        sites: parts of blocks, one subspace of each rank for each.
        steps: denoising steps in which the interchange acts; all if not given.
        train_steps: number of these steps, evenly spread, at whose states subspaces are fitted.
        training: of the fits; `batch` counts states.
        controls: what to run beside (`WAYS`).
        drawn: examples whose pictures are kept.
        guidance: of the sampling, the model's own if not given. One step is trained without guidance; the interchange
            acts in the conditional branch.
        seed: of starts, shuffle, noise (training uses other noise than the test) and the random model.
        checkpoint: a folder; fits and samplings go on from what is there.

    Raises:
        InterpError: no site or rank; an unknown control; steps that the sampling does not have; tasks of unlike
            variables, or that share an example.
        SiteError: as `interp.interventions.one_step.settable`.
        ShapeError: a rank above a site's width.
    """
    chosen = list(dict.fromkeys(settable(model, site) for site in sites))
    _check(task, held_out, chosen, ranks, controls)
    whole = model.sampling(task.examples[0].prompt, guidance=guidance).steps
    acting = tuple(range(whole)) if steps is None else tuple(dict.fromkeys(steps))
    if not acting or not all(0 <= step < whole for step in acting):
        raise InterpError(f"steps={list(acting)}: the sampling has steps 0 to {whole - 1}; name some.")
    if len(task.variables) > 1:  # from several sources no whole state can be taken
        controls = [name for name in controls if name != "full swap"]
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    search = _PictureSearch(model, task, held_out, tuple(ranks), acting, train_steps, training, guidance, seed, folder)
    for site in chosen:
        search.fit(site, controls, progress)
    data = search.sampled(chosen, controls, drawn, progress)
    record = provenance(
        experiment="alignment of pictures", model=model.name, weights=model.weights_hash, task=task.name,
        held_out=held_out.name, variables=task.variables, sites=[str(site) for site in chosen],
        when="all" if steps is None else _span(acting), train_steps=len(search.train_steps), controls=list(controls),
        training={"steps": training.steps, "batch": training.batch, "learning_rate": training.learning_rate},
        seed=seed, n_train=len(task), n_attempted=len(held_out), n_scored=len(held_out), stopped=search.stopped,
    )  # fmt: skip
    return PictureAlignment(data, record)


def _check(
    task: PictureInterchange, held_out: PictureInterchange, sites: Sequence[Site], ranks: Sequence[int],
    controls: Sequence[str],
) -> None:  # fmt: skip
    if not sites or not ranks:
        raise InterpError("`sites` or `ranks` is empty: name at least one of each.")
    if unknown := [name for name in controls if name not in WAYS[1:]]:
        raise InterpError(f"There is no control {unknown[0]!r}; there are {', '.join(WAYS[1:])}.")
    if task.variables != held_out.variables:
        raise InterpError(f"{task.name} exchanges {task.variables}, {held_out.name} {held_out.variables}.")
    shared = {(e.prompt, *e.source_prompts) for e in task} & {(e.prompt, *e.source_prompts) for e in held_out}
    if shared:
        raise InterpError(f"{held_out.name} is not held out: {' / '.join(next(iter(shared)))!r} is in both tasks.")


def _span(steps: Sequence[int]) -> str:
    whole = list(range(min(steps), max(steps) + 1))
    return f"{whole[0]} to {whole[-1]}" if sorted(steps) == whole else ", ".join(map(str, steps))


def _squared(outputs: Tensor, targets: Tensor) -> Float[Tensor, "row"]:
    return (outputs - targets).square().flatten(1).sum(1)


class _PictureSearch:
    """Fits at several sites, on the same states."""

    def __init__(
        self, model: Denoiser, task: PictureInterchange, held_out: PictureInterchange, ranks: tuple[int, ...],
        acting: tuple[int, ...], train_steps: int, training: Training, guidance: float | None, seed: int,
        folder: Path | None,
    ) -> None:  # fmt: skip
        self.model, self.task, self.held_out, self.ranks, self.acting = model, task, held_out, ranks, acting
        self.training, self.guidance, self.seed, self.folder = training, guidance, seed, folder
        spread = np.linspace(0, len(acting) - 1, min(train_steps, len(acting))).round().astype(int)
        self.train_steps = [acting[i] for i in dict.fromkeys(spread.tolist())]
        self.shuffled = _shuffled(task, Random(seed))
        self.states = {which: self._states(which) for which in (task, held_out)}
        self.maps: dict[tuple[Site, int, str], AlignmentMap] = {}
        self.explained: dict[tuple[Site, int, str], float] = {}
        self.losses: dict[tuple[Site, int], np.ndarray] = {}
        self.stopped: list[str] = []

    def _states(self, task: PictureInterchange) -> States:
        """States under the labels' prompts and under the bases', step by step."""
        label, base = (self._sampling(prompts, task) for prompts in (_labels(task), [e.prompt for e in task]))
        return trajectory(self.model, label, self.train_steps).joined(trajectory(self.model, base, self.train_steps))

    def _sampling(self, prompts: Sequence[str], task: PictureInterchange) -> Sampling:
        first = 10_000 * self.seed + (0 if task is self.held_out else 5_000)
        one = self.model.sampling(list(prompts), guidance=self.guidance)
        return replace(one, seeds=tuple(range(first, first + len(prompts))))

    def _prompts(self, task: PictureInterchange, captions: Sequence[str]) -> Sampling:
        """Prompts of every state."""
        return self._sampling(list(captions) * (len(self.states[task]) // len(task)), task)

    def fit(self, site: Site, controls: Sequence[str], progress: Progress) -> None:
        """Subspaces of every rank at a site, the shuffled control's beside them, and the random model's."""
        shuffle = "shuffled labels" in controls
        train = self._continuation(self.model, self.task, site)
        goals = [self._goal(self.model, self.task, site)]
        if shuffle:
            goals.append(self._goal(self.model, self.task, site, self.shuffled))
        test, wanted = self._continuation(self.model, self.held_out, site), self._goal(self.model, self.held_out, site)
        maps = [self._map(train, rank, 1 + shuffle) for rank in self.ranks]
        for rank, one in zip(self.ranks, maps, strict=True):
            self._take(site, rank, "before training", _frozen(one, 0), test, wanted)
            if "full swap" in controls:
                self._take(site, rank, "full swap", Whole(train.base.shape[-1]), test, wanted)
        losses = self._fitted(train, maps, torch.stack(goals), site, "task", progress)
        for rank, one, loss in zip(self.ranks, maps, losses, strict=True):
            self.losses[site, rank] = loss[0]
            self._take(site, rank, "fitted", _frozen(one, 0), test, wanted)
            if shuffle:
                self._take(site, rank, "shuffled labels", _frozen(one, 1), test, wanted)
        if "random model" in controls:
            self._random_model(site, progress)

    def _random_model(self, site: Site, progress: Progress) -> None:
        model = reset(self.model, self.seed)
        train, goal = self._continuation(model, self.task, site), self._goal(model, self.task, site)
        maps = [self._map(train, rank, 1) for rank in self.ranks]
        self._fitted(train, maps, goal[None], site, "random model", progress)
        test, wanted = self._continuation(model, self.held_out, site), self._goal(model, self.held_out, site)
        for rank, one in zip(self.ranks, maps, strict=True):
            self._take(site, rank, "random model", _frozen(one, 0), test, wanted)

    def _continuation(self, model: Denoiser, task: PictureInterchange, site: Site) -> DenoiserContinuation:
        base = self._prompts(task, [e.prompt for e in task])
        sources = [self._prompts(task, prompts) for prompts in zip(*(e.source_prompts for e in task), strict=True)]
        return DenoiserContinuation(model, base, sources, self.states[task], site)

    def _goal(
        self, model: Denoiser, task: PictureInterchange, site: Site, prompts: Sequence[str] | None = None
    ) -> Tensor:
        wanted = self._prompts(task, _labels(task) if prompts is None else prompts)
        return OneStep(model, wanted, self.states[task], site).prediction

    def _map(self, continuation: Continuation, rank: int, cells: int) -> LowRank:
        found = LowRank(continuation.base.shape[-1], (rank,) * len(self.task.variables), seed=self.seed)
        return found.select([0] * cells).to(continuation.base.device)

    def _fitted(
        self, continuation: DenoiserContinuation, maps: Sequence[LowRank], goals: Tensor, site: Site, what: str,
        progress: Progress,
    ) -> list[np.ndarray]:  # fmt: skip
        """Train maps, of which cell i has the i-th set of goals; their losses, 1 being the base's."""
        sets = torch.arange(len(goals), device=goals.device)
        names = ("task", "shuffled labels")[: len(goals)]
        groups = [
            Cells(one, torch.zeros_like(sets), sets, tuple(f"{site}, rank {rank}, {name}" for name in names))
            for rank, one in zip(self.ranks, maps, strict=True)
        ]
        everything = torch.arange(len(continuation.step.prediction), device=goals.device)
        scale = _squared(continuation.base_outputs(everything), goals[0]).mean()
        file = None if self.folder is None else self.folder / f"{site} {what}.safetensors"
        fits = fit(groups, continuation, goals, self.training, progress=progress, checkpoint=file,
                   loss=lambda outputs, targets: _squared(outputs, targets) / scale)  # fmt: skip
        self.stopped += [f"{what}: {why}" for one in fits for why in one.stopped if why]
        return [one.loss for one in fits]

    @torch.no_grad()
    def _take(
        self, site: Site, rank: int, way: str, one: AlignmentMap, test: DenoiserContinuation, wanted: Tensor
    ) -> None:
        """Keep a subspace, and what it explains of held-out states."""
        left, total = 0.0, 0.0
        for rows in torch.arange(len(wanted), device=wanted.device).split(48):
            value = one.swap(test.base[0, rows], [source[0, rows] for source in test.sources])
            left += float(_squared(test.step(value, rows), wanted[rows]).sum())
            total += float(_squared(test.base_outputs(rows), wanted[rows]).sum())
        self.maps[site, rank, way], self.explained[site, rank, way] = one, 1 - left / total

    def sampled(self, sites: Sequence[Site], controls: Sequence[str], drawn: int, progress: Progress) -> xarray.Dataset:
        """Held-out pictures under every interchange, read by the judge."""
        test = list(self.held_out)
        sampling = self._sampling([e.prompt for e in test], self.held_out)
        sources = [UnderPrompt(prompts) for prompts in zip(*(e.source_prompts for e in test), strict=True)]
        when = When(steps=frozenset(self.acting), branch=Branch.COND)
        ways = ["fitted", *(way for way in WAYS[1:] if way in controls)]
        keys = [(site, rank, way) for site in sites for rank in self.ranks for way in ways if way != "random model"]
        # A whole state exchanged is the same at every rank.
        keys = [key for key in keys if key[2] != "full swap" or key[1] == self.ranks[0]]
        variants: list[list[Edit]] = [
            [Replace(key[0], sources[0], when=when)]
            if key[2] == "full swap"
            else [
                Swap(key[0], source, block, when=when)
                for source, block in zip(sources, self._blocks(*key), strict=True)
            ]
            for key in keys
        ]
        scenes, others = [e.scene for e in test], [name for name in EXCHANGED if name not in self.task.variables]
        metrics = [Shows(scenes, self.task.variables, "changed"), Shows(scenes, others, "kept")]
        plan = plan_sweep(self.model, sampling, variants, metrics)
        assert isinstance(plan, DenoisingSweep)
        swept = plan.run(progress=progress, checkpoint=None if self.folder is None else self.folder / "pictures")
        data = self._dataset(sites, ways, keys, swept)
        lent = self._pictures(replace(sampling, prompts=sources[0].prompt))
        wanted = self._pictures(replace(sampling, prompts=tuple(_labels(self.held_out))))
        for metric in metrics:
            data[f"base_{metric.name}"] = ("example", swept.base[metric.name].cpu().numpy())
            data[f"label_{metric.name}"] = ("example", metric.values(wanted, torch.arange(len(test))).cpu().numpy())
        shown = list(range(min(drawn, len(test))))
        best = (data["changed"] * data["kept"]).mean("example").sel(way="fitted").transpose("site", "rank").values
        site, rank = (int(i) for i in np.unravel_index(int(best.argmax()), best.shape))
        axes = ("drawn", "y", "x", "rgb")
        for name, images in (("base", self._pictures(sampling.select(shown))), ("source", lent), ("label", wanted)):
            data[name] = (axes, as_bytes(images[: len(shown)]))
        for number, key in enumerate(keys):
            here = key[:2] == (sites[site], self.ranks[0 if key[2] == "full swap" else rank])
            if here and key[2] != "shuffled labels":
                data[key[2].replace(" ", "_")] = (axes, as_bytes(plan.pictures(number, shown)))
        return data.assign_coords(drawn=[" / ".join((test[i].prompt, *test[i].source_prompts)) for i in shown])

    def _pictures(self, sampling: Sampling) -> Tensor:
        images = denoise(self.model, sampling).images
        assert images is not None
        return images

    def _blocks(self, site: Site, rank: int, way: str) -> Sequence[Tensor]:
        """The columns of each variable; orthogonal, so that one swap after the other is all of them."""
        found = self.maps[site, rank, way]
        assert isinstance(found, Subspace)
        return found.basis[0].split(found.ranks, -1)

    def _dataset(
        self, sites: Sequence[Site], ways: Sequence[str], keys: Sequence[tuple[Site, int, str]], swept: Swept
    ) -> xarray.Dataset:
        import xarray as xr

        n, shape = len(self.held_out), (len(sites), len(self.ranks), len(ways))
        values = {name: np.full((*shape, n), np.nan) for name in ("changed", "kept")}
        explained = np.full(shape, np.nan)
        for at in np.ndindex(shape):
            site, rank, way = sites[at[0]], self.ranks[at[1]], str(ways[at[2]])
            explained[at] = self.explained[site, rank, way]
            key = (site, self.ranks[0] if way == "full swap" else rank, way)
            for name in values if key in keys else ():
                values[name][at] = swept.values[name][keys.index(key)].cpu().numpy()
        low, high = bootstrap_interval(values["changed"], seed=self.seed)
        width, most = max(self.model.width_of(site) for site in sites), max(self.ranks) * len(self.task.variables)
        basis = np.full((*shape[:2], width, most), np.nan, dtype=np.float32)
        for i, j in np.ndindex(shape[:2]):
            columns = torch.cat(list(self._blocks(sites[i], self.ranks[j], "fitted")), 1).cpu().numpy()
            basis[i, j, : columns.shape[0], : columns.shape[1]] = columns
        dims = ("site", "rank", "way")
        share = {"unit": "share of pictures"}
        variables: dict[str, Any] = {
            name: ((*dims, "example"), x) for name, x in values.items()
        } | {
            "iia": (dims, values["changed"].mean(-1), share), "low": (dims, low, share), "high": (dims, high, share),
            "kept_mean": (dims, values["kept"].mean(-1), share), "explained": (dims, explained, {"unit": "share"}),
            "loss": (("site", "rank", "step"), np.stack([[self.losses[s, r] for r in self.ranks] for s in sites])),
            "basis": (("site", "rank", "d_model", "column"), basis),
        }  # fmt: skip
        coords = {"site": [str(site) for site in sites], "rank": list(self.ranks), "way": list(ways)}
        return xr.Dataset(variables, coords)


def _frozen(maps: LowRank, cell: int) -> Subspace:
    """One map as it is now."""
    return Subspace(maps.basis[cell].detach(), maps.ranks)


def _labels(task: PictureInterchange) -> list[str]:
    """Prompts of the scenes that should come out."""
    return [full_caption(e.scene) for e in task]


def _shuffled(task: PictureInterchange, random: Random) -> list[str]:
    """Prompts of the bases with random values of the variables."""
    found = []
    for e in task:
        scene = e.base
        for name in task.variables:
            scene = scene.counterfactual(name, random.choice(sorted({attributes_of(e.scene)[name] for e in task})))
        found.append(full_caption(scene))
    return found
