"""Causal head gating: which heads help an answer, which stand in its way, and which do neither?

A gate G in [0, 1] per head multiplies the head's z before the output projection; the network is frozen. The gates are
trained, as logits, to raise the probability of the answer under a pressure λ on all of them:

    L(G; λ) = − log p(answer | prompt; G) − λ · mean over heads of clip(logit G, −4, 4)

First without pressure, from random gates; from there once with λ = + penalty, which opens every gate that does no harm
(G+), and once with λ = − penalty, which closes every gate that is not needed (G−). Then a head is

    facilitating  G−                 open though pressed to close
    interfering   1 − G+             closed though pressed to open
    irrelevant    G+ · (1 − G−)      it goes along with whoever presses

No corrupted prompts are needed. Training finds some set of heads that does the task; heads that can stand in for each
other are facilitating under one seed and irrelevant under another, so several seeds are trained, all of them and both
signs of λ in one batch (`interp.circuits.gated`).

Contrastive: with prompts to *forget*, the loss is log p(answer to forget) − log p(answer to retain) instead, so that G
keeps what serves the one and closes what serves the other.

When it misleads: gates are fitted to the prompts, and a few hundred gates can raise the probability of answers that the
model does not know. `toggle_heads` on other prompts tells; so does a run with the answers shuffled.

Source: Nam et al. 2025, "Causal Head Gating" (arXiv:2505.13737), Table 1 for the scores (the formula of irrelevance in
its text has the signs swapped, and the published code names heads with both gates closed irrelevant where they are
interfering). The mean over heads instead of the sum and the clip are those of the published code, as are gates that
begin at U(0, 1). We take fewer steps of fewer prompts, at a rate of 0.3: at theirs, 1, more than twice as many heads of
SmolLM2 were facilitating after so few, and five times as many interfering (16 IOI prompts, one seed each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.gated import Gated
from interp.circuits.patching import BUDGET
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.tasks.metrics import LogitDifference, LogProbability
from interp.tasks.pairs import EncodedTask, Task

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("facilitating", "interfering", "irrelevant")
CLIP, LEAD = 4.0, 5.0
"""Logits beyond which pressure ends; nats by which an answer to retain need not be ahead any further."""


@dataclass(frozen=True, repr=False, eq=False)
class HeadGates(Result):
    """Gates of every head, and what they say about it.

    `.data` holds over `seed` × `layer` × `head`: the gates `free` (λ = 0), `opened` (G+) and `closed` (G−), and the
    scores `facilitating`, `interfering` and `irrelevant`, all in [0, 1] (NaN in layers that were not gated); over
    `seed` × `stage` (`free`, `opened`, `closed`) × `step` the `log_probability` of the answers (in the contrastive
    form: how far the retained ones are ahead), mean over the step's prompts; over `example` that of the whole model,
    `plain`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        against = f", forgetting {p['forget']}" if p["forget"] else ""
        return f"Causal head gating · {p['task']} ({p['n_scored']} prompts){against} · {p['model']}"

    def summary(self) -> str:
        """How many heads are what, in some and in all seeds, and the strongest of each kind."""
        seeds = self.data.sizes["seed"]
        what = "lead of the retained answer" if self.provenance["forget"] else "log-probability of the answer"
        lines = [
            f"HeadGates: {self.title}",
            f"  {what}: whole model {float(self.data['plain'].mean()):+.3f}; at the end of training "
            + ", ".join(f"{stage} {value:+.3f}" for stage, value in self._reached().items()) + " nats",
        ]  # fmt: skip
        plain = float(self.data["plain"].mean())
        short = [stage for stage, value in self._reached().items() if value < plain - 0.5]
        if short:
            lines.append(f"  NOT converged: {', '.join(short)} gates do worse than none; take more steps or prompts")
        n = int(np.isfinite(self.data["free"].values[0]).sum())
        for kind in KINDS:
            above = self.data[kind].values >= 0.5
            strongest = ", ".join(f"L{layer}H{head} {score:.2f}" for layer, head, score in self.strongest(kind, 4))
            lines.append(
                f"  {kind}: {above.mean(0).sum():.1f} of {n} heads per seed; {int(above.all(0).sum())} in all "
                f"{seeds} seeds, {int(above.any(0).sum())} in any; highest means {strongest}"
            )
        return "\n".join(lines)

    def strongest(self, kind: str, n: int = 10) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the n highest mean scores over seeds.

        Raises:
            InterpError: a kind that is none.
        """
        scores = self._mean(kind)
        order = np.argsort(-np.nan_to_num(scores, nan=-1), axis=None, kind="stable")[:n]
        found = zip(*np.unravel_index(order, scores.shape), strict=True)
        return [(int(layer), int(head), float(scores[layer, head])) for layer, head in found]

    def plot(self) -> Figure:
        """The three scores of every head, mean over seeds."""
        import xarray as xr

        from interp.plots import heatmap

        data = xr.concat([self.data[kind].mean("seed") for kind in KINDS], xr.Variable("score", list(KINDS)))
        title = f"Scores of heads, mean of {self.data.sizes['seed']} seeds: {self.title}"
        return heatmap(data, x="head", y="layer", facet="score", title=title, unit="score", diverging=False)

    def _mean(self, kind: str) -> np.ndarray:
        if kind not in KINDS:
            raise InterpError(f"There is no kind of heads {kind!r}; there are {', '.join(KINDS)}.")
        return self.data[kind].mean("seed").values

    def _reached(self) -> dict[str, float]:
        values = self.data["log_probability"]
        last = max(1, values.sizes["step"] // 10)
        means = values.isel(step=slice(-last, None)).mean(("seed", "step"))
        return {str(stage): float(means.sel(stage=stage)) for stage in means["stage"].values}


@dataclass(frozen=True, repr=False, eq=False)
class HeadToggles(Result):
    """What toggling heads does to the answer, in the order of their scores.

    `.data` holds over `kind` × `toggled` × `example` the `log_probability` of the answer, in nats, under the gates of
    `start` with the first so many heads of that kind toggled (NaN beyond the number of heads of that kind), and per
    `example` that of the whole model, `plain`, and of the gates before any is toggled, `start`, with the `lead` that
    the answer then has over the wrong answer.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Heads toggled in order of score, from gates G+ · {p['task']} ({p['n_scored']} prompts) · {p['model']}"

    @property
    def verdict(self) -> dict[str, Any]:
        """Whether facilitating heads may be said to do the task: `passed`, and the `reasons` against it.

        On prompts on which the gates were not trained (i) the answer is ahead of the wrong one, under the gates, in
        more prompts than coins would have it (p ≤ 0.01), and (ii) it loses more without the most facilitating heads, as
        many as were toggled, than without as many irrelevant ones, or than nothing where there are not as many
        (sign-flip test over prompts, p ≤ 0.05). Gates can learn how often answers occur; neither would follow.
        """
        from scipy.stats import binomtest

        from interp.statistics import sign_flip_p

        data, against = self.data, []
        n, right = data.sizes["example"], int((data["lead"] > 0).sum())
        if binomtest(right, n, alternative="greater").pvalue > 0.01:
            against.append(f"under the gates the answer leads in {right} of {n} prompts, as coins could have it")
        lost = data["start"] - data["log_probability"]
        without = lost.sel(kind="facilitating").dropna("toggled", how="all")
        most = int(without["toggled"].max()) if without.sizes["toggled"] else 0
        if not most:
            return {"passed": False, "reasons": [*against, "no head is facilitating"]}
        costs = without.sel(toggled=most).values
        others = np.nan_to_num(lost.sel(kind="irrelevant", toggled=most).values)
        if not (costs > others).any() or costs.mean() <= others.mean() or sign_flip_p(costs - others) > 0.05:
            against.append(
                f"without the {most} most facilitating heads the answer loses {costs.mean():.2f} nats, without as many "
                f"irrelevant ones {others.mean():.2f}"
            )
        return {"passed": not against, "reasons": against}

    def summary(self) -> str:
        """A line per kind: start, and each number of toggled heads; and whether they may be said to do the task."""
        means = self.data["log_probability"].mean("example")
        lines = [f"HeadToggles: {self.title}", f"  whole model {float(self.data['plain'].mean()):+.3f} nats"]
        for kind in KINDS:
            row = means.sel(kind=kind)
            steps = [f"{int(n)}: {float(x):+.3f}" for n, x in zip(row["toggled"], row, strict=True) if np.isfinite(x)]
            lines.append(f"  {kind} heads toggled: " + ", ".join(steps))
        verdict = self.verdict
        said = f"DOES NOT PASS: {'; '.join(verdict['reasons'])}" if verdict["reasons"] else "PASSES"
        return "\n".join([*lines, f"  do facilitating heads do the task? {said}"])

    def plot(self) -> Figure:
        """A curve per kind."""
        from interp.plots import curves

        means = self.data["log_probability"].mean("example")
        return curves(
            means, x="toggled", line="kind", title=self.title, unit="nats", quantity="log-probability of the answer",
            x_title="heads toggled", baseline=float(self.data["plain"].mean()), bars=False,
        )  # fmt: skip


