"""Networks that are trained in seconds, to fit every kind of map to: does an alignment find what they compute?

Multilayer perceptrons on vectors (`interp.tasks.causal_models.equality`): a few layers of ReLUs, as wide as the input.
In one that computes hierarchical equality a rotation finds the two equality relations in the first layer and no longer
in the third, while a RevNet finds them everywhere; networks that were not trained are the control.
`benchmarks/hierarchical_equality.py` makes the table.

Source: the toy of Sutter, Minder, Hofmann & Pimentel 2025 (arXiv:2507.08802), after Geiger et al. 2023
(arXiv:2303.02536). We differ in how networks are trained: 5,000 steps at a falling rate and no example twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.alignment.abstraction import Interchanges
from interp.alignment.continuation import Continuation
from interp.alignment.joint import subsets
from interp.errors import InterpError, ShapeError
from interp.progress import Progress, silent
from interp.tasks.causal_model import Setting
from interp.tasks.causal_models.equality import VECTOR_VARIABLES, VectorInterchange, vector_interchange

_POOL = 1 << 17
"""Examples that are drawn at once; another pool follows."""
_FIRST_POOL = 1_000_003
"""Seed of the first pool, far from those of examples that maps are fitted to."""


class VectorMlp(nn.Module):
    """Layers h ← relu(W h + c) of one width, and two logits: false, true. Several such networks side by side.

    Args:
        width: of inputs and layers.
        n_layers: how many.
        seeds: of the weights, a network each; drawn as torch draws those of a linear layer.
    """

    def __init__(self, width: int, n_layers: int = 3, *, seeds: Sequence[int] = (0,)) -> None:
        super().__init__()
        self.width, self.n_layers, self.n_networks = width, n_layers, len(seeds)
        drawn = [_drawn(width, n_layers, seed) for seed in seeds]
        self.weights = nn.ParameterList(torch.stack(layer) for layer in zip(*(w for w, _ in drawn), strict=True))
        self.biases = nn.ParameterList(torch.stack(layer) for layer in zip(*(b for _, b in drawn), strict=True))

    def forward(self, inputs: Float[Tensor, "row width"]) -> Float[Tensor, "network row 2"]:
        """Logits."""
        return self._read(self._states(inputs)[-1])

    def states(self, inputs: Float[Tensor, "row width"]) -> Float[Tensor, "network layer row width"]:
        """The output of each layer."""
        return torch.stack(self._states(inputs), 1)

    def outputs(self, network: int, after: int, states: Float[Tensor, "row width"]) -> Float[Tensor, "row 2"]:
        """Logits of one network, from the output of its layer `after` (1 is the first; 0 means the inputs)."""
        states = self.carried(network, after, self.n_layers, states)
        return F.linear(states, self.weights[-1][network], self.biases[-1][network])

    def carried(
        self, network: int, after: int, upto: int, states: Float[Tensor, "row width"]
    ) -> Float[Tensor, "row width"]:
        """What layer `upto` of one network puts out, from the output of its layer `after`."""
        for weight, bias in zip(self.weights[after:upto], self.biases[after:upto], strict=True):
            states = F.linear(states, weight[network], bias[network]).relu()
        return states

    @torch.no_grad()
    def accuracy(self, examples: VectorInterchange) -> list[float]:
        """The share of the bases that each network answers rightly."""
        return (self(examples.base).argmax(-1) == examples.answer).double().mean(1).tolist()

    def _states(self, inputs: Tensor) -> list[Float[Tensor, "network row width"]]:
        found = [inputs.expand(self.n_networks, -1, -1)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            found.append(torch.baddbmm(bias[:, None], found[-1], weight.mT).relu())
        return found[1:]

    def _read(self, states: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[-1][:, None], states, self.weights[-1].mT)


def _drawn(width: int, n_layers: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of a network's layers and its readout: uniform in ± 1/√width."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [width] * n_layers + [2]
    uniform = [(2 * torch.rand(size, width + 1, generator=generator) - 1) / width**0.5 for size in sizes]
    return [layer[:, :-1] for layer in uniform], [layer[:, -1] for layer in uniform]


def trained_mlp(
    name: str,
    *,
    steps: int = 5000,
    batch: int = 1024,
    rate: float = 3e-3,
    seeds: Sequence[int] = (0,),
    progress: Progress = silent,
) -> VectorMlp:
    """Networks that compute the answers of a causal model of vectors.

    Adam, its rate falling to 0 as half a cosine. No example is seen twice; all networks see the same.

    Args:
        name: of the causal model (`interp.tasks.causal_models.equality`).
        steps: how many.
        batch: examples per step.
        rate: the highest.
        seeds: of the weights, a network each.

    Raises:
        PairError: an unknown name.
        InterpError: no step, or no example in it.
    """
    if steps < 1 or batch < 1:
        raise InterpError(f"{steps} steps of {batch} examples train nothing; take at least one of one.")
    number = 0
    pool = vector_interchange(name, _POOL, seed=_FIRST_POOL)
    network = VectorMlp(pool.base.shape[1], seeds=seeds)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at = 0
    for _ in progress(list(range(steps)), "steps"):
        if at + batch > len(pool):
            at, number = 0, number + 1
            pool = vector_interchange(name, _POOL, seed=_FIRST_POOL + number)
        rows = slice(at, at + batch)
        at += batch
        optimizer.zero_grad()
        targets = pool.answer[rows].long().repeat(network.n_networks)
        F.cross_entropy(network(pool.base[rows]).flatten(0, 1), targets, reduction="sum").div(batch).backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


class MlpContinuation(Continuation):
    """The layers of some networks as places, and examples: place `n_layers · network + layer − 1`, layers from 1.

    A variable that an example does not exchange has the base's own state as its source. Every example is run at every
    place, also where nothing differs: networks that stand side by side have no base run in common.

    Args:
        networks: no gradient flows to their weights.
        examples: base, sources, and what is exchanged.

    Raises:
        ShapeError: examples of another width.
    """

    def __init__(self, networks: VectorMlp, examples: VectorInterchange) -> None:
        if (found := examples.base.shape[1]) != networks.width:
            raise ShapeError(f"Examples of width {found} for a network of width {networks.width}.")
        self.networks = networks
        with torch.no_grad():
            self.base = networks.states(examples.base).flatten(0, 1)
            self.sources = tuple(
                torch.where(exchanged[:, None], networks.states(source).flatten(0, 1), self.base)
                for source, exchanged in zip(examples.sources, examples.exchanged, strict=True)
            )

    @cached_property
    def differs(self) -> Bool[Tensor, "place example"]:
        """Everywhere."""
        return torch.ones(self.base.shape[:2], dtype=torch.bool)

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """Logits of the rest of the row's network."""
        places = place.unique().tolist()
        rows = [(place == one).nonzero()[:, 0] for one in places]
        found = []
        for one, some in zip(places, rows, strict=True):
            network, layer = divmod(one, self.networks.n_layers)
            found.append(self.networks.outputs(network, layer + 1, values[some]))
        return torch.cat(found)[torch.cat(rows).argsort()]

    def state(self, place: int, put: Mapping[int, Tensor]) -> Tensor:
        """From the highest of the layers below at which there is something; it decides all that follows.

        Raises:
            InterpError: places of several networks.
        """
        layers = [self._layer(other, place) for other in put]
        network, layer = divmod(place, self.networks.n_layers)
        below = [(at, values) for at, values in zip(layers, put.values(), strict=True) if at < layer]
        if not below:
            return self.base[place]
        at, values = max(below, key=lambda one: one[0])
        return self.networks.carried(network, at + 1, layer + 1, values)

    def outputs_of(self, put: Mapping[int, Tensor]) -> Tensor:
        """Logits from the highest layer at which there is something; that of one network.

        Raises:
            InterpError: nothing anywhere, where there are several networks; places of several networks.
        """
        if not put and self.networks.n_networks > 1:
            raise InterpError("Networks side by side have no base run in common: name a place.")
        top = max(put, default=self.networks.n_layers - 1)
        put = put or {top: self.base[top]}
        for place in put:
            self._layer(place, top)
        return self.networks.outputs(top // self.networks.n_layers, top % self.networks.n_layers + 1, put[top])

    def _layer(self, place: int, other: int) -> int:
        """The layer of a place (from 0) that is to be of the same network as another."""
        network, layer = divmod(place, self.networks.n_layers)
        if network != other // self.networks.n_layers:
            raise InterpError(f"Places {place} and {other} are layers of different networks; set those of one.")
        return layer

    def base_outputs(self, example: Tensor) -> Tensor:
        """Of no example.

        Raises:
            InterpError: an example is asked for.
        """
        if len(example):
            raise InterpError("Networks side by side have no base run in common; every example is run at every place.")
        return self.base.new_zeros(0, 2)


def vector_interchanges(networks: VectorMlp, examples: VectorInterchange) -> list[Interchanges]:
    """The examples for an `abstraction`, one entry for each set of variables; places are as in `MlpContinuation`."""
    found = []
    for some in subsets(examples.variables):
        own = examples.exchanging(some)
        settings = [own.settings(side) for side in range(1 + len(some))]
        ready = MlpContinuation(networks, own)
        words = [" ← ".join(_told(own.name, setting) for setting in sides) for sides in zip(*settings, strict=True)]
        found.append(Interchanges(own.variables, ready, own.label.long(), settings[0], settings[1:], words))
    return found


def _told(name: str, setting: Setting) -> str:
    return ", ".join(f"{variable} {setting[variable]}" for variable in VECTOR_VARIABLES[name])
