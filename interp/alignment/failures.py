"""Where an abstraction fails: on which inputs do a network and its causal model part?

Every intervention is described by *conditions*: the value of a variable on the base or on a source, which variables are
exchanged, the answer. `failure_rates` counts failures under each, one by one. `describe_failures` looks for the
simplest conjunction of them under which failures gather, by a shallow decision tree, and gives it only where trees
fitted to shuffled failures do not predict held-out examples as well.

When they mislead: conditions go together (a plural base, a label " are"), so that a rate need not be due to its
condition; and the rates of a description are those of the examples it was found on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import ShapeError
from interp.statistics import holm

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeClassifier

MOST_VALUES = 12
"""A column with more values describes single examples, not a kind of them; it is left out."""
_DEPTHS = (1, 2, 3)
_FOLDS, _SHUFFLES = 5, 99
_LEVEL = 0.05
_DEEPER = 0.05
"""What another level of a tree must add to its balanced accuracy."""

Columns = Mapping[str, Sequence[str]]
"""By name, a value for each example; "" where a column does not apply."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Failures under one condition.

    Attributes:
        condition: a column and its value, in words.
        n: examples under it.
        failed: those that failed.
        low: lower end of the rate's 95 % interval (Wilson's, which also means something where none or all fail).
        high: upper end.
        p: that all other examples to which the column applies fail as often (Fisher's exact test), corrected for all
            conditions (Holm).
    """

    condition: str
    n: int
    failed: int
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Description:
    """A conjunction of conditions under which failures gather.

    Attributes:
        words: the conjunction.
        n: examples under it; failed: those of them that failed.
        n_else: all others; failed_else: those of them that failed.
        score: balanced accuracy with which the tree predicts failures of examples it was not fitted to; ½ is chance.
        p: that trees fitted to shuffled failures do as well, corrected for the depths that were tried.
    """

    words: str
    n: int
    failed: int
    n_else: int
    failed_else: int
    score: float
    p: float

    def __str__(self) -> str:
        return (
            f"where {self.words}: {self.failed} of {self.n}, elsewhere {self.failed_else} of {self.n_else} (a tree "
            f"predicts held-out failures with balanced accuracy {self.score:.2f}, p = {self.p:.2g})"
        )


def failure_rates(columns: Columns, failed: Sequence[bool] | np.ndarray) -> list[Rate]:
    """Failures under each condition, the least likely by chance first.

    Conditions that hold for the same examples are one, named as the first of them; a column with one value, or more
    than `MOST_VALUES`, is left out.

    Raises:
        ShapeError: a column with another number of values than there are examples.
    """
    from scipy.stats import binomtest

    fails = np.asarray(failed, dtype=bool)
    found = _conditions(columns, len(fails))
    rates, ps = [], []
    for words, (holds, applies) in found.items():
        n, bad = int(holds.sum()), int(fails[holds].sum())
        interval = binomtest(bad, n).proportion_ci(method="wilson")
        ps.append(_fisher(fails[holds], fails[applies & ~holds]))
        rates.append((words, n, bad, float(interval.low), float(interval.high)))
    adjusted = holm(ps)
    whole = [Rate(*rate, p=float(p)) for rate, p in zip(rates, adjusted, strict=True)]
    return sorted(whole, key=lambda rate: (rate.p, -rate.failed / rate.n))


def describe_failures(columns: Columns, failed: Sequence[bool] | np.ndarray, *, seed: int = 0) -> Description | None:
    """The simplest conjunction under which failures gather; `None` where there is none to be trusted.

    Trees of one, two and three levels are judged by their balanced accuracy on examples left out (five folds), beside
    99 shuffles of which examples failed. The shallowest that beats them at 0.05, corrected for the three depths, is
    taken; a deeper one if that is better by 0.05. The conjunction is that of its leaf with the highest failure rate,
    without conditions that make no difference where the others hold (Fisher's exact test at 0.05).

    Raises:
        ShapeError: as `failure_rates`.
    """
    fails = np.asarray(failed, dtype=bool)
    found = {words: holds for words, (holds, _) in _conditions(columns, len(fails), opposites=False).items()}
    if not found or min(fails.sum(), (~fails).sum()) < _FOLDS:
        return None
    x = np.stack(list(found.values()), 1)
    chosen: tuple[float, float, int] | None = None
    for depth in _DEPTHS:
        score = _score(x, fails, depth, seed)
        if score > 0.5 and (chosen is None or score >= chosen[0] + _DEEPER):
            p = _p(score, x, fails, depth, seed)
            chosen = (score, p, depth) if p <= _LEVEL else chosen
    if chosen is None:
        return None
    score, p, depth = chosen
    kept = _needed(_worst_leaf(_tree(depth, len(fails)).fit(x, fails), x, fails, list(found)), fails)
    holds = np.logical_and.reduce(list(kept.values()))
    inside, outside = fails[holds], fails[~holds]
    words = " and ".join(kept)
    return Description(words, len(inside), int(inside.sum()), len(outside), int(outside.sum()), score, p)


def _conditions(columns: Columns, n: int, *, opposites: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By its words, where a condition holds and where its column applies, [example]; each once.

    Args:
        opposites: also those that hold where another does not.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    seen: set[bytes] = set()
    for name, values in columns.items():
        array = np.array([str(value) for value in values], dtype=str)
        if array.shape != (n,):
            raise ShapeError(f"Column {name!r} has {len(array)} values for {n} examples.")
        applies = array != ""
        kinds = sorted(set(array[applies]))
        if not 2 <= len(kinds) <= MOST_VALUES:
            continue
        for kind in kinds:
            holds = array == kind
            if holds.tobytes() in seen or (not opposites and (~holds).tobytes() in seen):
                continue
            seen.add(holds.tobytes())
            found[f"{name} is {kind}"] = holds, applies
    return found


def _tree(depth: int, n: int) -> DecisionTreeClassifier:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(
        max_depth=depth, min_samples_leaf=max(3, n // 50), class_weight="balanced", random_state=0
    )


def _score(x: np.ndarray, fails: np.ndarray, depth: int, seed: int) -> float:
    """Balanced accuracy on examples left out, mean over the folds."""
    from sklearn.model_selection import StratifiedKFold

    folds, found = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed), []
    for seen, left_out in folds.split(x, fails):
        guess = _tree(depth, len(fails)).fit(x[seen], fails[seen]).predict(x[left_out])
        found.append([(guess == fails[left_out])[fails[left_out] == kind].mean() for kind in (False, True)])
    return float(np.mean(found))


def _p(score: float, x: np.ndarray, fails: np.ndarray, depth: int, seed: int) -> float:
    """That a tree fitted to shuffled failures scores as well, corrected for the depths; above the level, 1."""
    shuffler, as_good = np.random.default_rng(seed), 0
    for _ in range(_SHUFFLES):
        as_good += _score(x, shuffler.permutation(fails), depth, seed) >= score
        if len(_DEPTHS) * (1 + as_good) > _LEVEL * (1 + _SHUFFLES):
            return 1.0
    return len(_DEPTHS) * (1 + as_good) / (1 + _SHUFFLES)


def _worst_leaf(
    tree: DecisionTreeClassifier, x: np.ndarray, fails: np.ndarray, names: list[str]
) -> dict[str, np.ndarray]:
    """The path to the leaf with the highest failure rate: by each condition's words, where it holds."""
    leaves = tree.apply(x)
    worst = max(np.unique(leaves), key=lambda leaf: (fails[leaves == leaf].mean(), (leaves == leaf).sum()))
    row = int(np.flatnonzero(leaves == worst)[0])
    path, inner = tree.decision_path(x[row : row + 1]).indices, tree.tree_
    asked = [int(inner.feature[node]) for node in path if inner.children_left[node] >= 0]
    return {names[i] if x[row, i] else _negated(names[i]): x[:, i] == x[row, i] for i in asked}


def _needed(conditions: dict[str, np.ndarray], fails: np.ndarray) -> dict[str, np.ndarray]:
    """Without conditions that make no difference where the others hold, the least important going first."""
    kept = dict(conditions)
    while len(kept) > 1:
        ps = {}
        for words, holds in kept.items():
            rest = np.logical_and.reduce([other for name, other in kept.items() if name != words])
            ps[words] = _fisher(fails[rest & holds], fails[rest & ~holds])
        least = max(ps, key=lambda words: ps[words])
        if ps[least] <= _LEVEL:
            break
        del kept[least]
    return kept


def _fisher(some: np.ndarray, others: np.ndarray) -> float:
    """The p of Fisher's exact test that failures are as frequent among some as among others."""
    from scipy.stats import fisher_exact

    table = [[some.sum(), (~some).sum()], [others.sum(), (~others).sum()]]
    return float(fisher_exact(table)[1])  # pyright: ignore[reportArgumentType]  (scipy's stubs know no tuple)


def _negated(condition: str) -> str:
    name, _, value = condition.rpartition(" is ")
    return f"{name} is not {value}"
