"""Texts with and without a concept, prompts that are open to it, and judges that know nothing of directions.

Three concepts: a `"sentiment"` (positive), a language (`"french"`) and a topic (`"sea"`). Of each there are pairs of
sentences, one with the concept and one without, of like form and content; prompts that suggest neither; and a judge.
The prompts of the language are names and numbers, since an English one would suggest English.

Prompts and unrelated texts come twice: those of the split `"development"` are for choosing a layer, a method or a dose,
those `"held out"` for the numbers that are told.

A judge is

- of sentiment and topic a list of words, none of which occurs in the sentences or prompts, nor another form of it. A
  text is positive if it has more words of the one list than of the other, and about the sea if it has at least one of
  the list;
- of the language a naive Bayes classifier over three-letter sequences, trained on other sentences, which also knows
  other languages, and wants evidence before it says yes.

A judge of words errs: it cannot hear irony, nor a positive word that is denied. So it is asked of unsteered texts too.

All sentences are our own. Start with `concept_texts`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from interp.errors import PairError
from interp.tasks.pairs import check_choice

CONCEPTS = ("sentiment", "french", "sea")
SPLITS = ("held out", "development")


@dataclass(frozen=True, eq=False)
class ConceptTexts:
    """What there is of one concept.

    Attributes:
        name: in words, for titles.
        positive: sentences with the concept.
        negative: their counterparts without it, in the same order.
        prompts: to be continued.
        reworded: the same prompts after a request for the concept.
        unrelated: texts that have nothing to do with it.
        judge: 1 where a text shows the concept, 0 where not.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    prompts: tuple[str, ...]
    reworded: tuple[str, ...]
    unrelated: tuple[str, ...]
    judge: Callable[[str], float]


def concept_texts(concept: str, split: str = "held out") -> ConceptTexts:
    """The texts of a concept, one of `CONCEPTS`.

    Args:
        split: whose prompts and unrelated texts; sentences and judge are the same in both.

    Raises:
        PairError: there is none of this name; another split.
    """
    check_choice("concept", concept, CONCEPTS)
    check_choice("split", split, SPLITS)
    own = _load()[concept]
    identify = own.get("identify")
    judge = LanguageJudge(*identify.values()) if identify else WordJudge(own["for"], own["against"])
    prompts = tuple(own["prompts"][split])
    return ConceptTexts(
        own["target"], tuple(own["positive"]), tuple(own["negative"]), prompts,
        tuple(own["wording"] + prompt for prompt in prompts), tuple(_load()["unrelated"][split]), judge,
    )  # fmt: skip


@dataclass(frozen=True)
class WordJudge:
    """1 where a text has more words of one list than of the other.

    Attributes:
        wanted: in lower case; unwanted: likewise, may be empty.
    """

    wanted: Sequence[str]
    unwanted: Sequence[str]

    def __call__(self, text: str) -> float:
        """The verdict on a text."""
        words = re.findall(r"[^\W\d_]+", text.lower())
        return float(sum(w in self.wanted for w in words) > sum(w in self.unwanted for w in words))


class LanguageJudge:
    """1 where a text is more probably of one language than of every other, by its three-letter sequences.

    Naive Bayes; a sequence's probability is half its share in the language's sentences, half that of any sequence, so
    that one which no language has speaks for none. Each sequence of the text counts once, however often it is repeated,
    and the verdict needs `evidence` in all and `margin` on average: a few letters, or words of no language, are none.

    Args:
        wanted: sentences of the language.
        others: sentences of each other one.

    Raises:
        PairError: no other language, or one without sentences.
    """

    evidence, margin = 4.0, 0.1
    """Nats of log odds, and the same per different sequence: of 24 French sentences that were not learned 23 pass, of
    24 English ones none."""

    def __init__(self, wanted: Sequence[str], *others: Sequence[str]) -> None:
        if not wanted or not others or not all(others):
            raise PairError("A judge of languages needs sentences of the wanted one and of at least one other.")
        self._counts = [Counter(part for text in texts for part in _triples(text)) for texts in (wanted, *others)]
        self._known = len(set().union(*self._counts)) + 1

    def __call__(self, text: str) -> float:
        """The verdict on a text; 0 for one without letters."""
        odds = self.log_odds(text)
        return float(odds > self.evidence and odds > self.margin * len(set(_triples(text))))

    def log_odds(self, text: str) -> float:
        """Of the wanted language against the likeliest other, in nats, at equal prior odds."""
        own, *others = (
            math.fsum(math.log(counts[part] / counts.total() / 2 + 0.5 / self._known) for part in set(_triples(text)))
            for counts in self._counts
        )
        return own - max(others)


def _triples(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]+", text.lower())
    return [padded[i : i + 3] for word in words for padded in [f" {word} "] for i in range(len(padded) - 2)]


@cache
def _load() -> dict[str, Any]:
    return json.loads((files("interp.tasks") / "data" / "concepts.json").read_text("utf-8"))
