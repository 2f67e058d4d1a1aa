"""Hierarchies of concepts whose truth is known, to test what claims to find them.

Three levels: `high` concepts, `low` concepts, and what is observed. Two ways in which high and low belong together:

- `latent_hierarchy`: a high concept *causes* its low ones. High concepts are independent; a low one is a function of
  its parents, with noise.
- `selection_hierarchy`: a high concept is *composed of* its low ones, and only admissible compositions are seen. Low
  concepts are proposed independently of one another; a row is kept if the parts of every high concept agree with it.
  The arrow goes from low to high, and low concepts depend on one another only because rows were selected.

What is observed is caused by the low concepts, x = φ(A · low) + noise with φ(u) = u where u > 0, else 0.3 u. Edges
between adjacent levels are few, unless `dense`: every low concept, and every observed channel, then depends on
everything above it, and nothing sparse is there to be found.

Assumptions of the theory that these worlds meet: edges run between adjacent levels only; every concept has at least
two *pure* children, which have no other parent; no two concepts have the same children; noise is independent. That the
learner is told how many concepts a level has is one more, which the theory does not make.

Sources: Kong et al. 2025 (arXiv:2512.10720) for selection, of which we know the arrows and the conditioning but no
recipe for data; Kong et al. 2024 (arXiv:2406.00519) and Prashant et al. 2025 (arXiv:2411.19556) for latent hierarchies
and pure children. The functions and sizes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import ShapeError

DISSENT = 0.05
"""Probability with which a discrete composition with one dissenting part is admitted."""
FLIPPED = 0.03
"""Share of discrete low concepts that are not as their parents say."""


class Sizes(NamedTuple):
    """How many variables a level has."""

    observed: int = 48
    low: int = 12
    high: int = 3


@dataclass(frozen=True, slots=True, eq=False)
class ConceptHierarchy:
    """Rows of three levels, each column of zero mean and unit variance, and the edges between them.

    Attributes:
        low_edges: which observed channel depends on which low concept.
        high_edges: which low concept belongs to which high one.
    """

    observed: Float[Tensor, "row channel"]
    low: Float[Tensor, "row low"]
    high: Float[Tensor, "row high"]
    low_edges: Bool[Tensor, "channel low"]
    high_edges: Bool[Tensor, "low high"]


def latent_hierarchy(
    rows: int, *, discrete: bool = False, dense: bool = False, sizes: Sizes = Sizes(), seed: int = 0
) -> ConceptHierarchy:
    """High concepts cause low ones.

    Continuous: high is uniform, low = φ(W · high) plus noise of a fifth of its variance. Discrete, of values ±1: a low
    concept is on if all of its parents are in the state that it asks for, and 3 % are flipped; with `dense` edges, if
    their weighted sum is positive.

    Args:
        dense: all edges between adjacent levels: the control in which no sparse graph can be found.

    Raises:
        ShapeError: fewer than 2 rows; sizes that leave a concept without two pure children.
    """
    generator, high_edges, low_edges = _begun(rows, sizes, dense, seed, shared=min(sizes.high, sizes.low // 4))
    weights = _weights(high_edges, generator)
    high = _proposed((rows, sizes.high), discrete, generator)
    if discrete:
        summed = high @ (weights if dense else weights.sign()).T
        asked = 0.0 if dense else high_edges.sum(1) - 0.5
        flipped = torch.rand(summed.shape, generator=generator) < FLIPPED
        low = torch.where((summed > asked) ^ flipped, 1.0, -1.0)
    else:
        low = _standard(_bent(high @ weights.T))
        low = low + 0.2**0.5 * torch.randn(low.shape, generator=generator)
    return _observed(low, high, low_edges, high_edges, generator)


def selection_hierarchy(
    rows: int,
    *,
    discrete: bool = False,
    dense: bool = False,
    agreement: float = 0.5,
    sizes: Sizes = Sizes(),
    seed: int = 0,
) -> ConceptHierarchy:
    """High concepts are composed of low ones; compositions whose parts agree are kept.

    Each low concept is part of one high concept. Parts are proposed uniformly and independently, each with a sign.
    Continuous: the whole is the mean of the signed parts, and is admitted if they lie within `agreement` of it, root
    mean square. Discrete, of values ±1: the whole is what most parts say, and is admitted if they are of one mind, or
    with a probability of `DISSENT` if one dissents.

    Args:
        dense: of the observed channels. (Were every low concept part of every high one, all high ones would be one.)
        agreement: of continuous parts, in standard deviations of a proposed part; the smaller, the nearer are the
            parts of a whole to being copies of each other.

    Raises:
        ShapeError: as `latent_hierarchy`; an agreement that is not above 0.
    """
    if not agreement > 0:
        raise ShapeError(f"agreement={agreement}: a distance above 0; at 0 no composition would be admitted.")
    generator, high_edges, low_edges = _begun(rows, sizes, dense, seed, shared=0)
    if dense:
        high_edges = _edges(sizes.low, sizes.high, 0)
    signs = _weights(high_edges, generator).sign()
    low, high = torch.zeros(rows, sizes.low), torch.zeros(rows, sizes.high)
    for concept, own in enumerate(high_edges.T):
        parts, whole = _admitted(rows, int(own.sum()), None if discrete else agreement, generator)
        low[:, own], high[:, concept] = parts * signs[own, concept], whole
    return _observed(low, high, low_edges, high_edges, generator)


def _admitted(rows: int, parts: int, agreement: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Compositions that were admitted, and their wholes: by rejection, so from exactly the law that is described.

    Without an `agreement` parts are discrete.
    """
    discrete, kept, found = agreement is None, [], 0
    while found < rows:
        proposed = _proposed((4 * rows, parts), discrete, generator)
        mean = proposed.mean(1, keepdim=True)
        if agreement is None:
            dissent = (proposed != mean.sign()).sum(1)
            lucky = torch.rand(len(proposed), generator=generator) < DISSENT
            admitted = (mean[:, 0] != 0) & ((dissent == 0) | (dissent == 1) & lucky)
        else:
            admitted = (proposed - mean).square().mean(1) < agreement**2
        kept.append(proposed[admitted])
        found += int(admitted.sum())
    low = torch.cat(kept)[:rows]
    mean = low.mean(1)
    return low, mean.sign() if discrete else mean


