"""How near a concept graph comes to one that is known, and what frequencies alone would have said.

Concepts are compared by name: name the nodes of both graphs alike first (`networkx.relabel_nodes`), by which latent
matches which true concept. A true concept that no latent matches takes its edges with it: they count as missed.

`frequency_tree` is the baseline that a graph must beat. Parents fire more often than their children in any taxonomy, so
how often latents fire tells much of it, without a look at what fires with what.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from interp.concepts.graph_result import ConceptGraph

if TYPE_CHECKING:
    from networkx import DiGraph


@dataclass(frozen=True, slots=True)
class GraphScore:
    """Of a directed graph against the true one; NaN where there is nothing to count.

    Attributes:
        precision: share of its edges that are true, arrows included.
        recall: share of the true edges that it has.
        f1: 2 · right / (its edges + true edges).
        ancestor_f1: the same of pairs with a path from one to the other, which forgives an edge that skips a level.
    """

    precision: float
    recall: float
    f1: float
    ancestor_f1: float


def score_graph(found: DiGraph, truth: DiGraph) -> GraphScore:
    """Edges and ancestors of a graph against the true ones."""
    from networkx import transitive_closure

    mine, true = set(found.edges), set(truth.edges)
    over, under = (set(transitive_closure(graph, reflexive=False).edges) for graph in (found, truth))
    right = len(mine & true)
    return GraphScore(
        _share(right, len(mine)),
        _share(right, len(true)),
        _share(2 * right, len(mine) + len(true)),
        _share(2 * len(over & under), len(over) + len(under)),
    )


def frequency_tree(graph: ConceptGraph) -> DiGraph:
    """A tree from frequencies only: the parent of a latent is the rarest of the level before that is not rarer than it.

    Where all are rarer, it is the most frequent one. Latents that are never on have no edges.
    """
    from networkx import DiGraph

    frequency, level, names = graph.data["frequency"].values, graph.data["level"].values, graph.names
    tree = DiGraph()
    tree.add_nodes_from(names)
    order = [one["name"] for one in graph.provenance["levels"]]
    for before, after in pairwise(order):
        parents = [i for i in range(len(names)) if level[i] == before and frequency[i] > 0]
        for child in (i for i in range(len(names)) if level[i] == after and frequency[i] > 0):
            if not parents:
                continue
            above = [i for i in parents if frequency[i] >= frequency[child]]
            parent = min(above, key=frequency.__getitem__) if above else max(parents, key=frequency.__getitem__)
            tree.add_edge(names[parent], names[child])
    return tree


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
