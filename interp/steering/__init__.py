"""Steering: bringing a concept, or taking one out, by edits of states or of weights; and measuring what that did."""

from interp.steering.closed_form import edit_concept
from interp.steering.concepts import Concept, Latent, concept, concept_of_latent, project_out
from interp.steering.controls import random_concept
from interp.steering.counterfactual import CounterfactualMap, counterfactual_map, paired_states
from interp.steering.doses import dose_response
from interp.steering.edit_report import EditReport, edit_report
from interp.steering.families import Family, family, one_against_rest
from interp.steering.guidance import antisymmetric, x0_only
from interp.steering.measured import Manifold, Measured, language_states, manifold, picture_states
from interp.steering.picture_response import PictureGoal, scenes_for
from interp.steering.response import Best, DoseResponse
from interp.steering.steered import SteeredPictures, SteeredText, steer
from interp.steering.text_response import TextGoal
from interp.steering.weight_edit import EditedDenoiser, load_edit, random_edit

__all__ = [
    "Best", "Concept", "CounterfactualMap", "DoseResponse", "EditReport", "EditedDenoiser", "Family", "Latent",
    "Manifold", "Measured", "PictureGoal", "SteeredPictures", "SteeredText", "TextGoal", "antisymmetric", "concept",
    "concept_of_latent", "counterfactual_map", "dose_response", "edit_concept", "edit_report", "family",
    "language_states", "load_edit", "manifold", "one_against_rest", "paired_states", "picture_states", "project_out",
    "random_concept", "random_edit", "scenes_for", "steer", "x0_only",
]  # fmt: skip
