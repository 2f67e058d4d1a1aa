"""Does a network answer by a number along one direction? Steer along it, and count the answers that flip.

On training prompts the first component of a partial least squares regression (`pls`) of a number is found, at the token
that carries it, layer by layer. On held-out prompts it is added to the state there, so many standard deviations of the
training states' projections on it. An answer *flips* where the wrong answer, which calls for a smaller number, has the
higher logit afterwards and had not before. If the number is what the answer follows from, steering down flips answers
and steering up does not.

Beside it stand random directions and the component of shuffled numbers, added at the same length.

When it misleads: far outside of what states can be anything flips an answer, hence the controls at the same length; and
what a number goes with (a length, an order) may lie along the same direction.

Source: El-Shangiti, Hiraoka, AlQuabeh, Heinzerling & Inui 2025, "The geometry of numerical reasoning"
(arXiv:2410.13194), who ask yes/no questions about years of birth and steer along the first component as well. Tasks of
pairs instead, lengths in standard deviations and the control of shuffled numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.alignment.directions import pls
from interp.errors import InterpError, PairError
from interp.interventions.edits import Add, Edit
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval
from interp.tasks.metrics import LogitDifference
from interp.tasks.pairs import EncodedTask, Task

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

DIRECTIONS = ("first component", "shuffled numbers", "random directions")


@dataclass(frozen=True, repr=False, eq=False)
class NumberFlips(Result):
    """Answers that flip as a number's direction is added, by layer and strength, beside the controls.

    `.data` holds over `direction` × `layer` × `strength` (standard deviations of the training states' projections on
    the first component; below 0 towards smaller numbers): the share of held-out pairs whose answer `flips`, with its
    95 % interval `low` to `high` (bootstrap over pairs; of random directions a pair counts by its mean over the draws).
    Over `layer`: `correlation` of the number with the projection on the first component, on held-out states, and
    `deviation`, the unit of the strength, in the activation's own units.
    """

    @property
    def title(self) -> str:
        """One line that states what was steered."""
        p = self.provenance
        return f"{p['part']} at the number's token, {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    @property
    def best(self) -> int:
        """The layer with the largest margin: flips of the first component above the higher control, at any strength."""
        rivals = self.data["flips"].drop_sel(direction=DIRECTIONS[0]).max("direction")
        margin = (self.data["flips"].sel(direction=DIRECTIONS[0]) - rivals).max("strength")
        return int(margin["layer"].values[int(margin.values.argmax())])

    def summary(self) -> str:
        """The best layer's flips by strength, beside the controls."""
        here, p = self.data.sel(layer=self.best), self.provenance
        strengths = here["strength"].values
        lines = [
            f"NumberFlips: {self.title}",
            f"  of {p['n_attempted']} held-out pairs {p['n_scored']} are answered rightly, and can flip",
            f"  best of {self.data.sizes['layer']} layers: {self.best}, where the first component's correlation with "
            f"the number is {float(here['correlation']):.2f} on held-out states",
            "  " + " " * 18 + "".join(f"{s:>+8g}σ" for s in strengths),
        ]
        for name in DIRECTIONS:
            values = here["flips"].sel(direction=name).values
            lines.append(f"  {name:18}" + "".join(f"{value:>9.2f}" for value in values))
        rivals = here["flips"].drop_sel(direction=DIRECTIONS[0]).max("direction")
        if not (here["low"].sel(direction=DIRECTIONS[0]) > rivals).any():
            lines.append("  NOT above its controls at any strength: the direction is no better than any other")
        return "\n".join(lines)

    def plot(self, layer: int | None = None) -> Figure:
        """Flips over strength at a layer (the best, if none is given), a line for each kind of direction.

        Raises:
            InterpError: a layer that was not steered.
        """
        from interp.plots import curves

        layer = self.best if layer is None else layer
        if layer not in self.data["layer"].values:
            raise InterpError(
                f"Layer {layer} was not steered; there are {', '.join(map(str, self.data['layer'].values))}."
            )
        here = self.data.sel(layer=layer)
        flips, low, high = (here[name].drop_vars("layer") for name in ("flips", "low", "high"))
        return curves(
            flips, x="strength", line="direction", low=low, high=high, unit="share of pairs", quantity="flips",
            x_title="added (standard deviations of the number’s direction; below 0 towards smaller numbers)",
            title=f"Answers that flip at layer {layer}: {self.title}",
        )  # fmt: skip


