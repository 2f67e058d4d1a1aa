"""Circuits: the subgraph of a model that does a task, and how far to trust it."""

from interp.circuits.controls import Claim, claim, reset, shuffled_answers
from interp.circuits.evaluate import Evaluation, evaluate
from interp.circuits.graph import Graph
from interp.circuits.mib import read_mib, write_mib
from interp.circuits.patching import EdgePatching
from interp.circuits.results import Circuit, EdgeScores, NodeScores
from interp.circuits.score import (
    attribution_patching,
    eap,
    eap_ig,
    eap_ig_activations,
    exact_edges,
    exact_nodes,
    random_scores,
    score,
)
from interp.circuits.select import MIB_SIZES, circuit, greedy, nested, prune, threshold, top_n
from interp.circuits.truth import auc

__all__ = [
    "MIB_SIZES",
    "Circuit",
    "Claim",
    "EdgePatching",
    "EdgeScores",
    "Evaluation",
    "Graph",
    "NodeScores",
    "attribution_patching",
    "auc",
    "circuit",
    "claim",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "evaluate",
    "exact_edges",
    "exact_nodes",
    "greedy",
    "nested",
    "prune",
    "random_scores",
    "read_mib",
    "reset",
    "score",
    "shuffled_answers",
    "threshold",
    "top_n",
    "write_mib",
]
