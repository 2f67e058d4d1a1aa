"""Minimal pairs of syntax: "The keys that the boy liked" → " are", "The key that the boy liked" → " is".

Each task has two types of sentence that differ in one region and call for two different tokens. Base and source of an
example are of different types and otherwise alike, so the label always is the source's answer: these tasks ask *where*
a distinction is made and by which direction, and their control is another task on the same sentences (`control`).

| kind | what decides the next token |
|---|---|
| agreement | the number of the subject, across other nouns |
| licensing | what licenses "ever", or agrees with a reflexive |
| garden path | whether a noun phrase is an object or begins a clause; whether a verb is the main one |
| gross syntactic state | whether a main clause is still to come |
| long-distance | whether a gap is waiting for its filler |

Measured: the share of 128 bases (`"train"`, seed 0) after which SmolLM2-135M gives the base's answer a higher
probability than the source's. Right by guessing: 0.5. It leans towards one of the answers where the share is low.

| task | share | task | share |
|---|---|---|---|
| agreement-preposition | 0.94 | garden-object-or-subject | 0.99 |
| agreement-object-relative | 0.81 | garden-object-or-clause | 0.97 |
| agreement-subject-relative | 0.91 | state-subordinate | 0.94 |
| npi-negation | 1.00 | state-subordinate-intransitive | 0.84 |
| npi-adverb | 1.00 | filler-gap | 0.96 |
| reflexive-number | 0.99 | filler-gap-modified | 0.98 |
| reflexive-gender | 0.99 | cleft | 0.98 |
| garden-main-verb | 0.82 | cleft-modified | 0.98 |

Source: after Arora, Jurafsky & Potts 2024, "CausalGym" (arXiv:2402.12560), whose kinds of task, regions and control
these are; the templates and words are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from interp.errors import PairError
from interp.tasks.agreement import ATTRACTORS, HEADS
from interp.tasks.causal_model import CausalModel, Variable
from interp.tasks.interchange import Counterfactual, Instance, InterchangeTask, compose
from interp.tasks.ioi import FEMALE_NAMES, MALE_NAMES
from interp.tasks.pairs import check_choice, check_count, part_of, split_name

SOURCE = "after Arora et al. 2024, CausalGym, arXiv:2402.12560"
KINDS = ("agreement", "licensing", "garden path", "gross syntactic state", "long-distance")
CONTROL_ANSWERS = (" dog", " give")
"""Of the two types of sentence in the control task."""

_FEWEST_TO_SPLIT = 6  # shorter lists are function words, which both splits need
_MOST_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Contrast:
    """A task: a template, what fills it, and the token that each type of sentence calls for.

    Attributes:
        name: of the task.
        kind: one of `KINDS`.
        template: its fields are the regions.
        fields: the choices for each; a choice that is a pair has a form for each of the two types.
        types: names of the types.
        answers: one per type.
    """

    name: str
    kind: str
    template: str
    fields: Mapping[str, tuple[str | tuple[str, str], ...]]
    types: tuple[str, str]
    answers: tuple[str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _paired(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of forms, `one/other`; an underscore is a space within a form."""
    pairs = (word.replace("_", " ").partition("/") for word in text.split())
    return tuple((one, other) for one, _, other in pairs)


_NOUNS = tuple((one, many) for one, many in HEADS)
_BYSTANDERS = tuple(word for pair in ATTRACTORS for word in pair)
_PEOPLE = _words(
    "teacher doctor student author manager friend guard senator pilot farmer officer lawyer singer writer engineer "
    "woman man king boy girl actor driver soldier"
)
_GROUPS = tuple(f"{word}s" for word in _PEOPLE if word not in ("woman", "man"))
_PLACES = _words("garden house store river school church museum village kitchen office bridge station hospital park")
_THINGS = _words(
    "book letter report painting bottle box photo song story camera phone table chair key picture ring necklace flower"
)
_GIFTS = _words("gift card map cake ball hat coat")
_LINKS = ("near", "behind", "beside", "next to", "in front of", "by")
_LIKED = _words("liked loved hated knew saw met followed helped called found")
_BOUGHT = _words("bought sold found lost saw took brought wanted made kept")
_MEN = _paired(
    "boy/boys king/kings actor/actors soldier/soldiers man/men brother/brothers father/fathers son/sons "
    "uncle/uncles prince/princes priest/priests nephew/nephews grandson/grandsons wizard/wizards"
)
_HURT = _words("hurt blamed saw found taught helped")
_BUY = _words("buy sell find see take bring want make keep")
_CLEFT = tuple(
    (f"{wish} to do", f"{wish} to {verb}")
    for wish in ("wanted", "tried", "decided", "hoped")
    for verb in ("buy", "find", "see", "make", "sell", "keep")
)
_LEFT = _words("left arrived stopped died fell returned")
_OPENERS = (("When the", "The"),)
_KNOWERS = ("I", "We", "You", "They")
_NUMBER = ("singular", "plural")
_VERB = (" is", " are")
_NAMES = tuple(zip(FEMALE_NAMES, MALE_NAMES, strict=False))

