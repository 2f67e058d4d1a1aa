"""Attributes of an entity as a causal model: which part of what is known of France is its capital?

"The government of France is in its capital city," → " Paris"; "In the schools of France the main language is" →
" French". Each attribute is a variable, and the question chooses one of them. To exchange an attribute must change the
answer to its own question (it *causes* it) and leave the answers to the others alone (it is *isolated*), though every
attribute of the source's country may be another.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.interchange import Instance, InterchangeTask, compose, draw_task
from interp.tasks.pairs import check_choice, part_of, split_name

ATTRIBUTES = ("capital", "language", "continent")
# Countries of which SmolLM2-135M answers all three questions rightly. "North" and "South" begin the two Americas.
_COUNTRIES = (
    "France/Paris/French/Europe Germany/Berlin/German/Europe Japan/Tokyo/Japanese/Asia Italy/Rome/Italian/Europe "
    "Portugal/Lisbon/Portuguese/Europe Egypt/Cairo/Arabic/Africa England/London/English/Europe "
    "Austria/Vienna/German/Europe Peru/Lima/Spanish/South Hungary/Budapest/Hungarian/Europe "
    "China/Beijing/Chinese/Asia Greece/Athens/Greek/Europe Sweden/Stockholm/Swedish/Europe "
    "Tunisia/Tunis/Arabic/Africa Cuba/Havana/Spanish/North Norway/Oslo/Norwegian/Europe Chile/Santiago/Spanish/South "
    "Denmark/Copenhagen/Danish/Europe Finland/Helsinki/Finnish/Europe Canada/Ottawa/English/North "
    "Korea/Seoul/Korean/Asia Bulgaria/Sofia/Bulgarian/Europe Argentina/Buenos/Spanish/South"
)
COUNTRIES = {country: tuple(known) for country, *known in (words.split("/") for words in _COUNTRIES.split())}
QUESTIONS = {
    "capital": "The government of {country} is in its capital city,",
    "language": "In the schools of {country} the main language is",
    "continent": "The country {country} lies on the continent of",
}
SOURCE = "after Huang et al. 2024, RAVEL, arXiv:2402.17700"


def entity_model() -> CausalModel:
    """A country's capital, language and continent, of which the question chooses the answer."""
    known = {attribute: {c: f" {of[i]}" for c, of in COUNTRIES.items()} for i, attribute in enumerate(ATTRIBUTES)}
    domains = {attribute: tuple(dict.fromkeys(of.values())) for attribute, of in known.items()}
    variables = (
        Variable("country", tuple(COUNTRIES)),
        Variable("question", ATTRIBUTES),
        *(Variable(attribute, domains[attribute], ("country",), of.__getitem__) for attribute, of in known.items()),
        Variable("answer", tuple(dict.fromkeys(v for values in domains.values() for v in values)),
                 ("question", *ATTRIBUTES), lambda question, *of: of[ATTRIBUTES.index(question)]),
    )  # fmt: skip
    return CausalModel("entity attributes", variables, "answer", SOURCE)


def entity_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("capital",), split: str = "all"
) -> InterchangeTask:
    """Counterfactuals for attributes of a country.

    Where the law of `CausalModel.counterfactuals` keeps the base's answer, the base asks for an attribute that is not
    exchanged (or for one in which the countries agree). Sources ask any question. The region is `country`.

    Args:
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: of `"capital"`, `"language"` and `"continent"`.
        split: `"train"` and `"held out"` share no country.

    Raises:
        PairError: an unknown variable or split, or `n` below 1.
        InterpError: no variable, or all of them, which decide every answer.

    Measured: SmolLM2-135M answers all of 128 bases rightly, over the whole vocabulary (`"train"` and `"held out"`,
        seed 0); the countries were chosen for that.

    Source: Huang et al. 2024 (arXiv:2402.17700), whose distinction of cause and isolation this is; entities, attributes
        and prompts are our own.
    """
    for variable in variables:
        check_choice("attribute", variable, ATTRIBUTES)
    countries = part_of(tuple(COUNTRIES), split)

    def draw(random: Random, _base: Setting | None) -> Setting:
        return {"country": random.choice(countries), "question": random.choice(ATTRIBUTES)}

    def write(values: Setting, _random: Random) -> Instance:
        text, regions = compose(QUESTIONS[str(values["question"])], ("country",), values)
        return Instance(text, str(values["answer"]), regions, values)

    name = split_name(f"country-{'-'.join(variables)}", split)
    return draw_task(name, entity_model(), variables, n, seed, draw=draw, write=write)
