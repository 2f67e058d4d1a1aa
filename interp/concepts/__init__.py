"""Concepts: which units agree with one and cause it, what latents stand for, and which concepts compose which."""

from interp.concepts.atlas import Atlas, atlas
from interp.concepts.clamped import Clamping
from interp.concepts.coded_rows import CodedRows, coded_rows
from interp.concepts.concept_graph import concept_graph
from interp.concepts.dissection import DissectionResult, dissect
from interp.concepts.graph_edits import graph_edits, graph_edits_on
from interp.concepts.graph_response import GraphResponse, graph_response
from interp.concepts.graph_result import Comparison, ConceptGraph
from interp.concepts.graph_truth import GraphScore, frequency_tree, score_graph
from interp.concepts.hierarchies import ConceptHierarchy, latent_hierarchy, selection_hierarchy
from interp.concepts.identifiability import IdentifiabilityResult, identifiability
from interp.concepts.label_effects import LabelEffects, label_effects
from interp.concepts.labels import WORDS, Labels, cell_labels, label_latents, token_labels
from interp.concepts.levels import ConceptLevel, matryoshka_levels
from interp.concepts.minimality import Learning, learn_levels
from interp.concepts.page import browse_graph
from interp.concepts.siblings import SiblingEffects, sibling_effects
from interp.concepts.token_effects import TokenEffects, token_effects
from interp.concepts.unit_effects import UnitEffectResult, unit_effects
from interp.concepts.units import Channels, Directions, Units

__all__ = [
    "WORDS",
    "Atlas",
    "Channels",
    "Clamping",
    "CodedRows",
    "Comparison",
    "ConceptGraph",
    "ConceptHierarchy",
    "ConceptLevel",
    "Directions",
    "DissectionResult",
    "GraphResponse",
    "GraphScore",
    "IdentifiabilityResult",
    "LabelEffects",
    "Labels",
    "Learning",
    "SiblingEffects",
    "TokenEffects",
    "UnitEffectResult",
    "Units",
    "atlas",
    "browse_graph",
    "cell_labels",
    "coded_rows",
    "concept_graph",
    "dissect",
    "frequency_tree",
    "graph_edits",
    "graph_edits_on",
    "graph_response",
    "identifiability",
    "label_effects",
    "label_latents",
    "latent_hierarchy",
    "learn_levels",
    "matryoshka_levels",
    "score_graph",
    "selection_hierarchy",
    "sibling_effects",
    "token_effects",
    "token_labels",
    "unit_effects",
]