_CONTRASTS = (
    Contrast(
        "agreement-preposition", "agreement", "The {subject} {link} the {attractor}",
        {"subject": _NOUNS, "link": _LINKS, "attractor": _BYSTANDERS}, _NUMBER, _VERB,
    ),
    Contrast(
        "agreement-object-relative", "agreement", "The {subject} that the {attractor} {verb}",
        {"subject": _NOUNS, "attractor": _PEOPLE, "verb": _LIKED}, _NUMBER, _VERB,
    ),
    Contrast(
        "agreement-subject-relative", "agreement", "The {subject} that {verb} the {attractor}",
        {"subject": tuple((p, f"{p}s") for p in _PEOPLE if f"{p}s" in _GROUPS), "verb": _LIKED,
         "attractor": _BYSTANDERS}, _NUMBER, _VERB,
    ),
    Contrast(
        "npi-negation", "licensing", "The {person} {link} the {place} {licensor} {verb}",
        {"person": _PEOPLE, "link": _LINKS, "place": _PLACES, "licensor": (("didn't", "did"),), "verb": _BUY},
        ("licensed", "unlicensed"), (" any", " some"),
    ),
    Contrast(
        "npi-adverb", "licensing", "The {person} {link} the {place} {licensor} said",
        {"person": _PEOPLE, "link": _LINKS, "place": _PLACES, "licensor": (("never", "always"), ("hardly", "always"))},
        ("licensed", "unlicensed"), (" anything", " something"),
    ),
    Contrast(
        "reflexive-number", "licensing", "The {subject} {link} the {place} {verb}",
        {"subject": _MEN, "link": _LINKS, "place": _PLACES,
         "verb": _HURT}, _NUMBER, (" himself", " themselves"),
    ),
    Contrast(
        "reflexive-gender", "licensing", "Yesterday {subject} {link} the {place} {verb}",
        {"subject": _NAMES, "link": _LINKS, "place": _PLACES, "verb": _HURT},
        ("female", "male"), (" herself", " himself"),
    ),
    Contrast(
        "garden-main-verb", "garden path", "The {person} {verb} the {thing}",
        {"person": _PEOPLE, "verb": (("given", "gave"),), "thing": _THINGS + _GIFTS},
        ("reduced relative", "main verb"), (" was", " to"),
    ),
    Contrast(
        "garden-object-or-subject", "garden path", "As the {person} {verb} the {thing}",
        {"person": _PEOPLE, "verb": _paired("painted,/painted cleaned,/cleaned read,/read ate,/ate"), "thing": _THINGS},
        ("subject", "object"), (" was", ","),
    ),
    Contrast(
        "garden-object-or-clause", "garden path", "The {person} {verb} the {thing} in the {place}",
        {"person": _PEOPLE, "verb": _paired("knew_that/knew saw_that/saw heard_that/heard"), "thing": _THINGS,
         "place": _PLACES}, ("clause", "object"), (" was", "."),
    ),
    Contrast(
        "state-subordinate", "gross syntactic state", "{opener} {person} {verb} the {thing},",
        {"opener": _OPENERS, "person": _PEOPLE, "verb": _BOUGHT, "thing": _THINGS},
        ("subordinate", "main"), (" the", " and"),
    ),
    Contrast(
        "state-subordinate-intransitive", "gross syntactic state", "{opener} {person} in the {place} {verb},",
        {"opener": _OPENERS, "person": _PEOPLE, "place": _PLACES, "verb": _LEFT},
        ("subordinate", "main"), (" the", " and"),
    ),
    Contrast(
        "filler-gap", "long-distance", "{knower} know {filler} the {person} {verb}",
        {"knower": _KNOWERS, "filler": (("what", "that"),), "person": _PEOPLE + _GROUPS, "verb": _BOUGHT},
        ("gap", "no gap"), (".", " the"),
    ),
    Contrast(
        "filler-gap-modified", "long-distance", "{knower} know {filler} the {person} {link} the {place} {verb}",
        {"knower": _KNOWERS, "filler": (("what", "that"),), "person": _PEOPLE, "link": _LINKS, "place": _PLACES,
         "verb": _BOUGHT}, ("gap", "no gap"), (".", " the"),
    ),
    Contrast(
        "cleft", "long-distance", "What the {person} {verb} was", {"person": _PEOPLE + _GROUPS, "verb": _CLEFT},
        ("action", "thing"), (" to", " a"),
    ),
    Contrast(
        "cleft-modified", "long-distance", "What the {person} {link} the {place} {verb} was",
        {"person": _PEOPLE, "link": _LINKS, "place": _PLACES, "verb": _CLEFT}, ("action", "thing"), (" to", " a"),
    ),
)  # fmt: skip
MINIMAL_PAIRS: Mapping[str, Contrast] = MappingProxyType({contrast.name: contrast for contrast in _CONTRASTS})
"""The tasks, by name."""