def _begun(rows: int, sizes: Sizes, dense: bool, seed: int, shared: int) -> tuple[torch.Generator, Tensor, Tensor]:
    if rows < 2:
        raise ShapeError(f"{rows} rows; give at least 2.")
    low_shared = min(sizes.low, sizes.observed // 4)
    for children, parents, both in ((sizes.low, sizes.high, shared), (sizes.observed, sizes.low, low_shared)):
        if parents < 1 or children // parents < 2 + (both > 0):
            raise ShapeError(f"{children} children of {parents} concepts leave one without two of its own.")
    edges = _edges(sizes.low, sizes.high, shared), _edges(sizes.observed, sizes.low, low_shared)
    if dense:
        edges = torch.ones_like(edges[0]), torch.ones_like(edges[1])
    return torch.Generator().manual_seed(seed), *edges


def _edges(children: int, parents: int, shared: int) -> Bool[Tensor, "child parent"]:
    """Every child has a parent, in turn; the first `shared` also have the next one."""
    edges = torch.zeros(children, parents, dtype=torch.bool)
    child = torch.arange(children)
    edges[child, child % parents] = True
    edges[child[:shared], (child[:shared] + 1) % parents] = True
    return edges


def _weights(edges: Tensor, generator: torch.Generator) -> Float[Tensor, "child parent"]:
    size = 0.6 + 0.6 * torch.rand(edges.shape, generator=generator)
    return size * (1 - 2 * torch.randint(0, 2, edges.shape, generator=generator)) * edges


def _proposed(shape: tuple[int, int], discrete: bool, generator: torch.Generator) -> Tensor:
    """Independent variables of unit variance: ±1, or uniform."""
    if discrete:
        return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1
    return 3**0.5 * (2 * torch.rand(shape, generator=generator) - 1)


def _observed(
    low: Tensor, high: Tensor, low_edges: Tensor, high_edges: Tensor, generator: torch.Generator
) -> ConceptHierarchy:
    low = _standard(low)
    x = _standard(_bent(low @ _weights(low_edges, generator).T))
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return ConceptHierarchy(_standard(x), low, _standard(high), low_edges, high_edges)


def _bent(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.3 * x)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)
