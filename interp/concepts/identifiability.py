"""Are concepts found one by one? Learners with and without the price of an edge, on hierarchies that are known.

`identifiability` learns both levels of a hierarchy twice, with `price` and with price 0, everything else equal, and
matches what was learned with the truth. The controls are hierarchies in which a method must *not* identify anything:
`dense` ones, and rows shuffled (each observed channel by itself), after which no concept is left to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.concepts.hierarchies import ConceptHierarchy
from interp.concepts.minimality import LearnedLevel, Learning, learn_levels
from interp.errors import InterpError, ShapeError
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EDGE = 0.3
"""Strength from which a learned edge counts: standard deviations of the child per standard deviation of the parent."""
_NEIGHBOURS = 50
_LEVELS = ("low", "high")


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """What belongs to which true concept, one to one.

    Attributes:
        assigned: the learned concept of each true one.
        correlation: its absolute correlation; the mean is the *mean correlation coefficient*.
        r2: share of the true concept's variance that its learned one alone explains, on held-out rows.
        r2_all: the same, of all learned concepts together, linearly.
    """

    assigned: Int[np.ndarray, "concept"]
    correlation: Float[np.ndarray, "concept"]
    r2: Float[np.ndarray, "concept"]
    r2_all: Float[np.ndarray, "concept"]


def match_concepts(learned: Float[Tensor, "row learned"], truth: Float[Tensor, "row concept"]) -> Match:
    """The assignment of learned to true concepts with the largest sum of absolute correlations.

    `r2` comes from 50 nearest neighbours, so that a concept learned up to a bend is no worse for it; `r2_all` from a
    linear regression. Both are fitted on the even rows and scored on the odd ones.

    Raises:
        ShapeError: other rows than the truth's, fewer learned than true concepts, or fewer than 200 rows.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score
    from sklearn.neighbors import KNeighborsRegressor

    if len(learned) != len(truth) or learned.shape[1] < truth.shape[1] or len(truth) < 4 * _NEIGHBOURS:
        raise ShapeError(
            f"Learned {list(learned.shape)} and true concepts {list(truth.shape)}: the same rows, {4 * _NEIGHBOURS} or "
            "more, and at least as many learned as true."
        )
    found, true = learned.double().numpy(), truth.double().numpy()
    correlation = np.nan_to_num(_correlations(found, true))  # a constant code belongs to nothing
    rows, columns = linear_sum_assignment(-np.abs(correlation))
    assigned = rows[np.argsort(columns)]
    one = [
        r2_score(
            true[1::2, j], KNeighborsRegressor(_NEIGHBOURS).fit(found[::2, [i]], true[::2, j]).predict(found[1::2, [i]])
        )
        for j, i in enumerate(assigned)
    ]
    whole = LinearRegression().fit(found[::2], true[::2]).predict(found[1::2])
    r2_all = r2_score(true[1::2], whole, multioutput="raw_values")
    return Match(
        assigned, np.abs(correlation[assigned, np.arange(len(assigned))]), np.array(one), np.atleast_1d(r2_all)
    )


def edge_f1(found: Bool[Tensor, "child parent"], truth: Bool[Tensor, "child parent"]) -> float:
    """2 · right / (found + true) edges; NaN if there are neither."""
    both = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / both if both else float("nan")


