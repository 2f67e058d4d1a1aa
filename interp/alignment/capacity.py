"""What an alignment proves by how flexible its map is: IIA against capacity, on trained and on untrained networks.

A map that is flexible enough aligns a causal model with any network that keeps its inputs apart, trained or not: then
the map computes the variable and not the network (the *non-linear representation dilemma*). The one defence is to fit
the same maps, in the same way, to networks that cannot have the variable. `capacity` does both, and the result says so
where the control is as good.

Source: Sutter, Minder, Hofmann & Pimentel 2025 (arXiv:2507.08802).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.fit import Cells, Training, answers, fit
from interp.alignment.maps import AlignmentMap, Subspace
from interp.errors import InterpError
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

NETWORKS = ("trained", "untrained")
_AS_GOOD = 0.05
"""A control this close to what it controls counts as as good."""

MakeMap = Callable[[int, int], AlignmentMap]
"""(cells, seed) → a map of so many cells, as it is before training."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A network, or several side by side: what maps are fitted to, and what judges them.

    Attributes:
        train: its places (of several networks, those of one after those of another), on some examples; target: what
            it should answer to each.
        held_out: the same places on others; label: what it should answer to each.
    """

    train: Continuation
    target: Int[Tensor, "example"]
    held_out: Continuation
    label: Int[Tensor, "held_out"]


@dataclass(frozen=True, repr=False, eq=False)
class Capacity(Result):
    """IIA of maps of several kinds, at the same places of trained and untrained networks.

    `.data` holds, over `network` (trained, untrained) × `map` × `place`: `iia` on held-out examples, mean of the runs
    (networks), with its 95 % interval `low` to `high` (bootstrap over examples), and `iia_of_run`; over `network` ×
    `run` the `floor`: the share of labels that the network gives without any interchange, or that are the commonest,
    whichever is more; over `map` its `capacity`, the trained numbers.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        runs = self.data.sizes["run"]
        return f"{self.provenance['name']}, {runs} network{'s' if runs > 1 else ''} of each kind"

    @property
    def floor(self) -> xarray.DataArray:
        """What is right without an interchange, [network]."""
        return self.data["floor"].mean("run")

    @property
    def explained(self) -> xarray.DataArray:
        """The share of a trained network's gain that the untrained one shows as well, [map, place].

        Gains are above the floor; NaN where the trained network has none (within 0.05). 1 means: the map alone.
        """
        gain = self.data["iia"] - self.floor
        trained = gain.sel(network="trained", drop=True)
        return (gain.sel(network="untrained", drop=True).clip(min=0) / trained).where(trained > _AS_GOOD)

    @property
    def control_as_good(self) -> xarray.DataArray:
        """Where untrained networks reach what trained ones do (within 0.05, and above the floor), [map, place]."""
        trained, untrained = (self.data["iia"].sel(network=network, drop=True) for network in NETWORKS)
        above = self.data["low"].sel(network="untrained", drop=True) > self.floor.sel(network="untrained", drop=True)
        return (untrained >= trained - _AS_GOOD) & (untrained > _AS_GOOD + self.floor.max("network")) & above

    def summary(self) -> str:
        """A row per map, trained | untrained, and the warnings."""
        places = [str(place) for place in self.data["place"].values]
        names = [str(name) for name in self.data["map"].values]
        width = max(map(len, names))
        lines = [
            f"Capacity: {self.title}",
            f"  IIA on {self.provenance['n_held_out']} held-out examples at {', '.join(places)}; "
            f"{float(self.floor.max()):.2f} without an interchange",
            f"  {'':{width}}  numbers  trained{' ' * (5 * len(places) - 7)} | untrained",
        ]
        for name in names:
            row = self.data.sel(map=name)
            shown = (
                " ".join(f"{x:.2f}" for x in row["iia"].sel(network=network).values) for network in NETWORKS
            )  # fmt: skip
            lines.append(f"  {name:{width}}  {int(row['capacity']):7,}  " + "  | ".join(shown))
        as_good, explained = self.control_as_good, self.explained
        for name in names:
            if here := [place for place in places if bool(as_good.sel(map=name, place=place))]:
                lines.append(
                    f"  WARNING: {name} at {', '.join(here)} aligns untrained networks as well: what is shown is the "
                    "map, not the network (non-linear representation dilemma)"
                )
            share = explained.sel(map=name).where(~as_good.sel(map=name)).max().item()
            if share >= 0.1:
                lines.append(f"  of what {name} gains, untrained networks show up to {share:.0%}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """IIA over maps by capacity; a line per place of the trained and of the untrained networks."""
        from interp.plots import curves

        data = self.data.sortby("capacity").stack(networks=("network", "place"))
        labels = [f"{network}, {place}" for network, place in data["networks"].values]
        lined = data.reset_index("networks", drop=True).transpose("networks", "map", ...)
        at = [f"{name}, {int(n):,}" for name, n in zip(lined["map"].values, lined["capacity"].values, strict=True)]
        return curves(
            lined["iia"], x="map", line="networks", line_labels=labels, low=lined["low"], high=lined["high"],
            x_labels=at,
            title=f"Interchange accuracy by the map's capacity: {self.title}", unit="IIA", quantity="held out",
            x_title="map, trained numbers", baseline=float(self.floor.mean()),
        )  # fmt: skip


def capacity(
    trained: Sequence[Trial],
    untrained: Sequence[Trial],
    maps: Mapping[str, MakeMap],
    training: Training,
    *,
    places: Sequence[str],
    name: str,
    seed: int = 0,
) -> Capacity:
    """Fit every kind of map to every network, all places at once.

    Args:
        trained: networks that solve the task, each a run.
        untrained: as many that do not: the same with random weights.
        maps: by name.
        training: of all of them, alike.
        places: names of the continuations' places.
        name: of what is aligned, for titles.
        seed: of the maps' starts.

    Raises:
        InterpError: no map or no network, not as many untrained ones; as `fit`.
    """
    import xarray as xr

    runs = [sum(trial.train.base.shape[0] // len(places) for trial in trials) for trials in (trained, untrained)]
    if not maps or not runs[0] or runs[0] != runs[1]:
        raise InterpError(
            f"{len(maps)} maps, {runs[0]} trained and {runs[1]} untrained networks: give a map at least, a network, "
            "and a control for each."
        )
    correct = [
        np.concatenate([_fitted(trial, list(maps.values()), training, places, seed) for trial in trials])
        for trials in (trained, untrained)
    ]
    hits = np.stack(correct).transpose(0, 2, 3, 1, 4)  # network, map, place, run, example
    low, high = bootstrap_interval(hits.mean(3))
    dims = ("network", "map", "place")
    floors = [np.concatenate([_floor(trial, len(places)) for trial in trials]) for trials in (trained, untrained)]
    data = xr.Dataset(
        {
            "iia": (dims, hits.mean((3, 4))), "low": (dims, low), "high": (dims, high),
            "iia_of_run": ((*dims, "run"), hits.mean(4)), "floor": (("network", "run"), floors),
            "capacity": ("map", [make(1, seed).capacity for make in maps.values()]),
        },
        {"network": list(NETWORKS), "map": list(maps), "place": list(places)},
    )  # fmt: skip
    steps = {"steps": training.steps, "batch": training.batch, "learning_rate": training.learning_rate}
    facts = {"n_train": len(trained[0].target), "n_held_out": len(trained[0].label), "seed": seed}
    kinds = {name: repr(make(1, seed)) for name, make in maps.items()}
    return Capacity(data, provenance(experiment="capacity of alignment maps", name=name, maps=kinds, **steps, **facts))


def _fitted(
    trial: Trial, maps: Sequence[MakeMap], training: Training, places: Sequence[str], seed: int
) -> Bool[np.ndarray, "run map place example"]:
    """Where networks with each map answer as they should."""
    n = trial.train.base.shape[0]
    names = tuple(f"{places[i % len(places)]} of network {i // len(places)}" for i in range(n))
    groups = [Cells(make(n, seed), torch.arange(n), torch.zeros(n, dtype=torch.long), names) for make in maps]
    fit(groups, trial.train, trial.target[None], training)
    label = trial.label.expand(n, -1)
    agree = torch.stack([answers(group, trial.held_out).agree(label) for group in groups], 1)
    return agree.unflatten(0, (-1, len(places))).transpose(1, 2).cpu().numpy()


def _floor(trial: Trial, n_places: int) -> Float[np.ndarray, "run"]:
    """What is right without an interchange, or by the commonest label alone."""
    place = torch.arange(0, trial.train.base.shape[0], n_places)
    nothing = Subspace(torch.zeros(len(place), trial.train.base.shape[-1], 0), (0,) * len(trial.train.sources))
    cells = Cells(nothing, place, torch.zeros_like(place), ("no interchange",) * len(place))
    still = answers(cells, trial.held_out).agree(trial.label.expand(len(place), -1)).double().mean(1).cpu().numpy()
    common = trial.label.unique(return_counts=True)[1].max().item() / len(trial.label)
    return np.maximum(still, common)
