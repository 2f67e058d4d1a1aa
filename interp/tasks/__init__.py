"""Prompt pairs, and generators of the tasks on which circuits and facts are studied."""

from interp.tasks.agreement import agreement
from interp.tasks.facts import facts
from interp.tasks.induction import induction
from interp.tasks.ioi import ioi
from interp.tasks.pairs import EncodedTask, PromptPair, Task, single_token
from interp.tasks.pronouns import pronouns

__all__ = [
    "EncodedTask",
    "PromptPair",
    "Task",
    "agreement",
    "facts",
    "induction",
    "ioi",
    "pronouns",
    "single_token",
]
