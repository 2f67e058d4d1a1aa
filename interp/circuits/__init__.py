"""Circuits: the subgraph of a model that does a task, and how far to trust it."""

from interp.circuits.ablation import ABLATIONS, Ablation
from interp.circuits.acdc import acdc
from interp.circuits.controls import Claim, claim, shuffled_answers
from interp.circuits.evaluate import Evaluation, evaluate
from interp.circuits.graph import Graph
from interp.circuits.head_gating import HeadGates, HeadToggles, head_gating, toggle_heads
from interp.circuits.heads import HeadBehaviour, head_behaviour
from interp.circuits.hypotheses import Trials
from interp.circuits.information_flow import information_flow
from interp.circuits.masks import edge_masks, node_gates
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
from interp.circuits.select import (
    MIB_SIZES,
    circuit,
    greedy,
    nested,
    prune,
    threshold,
    top_n,
)
from interp.circuits.stability import Stability, by_prompts, stability
from interp.circuits.truth import auc
from interp.models.reset import reset

__all__ = [
    "ABLATIONS",
    "MIB_SIZES",
    "Ablation",
    "Circuit",
    "Claim",
    "EdgePatching",
    "EdgeScores",
    "Evaluation",
    "Graph",
    "HeadBehaviour",
    "HeadGates",
    "HeadToggles",
    "NodeScores",
    "PathEffects",
    "Stability",
    "Trials",
    "acdc",
    "attribution_patching",
    "auc",
    "by_prompts",
    "circuit",
    "claim",
    "eap",
    "eap_ig",
    "eap_ig_activations",
    "edge_masks",
    "evaluate",
    "exact_edges",
    "exact_nodes",
    "greedy",
    "head_behaviour",
    "head_gating",
    "information_flow",
    "nested",
    "node_gates",
    "path_patching",
    "prune",
    "random_scores",
    "read_mib",
    "reset",
    "score",
    "senders_into",
    "shuffled_answers",
    "stability",
    "threshold",
    "toggle_heads",
    "top_n",
    "write_mib",
]
