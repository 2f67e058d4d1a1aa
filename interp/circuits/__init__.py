"""Circuits: the subgraph of a model that does a task, and how far to trust it."""

from interp.circuits.acdc import acdc
from interp.circuits.evaluate import Evaluation, evaluate
from interp.circuits.graph import Graph
from interp.circuits.head_gating import HeadGates, HeadToggles, head_gating, toggle_heads
from interp.circuits.masks import edge_masks, node_gates
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

__all__ = [
    "MIB_SIZES",
    "Circuit",
    "EdgePatching",
    "EdgeScores",
    "Evaluation",
    "Graph",
    "HeadGates",
    "HeadToggles",
    "NodeScores",
    "acdc",
    "attribution_patching",
    "circuit",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "edge_masks",
    "evaluate",
    "exact_edges",
    "exact_nodes",
    "greedy",
    "head_gating",
    "nested",
    "node_gates",
    "prune",
    "random_scores",
    "read_mib",
    "score",
    "threshold",
    "toggle_heads",
    "top_n",
    "write_mib",
]
