"""Price tagging as causal models: is a price between two bounds, and how is that found out?

Two models of the same answers: `boundaries` compares the price with each bound (`left`, `right`) and asks whether both
comparisons hold; `bracket` carries the pair of bounds over as one value and compares in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.interchange import Instance, InterchangeTask, compose, draw_task
from interp.tasks.pairs import check_choice, part_of, split_name

MECHANISMS = ("boundaries", "bracket")
BOUNDS = tuple(range(100, 1000, 25))
"""In cents, as are prices."""
PRICES = tuple(range(5, 1000, 10))  # never a bound
SOURCE = "Wu et al. 2023, arXiv:2305.08809"
_TEMPLATE = (
    "Please say yes only if it costs between {low} and {high} dollars, otherwise no. It costs {price} dollars. I say"
)
_ANSWERS = (" yes", " no")


def price_model(mechanism: str = "boundaries") -> CausalModel:
    """The causal model that compares each bound (`"boundaries"`) or carries both over (`"bracket"`).

    Raises:
        PairError: another mechanism.
    """
    check_choice("mechanism", mechanism, MECHANISMS)
    inputs = (Variable("low", BOUNDS), Variable("high", BOUNDS), Variable("price", PRICES))
    if mechanism == "boundaries":
        rest = (
            Variable("left", (False, True), ("low", "price"), lambda low, price: low < price),
            Variable("right", (False, True), ("high", "price"), lambda high, price: price < high),
            Variable("answer", _ANSWERS, ("left", "right"), lambda left, right: _spoken(left and right)),
        )
    else:
        rest = (
            Variable("bracket", tuple(combinations(BOUNDS, 2)), ("low", "high"), lambda low, high: (low, high)),
            Variable("answer", _ANSWERS, ("bracket", "price"), lambda of, price: _spoken(of[0] < price < of[1])),
        )
    return CausalModel(f"price by {mechanism}", (*inputs, *rest), "answer", SOURCE)


def price_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("left",), split: str = "all"
) -> InterchangeTask:
    """Counterfactuals for what price tagging may compute.

    Before the law of `CausalModel.counterfactuals` selects, a price lies in the bracket half of the time, below it and
    above it a quarter each. Regions are `low`, `high` and `price`.

    Args:
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: of `"left"` and `"right"`, or `("bracket",)`.
        split: `"train"` and `"held out"` share neither a bound nor a price.

    Raises:
        PairError: an unknown variable or split, or `n` below 1.
        InterpError: no variable, or `bracket` with others, which belong to the other model.

    Measured: SmolLM2-135M does not solve this task: 0.59 and 0.55 of 128 bases right (`"train"` and `"held out"`,
        seed 0; its answer is yes or no in all). It is here for larger models; the paper's has 7B parameters.

    Source: Wu et al. 2023 (arXiv:2305.08809). Their sentence, without an instruction format; their bounds and
        prices are any from 0.00 to 9.99.
    """
    for variable in variables:
        check_choice("variable", variable, ("left", "right", "bracket"))
    model = price_model("bracket" if "bracket" in variables else "boundaries")
    bounds, prices = part_of(BOUNDS, split), part_of(PRICES, split)

    def draw(random: Random, _base: Setting | None) -> Setting:
        side = random.choice(("inside", "inside", "below", "above"))
        while True:
            low, high = sorted(random.sample(bounds, 2))
            price = random.choice(prices)
            if side == ("below" if price < low else "above" if price > high else "inside"):
                return {"low": low, "high": high, "price": price}

    def write(values: Setting, _random: Random) -> Instance:
        told = {name: f"{cents // 100}.{cents % 100:02d}" for name, cents in values.items() if name in model.inputs}
        text, regions = compose(_TEMPLATE, model.inputs, told)
        return Instance(text, str(values["answer"]), regions, values)

    name = split_name(f"price-{'-'.join(variables)}", split)
    return draw_task(name, model, variables, n, seed, draw=draw, write=write)


def _spoken(holds: bool) -> str:
    return _ANSWERS[0] if holds else _ANSWERS[1]
