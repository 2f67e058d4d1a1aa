"""Prompt pairs, and generators of the tasks on which circuits and facts are studied."""

from interp.tasks.agreement import agreement
from interp.tasks.facts import facts
from interp.tasks.induction import induction
from interp.tasks.ioi import ioi
from interp.tasks.pairs import EncodedTask, PromptPair, Task, single_token
from interp.tasks.pronouns import pronouns
from interp.tasks.swaps import PicturePair, PictureTask, swaps

__all__ = [
    "EncodedTask",
    "PicturePair",
    "PictureTask",
    "PromptPair",
    "Task",
    "agreement",
    "facts",
    "induction",
    "ioi",
    "pronouns",
    "single_token",
    "swaps",
]
