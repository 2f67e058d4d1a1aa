"""Prompt pairs, generators of the tasks on which circuits and facts are studied, and models of known circuits."""

from interp.tasks.agreement import agreement
from interp.tasks.capitals import capitals
from interp.tasks.compiled import compiled
from interp.tasks.copying import induction_by_hand
from interp.tasks.docstring import docstring
from interp.tasks.facts import facts
from interp.tasks.gates import gate
from interp.tasks.greater_than import greater_than
from interp.tasks.induction import induction
from interp.tasks.ioi import ioi
from interp.tasks.pairs import EncodedTask, PromptPair, Task, single_token
from interp.tasks.planted import planted
from interp.tasks.programs import PROGRAMS
from interp.tasks.pronouns import pronouns
from interp.tasks.swaps import PicturePair, PictureTask, swaps
from interp.tasks.truth import GroundTruth

__all__ = [
    "PROGRAMS",
    "EncodedTask",
    "GroundTruth",
    "PicturePair",
    "PictureTask",
    "PromptPair",
    "Task",
    "agreement",
    "capitals",
    "compiled",
    "docstring",
    "facts",
    "gate",
    "greater_than",
    "induction",
    "induction_by_hand",
    "ioi",
    "planted",
    "pronouns",
    "single_token",
    "swaps",
]
