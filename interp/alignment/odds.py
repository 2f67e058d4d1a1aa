"""CausalGym's measure: how far one direction, swapped between the sentences of a minimal pair, moves the odds.

Of a base b that calls for the token y_b and a source s that calls for y_s, the state at a place is given the source's
component along a unit vector, and p* are the probabilities of the base run thereafter. The **log odds-ratio**

    odds = [log p(y_b | b) − log p(y_s | b)] + [log p*(y_s) − log p*(y_b)]        (nats, mean over held-out pairs)

is 0 where the swap does nothing and positive where it moves the answer towards the source's. (The normalisers of the
softmax cancel, so differences of logits are enough.) Where no training pair's states differ, the base run answers: 0.

| method | the direction |
|---|---|
| `DAS` | trained to make the base run answer y_s: `LowRank` of rank 1 |
| `difference of means`, `probe`, `lda`, `pca`, `kmeans` | closed forms of `interp.alignment.directions` |
| `random direction` | where `DAS` starts: the floor |
| `full swap` | none, the whole state is the source's ("vanilla"): an upper reference |

All of it stands beside the **control task**: the same sentences, two arbitrary tokens as answers. `DAS` is trained on
it anew; the closed forms see types of sentences only, and keep their direction. **Selectivity** is the odds on the
task minus those on the control: a method that can make any token follow a type of sentence has little.

Cost: per task, the training and the held-out pairs run once. A step of DAS reruns for every place, and twice for the
control, what lies above and behind it; every other method is one such pass over the held-out pairs.

When it misleads: the score takes the best of several regions, so a method with more spread gains by it, and regions
that the task's name for them makes incomparable are treated alike; the mean over layers depends on which were asked;
an odds-ratio of a model that prefers one answer throughout can be large while no answer flips (read `iia` beside it).

Source: Arora, Jurafsky & Potts 2024, "CausalGym" (arXiv:2402.12560), measure, methods, aggregation and control. We
differ: the sentences are from our templates, held-out pairs share no content word with training pairs (theirs are
other pairs), directions come from the states of bases and sources together, the probe's penalty does not depend on the
model, LDA shrinks its spread, and regions that are the same token in every pair are measured once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.alignment import directions
from interp.alignment.directions import closed_form
from interp.alignment.fit import Cells, Training, fit, interchanged
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import AlignmentMap, LowRank, Subspace, Whole
from interp.errors import InterpError, nearest
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.tasks.interchange import EncodedInterchange, InterchangeTask
from interp.tasks.minimal_pairs import MINIMAL_PAIRS, control, minimal_pairs

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

GYM_METHODS = ("DAS", *directions.METHODS, "random direction", "full swap")
ASKED = ("task", "control")
"""Which two answers the odds are of."""

Splits = tuple[InterchangeTask, InterchangeTask]
"""What directions are found on, and held-out pairs."""


@dataclass(frozen=True, repr=False, eq=False)
class Gym(Result):
    """Log odds-ratios of directions over tasks, layers and regions, on held-out minimal pairs.

    `.data` holds over `asked` (task, control) × `task` × `layer` × `region` × `direction` (the method): `odds` in nats,
    `iia`, the share of pairs with p*(y_s) > p*(y_b), and `iia_flip`, that share among the pairs whose base the model
    answers rightly; pair by pair `odds_of` (… × `example`). NaN where a task has no such region, or a method found no
    direction (`provenance["failed"]` says why). Over `asked` × `task` × `example`: `base_odds`, that is
    log p(y_b | b) − log p(y_s | b). Over `task` × `layer` × `region`: `moved`, the share of held-out pairs whose states
    differ.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        n = self.data.sizes
        tasks = f"{n['task']} task{'s' if n['task'] > 1 else ''}"
        return f"{tasks}, {p['part']} of {n['layer']} layers · {p['model']}"

    @property
    def selectivity(self) -> xarray.DataArray:
        """Odds on the task minus odds on the control, cell by cell."""
        return _less_control(self.data["odds"])

    @property
    def scores(self) -> xarray.Dataset:
        """Per method `odds`, `selectivity`, `iia` and `iia_flip` on the task, each aggregated by `aggregate`."""
        on_task = self.data[["odds", "iia", "iia_flip"]].sel(asked="task", drop=True)
        return aggregate(on_task.assign(selectivity=self.selectivity))

    def summary(self) -> str:
        """A row per method, the best first, and what the numbers rest on."""
        p, scores = self.provenance, self.scores
        right = (self.data["base_odds"].sel(asked="task") > 0).mean("example")
        names = [str(name) for name in scores["direction"].sortby(-scores["odds"]).values]
        width = max(map(len, names))
        lines = [
            f"Gym: {self.title}",
            f"  log odds-ratio in nats on {self.data.sizes['example']} held-out pairs per task, directions from "
            f"{p['n_train']}; best region, mean over layers and tasks",
            f"  {'':{width}}    odds  selectivity   IIA  IIA-flip",
        ]
        for name in names:
            one = scores.sel(direction=name)
            lines.append(
                f"  {name:{width}}  {float(one['odds']):6.2f}  {float(one['selectivity']):11.2f}  "
                f"{float(one['iia']):4.2f}  {float(one['iia_flip']):8.2f}"
            )
        lines.append(f"  the base's answer has the higher probability in {float(right.min()):.2f} to "
                     f"{float(right.max()):.2f} of a task's pairs")  # fmt: skip
        lines += [f"  stopped: {why}" for why in p["stopped"][:4]]
        failed = p["failed"]
        lines += [f"  no direction: {why}" for why in failed[:4]]
        if len(failed) > 4:
            lines.append(f"  … and {len(failed) - 4} more")
        return "\n".join(lines)

    def plot(self, score: str = "odds") -> Figure:
        """`odds`, `selectivity`, `iia` or `iia_flip` over layers, a line per method: best region, mean over tasks.

        Raises:
            InterpError: another score.
        """
        from interp.plots import curves

        by_layer = self._cells(score).max("region").mean("task", skipna=False)
        unit = "IIA" if score.startswith("iia") else "nats"
        return curves(
            by_layer.transpose("direction", "layer"), x="layer", line="direction", unit=unit, quantity=score,
            bars=False, title=f"{_NAMES[score]}, best region: {self.title}",
        )  # fmt: skip

    def plot_task(self, task: str, score: str = "odds") -> Figure:
        """One task's score over layer × region, a panel per method.

        Raises:
            InterpError: another task or score.
        """
        from interp.plots import heatmap

        if task not in self.data["task"].values:
            raise InterpError(f"There is no task {task!r}." + nearest(task, self.data["task"].values.tolist()))
        cells = self._cells(score).sel(task=task, drop=True).dropna("region", how="all")
        return heatmap(
            cells, x="region", y="layer", facet="direction", unit="IIA" if score.startswith("iia") else "nats",
            title=f"{_NAMES[score]}, {task} · {self.provenance['model']}", diverging=not score.startswith("iia"),
        )  # fmt: skip

    def _cells(self, score: str) -> xarray.DataArray:
        if score not in _NAMES:
            raise InterpError(f"There is no score {score!r}." + nearest(score, _NAMES))
        return self.selectivity if score == "selectivity" else self.data[score].sel(asked="task", drop=True)