def number_flips(
    model: LanguageModel,
    task: Task,
    held_out: Task,
    *,
    part: str = "resid_pre",
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = (-4, -2, -1, 1, 2, 4),
    draws: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> NumberFlips:
    """Find a number's direction on training pairs, steer held-out ones along it, and count flipped answers.

    Args:
        task: pairs whose label is a number, carried by the one token in which clean and corrupted differ, and whose
            wrong answer calls for a smaller number: `greater_than`.
        held_out: others, with other templates.
        part: of the sites.
        layers: all if not given.
        strengths: standard deviations to add; below 0 towards smaller numbers.
        draws: of random directions.
        seed: of them and of the shuffle.

    Raises:
        InterpError: no layer, strength or draw.
        PairError: labels that are no numbers; pairs that differ in more than one token; no pair that the model answers
            rightly.
        SiteError: no such layer.
    """
    layers = list(range(model.n_layers) if layers is None else dict.fromkeys(layers))
    if not layers or not strengths or draws < 1:
        raise InterpError(
            "`layers` or `strengths` is empty, or no random direction is drawn: name at least one of each."
        )
    sites = [model.check(Site(part, layer)) for layer in layers]
    train, test = task.encode(model), held_out.encode(model)
    numbers, at = _numbers(task), _carriers(train)
    known, new = _states(model, train, sites, at), _states(model, test, sites, _carriers(test))
    generator = torch.Generator().manual_seed(seed)
    shuffled = numbers[torch.randperm(len(numbers), generator=generator)]
    found = torch.stack([pls(x, numbers)[:, 0] for x in known])
    ways = {DIRECTIONS[0]: found[None], DIRECTIONS[1]: torch.stack([pls(x, shuffled)[:, 0] for x in known])[None]}
    drawn = torch.randn(draws, *found.shape, generator=generator)
    ways[DIRECTIONS[2]] = (drawn / drawn.norm(dim=-1, keepdim=True)).to(found)
    deviation = torch.stack([(x @ one).std() for x, one in zip(known, found, strict=True)])
    flips = _flips(model, test, sites, ways, deviation, strengths, progress)
    wanted = _numbers(held_out).to(found)
    seen = [float(np.corrcoef((x @ one).double().cpu(), wanted.cpu())[0, 1]) for x, one in zip(new, found, strict=True)]
    record = provenance(
        experiment="steering of a number", model=model.name, weights=model.weights_hash, task=task.name,
        held_out=held_out.name, part=part, draws=draws, seed=seed, n_train=len(task), n_attempted=len(held_out),
        n_scored=flips.shape[-1],
    )  # fmt: skip
    return NumberFlips(_dataset(flips, layers, strengths, seen, deviation, seed), record)


def _numbers(task: Task) -> Float[Tensor, "pair"]:
    try:
        return torch.tensor([float(pair.label) for pair in task])
    except ValueError as error:
        raise PairError(
            f"Task {task.name!r} has a label that is no number ({error}); its pairs' labels are numbers."
        ) from None


def _carriers(task: EncodedTask) -> Int[Tensor, "pair"]:
    """The token in which clean and corrupted differ."""
    differs = task.clean.ids != task.corrupted.ids
    count = differs.sum(1)
    if (count != 1).any():
        row = int((count != 1).nonzero()[0])
        raise PairError(
            f"Pair {row} of task {task.task.name!r} differs in {int(count[row])} tokens; a number is steered at the "
            f"one that carries it: {task.task.pairs[row].clean!r} and {task.task.pairs[row].corrupted!r}."
        )
    return differs.int().argmax(1)


@torch.no_grad()
def _states(
    model: LanguageModel, task: EncodedTask, sites: Sequence[Site], at: Tensor
) -> Float[Tensor, "layer pair width"]:
    found = run(model, task.clean, (), sites, positions=at[:, None], logits=False)
    return torch.stack([found[site][:, 0] for site in sites])


def _flips(
    model: LanguageModel, test: EncodedTask, sites: Sequence[Site], ways: dict[str, Tensor], deviation: Tensor,
    strengths: Sequence[float], progress: Progress,
) -> Float[np.ndarray, "direction layer strength pair"]:  # fmt: skip
    """The share of draws by which the answer of a pair that was right has become wrong."""
    at, variants = _carriers(test)[:, None], []
    for drawn in ways.values():
        for each in drawn:
            for i, site in enumerate(sites):
                for strength in strengths:
                    length = float(strength * deviation[i])
                    edit: Edit = Add(site, each[i], length, positions=at)
                    variants.append([edit])
    metric = LogitDifference(test.answer, test.wrong_answer)
    swept = sweep(model, test.clean, variants, metric, progress=progress)
    right = (swept.base[metric.name] > 0).cpu().numpy()
    if not right.any():
        raise PairError(f"{model.name} prefers the answer in none of the pairs of {test.task.name}; nothing can flip.")
    wrong = (swept.values[metric.name] < 0).cpu().numpy()[:, right].astype(float)
    shaped = wrong.reshape(sum(map(len, ways.values())), len(sites), len(strengths), -1)
    parts = np.split(shaped, np.cumsum([len(drawn) for drawn in ways.values()])[:-1])
    return np.stack([part.mean(0) for part in parts])


def _dataset(
    flips: np.ndarray,
    layers: Sequence[int],
    strengths: Sequence[float],
    seen: Sequence[float],
    deviation: Tensor,
    seed: int,
) -> xarray.Dataset:
    import xarray as xr

    low, high = bootstrap_interval(flips, seed=seed)
    dims, share = ("direction", "layer", "strength"), {"unit": "share"}
    return xr.Dataset(
        {
            "flips": (dims, flips.mean(-1), share), "low": (dims, low, share), "high": (dims, high, share),
            "correlation": ("layer", list(seen)), "deviation": ("layer", deviation.double().cpu().numpy()),
        },
        {"direction": list(DIRECTIONS), "layer": list(layers), "strength": [float(s) for s in strengths]},
    )  # fmt: skip