@dataclass(frozen=True, repr=False, eq=False)
class IdentifiabilityResult(Result):
    """Learned against true concepts.

    `.data` holds, by `learner` ("minimal", "unconstrained"), `level` ("low", "high") and `seed`: `correlation` (mean
    over concepts, after assignment), `r2` (of the matched concept alone), `r2_all` (of all together), `unexplained`,
    `edge_f1` (with `EDGE` as threshold), and `worst`, the smallest correlation of a concept.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Concepts found one by one: {p['hierarchy']}, {len(p['seeds'])} seeds"

    def gain(self, level: str) -> float:
        """Mean correlation of the minimal learner minus that of the unconstrained one, mean over seeds."""
        found = self.data["correlation"].sel(level=level).mean("seed")
        return float(found.sel(learner="minimal") - found.sel(learner="unconstrained"))

    def plot(self) -> Figure:
        """Mean correlation per level and learner, with its bootstrap interval over seeds."""
        from interp.plots import bars

        values = self.data["correlation"]
        low, high = (values.isel(seed=0).copy(data=x) for x in bootstrap_interval(values.values))
        return bars(
            values.mean("seed"), y="level", bar="learner", low=low, high=high, title=self.title, unit="share",
            quantity="mean absolute correlation",
        )  # fmt: skip

    def summary(self) -> str:
        """Per level and learner: means over seeds."""
        lines = [f"IdentifiabilityResult: {self.title}"]
        for level in _LEVELS:
            for learner in self.data["learner"].values:
                at = self.data.sel(level=level, learner=learner)
                lines.append(
                    f"  {level:4} {learner:13} correlation {float(at['correlation'].mean()):.3f} "
                    f"({float(at['correlation'].min()):.3f} to {float(at['correlation'].max()):.3f}), R² "
                    f"{float(at['r2'].mean()):.3f} (all together {float(at['r2_all'].mean()):.3f}), "
                    f"edge F1 {float(at['edge_f1'].mean()):.2f}"
                )
        return "\n".join(lines)


def identifiability(
    make: Callable[[int], ConceptHierarchy],
    learning: Learning = Learning(),
    *,
    seeds: Sequence[int] = range(5),
    shuffled: bool = False,
    name: str = "a hierarchy",
) -> IdentifiabilityResult:
    """How well a learner finds the concepts of known hierarchies, with and without the price of an edge.

    Args:
        make: a hierarchy for each seed.
        learning: its price is that of the minimal learner; the seed of a hierarchy is added to its own.
        shuffled: shuffle the rows of every observed channel by itself: the control in which there is no concept.
        name: what the hierarchies are, for titles.

    Raises:
        InterpError: no seed, or a price of 0, which would compare a learner with itself.
        ShapeError: hierarchies of different sizes; as `learn_levels`.
    """
    import xarray as xr

    if not len(seeds) or not learning.price:
        raise InterpError(f"seeds={list(seeds)}, price={learning.price}: at least one seed, and a price above 0.")
    learners = {"minimal": learning, "unconstrained": replace(learning, price=0.0)}
    hierarchies = [make(seed) for seed in seeds]
    seen = [_shuffled(h.observed, s) if shuffled else h.observed for h, s in zip(hierarchies, seeds, strict=True)]
    first = hierarchies[0]
    learned = learn_levels(
        seen * len(learners),
        (first.low.shape[1], first.high.shape[1]),
        [replace(how, seed=how.seed + seed) for how in learners.values() for seed in seeds],
    )
    names = ("correlation", "r2", "r2_all", "unexplained", "edge_f1", "worst")
    judged = [_judged(own, truth) for own, truth in zip(learned, hierarchies * len(learners), strict=True)]
    table = np.stack(judged).reshape(len(learners), len(seeds), len(names), len(_LEVELS)).transpose(2, 0, 3, 1)
    axes = ("learner", "level", "seed")
    coords: dict[str, Any] = {"learner": list(learners), "level": list(_LEVELS), "seed": list(seeds)}
    record = provenance(
        experiment="identifiability", hierarchy=name, learning=asdict(learning), seeds=list(seeds), shuffled=shuffled,
        edge_threshold=EDGE, n_attempted=len(seeds), n_scored=len(seeds),
    )  # fmt: skip
    return IdentifiabilityResult(
        xr.Dataset({what: (axes, table[n], {"units": ""}) for n, what in enumerate(names)}, coords), record
    )


def _judged(levels: Sequence[LearnedLevel], truth: ConceptHierarchy) -> Float[np.ndarray, "what level"]:
    """Of one learner and hierarchy, what the result holds per level."""
    below: Any = slice(None)
    found = []
    known = ((truth.low, truth.low_edges), (truth.high, truth.high_edges))
    for level, (concepts, edges) in zip(levels, known, strict=True):
        match = match_concepts(level.codes, concepts)
        strength = level.strength[below][:, match.assigned.tolist()]
        f1 = edge_f1(strength > EDGE, edges)
        r = match.correlation
        found.append([r.mean(), match.r2.mean(), match.r2_all.mean(), level.unexplained, f1, r.min()])
        below = match.assigned.tolist()
    return np.array(found).T


def _shuffled(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([column[torch.randperm(len(column), generator=generator)] for column in x.T], 1)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a.T @ b) / np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
