"""Subject-verb agreement across an attractor: "The keys to the cabinet" → " are".

The verb agrees with the head noun, while another noun stands closer to it; a model that counts words instead
of reading the sentence falls for the closer one.
"""

from __future__ import annotations

from random import Random

from interp.tasks.pairs import PromptPair, Task, check_choice, check_count, part_of, split_name

# Singular and plural, each one token with its leading space.
_HEADS = (
    "key/keys picture/pictures book/books letter/letters report/reports painting/paintings "
    "bottle/bottles box/boxes photo/photos song/songs story/stories camera/cameras phone/phones "
    "table/tables chair/chairs teacher/teachers doctor/doctors student/students author/authors "
    "manager/managers friend/friends guard/guards senator/senators pilot/pilots farmer/farmers "
    "officer/officers lawyer/lawyers singer/singers writer/writers engineer/engineers"
)
HEADS = tuple(tuple(words.split("/")) for words in _HEADS.split())
_ATTRACTORS = (
    "cabinet/cabinets door/doors window/windows car/cars house/houses tree/trees garden/gardens "
    "road/roads building/buildings bridge/bridges store/stores river/rivers mountain/mountains "
    "school/schools church/churches museum/museums village/villages boy/boys girl/girls parent/parents "
    "woman/women king/kings child/children driver/drivers actor/actors soldier/soldiers"
)
ATTRACTORS = tuple(tuple(words.split("/")) for words in _ATTRACTORS.split())
LINKS = ("near", "behind", "beside", "next to", "in front of", "across from", "from", "close to")
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))
NUMBERS = ("mixed", "same", "opposite")


def agreement(n: int, seed: int = 0, attractor: str = "mixed", verb: str = "is", split: str = "all") -> Task:
    """Pairs for subject-verb agreement with one attractor noun.

    Clean and corrupted differ in the number of the head noun alone: "The keys near the cabinet" → " are",
    "The key near the cabinet" → " is". `answer` agrees with the clean head, `wrong_answer` with the corrupted
    one. Singular and plural take turns as the clean head. `subject` and `corrupted_subject` are the head
    nouns; `label` gives the numbers of clean head and attractor, `"plural-singular"`.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        attractor: its number against the clean head's: `"same"`, `"opposite"` or `"mixed"` (drawn).
        verb: the singular form that names the verb: `"is"`, `"was"` or `"has"`.
        split: `"train"` and `"held out"` share neither a noun nor a preposition.

    Raises:
        PairError: an unknown `attractor`, `verb` or `split`, or `n` below 1.

    Source: Linzen et al. 2016 (arXiv:1611.01368), natural sentences with attractors; Finlayson et al. 2021
    (arXiv:2106.06087), templates and the swap of the head's number. One template family here (a noun with
    a prepositional phrase), and auxiliary verbs, where they use lexical verbs and more constructions.
    """
    check_count(n)
    check_choice("attractor number", attractor, NUMBERS)
    forms = {singular.strip(): (singular, plural) for singular, plural in VERBS}
    check_choice("verb", verb, forms)
    heads, attractors, links = (part_of(words, split) for words in (HEADS, ATTRACTORS, LINKS))
    random = Random(seed)
    pairs = []
    for row in range(n):
        head, noun, link = random.choice(heads), random.choice(attractors), random.choice(links)
        number = 1 - row % 2  # index into (singular, plural): plural first
        drawn = random.choice(("same", "opposite"))
        same = (drawn if attractor == "mixed" else attractor) == "same"
        noun_number = number if same else 1 - number
        pairs.append(
            PromptPair(
                clean=f"The {head[number]} {link} the {noun[noun_number]}",
                corrupted=f"The {head[1 - number]} {link} the {noun[noun_number]}",
                answer=forms[verb][number],
                wrong_answer=forms[verb][1 - number],
                subject=head[number],
                corrupted_subject=head[1 - number],
                label="-".join(("singular", "plural")[i] for i in (number, noun_number)),
            )
        )
    source = "Linzen et al. 2016, arXiv:1611.01368; Finlayson et al. 2021, arXiv:2106.06087"
    return Task(split_name(f"agreement-{attractor}-{verb}", split), tuple(pairs), source, seed)
