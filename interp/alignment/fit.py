"""Fit alignment maps: many at once, each to make interchanges of states act as a causal model says.

For base b and sources s_1 … s_k of an example, a map φ makes the state

    h' = φ⁻¹( φ(h_b), with the coordinates of variable i taken from φ(h_{s_i}) )

and is trained so that the network, given h' in place of h_b, answers as the causal model does under the same
interchange: cross-entropy with that answer, averaged over the examples of a batch. Only the maps are trained.

The maps of all *cells* (a place and a map there) are trained together, as rows of one batch. They share the order of
examples and nothing else: each has its own loss, and what one learns does not depend on which others are trained
beside it (but for rounding). A row whose base and source states agree is answered by the base run. This file knows
no language models; see `Continuation`.

Source: Geiger et al. 2023, "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations" (arXiv:2303.02536). Adam with linear warm-up and linear decay, as in the code of boundless DAS and
CausalGym.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.maps import AlignmentMap
from interp.errors import InterpError, LoadError
from interp.interventions.checkpoint import fingerprint
from interp.progress import Progress, silent
from interp.results import replacing

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [row, …], targets [row, …]) → loss [row]."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Places, and a map for each.

    Attributes:
        map: of as many cells as there are places; `fit` changes it.
        place: of each cell, index into the continuation's places.
        target: of each cell, index into the sets of targets.
        names: of the cells, for messages.
    """

    map: AlignmentMap
    place: Int[Tensor, "cell"]
    target: Int[Tensor, "cell"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.map.cells == len(self.place) == len(self.target) == len(self.names):
            raise InterpError(
                f"A map of {self.map.cells} cells for {len(self.place)} places, {len(self.target)} targets and "
                f"{len(self.names)} names."
            )

    def __len__(self) -> int:
        return len(self.place)

    def swapped(self, continuation: Continuation, example: Int[Tensor, "row"]) -> Float[Tensor, "cell row *pos width"]:
        """What the maps make of the states of these examples."""
        at = self.place[:, None], example
        return self.map.swap(continuation.base[at], [source[at] for source in continuation.sources])


@dataclass(frozen=True, slots=True)
class Training:
    """How maps are trained.

    Attributes:
        steps: of Adam, at most.
        batch: examples per step; every cell sees the same.
        learning_rate: at its highest.
        warm_up: share of the steps in which the rate rises; from there it falls to 0, both linearly.
        patience: passes over the examples without a loss lower by 1 % after which a cell stops; `None`: never.
        seed: of the order of examples.

    Raises:
        InterpError: a number out of range.
    """

    steps: int = 200
    batch: int = 16
    learning_rate: float = 5e-3
    warm_up: float = 0.1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.learning_rate > 0 or not 0 <= self.warm_up <= 1:
            raise InterpError(
                f"steps={self.steps}, batch={self.batch}, learning_rate={self.learning_rate}, warm_up={self.warm_up}: "
                "the first three must be greater than 0, the last from 0 to 1."
            )
        if self.patience is not None and self.patience < 1:
            raise InterpError(f"patience={self.patience}: give at least one pass over the examples, or None.")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = max(1, round(self.warm_up * self.steps))
        falling = max(1, self.steps - rising)
        return self.learning_rate * min(1.0, (step + 1) / rising, (self.steps - step) / falling)

    def examples(self, step: int, n: int) -> Int[Tensor, "batch"]:
        """The examples of a step, of n: passes in random order, of which a remainder smaller than a batch is left."""
        size = min(self.batch, n)
        number, place = divmod(step, n // size)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * self.seed + number))
        return order[place * size : (place + 1) * size]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What became of some cells.

    Attributes:
        loss: mean over a step's examples, in nats; NaN where a cell was not trained (any more).
        stopped: of each cell why it ended before the last step, `None` if it did not. After a loss that is not finite
            its map is what it was when the loss last was.
        history: what the map said was worth following (`AlignmentMap.followed`), as it was before each step.
    """

    loss: Float[np.ndarray, "cell step"]
    stopped: tuple[str | None, ...]
    history: dict[str, Float[np.ndarray, "cell step ..."]]


def cross_entropy(outputs: Float[Tensor, "row class"], target: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """−log p(target), in nats."""
    return F.cross_entropy(outputs, target, reduction="none")


def fit(
    groups: Sequence[Cells],
    continuation: Continuation,
    targets: Shaped[Tensor, "set example ..."],
    training: Training,
    *,
    loss: Loss = cross_entropy,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    every: int = 50,
) -> tuple[Fitted, ...]:
    """Train the maps of all cells, in place.

    Deterministic, given the maps and the seed. Cells at whose place nothing differs are left alone.

    Args:
        groups: cells; those of a group share the kind and shape of their maps.
        targets: what the network is to answer to each example: token ids, usually. Several sets, of which every cell
            has one: the control with shuffled labels is trained beside the rest.
        checkpoint: a file; every so many steps the state of the training is kept there, and a later call with the same
            arguments goes on from it to the same curve.
        every: steps between two writings of it.

    Raises:
        InterpError: no cell; targets for another number of examples; a checkpoint of another training.
        LoadError: a damaged checkpoint.
    """
    n = continuation.base.shape[1]
    if not sum(map(len, groups)):
        raise InterpError("There is no cell to fit: name layers and positions.")
    if targets.shape[1] != n:
        raise InterpError(f"There are {targets.shape[1]} targets for {n} examples; give one for each.")
    trainer = _Trainer(groups, continuation, targets, training, loss)
    start, file, mark = 0, None if checkpoint is None else Path(checkpoint), ""
    if file is not None:
        about = [(group.map, group.place, group.target) for group in groups]
        mark = fingerprint([training, continuation.base, continuation.sources, targets, about])
        start = trainer.load(file, mark) if file.exists() else 0
    for step in progress(
        list(range(start, training.steps)),
        f"{sum(map(len, groups))} alignment maps × {min(training.batch, n)} examples",
    ):
        if not any(run.active.any() for run in trainer.runs):
            break
        trainer.step(step)
        if file is not None and ((step + 1) % every == 0 or step + 1 == training.steps):
            trainer.save(file, mark, step + 1)
    for group in groups:
        group.map.eval()
    return tuple(Fitted(run.losses, tuple(run.stopped), run.history) for run in trainer.runs)


class _Run:
    """What changes in the training of a group, beside its map."""

    def __init__(self, cells: Cells, continuation: Continuation, steps: int) -> None:
        self.cells, self.parameters = cells, [p for p in cells.map.parameters() if p.requires_grad]
        self.active = continuation.differs.any(1)[cells.place].cpu().numpy() & bool(self.parameters)
        self.losses = np.full((len(cells), steps), np.nan)
        self.history = {
            name: np.full((len(cells), steps, *values.shape[1:]), np.nan)
            for name, values in cells.map.followed().items()
        }
        self.stopped: list[str | None] = [None] * len(cells)
        self.good = [p.detach().clone() for p in self.parameters]
        self.best, self.best_pass = np.full(len(cells), np.inf), np.zeros(len(cells), dtype=np.int64)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], finite: np.ndarray, step: int) -> None:
        """Take up gradients; a cell without finite ones goes back to where they last were, and stays there."""
        for g in gradients:
            if g is not None:
                finite &= g.flatten(1).isfinite().all(1).cpu().numpy()
        for i in np.flatnonzero(self.active & ~finite):
            self.stop(int(i), f"step {step}: the loss or its gradient is not finite; kept what the step before had")
            for p, good in zip(self.parameters, self.good, strict=True):
                p[i] = good[i]
        moving = torch.from_numpy(self.active).to(self.cells.place.device)
        for p, good, g in zip(self.parameters, self.good, gradients, strict=True):
            good.copy_(p)
            p.grad = torch.zeros_like(p)
            if g is not None:
                p.grad[moving] = g[moving]

    def stop(self, cell: int, why: str) -> None:
        self.active[cell], self.stopped[cell] = False, f"{self.cells.names[cell]}, {why}"

    @torch.no_grad()
    def hold(self) -> None:
        """Undo what momentum did to cells that are no longer trained."""
        still = torch.from_numpy(~self.active).to(self.cells.place.device)
        if still.any():
            for p, good in zip(self.parameters, self.good, strict=True):
                p[still] = good[still]

    def lose_patience(self, patience: int, number: int, losses: np.ndarray, step: int) -> None:
        """After a pass over the examples: stop cells whose loss no longer falls."""
        mean = losses.mean(1)
        better = mean < 0.99 * self.best
        self.best[better], self.best_pass[better] = mean[better], number
        for i in np.flatnonzero(self.active & ~better & (number - self.best_pass >= patience)):
            self.stop(int(i), f"step {step}: no lower loss in {patience} passes")


class _Trainer:
    """The state of a training between two steps."""

    def __init__(
        self, groups: Sequence[Cells], continuation: Continuation, targets: Tensor, plan: Training, loss: Loss
    ) -> None:
        self.continuation, self.targets, self.plan, self.loss = continuation, targets, plan, loss
        self.n, self.device = continuation.base.shape[1], continuation.base.device
        self.runs = [_Run(group, continuation, plan.steps) for group in groups]
        rated = [group for run in self.runs for group in run.cells.map.groups(1.0) if run.parameters]
        self.optimizer = torch.optim.Adam([{**group, "scale": group["lr"]} for group in rated]) if rated else None
        self.base_loss = self._base_loss()

    def step(self, step: int) -> None:
        """One step of every cell that is still trained."""
        assert self.optimizer is not None
        rows = self.plan.examples(step, self.n).to(self.device)
        runs, values = [run for run in self.runs if run.active.any()], []
        for run in runs:
            run.cells.map.train()
            run.cells.map.anneal(step / max(1, self.plan.steps - 1))
            values.append(run.cells.swapped(self.continuation, rows))
        for run, value, loss, gradient in zip(runs, values, *self._passes(runs, values, rows), strict=True):
            roots, seeds, penalty = [value], [gradient], run.cells.map.penalty()
            if penalty.requires_grad:
                roots, seeds = [value, penalty], [gradient, torch.ones_like(penalty)]
            found = torch.autograd.grad(roots, run.parameters, seeds, allow_unused=True)
            run.losses[run.active, step] = loss[run.active]
            for name, values in run.cells.map.followed().items():
                run.history[name][run.active, step] = values.detach().cpu().numpy()[run.active]
            run.update(found, np.isfinite(loss), step)
            run.losses[~run.active, step] = np.nan
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step) * group["scale"]
        self.optimizer.step()
        per_pass = self.n // min(self.plan.batch, self.n)
        number, place = divmod(step, per_pass)
        for run in self.runs:
            if self.plan.patience is not None and place == per_pass - 1:
                run.lose_patience(self.plan.patience, number, run.losses[:, step + 1 - per_pass : step + 1], step)
            run.hold()

    def _passes(
        self, runs: Sequence[_Run], values: Sequence[Tensor], rows: Tensor
    ) -> tuple[list[np.ndarray], list[Tensor]]:
        """Of each group: the cells' mean losses, and their gradients by the values."""
        leaves, places, examples, targets, moved = [], [], [], [], []
        for run, value in zip(runs, values, strict=True):
            place, which = run.cells.place, run.cells.target
            running = torch.from_numpy(run.active).to(self.device) & value.isfinite().flatten(1).all(1)
            cell, column = (self.continuation.differs[place][:, rows] & running[:, None]).nonzero(as_tuple=True)
            leaves.append(value.detach()[cell, column])
            places.append(place[cell])
            examples.append(rows[column])
            targets.append(self.targets[which[cell], rows[column]])
            moved.append((cell, column))
        leaf, place, example, target = (torch.cat(x) for x in (leaves, places, examples, targets))
        each, gradient = torch.zeros(len(leaf), dtype=torch.float64, device=self.device), torch.zeros_like(leaf)
        for part in self.continuation.parts(place, example) if len(leaf) else []:
            own = leaf[part].requires_grad_()
            with torch.enable_grad():
                loss = self.loss(self.continuation.outputs(own, place[part], example[part]), target[part])
            (found,) = torch.autograd.grad(loss.sum(), own)
            each[part], gradient[part] = loss.detach().double(), found / len(rows)
        sizes, losses, gradients = [len(x) for x in leaves], [], []
        parts = zip(runs, values, each.split(sizes), gradient.split(sizes), moved, strict=True)
        for run, value, one, own, at in parts:
            whole = self.base_loss[run.cells.target][:, rows]  # where nothing differs
            whole[~value.isfinite().flatten(1).all(1)] = torch.nan
            losses.append(whole.index_put(at, one).mean(1).cpu().numpy())
            gradients.append(torch.zeros_like(value).index_put(at, own))
        return losses, gradients

    @torch.no_grad()
    def _base_loss(self) -> Float[Tensor, "set example"]:
        """The loss of the base run on each set of targets, where some cell needs it."""
        whole = torch.zeros(self.targets.shape[:2], dtype=torch.float64, device=self.device)
        for run in self.runs:
            still = ~self.continuation.differs[run.cells.place]
            still &= torch.from_numpy(run.active).to(self.device)[:, None]
            for which in run.cells.target.unique().tolist():
                rows = still[run.cells.target == which].any(0).nonzero()[:, 0]
                for some in rows.split(256):
                    found = self.loss(self.continuation.base_outputs(some), self.targets[which, some])
                    whole[which, some] = found.double()
        return whole

    # -- checkpoint -----------------------------------------------------------------------------------

    def save(self, path: Path, mark: str, step: int) -> None:
        """Write everything that the next step needs."""
        from safetensors.torch import save_file

        stopped = [(run.stopped, run.active.tolist()) for run in self.runs]
        about = json.dumps({"mark": mark, "step": step, "stopped": stopped})
        whole = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors()}
        with replacing(path) as temporary:
            save_file(whole, temporary, metadata={"training": about})

    @torch.no_grad()
    def load(self, path: Path, mark: str) -> int:
        """Take up a saved state; returns the step to go on with."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise LoadError(f"{path} is no checkpoint, or damaged ({error}); delete it to start over.") from error
        if about["mark"] != mark:
            raise InterpError(
                f"{path} is the checkpoint of another training (other maps, states, targets or settings); give another "
                "file, or delete it."
            )
        for run, (stopped, active) in zip(self.runs, about["stopped"], strict=True):
            run.stopped, run.active = list(stopped), np.array(active)
            for p in run.parameters:
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                assert self.optimizer is not None
                self.optimizer.state[p] = {"step": torch.zeros(()), **moments}
        for name, tensor in self._tensors():
            tensor.copy_(tensors[name])
        return about["step"]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that changes, by name."""
        for i, run in enumerate(self.runs):
            for name, tensor in run.cells.map.state_dict(keep_vars=True).items():
                yield f"{i}.map.{name}", tensor
            for name in ("losses", "best", "best_pass"):
                yield f"{i}.{name}", torch.from_numpy(getattr(run, name))
            for name, values in run.history.items():
                yield f"{i}.history.{name}", torch.from_numpy(values)
            for k, p in enumerate(run.parameters):
                yield f"{i}.good.{k}", run.good[k]
                for name, tensor in self.optimizer.state[p].items() if self.optimizer is not None else ():
                    yield f"{i}.adam.{k}.{name}", tensor


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What the network answers under the interchanges of maps.

    Attributes:
        token: the answer of each cell to each example.
        finite: False where it has none, because outputs are not finite.
    """

    token: Int[Tensor, "cell example"]
    finite: Bool[Tensor, "cell example"]

    def agree(self, label: Int[Tensor, "... example"]) -> Bool[Tensor, "cell example"]:
        """Where the answer is the label: interchange intervention accuracy (IIA), example by example."""
        return (self.token == label) & self.finite


@torch.no_grad()
def interchanged(
    cells: Cells, continuation: Continuation, read: Callable[[Tensor, Tensor], Tensor], *, numbers: int
) -> Float[Tensor, "cell example number"]:
    """What is read of the network's outputs under the maps' interchanges; where nothing differs, of the base run.

    Args:
        read: (outputs [row, …], example [row]) → so many `numbers` [row, number].

    Returns:
        In float64; NaN where a map gives a state that is not finite.
    """
    n, device = continuation.base.shape[1], continuation.base.device
    still = ~continuation.differs[cells.place]
    found = torch.full((len(cells), n, numbers), torch.nan, dtype=torch.float64, device=device)
    for some in torch.arange(n, device=device).split(256):
        swapped = cells.swapped(continuation, some)
        fine = swapped.isfinite().all(-1)
        if still[:, some].any():
            base = read(continuation.base_outputs(some), some).double()
            found[:, some] = torch.where((still[:, some] & fine)[..., None], base, torch.nan)
        cell, column = (~still[:, some] & fine).nonzero(as_tuple=True)
        value, place, example = swapped[cell, column], cells.place[cell], some[column]
        for part in continuation.parts(place, example) if len(value) else []:
            outputs = continuation.outputs(value[part], place[part], example[part])
            found[cell[part], example[part]] = read(outputs, example[part]).double()
    return found


def answers(cells: Cells, continuation: Continuation, *, among: Int[Tensor, "answer"] | None = None) -> Answered:
    """The network's answers under the maps' interchanges: the highest logit, of all or among some tokens."""
    found = interchanged(cells, continuation, lambda outputs, _: torch.stack(best(outputs, among), -1), numbers=2)
    return Answered(found[..., 0].nan_to_num().long(), found[..., 1] == 1)


def best(
    outputs: Float[Tensor, "row class"], among: Int[Tensor, "answer"] | None
) -> tuple[Int[Tensor, "row"], Bool[Tensor, "row"]]:
    """The class of the highest logit, of all or among some; and whether those logits are finite."""
    some = outputs if among is None else outputs[:, among]
    highest = some.argmax(-1)
    return highest if among is None else among[highest], some.isfinite().all(-1)
