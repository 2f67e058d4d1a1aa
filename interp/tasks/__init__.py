"""Prompt pairs and interchanges, generators of tasks, models of known circuits, and causal models to align with."""

from interp.tasks.agreement import agreement
from interp.tasks.capitals import capitals
from interp.tasks.causal_model import CausalModel, Variable
from interp.tasks.causal_models import INTERCHANGES, interchange
from interp.tasks.compiled import compiled
from interp.tasks.copying import induction_by_hand
from interp.tasks.docstring import docstring
from interp.tasks.facts import facts
from interp.tasks.gates import gate
from interp.tasks.greater_than import greater_than
from interp.tasks.induction import induction
from interp.tasks.interchange import EncodedInterchange, InterchangeTask
from interp.tasks.ioi import ioi
from interp.tasks.minimal_pairs import MINIMAL_PAIRS, minimal_pairs, pair_model
from interp.tasks.pairs import EncodedTask, PromptPair, Task, single_token
from interp.tasks.planted import planted
from interp.tasks.programs import PROGRAMS
from interp.tasks.pronouns import pronouns
from interp.tasks.swaps import PicturePair, PictureTask, swaps
from interp.tasks.truth import GroundTruth

__all__ = [
    "INTERCHANGES",
    "MINIMAL_PAIRS",
    "PROGRAMS",
    "CausalModel",
    "EncodedInterchange",
    "EncodedTask",
    "GroundTruth",
    "InterchangeTask",
    "PicturePair",
    "PictureTask",
    "PromptPair",
    "Task",
    "Variable",
    "agreement",
    "capitals",
    "compiled",
    "docstring",
    "facts",
    "gate",
    "greater_than",
    "induction",
    "induction_by_hand",
    "interchange",
    "ioi",
    "minimal_pairs",
    "pair_model",
    "planted",
    "pronouns",
    "single_token",
    "swaps",
]
