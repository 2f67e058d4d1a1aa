"""Alignment: does a network compute a variable of a causal model, and where? Start with `align`."""

from interp.alignment.abstraction import Abstraction, Interchanges, abstraction
from interp.alignment.capacity import Capacity, Trial, capacity
from interp.alignment.continuation import Continuation, FunctionContinuation
from interp.alignment.directions import closed_form, pls
from interp.alignment.erasure import Erasure, leace
from interp.alignment.failures import describe_failures, failure_rates
from interp.alignment.fit import Answered, Cells, Fitted, Training, answers, fit, interchanged
from interp.alignment.joint import Aligned, joint_outputs, subsets
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.language_abstraction import language_abstraction
from interp.alignment.maps import Affine, AlignmentMap, LowRank, Subspace, Whole
from interp.alignment.masks import Boundless, UnitMask
from interp.alignment.numbers import NumberFlips, number_flips
from interp.alignment.odds import GYM_METHODS, Gym, causal_gym, gym_tasks
from interp.alignment.overlap import Overlap, overlap
from interp.alignment.pictures import PictureAlignment, align_pictures
from interp.alignment.prediction import PREDICTION_CONTROLS, Prediction, predict_correctness
from interp.alignment.results import CONTROLS, Alignment
from interp.alignment.revnet import RevNet
from interp.alignment.screening import Screening
from interp.alignment.search import align

__all__ = [
    "CONTROLS",
    "GYM_METHODS",
    "PREDICTION_CONTROLS",
    "Abstraction",
    "Affine",
    "Aligned",
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
    "Interchanges",
    "LanguageContinuation",
    "LowRank",
    "NumberFlips",
    "Overlap",
    "PictureAlignment",
    "Place",
    "Prediction",
    "RevNet",
    "Screening",
    "Subspace",
    "Training",
    "Trial",
    "UnitMask",
    "Whole",
    "abstraction",
    "align",
    "align_pictures",
    "answers",
    "capacity",
    "causal_gym",
    "closed_form",
    "describe_failures",
    "failure_rates",
    "fit",
    "gym_tasks",
    "interchanged",
    "joint_outputs",
    "language_abstraction",
    "leace",
    "number_flips",
    "overlap",
    "pls",
    "predict_correctness",
    "subsets",
]
