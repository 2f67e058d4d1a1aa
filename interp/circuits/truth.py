"""Scores against a known circuit: how well they put true edges, or nodes, before all others."""

from __future__ import annotations

import numpy as np

from interp.circuits.results import EdgeScores, NodeScores
from interp.errors import InterpError
from interp.tasks.truth import GroundTruth


def auc(scores: EdgeScores | NodeScores, truth: GroundTruth, *, ablation: str | None = None) -> float:
    """The chance that a true edge has a higher |score| than another one; ties count one half.

    1 is a perfect order, 0.5 what random scores give, and what equal scores give. A node is true if a true edge
    leaves it.

    Args:
        ablation: under which the circuit is true; if not given, that of the scores (of most, `"resample"`).

    Raises:
        InterpError: scores of another model; an ablation for which no truth is known; a circuit of every edge or node,
            which leaves nothing to tell apart.

    Source: the area under the ROC curve, as in InterpBench (Gupta et al. 2024, arXiv:2407.14494) and MIB, over all
        edges of the graph and not only over those that a circuit could use.
    """
    from scipy.stats import rankdata

    graph = scores.graph
    if graph.weights != truth.model.weights_hash:
        raise InterpError(
            f"These scores are of {graph.model}; the circuit of {truth.name} is one of {truth.model.name}."
        )
    under = ablation or str(scores.provenance.get("ablation", "resample"))
    true = np.zeros(graph.edges.shape, dtype=bool)
    for edge in truth.edges(under):
        true[graph.index(edge)] = True
    real, values = graph.edges, np.abs(scores.scores)
    labels, values = (true.any(1), values) if isinstance(scores, NodeScores) else (true[real], values[real])
    n_true, n_false = int(labels.sum()), int((~labels).sum())
    if not n_true or not n_false:
        raise InterpError(f"{truth.name}: {n_true} are true and {n_false} are not; an order needs some of both.")
    below = rankdata(values)[labels].sum() - n_true * (n_true + 1) / 2
    return float(below / (n_true * n_false))
