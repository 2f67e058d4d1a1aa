"""Concepts in units: which units agree with a concept, and which of them cause it."""

from interp.concepts.dissection import DissectionResult, dissect
from interp.concepts.unit_effects import UnitEffectResult, unit_effects
from interp.concepts.units import Channels, Directions, Units

__all__ = ["Channels", "Directions", "DissectionResult", "UnitEffectResult", "Units", "dissect", "unit_effects"]
