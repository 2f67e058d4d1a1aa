"""Alignment: does a network compute a variable of a causal model, and where? Start with `align`."""

from interp.alignment.capacity import Capacity, Trial, capacity
from interp.alignment.continuation import Continuation, FunctionContinuation
from interp.alignment.directions import closed_form, pls
from interp.alignment.erasure import Erasure, leace
from interp.alignment.fit import Answered, Cells, Fitted, Training, answers, fit, interchanged
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import Affine, AlignmentMap, LowRank, Subspace, Whole
from interp.alignment.masks import Boundless, UnitMask
from interp.alignment.odds import GYM_METHODS, Gym, causal_gym, gym_tasks
from interp.alignment.pictures import PictureAlignment, align_pictures
from interp.alignment.prediction import PREDICTION_CONTROLS, Prediction, predict_correctness
from interp.alignment.results import CONTROLS, Alignment
from interp.alignment.revnet import RevNet
from interp.alignment.search import align

__all__ = [
    "CONTROLS",
    "GYM_METHODS",
    "PREDICTION_CONTROLS",
    "Affine",
    "Alignment",
    "AlignmentMap",
    "Answered",
    "Boundless",
    "Capacity",
    "Cells",
    "Continuation",
    "Erasure",
    "Fitted",
    "FunctionContinuation",
    "Gym",
    "LanguageContinuation",
    "LowRank",
    "PictureAlignment",
    "Place",
    "Prediction",
    "RevNet",
    "Subspace",
    "Training",
    "Trial",
    "UnitMask",
    "Whole",
    "align",
    "align_pictures",
    "answers",
    "capacity",
    "causal_gym",
    "closed_form",
    "fit",
    "gym_tasks",
    "interchanged",
    "leace",
    "pls",
    "predict_correctness",
]
