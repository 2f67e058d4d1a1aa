"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" → " Mary".

Two names are introduced, one is repeated as the giver, and the sentence calls for the other. The task of the
best-known language-model circuit, so the first on which a new method is tried.
"""

from __future__ import annotations

from random import Random

from interp.tasks.pairs import PromptPair, Task, check_choice, check_count, part_of, split_name

# Very common English names, each one token (with its leading space) for SmolLM2, GPT-2 and most others.
_MALE_NAMES = (
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul Andrew "
    "Kevin Brian George Edward Jason Ryan Eric Stephen Scott Justin Frank Patrick Jack Peter Henry Adam "
    "Simon Tony"
)
MALE_NAMES = tuple(_MALE_NAMES.split())
_FEMALE_NAMES = (
    "Mary Jennifer Linda Elizabeth Susan Sarah Lisa Margaret Emily Michelle Rebecca Laura Amy Anna Helen "
    "Rachel Maria Catherine Victoria Ruth Kelly Alice Julia Jane Kate Anne Emma Grace"
)
FEMALE_NAMES = tuple(_FEMALE_NAMES.split())
NAMES = tuple(sorted(MALE_NAMES + FEMALE_NAMES))

PLACES = (
    "store",
    "garden",
    "restaurant",
    "school",
    "hospital",
    "office",
    "house",
    "station",
    "park",
    "beach",
)
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "flower")

# {a} and {b} are introduced in this order, {s} is the giver. No name opens a prompt: it would lose its space.
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {object} to",
    "Then, {a} and {b} went to the {place}. {s} gave a {object} to",
    "Then, {a} and {b} had a lot of fun at the {place}. {s} gave a {object} to",
    "Then, {a} and {b} were working at the {place}. {s} decided to give a {object} to",
    "Then, {a} and {b} were thinking about going to the {place}. {s} wanted to give a {object} to",
    "Then, {a} and {b} had a long argument, and afterwards {s} said to",
    "After {a} and {b} went to the {place}, {s} gave a {object} to",
    "When {a} and {b} got a {object} at the {place}, {s} decided to give it to",
    "While {a} and {b} were working at the {place}, {s} gave a {object} to",
    "While {a} and {b} were commuting to the {place}, {s} gave a {object} to",
    "After the lunch, {a} and {b} went to the {place}. {s} gave a {object} to",
    "While {a} and {b} were waiting at the {place}, {s} gave a {object} to",
)
ORDERS = ("mixed", "ABBA", "BABA")
CORRUPTIONS = ("S2", "S1", "IO", "ABC")


def ioi(n: int, seed: int = 0, templates: str = "mixed", corruption: str = "S2", split: str = "all") -> Task:
    """Pairs for indirect object identification.

    The clean prompt names the indirect object IO and the subject S, repeats S as the giver (S2), and calls
    for IO, so `answer` is always IO. All names of a pair are different. By `corruption`:

    | corruption | the corrupted prompt | it calls for | `wrong_answer` |
    |---|---|---|---|
    | `S2` | the giver S2 is IO instead of S | S | S |
    | `IO` | the IO is a new name C | C | C |
    | `S1` | the first mention of S is a new name C: no name repeats | IO and C alike | C |
    | `ABC` | all three are new names, of which none repeats | neither of the two answers | S |

    Under `S2` and `IO` the logit difference changes its sign; under `S1` and `ABC` it falls towards zero.
    The new name C does not occur in the clean prompt, so differences under `IO` and `S1` are larger there.
    `subject` and `corrupted_subject` are the giver of each prompt.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        templates: `"ABBA"` (IO is named first), `"BABA"` (S is named first) or `"mixed"` (in turns). Also
            the `label` of each pair.
        corruption: see the table.
        split: `"train"` and `"held out"` share neither a template nor a name (two and one third of them; places and
            objects are the same): find a circuit on the one, evaluate it on the other. `"all"` draws from both.

    Raises:
        PairError: an unknown `templates`, `corruption` or `split`, or `n` below 1.

    Source: Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 2.
    Their templates, slightly fewer; their corrupted data is `ABC`; single-token replacements, as here, came
    with later work (Zhang and Nanda 2023, arXiv:2309.16042, symmetric token replacement).
    """
    check_count(n)
    check_choice("IOI template", templates, ORDERS)
    check_choice("IOI corruption", corruption, CORRUPTIONS)
    frames = part_of(TEMPLATES, split)
    names = tuple(sorted(part_of(MALE_NAMES, split) + part_of(FEMALE_NAMES, split)))
    random = Random(seed)
    pairs = []
    for row in range(n):
        order = ("ABBA", "BABA")[row % 2] if templates == "mixed" else templates
        first, second = ("{io}", "{s1}") if order == "ABBA" else ("{s1}", "{io}")
        template = random.choice(frames).format(
            a=first, b=second, s="{s2}", place=random.choice(PLACES), object=random.choice(OBJECTS)
        )
        io, s, *new = random.sample(names, 5)
        (new_io, new_s1, new_s2), wrong = {
            "S2": ((io, s, io), s),
            "IO": ((new[0], s, s), new[0]),
            "S1": ((io, new[0], s), new[0]),
            "ABC": (tuple(new), s),
        }[corruption]
        pairs.append(
            PromptPair(
                clean=template.format(io=io, s1=s, s2=s),
                corrupted=template.format(io=new_io, s1=new_s1, s2=new_s2),
                answer=f" {io}",
                wrong_answer=f" {wrong}",
                subject=s,
                corrupted_subject=new_s2,
                label=order,
            )
        )
    source = "Wang et al. 2022, arXiv:2211.00593"
    return Task(split_name(f"ioi-{templates}-{corruption}", split), tuple(pairs), source, seed)
