"""Train a dictionary on rows of activations.

Per step: a batch in random order, standardised; the dictionary's own loss; Adam; atoms back to unit length. What moves
an atom along itself is taken out of its gradient first, because the length is fixed. Latents that have not been on for
long are *dead*: the loss of some kinds lets them learn what is left over (`revival`), and `resample_every` begins them
anew along rows that are explained badly, for any kind.

A training is a function of the dictionary, the rows and `Training`: with a checkpoint it can be killed at any moment
and goes on to the same curve, bit for bit on one machine.

Sources: Gao et al. 2024 (arXiv:2406.04093), appendix A (gradient along the atoms, learning rate, dead latents); Bricken
et al. 2023, "Towards Monosemanticity" (resampling).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.activations import Activations, Batch
from interp.dictionaries.dictionary import Dictionary, Loss
from interp.errors import InterpError, LoadError, ShapeError
from interp.interventions.checkpoint import fingerprint
from interp.progress import Progress, silent
from interp.results import Result, provenance, replacing

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CURVES = ("loss", "unexplained", "l0", "dead", "rate")
_CALIBRATION = 8 * 4096
"""Rows on which a finished dictionary measures its threshold."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a dictionary is trained.

    Attributes:
        steps: of Adam.
        batch: rows per step.
        learning_rate: at its highest; `None`: 2e-4 · √(16384 / latents), the scaling of Gao et al. (their figure 3).
        warm_up: share of the steps in which the rate rises from 0.
        decay: share of the steps in which it falls to 0, at the end.
        dead_after: rows without being on, after which a latent is dead.
        resample_every: steps between two times when dead latents are begun anew; `None`: never.
        seed: of the order of rows, and of resampling.

    Raises:
        InterpError: a number out of range.
    """

    steps: int = 2000
    batch: int = 4096
    learning_rate: float | int | None = None
    warm_up: float | int = 0.05
    decay: float | int = 0.2
    dead_after: int = 500_000
    resample_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.dead_after, 1 if self.resample_every is None else self.resample_every) < 1:
            raise InterpError(
                f"steps={self.steps}, batch={self.batch}, dead_after={self.dead_after}, "
                f"resample_every={self.resample_every}: each is at least 1."
            )
        if not (self.warm_up >= 0 and self.decay >= 0 and self.warm_up + self.decay <= 1):
            raise InterpError(
                f"warm_up={self.warm_up} and decay={self.decay} are shares of the steps, together at most 1."
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InterpError(f"learning_rate={self.learning_rate}: it must be greater than 0.")

    def rate(self, step: int, n_latents: int) -> float:
        """The learning rate of a step."""
        highest = 2e-4 * (2**14 / n_latents) ** 0.5 if self.learning_rate is None else self.learning_rate
        rising, falling = self.warm_up * self.steps, self.decay * self.steps
        return highest * min(1.0, (step + 1) / max(rising, 1), (self.steps - step) / max(falling, 1))


@dataclass(frozen=True, repr=False, eq=False)
class TrainingResult(Result):
    """The curve of a training.

    `.data` holds, by `step`: the `loss`; `unexplained`, the share of the variance of standardised activations that the
    reconstruction leaves, on that step's batch and before its update; `l0`, latents on per row; `dead` latents; and the
    learning `rate`. NaN after a stop: `provenance["stopped"]` says why.
    """

    @property
    def title(self) -> str:
        """One line that states what was trained."""
        p = self.provenance
        return f"Training of a {p['kind']} dictionary of {', '.join(p['sites'])}: {p['n_latents']} latents"

    def plot(self) -> Figure:
        """The unexplained share of the variance over the steps."""
        from interp.plots import curves

        return curves(
            self.data["unexplained"], x="step", title=self.title, unit="share", quantity="unexplained variance"
        )

    def summary(self) -> str:
        """Where it ended."""
        p = self.provenance
        last = self.data.dropna("step", how="any").isel(step=slice(-50, None))
        lines = [f"TrainingResult: {self.title}, {p['n_rows']} rows"]
        if last.sizes["step"]:
            mean = {name: float(last[name].mean()) for name in ("unexplained", "l0", "dead")}
            lines.append(
                f"  last {last.sizes['step']} steps: {mean['unexplained']:.1%} of the variance unexplained, "
                f"{mean['l0']:.1f} latents on per row, {mean['dead']:.0f} dead"
            )
        return "\n".join([*lines, *([f"  stopped: {p['stopped']}"] if p["stopped"] else [])])


def train(
    dictionary: Dictionary,
    activations: Activations,
    training: Training | None = None,
    *,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    every: int = 200,
) -> TrainingResult:
    """Train a dictionary, in place.

    Args:
        activations: rows in their own units (`InMemory`, or a `Store`'s).
        training: how; the defaults, if not given.
        checkpoint: a file; every so many steps the state of the training is kept there, and a later call with the same
            arguments goes on from it to the same curve.
        every: steps between two writings of it.

    Raises:
        InterpError: no rows; a checkpoint of another training.
        ShapeError: rows that do not fit the dictionary.
        LoadError: a damaged checkpoint.
    """
    plan = Training() if training is None else training
    if not len(activations):
        raise InterpError("There are no rows to train on.")
    trainer = _Trainer(dictionary, activations, plan)
    first, mark, file = 0, "", None if checkpoint is None else Path(checkpoint)
    if file is not None:
        about = [plan, activations.mark, dictionary.kind, dictionary.settings(), dictionary.state_dict()]
        mark = fingerprint(about)
        first = trainer.load(file, mark) if file.exists() else 0
    for step in progress(list(range(first, plan.steps)), f"{dictionary.kind}, {dictionary.n_latents} latents"):
        if trainer.stopped:
            break
        trainer.step(step)
        if file is not None and ((step + 1) % every == 0 or step + 1 == plan.steps):
            trainer.save(file, mark, step + 1)
    trainer.calibrate()
    return trainer.result()


class _Trainer:
    """The state of a training between two steps."""

    def __init__(self, dictionary: Dictionary, activations: Activations, plan: Training) -> None:
        self.dictionary, self.activations, self.plan = dictionary, activations, plan
        self.parameters = dict(dictionary.named_parameters())
        device = dictionary.atoms.device
        self.optimizer = torch.optim.Adam(self.parameters.values(), fused=device.type in ("cpu", "cuda"))
        self.idle = torch.zeros(dictionary.n_latents, dtype=torch.long, device=device)
        """Rows since each latent was last on."""
        self.curves = {name: np.full(plan.steps, np.nan) for name in _CURVES}
        self.stopped: str | None = None
        self._order: tuple[int, Tensor] | None = None

    def step(self, step: int) -> None:
        """One step, unless the loss or a gradient is not finite: then the parameters stay as they are, and it ends."""
        x, target, bins = self._standardised(self._batch(step))
        dead = self.idle >= self.plan.dead_after
        loss = self.dictionary.loss(x, target, bins, dead, step / max(1, self.plan.steps - 1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norms = [torch.linalg.vector_norm(p.grad) for p in self.parameters.values() if p.grad is not None]
        if not torch.stack([loss.total.detach(), *norms]).isfinite().all():
            self.stopped = (
                f"step {step}: the loss or its gradient is not finite; the dictionary is as the step before left it"
            )
            return
        self._take(step)
        self._count(step, loss, len(x), int(dead.sum()))
        every = self.plan.resample_every
        if every is not None and (step + 1) % every == 0 and step + 1 < self.plan.steps:
            self._resample(step, x, target, bins)

    @torch.no_grad()
    def _take(self, step: int) -> None:
        atoms, rate = self.dictionary.atoms, self.plan.rate(step, self.dictionary.n_latents)
        if atoms.grad is not None:
            along = (atoms.grad * atoms).sum(1, keepdim=True)
            atoms.grad.addcmul_(along, atoms, value=-1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        atoms.div_(atoms.norm(dim=1, keepdim=True).clamp_(min=1e-12))

    def _count(self, step: int, loss: Loss, rows: int, dead: int) -> None:
        on = loss.codes.fired()
        self.idle += rows
        self.idle[on > 0] = 0
        values = (
            loss.total.detach(),
            loss.unexplained,
            on.sum() / rows,
            dead,
            self.plan.rate(step, self.dictionary.n_latents),
        )
        for name, value in zip(_CURVES, values, strict=True):
            self.curves[name][step] = float(value)

    @torch.no_grad()
    def _resample(self, step: int, x: Tensor, target: Tensor, bins: Tensor | None) -> None:
        """Begin dead latents anew along centred rows, drawn by the square of what is unexplained of them."""
        (dead,) = (self.idle >= self.plan.dead_after).nonzero(as_tuple=True)
        if not len(dead):
            return
        never = torch.zeros_like(self.idle, dtype=torch.bool)
        codes = self.dictionary.loss(x, target, bins, never, 1.0).codes
        error = (target - self.dictionary.decoded(codes)).square().mean(1)
        generator = torch.Generator().manual_seed(1_000_003 * self.plan.seed + step)
        chosen = torch.multinomial(error.square().cpu(), len(dead), replacement=True, generator=generator).to(x.device)
        for changed in self.dictionary.reset(dead, x[chosen] - self.dictionary.offset):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[changed][moment][dead] = 0.0
        self.idle[dead] = 0

    # -- rows -----------------------------------------------------------------------------------------

    def _batch(self, step: int) -> Batch:
        """Passes over the rows in random order, of which a remainder smaller than a batch is left."""
        n = len(self.activations)
        size = min(self.plan.batch, n)
        number, place = divmod(step, n // size)
        if self._order is None or self._order[0] != number:
            seed = 1_000_003 * self.plan.seed + number
            self._order = number, torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return self.activations.batch(self._order[1][place * size : (place + 1) * size])

    def _standardised(self, batch: Batch) -> tuple[Float[Tensor, "row width"], Float[Tensor, "row out"], Tensor | None]:
        device = self.dictionary.atoms.device
        bins = None if batch.bins is None else batch.bins.to(device)
        x = self.dictionary.read.apply_to(batch.x.to(device), bins)
        if not self.dictionary.autoencodes and batch.target is None:
            raise ShapeError("This dictionary writes another site than it reads; give rows with targets.")
        return x, x if batch.target is None else self.dictionary.write.apply_to(batch.target.to(device), bins), bins

    def calibrate(self) -> None:
        """Let the dictionary measure, on the last rows of the last pass, what it measures after training."""
        n = len(self.activations)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.plan.seed))[:_CALIBRATION]
        x, _, bins = self._standardised(self.activations.batch(order))
        self.dictionary.calibrate(x, bins)

    # -- checkpoints ----------------------------------------------------------------------------------

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.parameters.items():
            yield f"parameter.{name}", p.detach()
            for moment, value in self.optimizer.state[p].items():
                yield f"{moment}.{name}", value
        yield "idle", self.idle
        for name, curve in self.curves.items():
            yield f"curve.{name}", torch.from_numpy(curve)

    def save(self, file: Path, mark: str, steps: int) -> None:
        """Write everything that a later step depends on, whole or not at all."""
        from safetensors.torch import save_file

        about = {"mark": mark, "steps": str(steps), "stopped": json.dumps(self.stopped)}
        with replacing(file) as temporary:
            save_file({name: x.contiguous() for name, x in self._tensors()}, temporary, about)

    @torch.no_grad()
    def load(self, file: Path, mark: str) -> int:
        """Go on from a checkpoint; the number of steps that it has behind it."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{file} is damaged ({error}); delete it to start over.") from error
        if about.get("mark") != mark:
            raise InterpError(
                f"{file} is the checkpoint of another training (other rows, dictionary or settings); give another "
                "file, or delete it."
            )
        for name, p in self.parameters.items():
            p.copy_(found[f"parameter.{name}"])
            moments = [moment for moment in ("step", "exp_avg", "exp_avg_sq") if f"{moment}.{name}" in found]
            if moments:
                self.optimizer.state[p] = {moment: found[f"{moment}.{name}"].clone().to(p.device) for moment in moments}
        self.idle.copy_(found["idle"])
        for name, curve in self.curves.items():
            curve[:] = found[f"curve.{name}"].numpy()
        self.stopped = json.loads(about["stopped"])
        return int(about["steps"])

    def result(self) -> TrainingResult:
        """The curve so far."""
        import xarray as xr

        share = "share of the variance"
        units = {"loss": share, "unexplained": share, "l0": "latents per row", "dead": "latents", "rate": ""}
        data = {
            name: ("step", curve, {"units": unit})
            for (name, curve), unit in zip(self.curves.items(), units.values(), strict=True)
        }
        d, n = self.dictionary, len(self.activations)
        record: dict[str, Any] = provenance(
            experiment="training of a dictionary", kind=d.kind, sites=[site or "a site" for site in d.read.sites],
            n_latents=d.n_latents, settings=d.settings(), training=asdict(self.plan), seed=self.plan.seed,
            rows=self.activations.mark, n_rows=n, stopped=self.stopped,
        )  # fmt: skip
        return TrainingResult(xr.Dataset(data, {"step": np.arange(self.plan.steps)}), record)
