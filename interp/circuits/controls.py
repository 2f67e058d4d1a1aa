"""Where nothing is to be found: a network of random weights, and answers that have nothing to do with the prompts.

A method that claims a circuit there would claim one anywhere. `claim` says what claiming means: scores from one half
of the pairs, a circuit of a stated size, and on the other half

1. clean and corrupted prompts differ in the metric by more than the uncertainty of that difference;
2. the circuit passes `evaluate`: faithful, sufficient, partially necessary (where there are too few random circuits to
   compare with, it does not);
3. it keeps at most 1.2 of the difference;
4. the model does the task: of all prompts, clean and corrupted, it answers more rightly than coins would (p ≤ 0.01).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from interp.circuits.evaluate import Evaluation, evaluate
from interp.circuits.hypotheses import Trials
from interp.circuits.results import said_verdict
from interp.circuits.score import score
from interp.circuits.select import top_n
from interp.errors import InterpError, PairError
from interp.models.language_model import LanguageModel
from interp.tasks.pairs import Task


def shuffled_answers(task: Task, seed: int = 0) -> Task:
    """The pairs with answers that a coin decides: one half have answer and wrong answer exchanged."""
    random, pairs = Random(seed), list(task.pairs)
    chosen = set(random.sample(range(len(pairs)), len(pairs) // 2))
    mixed = [
        replace(pair, answer=pair.wrong_answer, wrong_answer=pair.answer) if number in chosen else pair
        for number, pair in enumerate(pairs)
    ]
    return Task(f"{task.name}, answers shuffled", tuple(mixed), task.source, seed)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether a circuit may be claimed.

    Attributes:
        holds: it may.
        why: the first condition that failed, or what was found.
        evaluation: of the circuit on the pairs it was not chosen on; None where the prompts differ too little for one.
    """

    holds: bool
    why: str
    evaluation: Evaluation | None = None

    def __bool__(self) -> bool:
        return self.holds


def claim(
    model: LanguageModel,
    task: Task,
    method: str,
    n_edges: int,
    *,
    n_random: int = 19,
    seed: int = 0,
    **options: Any,
) -> Claim:
    """Whether a method may claim a circuit of so many edges for a task; the module says by which conditions.

    Args:
        task: pairs in random order; scores come from the first half, everything else from the second.
        method: as in `score`.
        n_edges: of the circuit.
        n_random: circuits to compare with.
        seed: of the random circuits.
        **options: of the method.

    Raises:
        InterpError: fewer than four pairs, or than 19 random circuits; as `score` and `top_n`.
    """
    from scipy.stats import binomtest

    half = len(task) // 2
    if half < 2 or n_random < 19:
        raise InterpError(f"{len(task)} pairs and {n_random} random circuits: a claim takes at least 4 and 19.")
    chosen_on, tried_on = task.select(list(range(half))), task.select(list(range(half, len(task))))
    try:
        found = top_n(score(model, chosen_on, method, **options), n_edges)
        trials = Trials(n_random=n_random, n_edges=0, n_inflated=0, n_subsets=0)
        result = evaluate(model, tried_on, found, trials=trials, seed=seed)
    except PairError as error:
        return Claim(False, str(error))
    kept, verdict = float(result.data["faithfulness"][0]), result.verdict
    if not verdict["passed"]:
        return Claim(False, said_verdict(verdict), result)
    if kept > 1.2:
        return Claim(False, f"the circuit keeps {kept:.2f} of the difference, more than 1.2", result)
    right = int((result.data["clean"] > 0).sum() + (result.data["corrupted"] < 0).sum())
    if binomtest(right, 2 * len(tried_on), alternative="greater").pvalue > 0.01:
        why = f"the model answers {right} of {2 * len(tried_on)} prompts rightly, as coins could"
        return Claim(False, why, result)
    p = float(result.data["p"][0])
    return Claim(True, f"{n_edges} edges keep {kept:.2f} of the difference, p {p:.2g}", result)
