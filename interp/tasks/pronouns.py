"""Gendered pronouns: "So Mary is a really great friend, isn't" → " she".

The answer depends on one word, the name, and on nothing that stands between it and the end.
"""

from __future__ import annotations

from random import Random

from interp.tasks.ioi import FEMALE_NAMES, MALE_NAMES
from interp.tasks.pairs import PromptPair, Task, check_count, part_of, split_name

TEMPLATES = (
    "So {name} is a really {adjective} {role}, isn't",
    "So {name} was such a {adjective} {role}, wasn't",
    "Everyone knows that {name} is a {adjective} {role}, isn't",
    "I think {name} is a very {adjective} {role}, isn't",
)
ADJECTIVES = ("great", "good", "kind", "smart", "funny", "clever", "nice", "popular", "talented", "careful")
ROLES = ("friend", "person", "cook", "student", "neighbor", "writer", "runner", "leader", "singer", "teacher")


def pronouns(n: int, seed: int = 0, split: str = "all") -> Task:
    """Pairs for gendered pronoun resolution.

    Clean and corrupted differ in the name alone, a name that is commonly a woman's in one and a man's in
    the other; `answer` is the clean name's pronoun (`" she"` or `" he"`), `wrong_answer` the other one.
    Women and men take turns as the clean name. `subject` and `corrupted_subject` are the names, `label` is
    the gender of the clean one (`"female"`, `"male"`).

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        split: `"train"` and `"held out"` share neither a template nor a name.

    Raises:
        PairError: an unknown `split`, or `n` below 1.

    Source: Mathwin et al. 2023, "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2
    Small" (an Apart alignment-jam report). Their template is our first; the others vary its words, and the
    corrupted prompt replaces the name by one of the other gender.
    """
    check_count(n)
    frames = part_of(TEMPLATES, split)
    women, men = part_of(FEMALE_NAMES, split), part_of(MALE_NAMES, split)
    random = Random(seed)
    pairs = []
    for row in range(n):
        template = random.choice(frames)
        words = {"adjective": random.choice(ADJECTIVES), "role": random.choice(ROLES)}
        sides = [(random.choice(women), " she", "female"), (random.choice(men), " he", "male")]
        (name, answer, gender), (other, wrong_answer, _) = sides[:: -1 if row % 2 else 1]
        pairs.append(
            PromptPair(
                clean=template.format(name=name, **words),
                corrupted=template.format(name=other, **words),
                answer=answer,
                wrong_answer=wrong_answer,
                subject=name,
                corrupted_subject=other,
                label=gender,
            )
        )
    source = "Mathwin et al. 2023, gendered pronouns in GPT-2 small"
    return Task(split_name("pronouns", split), tuple(pairs), source, seed)