_NAMES = {"odds": "Log odds-ratio", "selectivity": "Selectivity", "iia": "Interchange accuracy",
          "iia_flip": "Interchange accuracy where the base is right"}  # fmt: skip


def aggregate(cells: xarray.Dataset) -> xarray.Dataset:
    """CausalGym's: of each layer the highest value of any region, then the mean over layers, then over tasks.

    Regions that are NaN do not count; a layer without any makes its task, and the mean, NaN.
    """
    return cells.max("region").mean("layer", skipna=False).mean("task", skipna=False)


def _less_control(odds: xarray.DataArray) -> xarray.DataArray:
    return odds.sel(asked="task", drop=True) - odds.sel(asked="control", drop=True)


def gym_tasks(
    names: Sequence[str] | None = None, n_train: int = 400, n_held_out: int = 100, seed: int = 0
) -> dict[str, Splits]:
    """Shipped minimal-pair tasks, all if no names are given: training and held-out pairs of each.

    Raises:
        PairError: as `minimal_pairs`.
    """
    return {
        name: (minimal_pairs(name, n_train, seed, "train"), minimal_pairs(name, n_held_out, seed, "held out"))
        for name in (MINIMAL_PAIRS if names is None else names)
    }


def causal_gym(
    model: LanguageModel,
    tasks: Mapping[str, Splits],
    *,
    methods: Sequence[str] = GYM_METHODS,
    part: str = "resid_post",
    layers: Sequence[int] | None = None,
    regions: Sequence[str] | None = None,
    training: Training = Training(steps=100, batch=4),
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Gym:
    """The log odds-ratio of every method at every place of every task, and the same on the control tasks.

    Args:
        tasks: training and held-out pairs by name, as `gym_tasks` gives them; in each example the label is the
            source's answer, and two `type`s of sentence are named in the settings.
        methods: of `GYM_METHODS`.
        part: of the sites; one without heads.
        layers: all if not given.
        regions: of each task those of these that it has; all if not given. A region stands for its last token.
        training: of DAS; one pass over 400 pairs in batches of 4 if not given.
        seed: of random directions and of DAS's starts.
        budget: bytes for activations at once.

    Raises:
        InterpError: no task, method or layer; an unknown method; an example whose label is not the source's answer, or
            is the base's, or that is in both splits; held-out splits of unlike length; regions of which a task has
            none; as `fit`.
        PairError: no two types of sentence; as `InterchangeTask.encode`.
        SiteError: no such layer.
    """
    layers = tuple(dict.fromkeys(range(model.n_layers) if layers is None else layers))
    methods = tuple(dict.fromkeys(methods))
    _check(tasks, methods, layers)
    encoded = {name: (_Asked(model, train), _Asked(model, held_out)) for name, (train, held_out) in tasks.items()}
    chosen = {name: _regions(name, train.encoded, regions) for name, (train, _) in encoded.items()}
    trials = []
    for name in progress(list(tasks), "minimal-pair tasks"):
        places = [Place(Site(part, layer), region) for layer in layers for region in chosen[name]]
        trials.append(_Trial(model, name, *encoded[name], places, training, seed, budget).run(methods))
    record = provenance(
        experiment="causal gym", model=model.name, weights=model.weights_hash, part=part, seed=seed,
        tasks=[held_out.name for _, held_out in tasks.values()], task_seeds=[one.seed for one, _ in tasks.values()],
        source=next(iter(tasks.values()))[0].source, steps=training.steps, batch=training.batch,
        learning_rate=training.learning_rate, warm_up=training.warm_up, training_seed=training.seed,
        n_train=max(len(train) for train, _ in tasks.values()),
        n_scored=sum(len(held_out) for _, held_out in tasks.values()),
        stopped=[why for trial in trials for why in trial.stopped],
        failed=[why for trial in trials for why in trial.failed],
    )  # fmt: skip
    return Gym(_dataset(trials, list(tasks), methods, layers, chosen), record)


class _Asked:
    """A split as tokens, and the two answers of each pair, of the task and of its control."""

    def __init__(self, model: LanguageModel, task: InterchangeTask) -> None:
        self.encoded, arbitrary = task.encode(model), control(task).encode(model)
        both = [self.encoded, arbitrary]
        self.base_answer = torch.stack([one.answer for one in both])  # asked, example
        self.source_answer = torch.stack([one.label for one in both])
        self.types = torch.cat([arbitrary.answer, arbitrary.label])  # of bases, then of sources: a token for a type

    def towards_source(self, logits: Float[Tensor, "row vocab"], example: Int[Tensor, "row"]) -> Tensor:
        """[row, asked]: log p(y_s) − log p(y_b)."""
        source, base = self.source_answer[:, example].T, self.base_answer[:, example].T
        return (logits.gather(-1, source) - logits.gather(-1, base)).double()


class _Trial:
    """All methods at all places of one task."""

    def __init__(
        self, model: LanguageModel, name: str, train: _Asked, test: _Asked, places: list[Place], training: Training,
        seed: int, budget: int | None,
    ) -> None:  # fmt: skip
        self.model, self.name, self.train, self.test, self.places = model, name, train, test, places
        self.training, self.seed = training, seed
        self.seen, self.unseen = (LanguageContinuation(model, one.encoded, places, budget=budget)
                                  for one in (train, test))  # fmt: skip
        self.live = self.seen.differs.any(1).nonzero()[:, 0]
        self.stopped: list[str] = []
        self.failed: list[str] = []
        n = len(test.encoded)
        self.base = test.towards_source(self.unseen.base_logits, torch.arange(n, device=model.device))  # example, asked
        self.moved = self.unseen.differs.double().mean(1).cpu().numpy()

    def run(self, methods: Sequence[str]) -> _Trial:
        """Fills `towards`, log p*(y_s) − log p*(y_b): [method, asked, place, example], NaN without a direction."""
        towards = [self._of(method) for method in methods]
        self.towards = torch.stack(towards).movedim(-1, 1).cpu().numpy()
        del self.seen, self.unseen  # the states of one task are enough
        return self

    def _of(self, method: str) -> Float[Tensor, "place example asked"]:
        found = self.base.expand(len(self.places), *self.base.shape).clone()
        if not len(self.live):
            return found
        if method == "DAS":
            found[self.live] = self._trained()
        elif method in directions.METHODS:
            works, bases = self._closed_form(method)
            found[self.live] = torch.nan
            if bases:
                found[works] = self._read(Subspace(torch.stack(bases)), works)
        else:
            width, n = self.seen.base.shape[-1], len(self.live)
            whole = method == "full swap"
            one = Whole(width, n, self.seen.base.dtype) if whole else Subspace.random(width, 1, cells=n, seed=self.seed)
            found[self.live] = self._read(one, self.live)
        return found

    def _trained(self) -> Float[Tensor, "place example asked"]:
        """Of two fits at each place, to the task and to its control, what each was fitted to."""
        n, width = len(self.live), self.seen.base.shape[-1]
        maps = LowRank(width, 1, cells=2 * n, seed=self.seed).to(self.model.device)
        cells = self._cells(maps, self.live.repeat(2), torch.arange(2 * n, device=self.live.device) // n)
        (fitted,) = fit([cells], self.seen, self.train.source_answer, self.training)
        self.stopped += [f"{self.name}: {why}" for why in fitted.stopped if why]
        read = interchanged(cells, self.unseen, self.test.towards_source, numbers=2)
        return torch.stack([read[:n, :, 0], read[n:, :, 1]], -1)

    def _closed_form(self, method: str) -> tuple[Int[Tensor, "works"], list[Tensor]]:
        works, bases = [], []
        for place in self.live.tolist():
            states = torch.cat([self.seen.base[place], self.seen.sources[0][place]])
            try:
                bases.append(closed_form(method, states, self.train.types).basis[0])
                works.append(place)
            except InterpError as error:
                self.failed.append(f"{method}, {self.name}, {self.places[place]}: {error}")
        return torch.tensor(works, dtype=torch.long, device=self.live.device), bases

    def _read(self, maps: AlignmentMap, place: Int[Tensor, "cell"]) -> Float[Tensor, "cell example asked"]:
        cells = self._cells(maps.to(self.model.device), place, torch.zeros_like(place))
        return interchanged(cells, self.unseen, self.test.towards_source, numbers=2)

    def _cells(self, maps: AlignmentMap, place: Tensor, target: Tensor) -> Cells:
        names = [f"{self.places[i]}, {ASKED[k]}" for i, k in zip(place.tolist(), target.tolist(), strict=True)]
        return Cells(maps, place, target, tuple(names))


def _check(tasks: Mapping[str, Splits], methods: Sequence[str], layers: Sequence[int]) -> None:
    for what, given in (("task", tasks), ("method", methods), ("layer", layers)):
        if not given:
            raise InterpError(f"There is no {what} to measure: name at least one.")
    for method in methods:
        if method not in GYM_METHODS:
            raise InterpError(f"There is no method {method!r}." + nearest(method, GYM_METHODS))
    for name, splits in tasks.items():
        for task in splits:
            for row, example in enumerate(task):
                if example.label == example.base.answer or example.label != example.sources[-1].answer:
                    raise InterpError(
                        f"Example {row} of {task.name}: the base calls for {example.base.answer!r}, the source for "
                        f"{example.sources[-1].answer!r}, and the label is {example.label!r}. Odds are those of two "
                        "answers, the source's being the label; take a task of minimal_pairs()."
                    )
        train, held_out = splits
        seen = {(example.base.text, example.sources[0].text) for example in train}
        for row, example in enumerate(held_out):
            if (example.base.text, example.sources[0].text) in seen:
                raise InterpError(f"Example {row} of the held-out pairs of {name!r} is also one of the training pairs.")
    lengths = {len(held_out) for _, held_out in tasks.values()}
    if len(lengths) > 1:
        raise InterpError(f"Held-out splits have {sorted(lengths)} pairs; give every task as many.")


def _regions(name: str, task: EncodedInterchange, wanted: Sequence[str] | None) -> list[str]:
    """Those of a task, each token once: `last` often is the last token of the last region."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for region in task.regions:
        if wanted is not None and region not in wanted:
            continue
        base, (source,) = task.position(region)
        if not any(torch.equal(base, one) and torch.equal(source, other) for one, other in kept.values()):
            kept[region] = (base, source)
    if not kept:
        raise InterpError(f"Task {name!r} has none of the regions {list(wanted or ())}; it has {list(task.regions)}.")
    return list(kept)


def _dataset(
    trials: Sequence[_Trial], names: Sequence[str], methods: Sequence[str], layers: Sequence[int],
    chosen: Mapping[str, Sequence[str]],
) -> xarray.Dataset:  # fmt: skip
    import xarray as xr

    regions = list(dict.fromkeys(region for name in names for region in chosen[name]))
    n = len(trials[0].base)
    towards = np.full((len(ASKED), len(names), len(layers), len(regions), len(methods), n), np.nan)
    moved = np.full((len(names), len(layers), len(regions)), np.nan)
    for i, (name, trial) in enumerate(zip(names, trials, strict=True)):
        columns = [regions.index(region) for region in chosen[name]]
        own = trial.towards.reshape(len(methods), len(ASKED), len(layers), len(columns), n)
        towards[:, i, :, columns] = own.transpose(3, 1, 2, 0, 4)
        moved[i][:, columns] = trial.moved.reshape(len(layers), len(columns))
    base_odds = -np.stack([trial.base.cpu().numpy() for trial in trials]).transpose(2, 0, 1)
    before = base_odds[:, :, None, None, None]
    odds = before + towards
    dims = ("asked", "task", "layer", "region", "direction")
    hit, right = np.where(np.isnan(towards), np.nan, towards > 0), np.broadcast_to(before > 0, towards.shape)
    share, nats = {"unit": "share"}, {"unit": "nats"}
    n_right = right.sum(-1)
    flipped = np.where(right, hit, 0).sum(-1) / np.where(n_right, n_right, np.nan)
    return xr.Dataset(
        {
            "odds": (dims, odds.mean(-1), nats), "iia": (dims, hit.mean(-1), share),
            "iia_flip": (dims, flipped, share), "odds_of": ((*dims, "example"), odds, nats),
            "base_odds": (("asked", "task", "example"), base_odds, nats),
            "moved": (("task", "layer", "region"), moved, share),
        },
        {"asked": list(ASKED), "task": list(names), "layer": list(layers), "region": regions,
         "direction": list(methods)},
    )  # fmt: skip
