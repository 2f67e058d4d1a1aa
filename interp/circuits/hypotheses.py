"""Is it this circuit? Tests of one circuit against others that could have been named instead.

With m the mean metric, C the circuit, M the whole model, ∅ the circuit of no edges, everything in shares of the gap
m(M) − m(∅):

- *sufficiency*: is C more faithful than random circuits of as many edges of every type, all of them on a way from the
  input to the logits (`interp.circuits.connected`)?
- *partial necessity*: does the model lose more without C than without random circuits of that size outside of C?
- *minimality* of an edge: does C change more without it than C, inflated by a random path, without an edge of that
  path?
- *completeness*: with random nodes K taken away, does what is left of C do as what is left of M? (It need not: what C
  lacks may show only where other parts are gone.) `interp.circuits.completeness` searches for the worst K.

p of the first two is that of a Monte Carlo test: the rank of C among itself and the random circuits, under the
hypothesis that C is as any of them (for the first, that it was drawn as they were). An edge's p is binomial: its change
against the change of each of n random edges, under the hypothesis that it is larger in half of the cases or less,
Holm-corrected over the edges tested; all edges share the random ones. Under the opposite hypothesis an edge can be
shown to be needed no more than random ones; what is shown in neither way cannot be decided with n. No p is less than
2^−n, times the number of edges tested: of 20 random edges the first of 10 tested ones must exceed 17, which one that
exceeds nine in ten of all random edges does with a chance of 0.87; of 10 it must exceed all 10 (0.35), so that a single
random edge that happens to matter would decide. Pairs are taken as they are: p says nothing about other prompts
(intervals of faithfulness do).

Source: Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs" (arXiv:2410.13032): sufficiency, partial
necessity, minimality with inflated circuits. There the first two are binomial as well, with a quantile q*, random
circuits are unions of paths, and edges are corrected after Bonferroni. Completeness as in Wang et al. 2022
(arXiv:2211.00593), over random K.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom, binomtest

from interp.circuits.ablation import Cut
from interp.circuits.connected import connected_like
from interp.circuits.graph import Graph
from interp.circuits.results import Circuit
from interp.circuits.select import edge_types, live_edges, random_like
from interp.errors import InterpError
from interp.progress import Progress
from interp.statistics import holm

LIKE = {"types": "as many edges of every type", "number": "as many edges", "": ""}


@dataclass(frozen=True, slots=True)
class Trials:
    """How thoroughly a circuit is tested; every number is one of forward passes over all pairs, or half of one.

    Attributes:
        n_random: random circuits for sufficiency, and again for partial necessity. 19 allow p = 0.05.
        connected: those for sufficiency have no dead ends. Otherwise their edges are drawn one by one, most of them
            lead nowhere, and it takes little to do better.
        n_edges: edges tested for minimality, drawn at random; `None`: all.
        n_inflated: random edges that each of them is compared with (two passes each). Few give a test of little power.
        n_subsets: random sets of nodes for completeness (two passes each).
        level: of the tests.
        least: the faithfulness that a circuit must reach to pass.

    Raises:
        InterpError: a level or a number out of range; fewer random circuits than the level needs.
    """

    n_random: int = 19
    connected: bool = True
    n_edges: int | None = 10
    n_inflated: int = 20
    n_subsets: int = 5
    level: float = 0.05
    least: float = 0.8

    def __post_init__(self) -> None:
        numbers = (self.n_random, self.n_edges or 0, self.n_inflated, self.n_subsets)
        if min(numbers) < 0 or not 0 < self.level < 1:
            raise InterpError(f"Trials are counted from 0, and a level is between 0 and 1; got {self}.")
        if 0 < self.n_random < round(1 / self.level, 6) - 1:
            raise InterpError(
                f"{self.n_random} random circuits cannot give p ≤ {self.level:g}; take "
                f"{ceil(1 / self.level - 1e-6) - 1} or more, or 0 for no such test."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What the tests of a circuit found, in the metric's unit; examples are pairs.

    Attributes:
        like: what the random circuits are like, in words, for sufficiency, for necessity; `""` where there are too few.
        random: metric of random circuits [draw, example].
        knocked_out: metric of the model without the circuit [example].
        knocked_out_random: without random circuits outside of it [draw, example].
        edges: the edges tested for minimality.
        without_edge: metric of the circuit without each [edge, example].
        inflated: of the inflated circuits, and of these without an edge of the path [which, draw, example].
        subsets: the nodes that are taken away, per subset.
        broken: metric of circuit and model without them [which, subset, example].
    """

    like: tuple[str, str]
    random: np.ndarray
    knocked_out: np.ndarray
    knocked_out_random: np.ndarray
    edges: list[str]
    without_edge: np.ndarray
    inflated: np.ndarray
    subsets: list[list[str]]
    broken: np.ndarray


