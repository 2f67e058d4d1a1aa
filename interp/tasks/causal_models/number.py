"""Subject number as a causal model: "She saw that the keys near the cabinet, as always," → " were".

The head noun's number and the main clause's tense decide the verb; another noun stands between. The tense is there so
that the source's answer is not the label: what carries a number over must leave the tense alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from interp.tasks.agreement import ATTRACTORS, HEADS
from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.interchange import Instance, InterchangeTask, compose, draw_task
from interp.tasks.pairs import check_choice, part_of, split_name

NUMBERS = ("singular", "plural")
TENSES = ("present", "past")
LINKS = ("near", "behind", "beside", "next to", "in front of", "close to")
SOURCE = "after Linzen et al. 2016, arXiv:1611.01368"
_VERBS = {("singular", "present"): " is", ("plural", "present"): " are",
          ("singular", "past"): " was", ("plural", "past"): " were"}  # fmt: skip
_TENSES = {"sees": "present", "saw": "past"}
_PEOPLE = ("She", "He")
_NUMBER_OF = {word: number for pair in HEADS + ATTRACTORS for word, number in zip(pair, NUMBERS, strict=True)}
_TEMPLATE = "{person} {verb} that the {subject} {link} the {attractor}, as always,"
_REGIONS = ("verb", "subject", "attractor")


def number_model() -> CausalModel:
    """Number of the subject and tense of the main verb, which decide the answer; the attractor decides nothing."""
    subjects, attractors = (tuple(word for pair in nouns for word in pair) for nouns in (HEADS, ATTRACTORS))
    variables = (
        Variable("verb", tuple(_TENSES)),
        Variable("subject", subjects),
        Variable("attractor", attractors),
        Variable("number", NUMBERS, ("subject",), _NUMBER_OF.__getitem__),
        Variable("tense", TENSES, ("verb",), _TENSES.__getitem__),
        Variable("answer", tuple(_VERBS.values()), ("number", "tense"), lambda *form: _VERBS[form]),
    )
    return CausalModel("subject number", variables, "answer", SOURCE)


def number_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("number",), split: str = "all"
) -> InterchangeTask:
    """Counterfactuals for the number of the subject, or for the tense, or both.

    Base and source share their first word and the preposition. Regions are `verb`, `subject` and `attractor`.

    Args:
        n: number of examples; the law is that of `CausalModel.counterfactuals`.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: of `"number"` and `"tense"`.
        split: `"train"` and `"held out"` share neither a noun nor a preposition.

    Raises:
        PairError: an unknown variable or split, or `n` below 1.
        InterpError: no variable.
    """
    for variable in variables:
        check_choice("variable", variable, ("number", "tense"))
    heads, attractors, links = (part_of(words, split) for words in (HEADS, ATTRACTORS, LINKS))

    def draw(random: Random, _base: Setting | None) -> Setting:
        return {
            "verb": random.choice(tuple(_TENSES)),
            "subject": random.choice(random.choice(heads)),
            "attractor": random.choice(random.choice(attractors)),
        }

    def write(values: Setting, random: Random) -> Instance:
        words = {"person": random.choice(_PEOPLE), "link": random.choice(links)}
        text, regions = compose(_TEMPLATE, _REGIONS, {**values, **words})
        return Instance(text, str(values["answer"]), regions, values)

    name = split_name(f"subject-{'-'.join(variables)}", split)
    return draw_task(name, number_model(), variables, n, seed, draw=draw, write=write)
