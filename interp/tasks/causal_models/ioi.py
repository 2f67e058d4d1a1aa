"""Indirect object identification as causal models: what of the repeated name is used, its place or its identity?

"Then, Mary and John went to the store. John gave a ring to" → " Mary". Two names are introduced, the giver is one of
them, and the answer is the other. Both models do that, by different signals (both were found in GPT-2 small):

- *position*: where the giver was introduced, first or second; the answer is the name in the other place;
- *identity*: who the giver is; the answer is the introduced name that is somebody else.

On ordinary prompts they cannot be told apart. Interchanges tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from interp.errors import PairError
from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.interchange import Instance, InterchangeTask, compose, draw_task
from interp.tasks.ioi import FEMALE_NAMES, MALE_NAMES, NAMES, OBJECTS, PLACES, TEMPLATES
from interp.tasks.pairs import check_choice, part_of, split_name

MECHANISMS = ("position", "identity")
SOURCE = "Wang et al. 2022, arXiv:2211.00593"
_REGIONS = ("first", "second", "giver")
_FRAMES = tuple(template.format(a="{first}", b="{second}", s="{giver}", place="{place}", object="{object}")
                for template in TEMPLATES)  # fmt: skip


def ioi_model(mechanism: str = "position") -> CausalModel:
    """The causal model in which the giver acts by its `"position"` or by its `"identity"`.

    Raises:
        PairError: another mechanism.
    """
    check_choice("mechanism", mechanism, MECHANISMS)
    answers = tuple(f" {name}" for name in NAMES)
    inputs = tuple(Variable(name, NAMES) for name in ("first", "second", "giver"))
    if mechanism == "position":
        inner = Variable("position", ("first", "second"), ("first", "second", "giver"), _place)
        answer = Variable("answer", answers, ("first", "second", "position"), _in_the_other_place)
    else:
        inner = Variable("identity", NAMES, ("giver",), lambda giver: giver)
        answer = Variable("answer", answers, ("first", "second", "identity"), _somebody_else)
    return CausalModel(f"ioi by {mechanism}", (*inputs, inner, answer), "answer", SOURCE)


def ioi_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("position",), split: str = "all"
) -> InterchangeTask:
    """Counterfactuals for the position, or the identity, of the giver.

    Base and source share template, place and object. For the position, their names are disjoint: to carry a name over
    never gives the label. For the identity, the source's giver is one of the base's two names, and its other name a
    new one; it stands in the same place as in the base half of the time, so that the position does not tell it. Regions
    are the names `first`, `second` and `giver`.

    Args:
        n: number of examples; the law is that of `CausalModel.counterfactuals`.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: `("position",)` or `("identity",)`: they belong to different models.
        split: `"train"` and `"held out"` share neither a template nor a name.

    Raises:
        PairError: other variables, an unknown split, or `n` below 1.

    Measured: SmolLM2-135M answers 0.97 and 0.96 of the bases and sources of 128 examples rightly, over the whole
        vocabulary (`"train"` and `"held out"`, seed 0), and 0.98 and 0.95 of those for the identity.
    """
    if len(variables) != 1:
        raise PairError(f"Exchange one of {', '.join(MECHANISMS)}, which are rival models; got {variables!r}.")
    variable = variables[0]
    model = ioi_model(variable)
    frames = part_of(_FRAMES, split)
    names = tuple(sorted(part_of(MALE_NAMES, split) + part_of(FEMALE_NAMES, split)))

    def draw(random: Random, base: Setting | None) -> Setting:
        others = [name for name in names if base is None or name not in (base["first"], base["second"])]
        first, second = random.sample(others, 2)
        if base is not None and variable == "identity":
            known = random.choice((base["first"], base["second"]))
            first, second = (known, second) if random.random() < 0.5 else (first, known)
            return {"first": first, "second": second, "giver": known}
        return {"first": first, "second": second, "giver": random.choice((first, second))}

    def write(values: Setting, random: Random) -> Instance:
        words = {"place": random.choice(PLACES), "object": random.choice(OBJECTS)}
        text, regions = compose(random.choice(frames), _REGIONS, {**values, **words})
        return Instance(text, str(values["answer"]), regions, values)

    return draw_task(split_name(f"ioi-{variable}", split), model, variables, n, seed, draw=draw, write=write)


def _place(first: str, second: str, giver: str) -> str | None:
    return {first: "first", second: "second"}.get(giver)


def _in_the_other_place(first: str, second: str, position: str) -> str:
    return f" {second}" if position == "first" else f" {first}"


def _somebody_else(first: str, second: str, identity: str) -> str | None:
    return {first: f" {second}", second: f" {first}"}.get(identity)
