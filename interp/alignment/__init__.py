"""Alignment: does a network compute a variable of a causal model, and where? Start with `align`."""

from interp.alignment.continuation import Continuation, FunctionContinuation
from interp.alignment.fit import Answered, Cells, Fitted, Training, answers, fit
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import AlignmentMap
from interp.alignment.results import CONTROLS, Alignment
from interp.alignment.search import align

__all__ = [
    "CONTROLS", "Alignment", "AlignmentMap", "Answered", "Cells", "Continuation", "Fitted", "FunctionContinuation",
    "LanguageContinuation", "Place", "Training", "align", "answers", "fit",
]  # fmt: skip
