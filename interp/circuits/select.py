"""From scores to circuits: which edges to keep.

`top_n` and `threshold` look at each edge alone; `greedy` grows from the logits, so that every edge has a way to the
output; `prune` takes away what cannot matter. All are deterministic: ties go to the earlier sender.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.circuits.graph import Graph
from interp.circuits.results import Circuit, EdgeScores, NodeScores
from interp.errors import InterpError

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which MIB evaluates (Mueller et al. 2025, arXiv:2504.13151)."""
Scored = EdgeScores | Circuit


def top_n(scores: Scored, n: int, *, absolute: bool = True) -> Circuit:
    """The n edges of the highest scores.

    Args:
        absolute: rank by |score|: edges that speak against the answer belong to the mechanism too. MIB ranks so for
            CMD, and by the signed score for CPR.

    Raises:
        InterpError: n is not between 1 and the number of edges; a score that is not finite.
    """
    ranks = _ranked(scores, absolute)
    check_size(scores.graph, n)
    chosen = np.zeros(scores.graph.edges.shape, dtype=bool)
    order = np.argsort(-ranks, axis=None, kind="stable")[:n]
    chosen.flat[order] = True
    return circuit(scores, chosen, f"the {n} highest {'|score|' if absolute else 'scores'}")


def threshold(scores: Scored, least: float, *, absolute: bool = True) -> Circuit:
    """Every edge whose score (or |score|) is at least `least`.

    Raises:
        InterpError: no edge has such a score (the message says what the highest is); a score that is not finite.
    """
    ranks = _ranked(scores, absolute)
    chosen = scores.graph.edges & (ranks >= least)
    if not chosen.any():
        raise InterpError(f"No edge scores {least} or more, so the circuit is empty; the highest is {ranks.max():.3g}.")
    return circuit(scores, chosen, f"{'|score|' if absolute else 'score'} ≥ {least:g}")


def greedy(scores: Scored, n: int, *, absolute: bool = True) -> Circuit:
    """Grow a circuit of n edges from the logits: always the highest-scoring edge into what is already connected.

    Raises:
        InterpError: as `top_n`.
    """
    ranks, graph = _ranked(scores, absolute), scores.graph
    check_size(graph, n)
    chosen = np.zeros(graph.edges.shape, dtype=bool)
    opened = np.zeros(len(graph.receivers), dtype=bool)
    candidates: list[tuple[float, int, int]] = []

    def connect(node: int) -> None:
        for receiver in np.flatnonzero(graph.feeds[:, node] & ~opened):
            opened[receiver] = True
            for sender in np.flatnonzero(graph.edges[:, receiver]):
                heapq.heappush(candidates, (-ranks[sender, receiver], int(sender), int(receiver)))

    connect(len(graph.nodes) - 1)
    for _ in range(n):
        _, sender, receiver = heapq.heappop(candidates)
        chosen[sender, receiver] = True
        connect(sender)
    return circuit(scores, chosen, f"greedily, {n} edges from the logits by {'|score|' if absolute else 'score'}")


def nested(
    scores: Scored, sizes: Sequence[float] = MIB_SIZES, *, absolute: bool = True, grow: bool = False
) -> list[Circuit]:
    """Circuits of growing size, each inside the next.

    Args:
        sizes: shares of the edges, growing; at least one edge is taken.
        grow: `greedy` instead of `top_n`.

    Raises:
        InterpError: sizes that do not grow from above 0 to at most 1; as `top_n`.
    """
    if not sizes or min(sizes) <= 0 or max(sizes) > 1 or list(sizes) != sorted(set(sizes)):
        raise InterpError(f"Sizes are growing shares of the edges, above 0 and up to 1; got {list(sizes)}.")
    pick = greedy if grow else top_n
    return [pick(scores, max(1, int(size * scores.graph.n_edges)), absolute=absolute) for size in sizes]


def between(scores: NodeScores, least: float, *, absolute: bool = True) -> Circuit:
    """Every edge between nodes whose score (or |score|) is at least `least`. An edge's score is the lower of its ends'.

    A node into which several receivers lead is reached by all of them, and a key that several heads share leads to each
    of these. The logits are always in.

    Raises:
        InterpError: no edge lies between such nodes; a score that is not finite.
    """
    import xarray as xr

    graph, values = scores.graph, np.abs(scores.scores) if absolute else scores.scores
    if not np.isfinite(values).all():
        raise InterpError(f"{int((~np.isfinite(values)).sum())} nodes have scores that are not finite.")
    ends = np.where(graph.feeds, np.append(values, np.inf), -np.inf).max(1)
    lower = np.where(graph.edges, np.minimum(values[:, None], ends), np.nan)
    coords = {"sender": list(graph.senders), "receiver": list(graph.receivers)}
    unit = {"unit": scores.data["score"].attrs["unit"]}
    data = xr.Dataset({"score": (("sender", "receiver"), lower, unit)}, coords)
    data = data.assign({name: scores.data[name] for name in ("clean", "corrupted")})
    chosen = graph.edges & (np.nan_to_num(lower, nan=-np.inf) >= least)
    if not chosen.any():
        raise InterpError(f"No edge lies between nodes that score {least} or more, so the circuit is empty.")
    said = f"all edges between nodes with {'|score|' if absolute else 'score'} ≥ {least:g}"
    return circuit(EdgeScores(data, scores.provenance), chosen, said)


