"""Induction: "… cat lamp … cat" → " lamp".

A sequence of random words is partly repeated, so that nothing but the earlier occurrence says what comes
next: the purest test of copying from context, and of the heads that do it.
"""

from __future__ import annotations

from random import Random

from interp.errors import PairError
from interp.tasks.pairs import PromptPair, Task, check_count, part_of, split_name

# Common nouns, each one token with its leading space.
_WORDS = (
    "apple river chair table window garden music winter summer doctor letter bottle bridge castle circle "
    "cloud coffee corner cotton dinner dragon engine family farmer father finger flower forest friend ginger "
    "guitar hammer hunter island jacket jungle kitchen ladder lemon lion market meadow mirror monkey mother "
    "mountain needle ocean orange palace paper pencil pepper picture planet pocket potato prince rabbit "
    "ribbon rocket salad school shadow silver sister soldier spider spring stone storm street sugar teacher "
    "temple ticket tiger tower train tunnel turtle valley village violin wagon water whale wheel wolf wood "
    "bread bird horse house knife lamp leaf milk moon mouse nail night pearl phone piano plane plate queen "
    "rain ring road rose ship shoe snake snow soup star sword tail tent tree truck wall watch wind wing yard "
    "bear boat bone book box brush cake camera candle car cat clock coat coin corn cow crown cup desk dish "
    "dog door dress drum duck ear egg eye farm fire fish flag foot fork fruit gate glass gold grass hand hat "
    "heart hill honey hotel king"
)
WORDS = tuple(_WORDS.split())
# The first word of a prompt has no space before it and so is another token: let it be one that never repeats.
OPENING = "Words:"


def induction(n: int, seed: int = 0, length: int = 16, repeat: int = 4, split: str = "all") -> Task:
    """Pairs for copying by induction.

    The clean prompt lists `length` different random words, then `repeat` of them in a row once more, from a
    random place: A stands last, and `answer` is B, the word that followed A before. In the corrupted prompt
    that earlier B, and nothing else, is another word that occurs nowhere else: it is the `wrong_answer`.
    `subject` and `corrupted_subject` are the two words.

    Every prompt has `length + repeat` words after "Words:", while the distance back to A varies: a head that
    always looks a fixed number of tokens back does not solve the task.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        length: words before the repetition; at least `repeat + 1`.
        repeat: repeated words, at least 1; more make the task easier.
        split: `"train"` and `"held out"` share no word.

    Raises:
        PairError: a `length` or `repeat` out of range, an unknown `split`, or `n` below 1.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads" (arXiv:2209.11895), repeated random
    tokens. Words in place of arbitrary tokens, a part of the sequence repeated in place of the whole, and
    a corrupted prompt, which they have not.
    """
    check_count(n)
    known = part_of(WORDS, split)
    if repeat < 1 or not repeat + 1 <= length < len(known):
        raise PairError(
            f"Got length={length} and repeat={repeat}; repeat must be at least 1 and length from repeat + 1 "
            f"to {len(known) - 1}."
        )
    random = Random(seed)
    pairs = []
    for _ in range(n):
        *words, other = random.sample(known, length + 1)
        start = random.randrange(length - repeat)
        again, answer = words[start : start + repeat], words[start + repeat]
        changed = [other if word == answer else word for word in words]
        pairs.append(
            PromptPair(
                clean=" ".join([OPENING, *words, *again]),
                corrupted=" ".join([OPENING, *changed, *again]),
                answer=f" {answer}",
                wrong_answer=f" {other}",
                subject=answer,
                corrupted_subject=other,
            )
        )
    source = "Olsson et al. 2022, arXiv:2209.11895"
    return Task(split_name(f"induction-{length}", split), tuple(pairs), source, seed)