def head_gating(
    model: LanguageModel,
    task: Task | EncodedTask,
    *,
    forget: Task | EncodedTask | None = None,
    penalty: float = 0.1,
    n_seeds: int = 4,
    steps: int = 60,
    batch: int = 4,
    learning_rate: float = 0.3,
    layers: Sequence[int] | None = None,
    budget: int = 2 * BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> HeadGates:
    """Gates of all heads, trained without and with pressure, and the scores that follow.

    Costs 3 · `steps` · `n_seeds` gated forward and backward passes over `batch` prompts; those without pressure serve
    both signs.

    Args:
        task: its clean prompts and answers.
        forget: prompts whose answers G shall not give: the contrastive form; as many as those of `task`, since each is
            held against one of them.
        penalty: |λ|, in nats per logit of all gates together.
        n_seeds: random starts.
        steps: of Adam, in each of the stages.
        batch: prompts per step; all masks see the same.
        learning_rate: of the gates' logits.
        layers: those whose heads are gated; all if not given. What is below the first runs only once.
        budget: bytes that the backward pass may hold at once; more rows run one group after the other.
        seed: of the starts and of the order of prompts.

    Raises:
        InterpError: a penalty that is not positive; no seed, step or prompt; no layer; not as many
            prompts to forget as to retain.
        SiteError: no such layer, or a model that does not serve z.
        PairError: as `Task.encode`.
    """
    if not penalty > 0 or min(n_seeds, steps, batch) < 1:
        raise InterpError(
            f"penalty={penalty}, n_seeds={n_seeds}, steps={steps}, batch={batch}: all must be greater than 0."
        )
    chosen = _layers(model, layers)
    retained = task if isinstance(task, EncodedTask) else task.encode(model)
    forgotten = forget if forget is None or isinstance(forget, EncodedTask) else forget.encode(model)
    if forgotten is not None and len(forgotten) != len(retained):
        raise InterpError(
            f"{len(retained)} prompts to retain and {len(forgotten)} to forget: give as many of both, for each is held "
            "against one."
        )
    sites = [Site("z", layer) for layer in chosen]
    runs = [Gated(model, x.clean, LogProbability(x.answer), sites) for x in (retained, forgotten) if x is not None]
    trainer = _Trainer(model, runs, chosen, penalty, steps, min(batch, len(retained)), learning_rate, budget, seed)
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n_seeds, len(chosen), model.n_heads, generator=generator).clamp(1e-3, 1 - 1e-3).logit()
    free, free_values = trainer.train(start.to(model.device), [0.0] * n_seeds, progress)
    signs = [1.0] * n_seeds + [-1.0] * n_seeds
    pressed, pressed_values = trainer.train(free.repeat(2, 1, 1), signs, progress)
    gates = {"free": free, "opened": pressed[:n_seeds], "closed": pressed[n_seeds:]}
    values = np.stack([free_values, pressed_values[:n_seeds], pressed_values[n_seeds:]], 1)
    plain = trainer.values(torch.ones_like(free[:1]), torch.arange(len(retained)))[0]
    record = provenance(
        experiment="causal head gating", model=model.name, weights=model.weights_hash, task=retained.task.name,
        source=retained.task.source, task_seed=retained.task.seed,
        forget=None if forgotten is None else forgotten.task.name, layers=chosen, penalty=penalty, steps=steps,
        batch=batch, learning_rate=learning_rate, seed=seed, unit="nats",
        n_attempted=len(retained), n_scored=len(retained), prompts=[pair.clean for pair in retained.task.pairs],
        answers=[pair.answer for pair in retained.task.pairs],
    )  # fmt: skip
    return _result(model, {name: x.sigmoid() for name, x in gates.items()}, chosen, values, plain, record)


