"""Concepts: which units agree with one and cause it, and what the latents of a dictionary stand for."""

from interp.concepts.atlas import Atlas, atlas
from interp.concepts.coded_rows import CodedRows, coded_rows
from interp.concepts.dissection import DissectionResult, dissect
from interp.concepts.labels import WORDS, Labels, cell_labels, label_latents, token_labels
from interp.concepts.token_effects import TokenEffects, token_effects
from interp.concepts.unit_effects import UnitEffectResult, unit_effects
from interp.concepts.units import Channels, Directions, Units

__all__ = [
    "WORDS",
    "Atlas",
    "Channels",
    "CodedRows",
    "Directions",
    "DissectionResult",
    "Labels",
    "TokenEffects",
    "UnitEffectResult",
    "Units",
    "atlas",
    "cell_labels",
    "coded_rows",
    "dissect",
    "label_latents",
    "token_effects",
    "token_labels",
    "unit_effects",
]
