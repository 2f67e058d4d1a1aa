"""Concepts in units: which units agree with a concept, which of them cause it, and which concepts compose which."""

from interp.concepts.clamped import Clamping
from interp.concepts.concept_graph import concept_graph
from interp.concepts.dissection import DissectionResult, dissect
from interp.concepts.graph_result import Comparison, ConceptGraph
from interp.concepts.graph_truth import GraphScore, frequency_tree, score_graph
from interp.concepts.hierarchies import ConceptHierarchy, latent_hierarchy, selection_hierarchy
from interp.concepts.identifiability import IdentifiabilityResult, identifiability
from interp.concepts.levels import ConceptLevel, matryoshka_levels
from interp.concepts.minimality import Learning, learn_levels
from interp.concepts.unit_effects import UnitEffectResult, unit_effects
from interp.concepts.units import Channels, Directions, Units

__all__ = [
    "Channels",
    "Clamping",
    "Comparison",
    "ConceptGraph",
    "ConceptHierarchy",
    "ConceptLevel",
    "Directions",
    "DissectionResult",
    "GraphScore",
    "IdentifiabilityResult",
    "Learning",
    "UnitEffectResult",
    "Units",
    "concept_graph",
    "dissect",
    "frequency_tree",
    "identifiability",
    "latent_hierarchy",
    "learn_levels",
    "matryoshka_levels",
    "score_graph",
    "selection_hierarchy",
    "unit_effects",
]