def toggle_heads(
    model: LanguageModel,
    task: Task | EncodedTask,
    gates: HeadGates,
    *,
    counts: Sequence[int] = (0, 1, 2, 4, 8, 16, 32, 64, 128),
    budget: int = BUDGET,
) -> HeadToggles:
    """Toggle heads in the order of their scores and watch the answers, from gates G+ (mean over seeds).

    A toggled gate g becomes 1 − g. Of each kind only heads with a mean score of at least ½ are toggled. If the scores
    are right, the log-probability falls as facilitating heads go, stays as irrelevant ones go, and falls as interfering
    ones come back. Use prompts on which the gates were not trained; `HeadToggles.verdict` says what follows.

    Args:
        counts: numbers of heads to toggle.
        budget: bytes that may be held at once.

    Raises:
        InterpError: gates of another model; counts that are not growing.
        PairError: as `Task.encode`.
    """
    if gates.provenance["weights"] != model.weights_hash:
        raise InterpError(f"These gates are of {gates.provenance['model']}; {model.name} has other weights.")
    if not counts or list(counts) != sorted(set(counts)) or counts[0] < 0:
        raise InterpError(f"Counts of toggled heads must grow, from 0 or more; got {list(counts)}.")
    encoded = task if isinstance(task, EncodedTask) else task.encode(model)
    chosen = list(gates.provenance["layers"])
    opened = torch.from_numpy(gates.data["opened"].mean("seed").values[chosen]).to(model.device, model.dtype)
    masks, places = [torch.ones_like(opened), opened], []
    for row, kind in enumerate(KINDS):
        scores = gates.data[kind].mean("seed").values[chosen].ravel()
        order = np.argsort(-scores, kind="stable")[: int((scores >= 0.5).sum())]
        for column, n in enumerate(counts):
            if n <= len(order):
                mask, some = opened.flatten().clone(), torch.from_numpy(order[:n].copy()).to(model.device)
                mask[some] = 1 - mask[some]
                masks.append(mask.view_as(opened))
                places.append((row, column))
    sites = [Site("z", layer) for layer in chosen]
    run = Gated(model, encoded.clean, LogProbability(encoded.answer), sites)
    found = _values(run, torch.stack(masks), chosen, budget)
    ahead = Gated(model, encoded.clean, LogitDifference(encoded.answer, encoded.wrong_answer), sites)
    lead = _values(ahead, opened[None], chosen, budget)[0]
    return _toggled(encoded, gates, counts, places, found, lead)


