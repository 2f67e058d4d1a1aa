"""Causal models that are shipped, each with the texts or inputs on which a network can be aligned with it.

`interchange("ioi-position", 256, split="train")` makes a task on texts by name, and `INTERCHANGES` lists the names.
`vector_interchange` draws vectors for networks small enough to train, `picture_interchange` prompts for pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from interp.tasks.causal_model import CausalModel
from interp.tasks.causal_models.carry import carry_interchange, carry_model
from interp.tasks.causal_models.entities import entity_interchange, entity_model
from interp.tasks.causal_models.equality import (
    VECTOR_MODELS,
    VECTOR_VARIABLES,
    VectorInterchange,
    vector_interchange,
)
from interp.tasks.causal_models.ioi import ioi_interchange, ioi_model
from interp.tasks.causal_models.number import number_interchange, number_model
from interp.tasks.causal_models.pictures import PictureInterchange, picture_interchange, picture_model
from interp.tasks.causal_models.price import price_interchange, price_model
from interp.tasks.interchange import InterchangeTask
from interp.tasks.pairs import check_choice


@dataclass(frozen=True, slots=True)
class Family:
    """A causal model, and what draws tasks for some of its variables.

    Attributes:
        model: the causal model.
        variables: those that are exchanged.
        generate: takes the number of examples, `seed`, `variables` and `split`.
    """

    model: Callable[[], CausalModel]
    variables: tuple[str, ...]
    generate: Callable[..., InterchangeTask]


INTERCHANGES: Mapping[str, Family] = MappingProxyType(
    {
        "ioi-position": Family(ioi_model, ("position",), ioi_interchange),
        "ioi-identity": Family(lambda: ioi_model("identity"), ("identity",), ioi_interchange),
        "subject-number": Family(number_model, ("number",), number_interchange),
        "subject-tense": Family(number_model, ("tense",), number_interchange),
        "price-left": Family(price_model, ("left",), price_interchange),
        "price-right": Family(price_model, ("right",), price_interchange),
        "price-bracket": Family(lambda: price_model("bracket"), ("bracket",), price_interchange),
        "addition-carry": Family(carry_model, ("carry",), carry_interchange),
        "addition-tens": Family(carry_model, ("tens",), carry_interchange),
        "country-capital": Family(entity_model, ("capital",), entity_interchange),
        "country-language": Family(entity_model, ("language",), entity_interchange),
        "country-continent": Family(entity_model, ("continent",), entity_interchange),
    }
)
"""The tasks on texts, by name."""


def interchange(name: str, n: int, seed: int = 0, split: str = "all") -> InterchangeTask:
    """The task of this name.

    Args:
        name: one of `INTERCHANGES`.
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        split: `"train"` and `"held out"` share none of the values that the task says it holds out.

    Raises:
        PairError: an unknown name or split, or `n` below 1.
    """
    check_choice("interchange task", name, INTERCHANGES)
    family = INTERCHANGES[name]
    return family.generate(n, seed, variables=family.variables, split=split)


__all__ = [
    "INTERCHANGES",
    "VECTOR_MODELS",
    "VECTOR_VARIABLES",
    "Family",
    "PictureInterchange",
    "VectorInterchange",
    "carry_interchange",
    "carry_model",
    "entity_interchange",
    "entity_model",
    "interchange",
    "ioi_interchange",
    "ioi_model",
    "number_interchange",
    "number_model",
    "picture_interchange",
    "picture_model",
    "price_interchange",
    "price_model",
    "vector_interchange",
]
