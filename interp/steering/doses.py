"""`dose_response`: what each dose of each way of steering brings, and what it damages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.errors import InterpError
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel
from interp.steering.picture_response import PictureGoal, picture_dose_response
from interp.steering.response import DoseResponse, Method
from interp.steering.text_response import TextGoal, text_dose_response


def dose_response(
    model: LanguageModel | Denoiser,
    goal: TextGoal | PictureGoal,
    methods: Mapping[str, Method],
    doses: Sequence[float],
    **settings: Any,
) -> DoseResponse:
    """Steer at every dose by every method, and measure.

    Args:
        goal: what shall appear, or go: of texts a `TextGoal`, of pictures of the shapes world a `PictureGoal`.
        methods: by name, each a function from a dose to edits (such as `concept.add`), or edits without a dose.
        doses: one axis for all methods, each in its own unit; 0 is worth asking for.
        settings: of `interp.steering.text_response.text_dose_response` or of
            `interp.steering.picture_response.picture_dose_response`.

    Raises:
        InterpError: a goal of the other kind of model; as those.
    """
    if isinstance(model, LanguageModel) and isinstance(goal, TextGoal):
        return text_dose_response(model, goal, methods, doses, **settings)
    if isinstance(model, Denoiser) and isinstance(goal, PictureGoal):
        return picture_dose_response(model, goal, methods, doses, **settings)
    kinds = "texts (TextGoal)" if isinstance(model, LanguageModel) else "pictures (PictureGoal)"
    raise InterpError(f"{model.name} makes {kinds}; the goal is a {type(goal).__name__}.")
