"""Scores of dictionaries: against known factors, in the model, between seeds, and beside their baselines."""

from interp.concepts.scores.result import DictionaryScores
from interp.concepts.scores.score import score_dictionary
from interp.concepts.scores.splice import SpliceResult, splice_pictures, splice_texts
from interp.concepts.scores.stability import AtomStability, atom_stability

__all__ = [
    "AtomStability",
    "DictionaryScores",
    "SpliceResult",
    "atom_stability",
    "score_dictionary",
    "splice_pictures",
    "splice_texts",
]