def examine(cut: Cut, found: Circuit, trials: Trials, generator: np.random.Generator, progress: Progress) -> Examined:
    """Run what the tests need: 2 · n_random + 1 + n_edges + 2 · (n_inflated + n_subsets) passes over all pairs.

    Raises:
        InterpError: fewer random edges than so many edges need to pass Holm's correction.
    """
    graph, edges, n = found.graph, found.edges, len(cut.problem.encoded)
    rest = graph.edges & ~edges
    circuits, kept_like = random_circuits(found, trials.n_random, generator, trials.connected)
    outside_like = alternatives(graph, edges, rest, trials.n_random)
    like = kept_like, LIKE[outside_like]
    chosen = np.argwhere(edges)
    if trials.n_edges is not None and trials.n_edges < len(chosen):
        chosen = chosen[np.sort(generator.choice(len(chosen), trials.n_edges, replace=False))]
    least = ceil(log2(max(1, len(chosen)) / trials.level))
    if len(chosen) and 0 < trials.n_inflated < least:
        raise InterpError(
            f"{trials.n_inflated} random edges cannot give {len(chosen)} edges p ≤ {trials.level:g} after Holm's "
            f"correction; take n_inflated={least} or more, or test fewer edges."
        )

    empty = np.full((trials.n_random, n), np.nan)
    random, outside = empty.copy(), empty.copy()
    for draw, one in enumerate(progress(circuits, "random circuits")):
        random[draw] = cut.kept(one)
    for draw in progress(range(trials.n_random), "random knock-outs") if like[1] else ():
        outside[draw] = cut.without(random_like(found, generator, rest, typed=outside_like == "types"))

    without_edge = np.full((len(chosen), n), np.nan)
    for number, (i, j) in enumerate(progress(chosen.tolist(), "edges of the circuit")):
        less = edges.copy()
        less[i, j] = False
        without_edge[number] = cut.kept(less)

    inflated = np.full((2, trials.n_inflated, n), np.nan)
    paths = [random_path(graph, edges, generator) for _ in range(trials.n_inflated)] if len(chosen) else []
    for draw, path in enumerate(progress(paths, "random edges")):
        if path is None:
            break
        more = edges.copy()
        more[tuple(path.T)] = True
        inflated[0, draw] = cut.kept(more)
        new = path[~edges[tuple(path.T)]]
        more[tuple(generator.choice(new))] = False
        inflated[1, draw] = cut.kept(more)

    subsets = [some_nodes(edges, generator) for _ in range(trials.n_subsets)]
    broken = np.full((2, trials.n_subsets, n), np.nan)
    for number, gone in enumerate(progress(subsets, "sets of nodes")):
        broken[:, number] = without_nodes(cut, edges, gone)

    names = np.array(graph.senders)
    return Examined(
        like, random, cut.without(edges) if like[1] else np.full(n, np.nan), outside,
        [f"{graph.senders[i]}->{graph.receivers[j]}" for i, j in chosen], without_edge, inflated,
        [names[gone].tolist() for gone in subsets], broken,
    )  # fmt: skip


def random_circuits(
    found: Circuit, n: int, generator: np.random.Generator, connected: bool = True
) -> tuple[list[np.ndarray], str]:
    """(n random circuits to compare with, what they are like); none, and `""`, where there are too few others.

    Args:
        connected: without dead ends, if the circuit does not consist of them.
    """
    if connected and n and live_edges(found.graph, found.edges).any():
        for typed, said in ((True, LIKE["types"]), (False, LIKE["number"])):
            if drawn := connected_like(found, n, generator, typed=typed):
                return drawn, f"{said}, without dead ends"
        return [], ""
    like = alternatives(found.graph, found.edges, found.graph.edges, n)
    return [random_like(found, generator, typed=like == "types") for _ in range(n if like else 0)], LIKE[like]


def rank_p(value: float, drawn: np.ndarray) -> float:
    """The p of a Monte Carlo test: the share, among value and draws, that is at least as large; NaN without draws."""
    drawn = drawn[~np.isnan(drawn)]
    return float((1 + (drawn >= value).sum()) / (1 + len(drawn))) if len(drawn) else float("nan")


