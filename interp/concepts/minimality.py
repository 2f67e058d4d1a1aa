"""Concepts of a level, learned by the fewest edges that explain the level below: causal minimality.

    c = standardised(E(x)),    x̂_i = f_i(c_1 … c_n),    loss = mean_i (x_i − x̂_i)² + price · mean_i Σ_j strength_ij

E is a network with one hidden layer beside a linear map; each f_i is a small network of its own, with one hidden layer,
h = leaky(U_i c + u_i), x̂_i = w_i · h + b_i. The *strength* of an edge j → i is Σ_h |w_ih| |U_ihj|: no slope of f_i by
c_j is steeper, and since every c_j has unit variance and every x_i too, it is in standard deviations of x_i per
standard deviation of c_j. Codes may correlate with each other; nothing asks for independence.

With price 0 this is a plain autoencoder: any invertible mixture of the concepts does as well. The price is the only
difference between the two, so a comparison at the same `Learning` is one at equal architecture and budget.

A graph with few edges has many local optima: several starts are trained side by side, and the one with the smallest
loss on all rows is kept, for either price.

Source: the claim is that of Kong et al. 2025 (arXiv:2512.10720), "causal minimality": sparse edges between adjacent
levels give concepts one by one. Their learner is not published in what we could read; node functions with gated inputs
are those of Prashant et al. 2025 (arXiv:2411.19556), who sample binary gates where we price strengths, and keep the
best of several runs as we do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.dictionaries.activations import check_finite
from interp.errors import InterpError, ShapeError

_HIDDEN = 32
"""Width of the encoder's hidden layer."""
_NODE = 2
"""Hidden units of each f_i."""
_SLOPE = 0.1
_FREE = 0.4
"""Share of the steps over which the price rises from 0. Asked to be sparse from the start, a concept may be given up
before it is found."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How a level is learned.

    Attributes:
        price: of an edge's strength, as a share of the variance; 0: none.
        steps: of Adam.
        batch: rows per step.
        learning_rate: at first; it falls to 0 over the second half.
        starts: trained side by side, of which the best is kept.
        seed: of the starts and of the order of rows.

    Raises:
        InterpError: a number out of range.
    """

    price: float | int = 0.1
    steps: int = 500
    batch: int = 128
    learning_rate: float = 3e-2
    starts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.starts) < 1 or self.price < 0 or not self.learning_rate > 0:
            raise InterpError(
                f"price={self.price}, steps={self.steps}, batch={self.batch}, starts={self.starts}, "
                f"learning_rate={self.learning_rate}: a price is not negative, the others are positive."
            )


@dataclass(frozen=True, slots=True, eq=False)
class LearnedLevel:
    """Concepts of one level.

    Attributes:
        codes: of every row, of zero mean and unit variance.
        strength: of the edge from each concept to each variable below.
        unexplained: share of the variance below that the concepts leave.
    """

    codes: Float[Tensor, "row concept"]
    strength: Float[Tensor, "child concept"]
    unexplained: float


def learn_level(x: Float[Tensor, "row child"], n_concepts: int, learning: Learning = Learning()) -> LearnedLevel:
    """The concepts above some variables.

    Args:
        x: variables of the level below; standardised here, each by itself.
        n_concepts: how many concepts to learn.

    Raises:
        ShapeError: no concept, or not fewer than there are variables; fewer rows than a batch; a variable that is
            constant or not finite.
    """
    return _side_by_side([x], n_concepts, [learning])[0]


def learn_levels(
    observed: Sequence[Float[Tensor, "row child"]], sizes: Sequence[int], learnings: Sequence[Learning]
) -> list[list[LearnedLevel]]:
    """Concepts, then concepts of these concepts, and so on: each level is learned on the codes of the one below.

    Several problems are learned at once, in the same operations, and none sees another.

    Args:
        observed: of each problem, variables of the lowest level; all of one shape.
        sizes: concepts of each level, the lowest first.
        learnings: of each problem; they may differ in price and seed.

    Returns:
        The levels of each problem, the lowest first.

    Raises:
        ShapeError: no problem, no level, problems of different shapes; as `learn_level`.
        InterpError: learnings that differ in more than price and seed.
    """
    if not sizes:
        raise ShapeError("No level is asked for: give the number of concepts of each.")
    levels: list[list[LearnedLevel]] = [[] for _ in observed]
    for number, size in enumerate(sizes):
        below = [own[-1].codes if own else x for x, own in zip(observed, levels, strict=True)]
        now = [replace(learning, seed=learning.seed + 1000 * number) for learning in learnings]
        for own, level in zip(levels, _side_by_side(below, size, now), strict=True):
            own.append(level)
    return levels


