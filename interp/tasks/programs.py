"""What the compiled programs compute, in plain Python, and pairs of prompts for them.

These functions were written apart from the RASP that is compiled: that a model computes its function on every prompt of
its domain is a finding (`tests/tasks/test_compiled.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from random import Random

from interp.tasks.pairs import PromptPair, Task, check_count

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A function of a prompt's words, computed at its last.

    Attributes:
        says: what it computes.
        words: of its prompts.
        answer: the right next token, or `None` for a prompt outside its domain.
        longest: words of its longest prompt.
        seldom: a place in a prompt whose word few pairs would change, although an edge carries nothing else.
    """

    says: str
    words: str
    answer: Callable[[Words], str | None]
    longest: int = 6
    seldom: Callable[[Words], int] | None = None


def _reverse(words: Words) -> str | None:
    letters, slots = words[:4], words[4:]
    return letters[-len(slots)] if slots and "=" not in letters and set(slots) == {"="} else None


def _pointer(words: Words) -> str | None:
    *letters, last = words
    if not last.isdigit() or any(word.isdigit() for word in letters) or int(last) >= len(letters):
        return None
    return letters[int(last)]


def _after(words: Words, word: str) -> str | None:
    """What followed a word, if it was followed once."""
    found = [words[i] for i in range(1, len(words)) if words[i - 1] == word]
    return found[0] if len(found) == 1 else None


def _two_hop(words: Words) -> str | None:
    middle = _after(words, words[-1])
    return None if middle is None else _after(words, middle)


def _first_hop(words: Words) -> int:
    """The place of the word that followed the last word before."""
    return words.index(words[-1]) + 1


def _share(words: Words, word: str) -> Fraction:
    return Fraction(words.count(word), len(words))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


PROGRAMS: dict[str, Program] = {
    "reverse": Program(
        "four letters, then slots: each slot answers with the letters in reverse order", "a b c =", _reverse, 8
    ),
    "x_proportion": Program("share of x so far (frac_prevs)", "x y z", lambda w: str(_share(w, "x"))),
    "previous": Program("the word before", "a b c", lambda w: w[-2] if len(w) > 1 else None),
    "first": Program("the first word", "a b c", lambda w: w[0]),
    "match_first": Program("is this the first word again?", "a b c", lambda w: _yes(w[-1] == w[0])),
    "caesar": Program("the next letter of the alphabet", "a b c d", lambda w: "bcda"["abcd".index(w[-1])]),
    "pointer": Program("the letter at the place that a digit names", "a b c 0 1 2", _pointer),
    "addition": Program(
        "the last two digits, added modulo 5", "0 1 2 3 4",
        lambda w: str((int(w[-2]) + int(w[-1])) % 5) if len(w) > 1 else None,
    ),
    "trigram": Program(
        "do the last three words read a b c?", "a b c",
        lambda w: _yes(w[-3:] == ("a", "b", "c")) if len(w) > 2 else None,
    ),
    "induction": Program("what followed this word before", "a b c d", lambda w: _after(w, w[-1])),
    "two_hop": Program("what followed what followed this word before", "a b c d", _two_hop, seldom=_first_hop),
    "occurrences": Program("how often this word has occurred so far", "a b c", lambda w: str(w.count(w[-1]))),
    "duplicate": Program("has this word occurred before?", "a b c", lambda w: _yes(w[-1] in w[:-1])),
    "parity": Program("is the number of x so far odd?", "x y z", lambda w: ("even", "odd")[w.count("x") % 2]),
    "balance": Program("share of ( minus share of ) so far", "( )", lambda w: str(_share(w, "(") - _share(w, ")"))),
    "majority": Program("more x than y so far?", "x y z", lambda w: _yes(w.count("x") > w.count("y"))),
}  # fmt: skip
"""The programs that `compiled` knows, by name."""


def every_prompt(program: Program) -> Iterator[tuple[Words, str]]:
    """Every prompt of a program's domain, with its answer."""
    for length in range(1, program.longest + 1):
        for words in product(program.words.split(), repeat=length):
            answer = program.answer(words)
            if answer is not None:
                yield words, answer


def program_pairs(name: str, n: int, seed: int = 0) -> Task:
    """Pairs for a program: two prompts that differ in one word, or by an exchange of two, and in their answers.

    Prompts are drawn from the whole domain, and the change from those that change the answer. Exchanges are there for
    programs that match words, where no single word moves a match to another place. Where a program reads a place that
    such a change seldom meets, every other pair has one that does: of `two_hop`'s one in thirteen would have, so that
    of 16 pairs none had in three cases of ten, and a true edge had no effect.

    Args:
        name: one of `PROGRAMS`.
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.

    Raises:
        PairError: `n` below 1.
    """
    check_count(n)
    program, random, pairs = PROGRAMS[name], Random(seed), []
    domain = _domain(name)
    while len(pairs) < n:
        clean, answer = random.choice(domain)
        others = _a_step_away(program, clean, answer)
        if program.seldom is not None and len(pairs) % 2:
            place = program.seldom(clean)
            others = [(words, other) for words, other in others if words[place] != clean[place]]
        if others:
            corrupted, wrong = random.choice(others)
            pairs.append(PromptPair(" ".join(clean), " ".join(corrupted), f" {answer}", f" {wrong}"))
    return Task(f"compiled-{name}", tuple(pairs), "compiled RASP: Lindner et al. 2023, arXiv:2301.05062", seed)


@cache
def _domain(name: str) -> list[tuple[Words, str]]:
    return list(every_prompt(PROGRAMS[name]))


def _a_step_away(program: Program, clean: Words, answer: str) -> list[tuple[Words, str]]:
    places = range(len(clean))
    replaced = [(*clean[:i], word, *clean[i + 1 :]) for i in places for word in program.words.split()]
    exchanged = [
        (*clean[:i], clean[j], *clean[i + 1 : j], clean[i], *clean[j + 1 :]) for i, j in combinations(places, 2)
    ]
    answers = [(words, program.answer(words)) for words in (*replaced, *exchanged)]
    return [(words, other) for words, other in answers if other is not None and other != answer]
