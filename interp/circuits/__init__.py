"""Circuits: the subgraph of a model that does a task, and how far to trust it."""

from interp.circuits.ablation import ABLATIONS, Ablation
from interp.circuits.evaluate import Evaluation, evaluate
from interp.circuits.graph import Graph
from interp.circuits.heads import HeadBehaviour, head_behaviour
from interp.circuits.hypotheses import Trials
from interp.circuits.information_flow import information_flow
from interp.circuits.mib import read_mib, write_mib
from interp.circuits.patching import EdgePatching
from interp.circuits.paths import PathEffects, path_patching, senders_into
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
from interp.circuits.stability import Stability, by_prompts, stability

__all__ = [
    "ABLATIONS",
    "MIB_SIZES",
    "Ablation",
    "Circuit",
    "EdgePatching",
    "EdgeScores",
    "Evaluation",
    "Graph",
    "HeadBehaviour",
    "NodeScores",
    "PathEffects",
    "Stability",
    "Trials",
    "attribution_patching",
    "by_prompts",
    "circuit",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "evaluate",
    "exact_edges",
    "exact_nodes",
    "greedy",
    "head_behaviour",
    "information_flow",
    "nested",
    "path_patching",
    "prune",
    "random_scores",
    "read_mib",
    "score",
    "senders_into",
    "stability",
    "threshold",
    "top_n",
    "write_mib",
]