def _side_by_side(
    observed: Sequence[Float[Tensor, "row child"]], n_concepts: int, learnings: Sequence[Learning]
) -> list[LearnedLevel]:
    """A level of several problems: the parameters of each start of each are entries of one leading axis."""
    how = learnings[0] if learnings else Learning()
    x = _standardised(observed, n_concepts, how)
    if len(learnings) != len(x) or any(replace(own, price=how.price, seed=how.seed) != how for own in learnings):
        raise InterpError(f"{len(learnings)} learnings of {len(x)} problems: one each, alike but for price and seed.")
    generators = [torch.Generator().manual_seed(own.seed) for own in learnings]
    starts = _Starts(x.shape[2], n_concepts, how.starts, generators)
    prices = torch.tensor([float(own.price) for own in learnings]).repeat_interleave(how.starts)
    optimizer = torch.optim.Adam(starts.parameters(), lr=how.learning_rate, fused=True)
    problem = torch.arange(len(x))[:, None]
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * min(1.0, 2 * (1 - step / how.steps))
        rows = torch.stack([torch.randint(0, x.shape[1], (how.batch,), generator=g) for g in generators])
        batch = x[problem, rows].repeat_interleave(how.starts, 0)
        loss = starts.unexplained(batch, starts.codes(batch))
        risen = min(1.0, step / (_FREE * how.steps))
        loss = loss + risen * prices * starts.strength().sum(2).mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        whole = x.repeat_interleave(how.starts, 0)
        codes, strength = starts.codes(whole), starts.strength()
        left = starts.unexplained(whole, codes)
        best = (left + prices * strength.sum(2).mean(1)).view(len(x), how.starts).argmin(1)
        best = (best + how.starts * torch.arange(len(x))).tolist()
    return [LearnedLevel(codes[i], strength[i], float(left[i])) for i in best]


def _standardised(
    observed: Sequence[Tensor], n_concepts: int, learning: Learning
) -> Float[Tensor, "problem row child"]:
    if not observed or len({x.shape for x in observed}) > 1:
        raise ShapeError(f"Problems of shapes {[list(x.shape) for x in observed]}: give one or more, of one shape.")
    for x in observed:
        check_finite(x)
    x = torch.stack(list(observed))
    if not 0 < n_concepts < x.shape[2]:
        raise ShapeError(f"{n_concepts} concepts above {x.shape[2]} variables: give fewer, and at least one.")
    if x.shape[1] < learning.batch:
        raise ShapeError(f"{x.shape[1]} rows are fewer than a batch of {learning.batch}.")
    deviation = x.std(1, correction=0, keepdim=True)
    if not deviation.min() > 0:
        raise ShapeError(f"Variable {int(deviation.amin(0).argmin())} is constant; leave it out.")
    return ((x - x.mean(1, keepdim=True)) / deviation).float()


class _Starts(nn.Module):
    """Several learners side by side, of which none sees another: every parameter has a leading axis for them.

    Problems of the same seed begin from the same parameters, whatever stands beside them.
    """

    def __init__(self, n_children: int, n_concepts: int, n_starts: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()

        def drawn(*shape: int, fan_in: int) -> nn.Parameter:
            each = [torch.randn(n_starts, *shape, generator=generator) for generator in generators]
            return nn.Parameter(torch.cat(each) / fan_in**0.5)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(n_starts * len(generators), *shape))

        self.into, self.into_bias = drawn(n_children, _HIDDEN, fan_in=n_children), zeros(1, _HIDDEN)
        self.out = drawn(_HIDDEN, n_concepts, fan_in=_HIDDEN)
        self.straight = drawn(n_children, n_concepts, fan_in=n_children)
        self.reads = drawn(n_concepts, n_children * _NODE, fan_in=n_concepts)
        self.reads_bias = zeros(1, n_children * _NODE)
        self.writes, self.writes_bias = drawn(n_children, _NODE, fan_in=_NODE), zeros(1, n_children)

    def codes(self, x: Float[Tensor, "start row child"]) -> Float[Tensor, "start row concept"]:
        """Standardised over the rows given."""
        hidden = F.leaky_relu(torch.baddbmm(self.into_bias, x, self.into), _SLOPE)
        c = torch.baddbmm(torch.bmm(x, self.straight), hidden, self.out)
        c = c - c.mean(1, keepdim=True)
        return c / (c.square().mean(1, keepdim=True) + 1e-6).sqrt()

    def unexplained(self, x: Float[Tensor, "start row child"], codes: Tensor) -> Float[Tensor, "start"]:
        """Mean squared error, of variables of unit variance."""
        hidden = F.leaky_relu(torch.baddbmm(self.reads_bias, codes, self.reads), _SLOPE)
        hidden = hidden.view(*codes.shape[:2], *self.writes.shape[1:])
        out = (hidden * self.writes[:, None]).sum(3) + self.writes_bias
        return (out - x).square().mean((1, 2))

    def strength(self) -> Float[Tensor, "start child concept"]:
        reads = self.reads.abs().view(len(self.reads), -1, *self.writes.shape[1:])
        return (reads * self.writes.abs()[:, None]).sum(3).transpose(1, 2)
