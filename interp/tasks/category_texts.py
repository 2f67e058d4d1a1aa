"""Sentences about things that belong to kinds, and kinds that belong to groups: a day is a weekday or of the weekend.

All kinds of a group stand in the same sentences, so that the words around a thing tell its group and never its kind:
what tells Saturday from Monday has to come from what the model knows of the two words.

All sentences are our own. Start with `category_texts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from interp.errors import PairError
from interp.tasks.pairs import check_choice

GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "day": {
            "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
            "weekend": ("Saturday", "Sunday"),
        },
        "month": {
            "winter month": ("December", "January", "February"),
            "summer month": ("June", "July", "August"),
        },
        "animal": {
            "pet": ("cat", "dog", "rabbit", "hamster"),
            "wild animal": ("lion", "tiger", "wolf", "bear"),
        },
        "food": {
            "fruit": ("apple", "banana", "lemon", "peach"),
            "vegetable": ("carrot", "potato", "onion", "cabbage"),
        },
        "place": {
            "city": ("London", "Paris", "Rome", "Berlin"),
            "country": ("England", "France", "Italy", "Germany"),
        },
        "relative": {
            "woman": ("mother", "sister", "aunt", "daughter"),
            "man": ("father", "brother", "uncle", "son"),
        },
    }
)
"""By group, by kind, the things."""
_SENTENCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "day": (
            "We met on {} and talked for hours.", "The report is due on {} at noon.", "On {} she called her office.",
            "It rained all of {} in the valley.", "He wrote the letter on {} night.", "Last {} the lights went out.",
            "The shop stays open on {} this week.", "So {} was the day of the trial.",
            "See you on {} at the station.", "Nobody works here on {} any more.",
        ),
        "month": (
            "The work began in {} of that year.", "In {} we moved to another house.", "The bill for {} has not come.",
            "She was born in {} in a small town.", "They plan to leave in {} or later.", "Last {} the shop was closed.",
            "The roof was mended in {} of last year.", "So {} was the month of the strike.",
            "Sales fell in {} for the third time.", "The school closes in {} for two weeks.",
        ),
        "animal": (
            "The {} slept in the shade.", "A {} looked at us and ran off.", "We saw a {} near the fence.",
            "The picture shows a {} and its young.", "The story is about a {} that could talk.", "The {} was hungry.",
            "He painted a {} on the wall.", "The vet looked at the {} with care.",
            "Nobody had fed the {} that day.", "Is that a {} behind the tree?",
        ),
        "food": (
            "She cut the {} into small pieces.", "He bought a {} at the market.", "The {} lay on the kitchen table.",
            "Add one {} and stir.", "This {} costs less than a dollar.", "The {} was fresh.",
            "Wash the {} before you peel it.", "They sell every {} by weight.",
            "Someone had left half a {} on the plate.", "The price of a {} has gone up.",
        ),
        "place": (
            "They spent a year in {} and then returned.", "The train to {} was late.", "He has friends in {} now.",
            "The office in {} was closed.", "She wrote a book about {} after the war.", "I flew to {} in the morning.",
            "The road from {} is being repaired.", "My cousin moved to {} for work.",
            "News came from {} that evening.", "Have you ever been to {} before?",
        ),
        "relative": (
            "My {} lives in the next street.", "Her {} taught at the school.", "His {} opened the door.",
            "I asked my {} for advice.", "The letter was from his {} abroad.", "Your {} has called twice.",
            "Their {} could not come to the wedding.", "Ask your {} about the house.",
            "They stayed with my {} by the river.", "It was my {} who found the key.",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CategoryTexts:
    """Sentences, each about one thing.

    Attributes:
        texts: the sentences.
        thing: of each, the word that it is about.
        kind: of each, the kind of the thing.
        group: of each, the group of the kind.
    """

    texts: tuple[str, ...]
    thing: tuple[str, ...]
    kind: tuple[str, ...]
    group: tuple[str, ...]


def category_texts(groups: Sequence[str] = tuple(GROUPS)) -> CategoryTexts:
    """Every thing of the groups in each of its group's ten sentences.

    Raises:
        PairError: there is no such group, or none is given.
    """
    if isinstance(groups, str) or not groups:
        raise PairError(f"groups={groups!r}: give a list of some of {', '.join(GROUPS)}.")
    for group in groups:
        check_choice("group", group, GROUPS)
    rows = [
        (sentence.format(thing), thing, kind, group)
        for group in groups
        for sentence in _SENTENCES[group]
        for kind, things in GROUPS[group].items()
        for thing in things
    ]
    return CategoryTexts(*(tuple(column) for column in zip(*rows, strict=True)))


def kind_words(groups: Sequence[str] = tuple(GROUPS)) -> dict[str, str]:
    """Of every group and kind a pattern of its words, as `interp.concepts.token_labels` takes them."""
    found = {}
    for group in groups:
        found[f"any {group}"] = "|".join(thing for things in GROUPS[group].values() for thing in things)
        found |= {kind: "|".join(things) for kind, things in GROUPS[group].items()}
    return found