def edge_p(whole: np.ndarray, examined: Examined, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much the circuit changes without each edge, and adjusted p: this is more than for most random ones; less.

    A change is the mean over pairs of |difference|, in the metric's unit.

    Args:
        whole: metric of the circuit [example].
        tolerance: changes that differ by less are equal, which counts against the edge.
    """
    changes = np.abs(whole - examined.without_edge).mean(-1)
    random = np.abs(examined.inflated[0] - examined.inflated[1]).mean(-1)
    random = random[~np.isnan(random)]
    if not len(random):
        return changes, np.full(len(changes), np.nan), np.full(len(changes), np.nan)
    wins = (changes[:, None] > random + tolerance).sum(1)
    more, less = (
        holm([binomtest(int(won), len(random), 0.5, alternative=side).pvalue for won in wins])
        for side in ("greater", "less")
    )
    return changes, more, less


def edge_power(n_edges: int, n_random: int, level: float, share: float = 0.9) -> tuple[int, float]:
    """(random edges that an edge must exceed to be shown to be needed, chance of one that exceeds a `share` of all).

    Under the strictest step of Holm's correction, that of the first of `n_edges`; the next ones need fewer.
    """
    needed = np.arange(n_random + 1)
    enough = int(np.append(needed[binom.sf(needed - 1, n_random, 0.5) <= level / n_edges], n_random + 1)[0])
    return enough, float(binom.sf(enough - 1, n_random, share))


def alternatives(graph: Graph, edges: np.ndarray, among: np.ndarray, n: int) -> str:
    """What random circuits among some edges can share with a circuit, if at least n + 1 of them are to exist.

    Returns:
        `"types"`, `"number"`, or `""`.
    """

    def choices(of: np.ndarray) -> float:  # log of the number of ways to choose as many edges
        total, taken = int((of & among).sum()), int((of & edges).sum())
        if taken > total:
            return -np.inf
        return float(gammaln(total + 1) - gammaln(taken + 1) - gammaln(total - taken + 1))

    enough = np.log(n + 0.999) if n else np.inf
    if sum(choices(of) for of in edge_types(graph)) >= enough:
        return "types"
    return "number" if choices(graph.edges) >= enough else ""


def random_path(graph: Graph, edges: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """(sender, receiver) indices [step, 2] of a random way from the input to the logits that leaves the circuit.

    Every step goes to a random receiver of what the node writes, and on from a random node that it feeds. `None` if
    no such way turns up.
    """
    for _ in range(1000):
        node, path = 0, []
        while node < len(graph.senders):
            receiver = int(generator.choice(np.flatnonzero(graph.edges[node])))
            path.append((node, receiver))
            node = int(generator.choice(np.flatnonzero(graph.feeds[receiver])))
        found = np.array(path)
        if not edges[tuple(found.T)].all():
            return found
    return None


def inner_nodes(edges: np.ndarray) -> np.ndarray:
    """Indices of a circuit's senders, the embedding excepted."""
    return 1 + np.flatnonzero(edges[1:].any(1))


def without_nodes(cut: Cut, edges: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The metric [which, example] of the circuit of these edges, and of the model, without some nodes' terms.

    Args:
        gone: bool [sender].
    """
    away = cut.problem.graph.edges & gone[:, None]
    return np.stack([cut.kept(edges & ~away), cut.without(away)])


def some_nodes(edges: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Bool [sender]: at least one and at most half of the circuit's senders, the embedding excepted."""
    within = inner_nodes(edges)
    gone = np.zeros(len(edges), dtype=bool)
    if len(within):
        gone[generator.choice(within, generator.integers(1, max(1, len(within) // 2) + 1), replace=False)] = True
    return gone


def judged(facts: dict[str, Any], trials: Trials) -> dict[str, Any]:
    """Whether a circuit passes, and why not: all of the tests must, so no correction is due among them.

    Args:
        facts: `faithfulness`, and p of `task` (the model gets more than half of the pairs right), `sufficiency` and
            `necessity`; NaN where there was nothing to compare with.

    Returns:
        `passed` (None where nothing speaks against it and a test could not be made), and the `reasons` against it.
    """
    against = []
    if not facts["faithfulness"] >= trials.least:
        against.append(f"faithfulness {facts['faithfulness']:.2f} is below {trials.least:g}")
    sayings = {
        "task": "the model itself does not get more pairs right than chance",
        "sufficiency": "it is not more faithful than random circuits",
        "necessity": "the model misses it no more than random circuits outside of it",
    }
    open_questions = []
    for test, saying in sayings.items():
        if np.isnan(facts[test]):
            open_questions.append(test)
        elif facts[test] > trials.level:
            against.append(f"{saying} (p {facts[test]:.2g})")
    passed = False if against else (None if open_questions else True)
    return {"passed": passed, "reasons": against, "untested": open_questions}
