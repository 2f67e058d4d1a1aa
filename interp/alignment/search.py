"""Where does a network hold a variable of a causal model? Maps fitted at every place, with the controls.

`align` fits a map at each of some layers × regions × ranks in one go, and says of each how often the network, its state
there interchanged by the map, answers as the causal model does (IIA), on examples with other values than those it was
fitted to. A high IIA alone says little. Beside each stand, unless they are left out by name:

- *full swap*: the whole state is taken from the source. What no map can use must be carried by other places too. (Not
  a bound: a whole state carries over more than the variable.) With several variables there is no such swap.
- *random rotation*: of the same rank; where a `LowRank` starts.
- *shuffled labels*: maps fitted to labels among which a coin decides, example by example, between the right one and
  another (the base's answer where that differs, else a source's), and judged by such labels. What they reach is what
  the method fits when there is nothing to fit; on held-out examples that should be the share of coins guessed.
- *random model*: maps fitted to the true labels on the same architecture with random weights.

Cost: the bases and sources run once, and again on the random model. A step reruns, for every cell, what lies above and
behind its place, forward and backward; nothing else. No weight's gradient is ever computed. Where all places are still
too much, `screening` chooses some by a short training (`interp.alignment.screening`); the rest is NaN in the result.

When it misleads: the best of many cells looks better than it is; a subspace may act through paths that the model does
not use on its own (Makelov et al. 2023, arXiv:2311.17030); and see the note on `RevNet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.fit import Cells, Fitted, Training, answers, fit
from interp.alignment.language import LanguageContinuation, Place, check_places, kept
from interp.alignment.maps import AlignmentMap, LowRank, Subspace, Whole
from interp.alignment.results import CONTROLS, FITS, Alignment
from interp.alignment.screening import Screening, chosen, screen
from interp.errors import InterpError, nearest
from interp.models.language_model import LanguageModel
from interp.models.reset import reset
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import provenance
from interp.statistics import bootstrap_interval
from interp.tasks.interchange import EncodedInterchange, InterchangeTask

Kind = Callable[..., AlignmentMap]
"""(width, ranks, *, cells, seed) → maps: `LowRank`, `Affine`, or a function of yours."""


def align(
    model: LanguageModel,
    task: InterchangeTask,
    held_out: InterchangeTask,
    *,
    part: str = "resid_pre",
    layers: Sequence[int] | None = None,
    regions: Sequence[str] | None = None,
    ranks: Sequence[int] = (1,),
    kind: Kind = LowRank,
    training: Training = Training(),
    screening: Screening | None = None,
    controls: Sequence[str] = CONTROLS,
    among_answers: bool = False,
    only_right: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> Alignment:
    """Interchange accuracy of maps fitted at every place, beside its controls.

    Args:
        task: what maps are fitted to; held_out: what they are judged on. They share no example, and for a claim about
            the variable no value either (`split="train"` and `"held out"` of the shipped tasks).
        part: of the sites; one without heads.
        layers: all if not given. regions: of the task, all if not given; a region stands for its last token.
        ranks: coordinates per variable.
        kind: of the maps.
        training: steps, batch, rate, patience.
        screening: how the places are chosen that maps are fitted at, by short trainings at the highest rank; if not
            given, maps are fitted at all of them.
        controls: what to run beside the search. Leaving one out is said in the result.
        among_answers: the network's answer is the highest logit among the task's answers, not of the vocabulary.
        only_right: keep the examples whose base and sources the model answers rightly, by the same rule.
        seed: of the maps' starts, the shuffle and the random model.
        budget: bytes for activations at once.
        checkpoint: a folder; trainings go on from what is there.

    Raises:
        InterpError: no layer, region or rank; an unknown control; an example that is in both tasks; tasks of unlike
            variables; as `fit`.
        PairError: nothing left that the model answers rightly, as `InterchangeTask.encode`.
        SiteError: no such layer.
        ShapeError: a rank above the width.
    """
    _check(task, held_out, controls, ranks)
    sets = [kept(model, each, among_answers, only_right) for each in (task, held_out)]
    train, test = sets
    layers = range(model.n_layers) if layers is None else layers
    regions = train.regions if regions is None else regions
    places = [Place(Site(part, layer), region) for layer in dict.fromkeys(layers) for region in dict.fromkeys(regions)]
    search = _Search(
        model, train, test, places, tuple(dict.fromkeys(ranks)), kind, training, screening, among_answers, budget, seed
    )
    found = search.run(controls, progress, checkpoint)
    record = provenance(
        experiment="alignment", model=model.name, weights=model.weights_hash, task=task.name, held_out=held_out.name,
        source=task.source, variables=task.variables, task_seed=task.seed, held_out_seed=held_out.seed, part=part,
        kind=search.kind_name, width=search.width, training=_told(training), controls=list(controls), seed=seed,
        answers=f"the task's {len(_among(train, test))}" if among_answers else f"{model.d_vocab:,} tokens",
        screening=None if screening is None else asdict(screening), only_right=only_right,
        n_train_attempted=len(task), n_train=len(train), n_attempted=len(held_out),
        n_scored=len(test), stopped=search.stopped,
    )  # fmt: skip
    return Alignment(_dataset(search, found, controls, seed), record)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """[rank, place, …] of one way to choose maps."""

    correct: np.ndarray
    train_correct: np.ndarray | None = None
    loss: np.ndarray | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)


class _Search:
    """Places × ranks of one model and task, at the chosen places."""

    def __init__(
        self, model: LanguageModel, train: EncodedInterchange, test: EncodedInterchange, places: list[Place],
        ranks: tuple[int, ...], kind: Kind, training: Training, screening: Screening | None, among_answers: bool,
        budget: int | None, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.train, self.test, self.places, self.ranks, self.kind = model, train, test, places, ranks, kind
        self.training, self.screening, self.budget, self.seed = training, screening, budget, seed
        self.among = _among(train, test) if among_answers else None
        self.stopped: list[str] = []
        self.bases: np.ndarray | None = None
        self.n_variables = len(train.sources)
        self.width, self.kind_name = 0, ""
        self.chosen, self.screened = np.arange(len(places)), np.full(len(places), np.nan)

    def run(self, controls: Sequence[str], progress: Progress, checkpoint: str | Path | None) -> dict[str, _Found]:
        """Correctness of the fitted maps ("task") and of every control."""
        folder, shuffle = None if checkpoint is None else Path(checkpoint), "shuffled labels" in controls
        check_places(self.model, self.places)
        widest = self._cells(max(self.ranks), 1)  # mistakes about ranks, before any run
        self.width, self.kind_name = widest.map.width, type(widest.map).__name__
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        seen, unseen = self._continuations(self.model)
        self.trained, self.moved = seen.differs.any(1), unseen.differs.double().mean(1)
        if self.screening is not None and self.screening.places < int(self.trained.sum()):
            file = None if folder is None else folder / "screening.safetensors"
            self.screened = screen(widest, seen, self.train.label, self.training, self.screening,
                                   progress=progress, checkpoint=file)  # fmt: skip
            self.chosen = chosen(self.screened, self.screening.places)
        groups = [self._cells(rank, 1 + shuffle) for rank in self.ranks]
        self.base_correct = (self._best(unseen.base_logits) == self.test.label).cpu().numpy()
        generator = torch.Generator().manual_seed(self.seed)
        coins = [_shuffled(each, generator) for each in (self.train, self.test)]
        targets = torch.stack([self.train.label, coins[0]][: 1 + shuffle])
        fits = fit(groups, seen, targets, self.training, progress=progress,
                   checkpoint=None if folder is None else folder / "task.safetensors")  # fmt: skip
        n = len(self.chosen)
        judged = torch.stack([self.test.label, coins[1]][: 1 + shuffle])
        correct = [self._correct(g, unseen, judged[g.target]) for g in groups]
        known = [self._correct(g, seen, targets[g.target])[:n] for g in groups]
        self.bases = _bases(groups, n)
        history = {name: np.stack([one.history[name][:n] for one in fits]) for name in fits[0].history}
        found = {"task": _Found(np.stack([c[:n] for c in correct]), np.stack(known), _losses(fits, n)[0], history)}
        self.stopped += [why for one in fits for why in one.stopped if why]
        if "random rotation" in controls:
            width, sizes = seen.base.shape[-1], [(rank,) * self.n_variables for rank in self.ranks]
            drawn = [Subspace.random(width, ranks, cells=n, seed=self.seed).to(self.model.device) for ranks in sizes]
            rotated = [self._correct(Cells(one, *self._where(1)), unseen, self.test.label) for one in drawn]
            found["random rotation"] = _Found(np.stack(rotated))
        if shuffle:
            found["shuffled labels"] = _Found(np.stack([c[n:] for c in correct]), None, _losses(fits, n)[1])
        if "full swap" in controls and self.n_variables == 1:
            whole = Cells(Whole(seen.base.shape[-1], n, seen.base.dtype).to(self.model.device), *self._where(1))
            one = self._correct(whole, unseen, self.test.label)
            found["full swap"] = _Found(np.stack([one] * len(self.ranks)))
        if "random model" in controls:
            found["random model"] = self._random_model(progress, folder)
        return found

    def _random_model(self, progress: Progress, folder: Path | None) -> _Found:
        seen, unseen = self._continuations(reset(self.model, self.seed))
        groups = [self._cells(rank, 1) for rank in self.ranks]
        fits = fit(groups, seen, self.train.label[None], self.training, progress=progress,
                   checkpoint=None if folder is None else folder / "random_model.safetensors")  # fmt: skip
        correct = np.stack([self._correct(g, unseen, self.test.label) for g in groups])
        self.stopped += [f"random model: {why}" for one in fits for why in one.stopped if why]
        return _Found(correct, None, _losses(fits, len(self.chosen))[0])

    def _continuations(self, model: LanguageModel) -> tuple[LanguageContinuation, LanguageContinuation]:
        seen, unseen = (LanguageContinuation(model, each, self.places, budget=self.budget)
                        for each in (self.train, self.test))  # fmt: skip
        return seen, unseen

    def _where(self, copies: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        n, device = len(self.chosen), self.model.device
        names = [str(self.places[place]) for place in self.chosen]
        names += [f"{name}, shuffled labels" for name in names[: n * (copies - 1)]]
        cells = torch.arange(n * copies, device=device)
        return torch.from_numpy(self.chosen).to(device)[cells % n], cells // n, tuple(names)

    def _cells(self, rank: int, copies: int) -> Cells:
        width = int(self.model.width_of(self.places[0].site) or 0)
        maps = self.kind(width, (rank,) * self.n_variables, cells=len(self.chosen) * copies, seed=self.seed)
        place, target, names = self._where(copies)
        return Cells(maps.to(self.model.device).eval(), place, target, tuple(f"{name}, rank {rank}" for name in names))

    def _correct(self, cells: Cells, continuation: Continuation, label: Tensor) -> np.ndarray:
        return answers(cells, continuation, among=self.among).agree(label).cpu().numpy()

    def _best(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1) if self.among is None else self.among[logits[:, self.among].argmax(-1)]


def _check(task: InterchangeTask, held_out: InterchangeTask, controls: Sequence[str], ranks: Sequence[int]) -> None:
    for name in controls:
        if name not in CONTROLS:
            raise InterpError(f"There is no control {name!r}." + nearest(name, CONTROLS))
    if task.variables != held_out.variables:
        raise InterpError(f"{task.name} exchanges {task.variables}, {held_out.name} {held_out.variables}.")
    if not ranks:
        raise InterpError("`ranks` is empty: give at least one.")
    seen = {(e.base.text, *(source.text for source in e.sources)) for e in task}
    for row, example in enumerate(held_out):
        if (example.base.text, *(source.text for source in example.sources)) in seen:
            raise InterpError(
                f"Example {row} of {held_out.name} is also one of {task.name}: {example.base.text!r}. It is not held "
                "out; draw the two with split='train' and split='held out'."
            )


def _among(train: EncodedInterchange, test: EncodedInterchange) -> Int[Tensor, "answer"]:
    return torch.cat([train.answers, test.answers]).unique()


def _shuffled(task: EncodedInterchange, generator: torch.Generator) -> Int[Tensor, "batch"]:
    """Labels of which a coin makes another answer: the base's where that differs, else a source's."""
    other = torch.where(task.answer != task.label, task.answer, task.source_answers[0])
    coin = torch.rand(len(task), generator=generator).to(other.device) < 0.5
    return torch.where(coin, other, task.label)


def _bases(groups: Sequence[Cells], n: int) -> np.ndarray | None:
    """[rank, place, d, column] of subspaces, NaN beyond a rank."""
    if not all(isinstance(group.map, LowRank) for group in groups):
        return None
    with torch.no_grad():
        found = [group.map.basis[:n].cpu().numpy() for group in groups if isinstance(group.map, LowRank)]
    most = max(basis.shape[-1] for basis in found)
    return np.stack([np.pad(b, [(0, 0), (0, 0), (0, most - b.shape[-1])], constant_values=np.nan) for b in found])


def _losses(fits: Sequence[Fitted], n: int) -> list[np.ndarray]:
    """[rank, place, step] of each set of targets."""
    whole = np.stack([one.loss for one in fits])
    return [whole[:, i : i + n] for i in range(0, whole.shape[1], n)]


def _told(training: Training) -> dict[str, Any]:
    names = ("steps", "batch", "learning_rate", "warm_up", "patience", "seed")
    return {name: getattr(training, name) for name in names}


def _dataset(search: _Search, found: dict[str, _Found], controls: Sequence[str], seed: int) -> Any:
    import xarray as xr

    layers = list(dict.fromkeys(place.site.layer for place in search.places))
    regions = list(dict.fromkeys(place.region for place in search.places))
    grid, dims = (len(layers), len(regions)), ("layer", "region", "rank")

    def shaped(x: np.ndarray) -> np.ndarray:
        """[rank, chosen place, …] → [layer, region, rank, …], NaN at the other places."""
        kind = x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64
        whole = np.full((len(search.places), *x.shape[:1], *x.shape[2:]), np.nan, kind)
        whole[search.chosen] = np.moveaxis(x, 0, 1)
        return whole.reshape(*grid, *whole.shape[1:])

    task, names = found["task"], [name for name in controls if name in found]
    assert task.train_correct is not None
    correct = shaped(task.correct)
    beside = np.stack([shaped(found[name].correct) for name in names]) if names else np.empty((0, *correct.shape))
    low, high = bootstrap_interval(correct, seed=seed)
    losses = [found[name].loss if name in found else None for name in FITS]
    nothing = np.full((len(search.ranks), len(search.chosen), search.training.steps), np.nan)
    loss = np.stack([shaped(nothing if one is None else one) for one in losses])
    share = {"unit": "IIA"}
    variables: dict[str, Any] = {
        "iia": (dims, correct.mean(-1), share), "low": (dims, low, share), "high": (dims, high, share),
        "train_iia": (dims, shaped(task.train_correct).mean(-1), share),
        "control_iia": (("control", *dims), beside.mean(-1), share),
        "correct": ((*dims, "example"), correct), "control_correct": (("control", *dims, "example"), beside),
        "loss": (("fit", *dims, "step"), loss, {"unit": "nats"}),
        "trained": (dims[:2], search.trained.cpu().numpy().reshape(grid)),
        "screened": (dims[:2], search.screened.reshape(grid), {"unit": "nats"}),
        "moved": (dims[:2], search.moved.cpu().numpy().reshape(grid), {"unit": "share"}),
        "base_correct": ("example", search.base_correct),
    }  # fmt: skip
    for name, values in task.history.items():
        variables[name] = ((*dims, "step", "variable")[: values.ndim + 1], shaped(values), {"unit": "coordinates"})
    if search.bases is not None:
        variables["basis"] = ((*dims, "d_model", "column"), shaped(search.bases), {"unit": "1"})
    coords = {
        "layer": layers, "region": regions, "rank": list(search.ranks), "control": np.array(names, dtype=str),
        "fit": list(FITS), "step": list(range(search.training.steps)), "example": list(range(correct.shape[-1])),
    }  # fmt: skip
    return xr.Dataset(variables, coords)