@torch.no_grad()
def _values(run: Gated, masks: Tensor, layers: Sequence[int], budget: int) -> np.ndarray:
    """[mask, example], a few masks and prompts at a time."""
    rows, out = torch.arange(len(run.prompts), device=masks.device), []
    for some in masks.split(8):
        gates = {Site("z", layer): some[:, i] for i, layer in enumerate(layers)}
        out.append(torch.cat([run(gates, few) for few in rows.split(run.rows_within(budget, len(some)))], 1))
    return torch.cat(out).double().cpu().numpy()


class _Trainer:
    """Trains masks together; none of them sees another."""

    def __init__(
        self, model: LanguageModel, runs: list[Gated], layers: list[int], penalty: float, steps: int, batch: int,
        learning_rate: float, budget: int, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.runs, self.layers, self.penalty = model, runs, layers, penalty
        self.steps, self.batch, self.learning_rate, self.budget = steps, batch, learning_rate, budget
        self.generator = torch.Generator().manual_seed(seed)

    def train(
        self, start: Float[Tensor, "mask layer head"], signs: Sequence[float], progress: Progress
    ) -> tuple[Float[Tensor, "mask layer head"], np.ndarray]:
        """(the gates' logits in the end, values [mask, step])."""
        logits = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], self.learning_rate)
        pressure = self.penalty * torch.tensor(signs, device=start.device)
        values = np.empty((len(start), self.steps))
        for step in progress(list(range(self.steps)), "steps"):
            rows = torch.randperm(len(self.runs[0].prompts), generator=self.generator)[: self.batch]
            gates = logits.sigmoid()
            leaf = gates.detach().to(self.model.dtype).requires_grad_()
            gradient, total = torch.zeros_like(leaf), leaf.new_zeros(len(leaf))
            for some in rows.split(self._within(len(leaf))):
                gains = self._gains(leaf, some.to(leaf.device)) / len(rows)
                rewarded = gains.clamp(max=LEAD / len(rows)) if len(self.runs) == 2 else gains
                gradient += torch.autograd.grad(rewarded.sum(), leaf)[0]  # one backward pass: masks share no gate
                total += gains.detach().sum(1)
            values[:, step] = total.double().cpu().numpy()
            reward = (gates * gradient.to(gates.dtype)).sum() + (
                pressure * logits.clamp(-CLIP, CLIP).mean((1, 2))
            ).sum()
            (logits.grad,) = torch.autograd.grad(-reward, logits)
            norm = logits.grad.flatten(1).norm(dim=1)[:, None, None]
            logits.grad /= norm.clamp(min=1)  # each mask's own norm is at most 1
            optimizer.step()
        return logits.detach(), values

    @torch.no_grad()
    def values(self, gates: Float[Tensor, "mask layer head"], rows: Int[Tensor, "row"]) -> np.ndarray:
        """What is maximised, without training."""
        gates, some = gates.to(self.model.dtype), rows.to(self.model.device)
        return torch.cat([self._gains(gates, few) for few in some.split(self._within(len(gates)))], 1).cpu().numpy()

    def _within(self, masks: int) -> int:
        return min(run.rows_within(self.budget // len(self.runs), masks) for run in self.runs)

    def _gains(self, gates: Tensor, rows: Tensor) -> Float[Tensor, "mask row"]:
        by_site = {Site("z", layer): gates[:, i] for i, layer in enumerate(self.layers)}
        retained, *forgotten = [run(by_site, rows) for run in self.runs]
        return retained - forgotten[0] if forgotten else retained


def _layers(model: LanguageModel, layers: Sequence[int] | None) -> list[int]:
    """The gated layers, in order.

    Raises:
        InterpError: none.
        SiteError: no such layer, or a model that does not serve z.
    """
    chosen = list(range(model.n_layers)) if layers is None else sorted(set(layers))
    if not chosen:
        raise InterpError("`layers` is empty: name the layers whose heads are gated.")
    for layer in chosen:
        model.check(Site("z", layer))
    return chosen


def _result(
    model: LanguageModel, gates: dict[str, Tensor], layers: list[int], values: np.ndarray, plain: np.ndarray,
    record: dict[str, Any],
) -> HeadGates:  # fmt: skip
    import xarray as xr

    dims, size = ("seed", "layer", "head"), (len(values), model.n_layers, model.n_heads)
    variables: dict[str, Any] = {}
    for name, x in gates.items():
        whole = np.full(size, np.nan)
        whole[:, layers] = x.double().cpu().numpy()
        variables[name] = (dims, whole, {"unit": "gate"})
    opened, closed = variables["opened"][1], variables["closed"][1]
    scores = {"facilitating": closed, "interfering": 1 - opened, "irrelevant": opened * (1 - closed)}
    variables |= {kind: (dims, score, {"unit": "score"}) for kind, score in scores.items()}
    variables["log_probability"] = (("seed", "stage", "step"), values, {"unit": "nats"})
    variables["plain"] = ("example", plain.astype(float), {"unit": "nats"})
    coords: dict[str, Any] = {name: list(range(n)) for name, n in zip(dims, size, strict=True)}
    coords |= {"stage": ["free", "opened", "closed"], "step": list(range(values.shape[2]))}
    return HeadGates(xr.Dataset(variables, coords | {"example": list(range(len(plain)))}), record)


def _toggled(
    encoded: EncodedTask, gates: HeadGates, counts: Sequence[int], places: list[tuple[int, int]], found: np.ndarray,
    lead: np.ndarray,
) -> HeadToggles:  # fmt: skip
    import xarray as xr

    values = np.full((len(KINDS), len(counts), found.shape[1]), np.nan)
    for (row, column), value in zip(places, found[2:], strict=True):
        values[row, column] = value
    unit = {"unit": "nats"}
    data = xr.Dataset(
        {
            "log_probability": (("kind", "toggled", "example"), values, unit), "plain": ("example", found[0], unit),
            "start": ("example", found[1], unit), "lead": ("example", lead, unit),
        },
        {"kind": list(KINDS), "toggled": list(counts), "example": list(range(found.shape[1]))},
    )  # fmt: skip
    p = gates.provenance
    record = provenance(
        experiment="heads toggled", model=p["model"], weights=p["weights"], task=encoded.task.name,
        source=encoded.task.source, task_seed=encoded.task.seed, gates=gates.title, layers=p["layers"], unit="nats",
        n_attempted=len(encoded), n_scored=len(encoded), prompts=[pair.clean for pair in encoded.task.pairs],
        answers=[pair.answer for pair in encoded.task.pairs],
    )  # fmt: skip
    return HeadToggles(data, record)
