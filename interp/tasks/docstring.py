"""Docstrings: "def load(self, size, files, last): … :param size: … :param" → " files".

A Python function documents its arguments in the order of its signature, so the next one is found by where the one
before it stands there.
"""

from __future__ import annotations

from itertools import product
from random import Random

from interp.tasks.induction import WORDS
from interp.tasks.pairs import PromptPair, Task, check_count, part_of, split_name

# {a} to {d} are the arguments as the signature has them, {p} and {q} those that are documented.
TEMPLATES = tuple(
    f'def {{f}}({first}{{a}}, {{b}}, {{c}}, {{d}}):\n    """{{w1}} {{w2}} {{w3}}\n\n'
    f"    {tag} {{p}}: {article}{{w4}} {{w5}}\n    {tag} {{q}}: {article}{{w6}} {{w7}}\n    {tag}"
    for first, tag, article in product(("self, ", ""), (":param", "@param"), ("", "the "))
)


def docstring(n: int, seed: int = 0, split: str = "all") -> Task:
    """Pairs for the next argument of a documented function.

    The signature has four arguments, words without a relation; the docstring has come to the third, which is the
    `answer`. In the corrupted prompt the third and the fourth have changed places in the signature, and nothing else:
    that fourth one is the `wrong_answer`. Both stand in both prompts, once. `subject` and `corrupted_subject` are the
    two.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        split: `"train"` and `"held out"` share neither a template (self or none, `:param` or `@param`, an article or
            none) nor a word.

    Raises:
        PairError: an unknown `split`, or `n` below 1.

    Measured: SmolLM2-135M prefers the answer in 94 and 98 of 100 pairs (`"train"` and `"held out"`, seed 0), and the
    wrong answer after 98 and 96 of the corrupted prompts.

    Source: Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". Our
        first template is of their form; they corrupt by other names, in the signature or in the docstring.
    """
    check_count(n)
    frames, words = part_of(TEMPLATES, split), part_of(WORDS, split)
    random = Random(seed)
    pairs = []
    for _ in range(n):
        template = random.choice(frames)
        a, b, c, d, f, *described = random.sample(words, 12)
        rest = {"f": f, "p": a, "q": b} | {f"w{number}": word for number, word in enumerate(described, start=1)}
        pairs.append(
            PromptPair(
                clean=template.format(a=a, b=b, c=c, d=d, **rest),
                corrupted=template.format(a=a, b=b, c=d, d=c, **rest),
                answer=f" {c}",
                wrong_answer=f" {d}",
                subject=c,
                corrupted_subject=d,
            )
        )
    source = "Heimersheim & Janiak 2023, docstring circuit"
    return Task(split_name("docstring", split), tuple(pairs), source, seed)
