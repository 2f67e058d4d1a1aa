"""Networks that are trained in seconds, to fit every kind of map to: does an alignment find what they compute?

Multilayer perceptrons on vectors (`interp.tasks.causal_models.equality`): a few layers of ReLUs, as wide as the input.
In one that computes hierarchical equality a rotation finds the two equality relations in the first layer and no longer
in the third, while a RevNet finds them everywhere; networks that were not trained are the control.
`benchmarks/hierarchical_equality.py` makes the table.

Source: the toy of Sutter, Minder, Hofmann & Pimentel 2025 (arXiv:2507.08802), after Geiger et al. 2023
(arXiv:2303.02536). We differ in how networks are trained: 5,000 steps at a falling rate and no example twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.alignment.continuation import Continuation
from interp.errors import InterpError, ShapeError
from interp.progress import Progress, silent
from interp.tasks.causal_models.equality import VectorInterchange, vector_interchange

_POOL = 1 << 17
"""Examples that are drawn at once; another pool follows."""


class VectorMlp(nn.Module):
    """Layers h ← relu(W h + c) of one width, and two logits: false, true.

    Args:
        width: of inputs and layers.
        n_layers: how many.
        seed: of the weights, drawn as torch draws those of a linear layer.
    """

    def __init__(self, width: int, n_layers: int = 3, *, seed: int = 0) -> None:
        super().__init__()
        self.width, self.n_layers = width, n_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
            self.readout = nn.Linear(width, 2)

    def forward(self, inputs: Float[Tensor, "row width"]) -> Float[Tensor, "row 2"]:
        """Logits."""
        return self.outputs(0, inputs)

    def states(self, inputs: Float[Tensor, "row width"]) -> Float[Tensor, "layer row width"]:
        """The output of each layer."""
        found = []
        for layer in self.layers:
            inputs = layer(inputs).relu()
            found.append(inputs)
        return torch.stack(found)

    def outputs(self, after: int, states: Float[Tensor, "row width"]) -> Float[Tensor, "row 2"]:
        """Logits, from the output of layer `after` (1 is the first; 0 means the inputs)."""
        for layer in list(self.layers)[after:]:
            states = layer(states).relu()
        return self.readout(states)

    @torch.no_grad()
    def accuracy(self, examples: VectorInterchange) -> float:
        """The share of the bases that are answered right."""
        return (self(examples.base).argmax(-1) == examples.answer).float().mean().item()


def trained_mlp(
    name: str, *, steps: int = 5000, batch: int = 1024, rate: float = 3e-3, seed: int = 0, progress: Progress = silent
) -> VectorMlp:
    """A network that computes the answers of a causal model of vectors.

    Adam, its rate falling to 0 as half a cosine. No example is seen twice.

    Args:
        name: of the causal model (`interp.tasks.causal_models.equality`).
        steps: how many.
        batch: examples per step.
        rate: the highest.
        seed: of weights and examples.

    Raises:
        PairError: an unknown name.
        InterpError: no step, or no example in it.
    """
    if steps < 1 or batch < 1:
        raise InterpError(f"{steps} steps of {batch} examples train nothing; take at least one of one.")
    pool = vector_interchange(name, _POOL, seed=1_000_003 * (seed + 1))
    network = VectorMlp(pool.base.shape[1], seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at, number = 0, 0
    for _ in progress(list(range(steps)), "steps"):
        if at + batch > len(pool):
            at, number = 0, number + 1
            pool = vector_interchange(name, _POOL, seed=1_000_003 * (seed + 1) + number)
        rows = slice(at, at + batch)
        at += batch
        optimizer.zero_grad()
        F.cross_entropy(network(pool.base[rows]), pool.answer[rows].long()).backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


class MlpContinuation(Continuation):
    """The layers of a network as places, and examples; layers count from 1, place 0 is layer 1.

    A variable that an example does not exchange has the base's own state as its source.

    Args:
        network: no gradient flows to its weights.
        examples: base, sources, and what is exchanged.

    Raises:
        ShapeError: examples of another width.
    """

    def __init__(self, network: VectorMlp, examples: VectorInterchange) -> None:
        if (found := examples.base.shape[1]) != network.width:
            raise ShapeError(f"Examples of width {found} for a network of width {network.width}.")
        self.network, self.inputs = network, examples.base
        with torch.no_grad():
            self.base = network.states(examples.base)
            self.sources = tuple(
                torch.where(exchanged[:, None], network.states(source), self.base)
                for source, exchanged in zip(examples.sources, examples.exchanged, strict=True)
            )

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """Logits of the rest of the network."""
        places = place.unique().tolist()
        rows = [(place == one).nonzero()[:, 0] for one in places]
        found = [self.network.outputs(one + 1, values[some]) for one, some in zip(places, rows, strict=True)]
        return torch.cat(found)[torch.cat(rows).argsort()]

    def base_outputs(self, example: Tensor) -> Tensor:
        """Logits of the base run."""
        return self.network(self.inputs[example])