def minimal_pairs(name: str, n: int, seed: int = 0, split: str = "all") -> InterchangeTask:
    """Examples whose base and source are the two sentences of a minimal pair.

    The exchanged variable is the `type` of sentence; types take turns in the base. All examples are different.
    Regions are the fields of the template.

    Args:
        name: one of `MINIMAL_PAIRS`.
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        split: `"train"` and `"held out"` share no content word: lists of six words or more are parted.

    Raises:
        PairError: an unknown name or split, `n` below 1, or more than there are.
    """
    check_count(n)
    check_choice("minimal-pair task", name, MINIMAL_PAIRS)
    contrast, random = MINIMAL_PAIRS[name], Random(seed)
    fields = {
        field: choices if len(choices) < _FEWEST_TO_SPLIT else part_of(choices, split)
        for field, choices in contrast.fields.items()
    }
    examples, seen = [], set()
    for row in range(n):
        drawn = _drawn(contrast, fields, random, row % 2)
        new = next((pair for pair in drawn if tuple(text.text for text in pair) not in seen), None)
        if new is None:
            raise PairError(
                f"There are not {n} different examples of {name!r} (split {split!r}): after {row}, {_MOST_DRAWS} draws "
                "brought no new one. Ask for fewer."
            )
        base, source = new
        seen.add((base.text, source.text))
        examples.append(Counterfactual(base, (source,), source.answer))
    return InterchangeTask(split_name(name, split), ("type",), tuple(examples), SOURCE, seed)


def pair_model(*names: str) -> CausalModel:
    """The causal model of these tasks: the word that differs decides the type of sentence, the type the answer.

    Several tasks share one if they have the same fields, types and answers, whatever their templates and words.

    Raises:
        PairError: no name, or an unknown one; tasks whose fields, types or answers differ.
    """
    if not names:
        raise PairError(f"No minimal-pair task was named. Allowed: {', '.join(MINIMAL_PAIRS)}.")
    for name in names:
        check_choice("minimal-pair task", name, MINIMAL_PAIRS)
    contrasts = [MINIMAL_PAIRS[name] for name in names]
    first = contrasts[0]
    for other in contrasts[1:]:
        if (set(other.fields), other.types, other.answers) != (set(first.fields), first.types, first.answers):
            raise PairError(
                f"{first.name!r} and {other.name!r} differ in their fields, types of sentence or answers: "
                f"{', '.join(first.fields)}; {first.types}; {first.answers} against {', '.join(other.fields)}; "
                f"{other.types}; {other.answers}. One causal model is of tasks that share them."
            )
    choices = {field: [choice for contrast in contrasts for choice in contrast.fields[field]] for field in first.fields}
    forms = {
        field: tuple(
            dict.fromkeys(word for choice in of for word in ((choice,) if isinstance(choice, str) else choice))
        )
        for field, of in choices.items()
    }
    decisive = next(field for field, of in choices.items() if not all(isinstance(choice, str) for choice in of))
    type_of = {
        word: kind
        for choice in choices[decisive] if not isinstance(choice, str)
        for word, kind in zip(choice, first.types, strict=True)
    }  # fmt: skip
    answer_of = dict(zip(first.types, first.answers, strict=True))
    variables = (
        *(Variable(field, words) for field, words in forms.items()),
        Variable("type", first.types, (decisive,), type_of.__getitem__),
        Variable("answer", first.answers, ("type",), answer_of.__getitem__),
    )
    return CausalModel(" and ".join(names), variables, "answer", SOURCE)


def control(task: InterchangeTask) -> InterchangeTask:
    """The control task: the same sentences, and for the two types two arbitrary answers that no sentence calls for.

    A direction that only serves to make any token follow a type of sentence does as well here as on the task.

    Raises:
        PairError: a task whose settings name no `type`, or not two of them.
    """
    types = sorted({str(text.setting.get("type")) for example in task for text in (example.base, *example.sources)})
    if len(types) != 2:
        raise PairError(
            f"A control task needs two types of sentence; the settings of {task.name!r} name {', '.join(types)} as "
            "their 'type'. Take a task of minimal_pairs()."
        )
    answer_of = dict(zip(types, CONTROL_ANSWERS, strict=True))
    examples = []
    for example in task:
        base, *sources = (
            Instance(text.text, answer_of[str(text.setting["type"])], text.regions, text.setting)
            for text in (example.base, *example.sources)
        )
        examples.append(Counterfactual(base, tuple(sources), sources[0].answer))
    return InterchangeTask(f"{task.name} control", task.variables, tuple(examples), task.source, task.seed)


def _drawn(
    contrast: Contrast, fields: Mapping[str, tuple[str | tuple[str, str], ...]], random: Random, first: int
) -> Iterator[tuple[Instance, Instance]]:
    """Pairs of sentences, base of the type `first`, source of the other."""
    for _ in range(_MOST_DRAWS):
        chosen = {field: random.choice(choices) for field, choices in fields.items()}
        sentences = []
        for side in (first, 1 - first):
            words = {field: word if isinstance(word, str) else word[side] for field, word in chosen.items()}
            text, regions = compose(contrast.template, fields, words)
            setting = {"type": contrast.types[side], **words}
            sentences.append(Instance(text, contrast.answers[side], regions, setting))
        yield sentences[0], sentences[1]