def prune(found: Circuit) -> Circuit:
    """The circuit without dead ends: every edge on a way from the input to the logits. Its behaviour is the same.

    A node that nothing in the circuit reaches computes what it does in the corrupted run; one from which nothing
    leads on changes nothing.

    Raises:
        InterpError: no edge lies on a way from the input to the logits.
    """
    kept = live_edges(found.graph, found.edges)
    if not kept.any():
        raise InterpError("No edge of this circuit lies on a way from the input to the logits: pruned, it is empty.")
    return circuit(found, kept, f"{found.provenance['selection']}, pruned")


def live_edges(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Bool [sender, receiver]: those of some edges that lie on a way from the input to the logits."""
    kept = edges
    while True:
        alive = np.append(kept.any(1), True)  # of the nodes; `logits` always is
        alive &= np.concatenate([[True], (kept.any(0) @ graph.feeds)[1:]])
        connected = kept & alive[:-1, None] & (graph.feeds @ alive)
        if (connected == kept).all():
            return kept
        kept = connected


def random_like(
    found: Circuit, generator: np.random.Generator, among: np.ndarray | None = None, *, typed: bool = True
) -> np.ndarray:
    """Bool [sender, receiver]: as many random edges of every type as the circuit has.

    Args:
        among: bool [sender, receiver], the edges to draw from; all if not given.
        typed: otherwise as many as it has, of whatever type.
    """
    drawn = np.zeros(found.edges.shape, dtype=bool)
    for typed_edges in edge_types(found.graph) if typed else [found.graph.edges]:
        choice = np.flatnonzero(typed_edges if among is None else typed_edges & among)
        drawn.flat[generator.choice(choice, int((typed_edges & found.edges).sum()), replace=False)] = True
    return drawn


def edge_types(graph: Graph) -> list[np.ndarray]:
    """Bool [sender, receiver] per type: a kind of sender (input, head, MLP) and of receiver (query, key, value …)."""
    kinds = [name[0] for name in graph.senders], [name[-2] if name[-1] == ">" else name[0] for name in graph.receivers]
    ends = [[np.array(names) == kind for kind in sorted(set(names))] for names in kinds]
    return [np.outer(sender, receiver) & graph.edges for sender in ends[0] for receiver in ends[1]]


def circuit(scores: Scored, edges: np.ndarray, selection: str, **facts: Any) -> Circuit:
    """A circuit of these edges, chosen from these scores.

    Raises:
        InterpError: no edge, or edges that the graph does not have.
    """
    import xarray as xr

    if edges.shape != scores.graph.edges.shape or (edges & ~scores.graph.edges).any():
        raise InterpError("These are not edges of the scores' graph: senders come before the receivers that read them.")
    if not edges.any():
        raise InterpError("A circuit of no edges is the corrupted run; choose at least one edge.")
    data = scores.data[[name for name in ("score", "error") if name in scores.data]]
    data = data.drop_vars("example", errors="ignore")
    data = data.assign(edge=xr.DataArray(edges, dims=("sender", "receiver")))
    origin = {key: value for key, value in scores.provenance.items() if key != "verdict"}  # that of other edges
    return Circuit(data, {**origin, **facts, "selection": selection})


def _ranked(scores: Scored, absolute: bool) -> np.ndarray:
    """Scores to sort by; −inf where there is no edge."""
    edges, values = scores.graph.edges, scores.scores
    if not np.isfinite(values[edges]).all():
        raise InterpError(f"{int((~np.isfinite(values[edges])).sum())} edges have scores that are not finite.")
    return np.where(edges, np.abs(values) if absolute else values, -np.inf)


def check_size(graph: Graph, n: int) -> None:
    """Refuse a circuit of fewer than one edge or more than there are.

    Raises:
        InterpError: such a number.
    """
    if not 1 <= n <= graph.n_edges:
        raise InterpError(f"A circuit of {n} edges: {graph.model} has {graph.n_edges:,}; take 1 to all of them.")
