"""Adding two numbers as a causal model: "12+13=25, 41+33=74, 27+18=45, 36+25=61, 38+47=" → "8".

The first digit of the sum is the sum of the tens, and one more if the units carry. The answer is one digit, so the
tokenizer must have a token per digit, as that of SmolLM2 has and that of GPT-2 has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.interchange import Instance, InterchangeTask, compose, draw_task
from interp.tasks.pairs import check_choice, part_of, split_name

SOURCE = "column addition; our own prompts"
ADDENDS = tuple(range(10, 90))
_TEMPLATE = "12+13=25, 41+33=74, 27+18=45, 36+25=61, {a}+{b}="


def carry_model() -> CausalModel:
    """The sum of the tens, and the carry of the units, which make the first digit of the sum."""
    digits = tuple(map(str, range(1, 10)))
    variables = (
        Variable("a", ADDENDS),
        Variable("b", ADDENDS),
        Variable("tens", tuple(range(2, 17)), ("a", "b"), lambda a, b: a // 10 + b // 10),
        Variable("carry", (0, 1), ("a", "b"), lambda a, b: int(a % 10 + b % 10 >= 10)),
        Variable("answer", digits, ("tens", "carry"), lambda tens, carry: str(tens + carry)[0]),
    )
    return CausalModel("addition with carry", variables, "answer", SOURCE)


def carry_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("carry",), split: str = "all"
) -> InterchangeTask:
    """Counterfactuals for the carry, or for the tens.

    Before the law of `CausalModel.counterfactuals` selects, the units carry half of the time. Sums have two digits.
    Regions are `a` and `b`.

    Args:
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: of `"carry"` and `"tens"`.
        split: `"train"` and `"held out"` share no addend.

    Raises:
        PairError: an unknown variable or split, or `n` below 1. Encoding refuses a tokenizer in which digits melt into
            one token.
        InterpError: no variable, or both, which decide every answer.

    Measured: SmolLM2-135M does not solve this task: 0.45 and 0.42 of 128 bases right over the whole vocabulary
        (`"train"` and `"held out"`, seed 0), with four worked sums before. It is here for larger models.
    """
    for variable in variables:
        check_choice("variable", variable, ("carry", "tens"))
    addends = part_of(ADDENDS, split)

    def draw(random: Random, _base: Setting | None) -> Setting:
        carries = random.random() < 0.5
        while True:
            a, b = random.choice(addends), random.choice(addends)
            if a // 10 + b // 10 < 9 and carries == (a % 10 + b % 10 >= 10):
                return {"a": a, "b": b}

    def write(values: Setting, _random: Random) -> Instance:
        text, regions = compose(_TEMPLATE, ("a", "b"), values)
        return Instance(text, str(values["answer"]), regions, values)

    name = split_name(f"addition-{'-'.join(variables)}", split)
    return draw_task(name, carry_model(), variables, n, seed, draw=draw, write=write)
