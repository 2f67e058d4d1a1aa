"""What does a circuit lack? A search for nodes whose loss it does not take as the model does.

A faithful circuit may lack what stands in for another part: that shows only where the other part is gone. So nodes K
are taken away from circuit C and model M alike, and what is left of them is compared:

    difference(K) = f(C without K) − f(M without K)        f(X) = (m(X) − m(∅)) / (m(M) − m(∅))

A circuit is complete if it is 0 for every K. Below 0 the model has something in reserve that the circuit lacks; above
0 the circuit lacks something that works against the answer when K is gone. There are 2ⁿ sets, so they are searched:

- *random*: at least one and at most half of the circuit's nodes, as in `evaluate`;
- *greedy*: from no node on, of some `candidates` drawn among those that are left, the one is taken away whose loss
  makes |difference| largest; and so on to `depth` nodes, from several starts.

A set costs two passes over all pairs, so that the whole takes 2 · (n_random + starts · depth · candidates) at most; the
result says how many it took. The largest of many numbers is too large by chance: the search sees a random half of
the pairs, and what is reported of a set is measured on the other half.

Source: Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 4 and its appendix on greedy
search. There K is chosen and scored on the same prompts, in logits instead of shares of the gap, and nodes are knocked
out by their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.circuits.ablation import Ablation, Cut
from interp.circuits.hypotheses import inner_nodes, some_nodes, without_nodes
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import Circuit
from interp.errors import InterpError, PairError
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result
from interp.statistics import recovered

if TYPE_CHECKING:
    import xarray as xr
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class Completeness(Result):
    """What is left of a circuit, and of the model, without sets of the circuit's nodes.

    `.data` holds over `set` how it was found (`search`: "random" or "greedy", and from which `start`), its `nodes` and
    their number `n_nodes`; over `of` (`circuit`, `model`) × `set` the share of the gap that is `left` without them, and
    their `difference`, each with its 95 % bootstrap interval over pairs (`left_low`, `left_high`, `low`, `high`); all
    on pairs that the search did not see. `chosen_by` is |difference| on those that it saw. A greedy search leaves one
    set per step.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Completeness of a circuit by {p['method']} · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    @property
    def worst(self) -> xr.Dataset:
        """The set on which, where it was searched, circuit and model differ most."""
        return self.data.isel(set=int(self.data["chosen_by"].values.argmax()))

    def summary(self) -> str:
        """What random and greedy sets show, the worst, and the cost."""
        p, data, worst = self.provenance, self.data, self.worst
        lines = [
            f"Completeness: {self.title}",
            f"  searched on {p['n_searched']} pairs, measured on {p['n_measured']}, {p['ablation']} ablation; "
            f"{p['n_tried']} sets of nodes tried, {p['n_passes']} passes over all pairs",
        ]
        for search in ("random", "greedy"):
            some = np.abs(data["difference"].values[data["search"].values == search])
            if len(some):
                lines.append(
                    f"  {search}, {len(some)} sets: circuit and model differ by {some.mean():.3f} of the gap on "
                    f"average, {some.max():.3f} at most"
                )
        left = [float(worst["left"].sel(of=of)) for of in ("circuit", "model")]
        ends = f"{float(worst['difference']):+.3f} ({float(worst['low']):+.3f} to {float(worst['high']):+.3f})"
        lines.append(
            f"  worst: without {_named(worst['nodes'].item(), 6)} the circuit keeps {left[0]:.3f} of the gap and the "
            f"model {left[1]:.3f}, difference {ends}"
        )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """What is left of circuit and model without each set: bars side by side, in the order of the search."""
        from interp.plots import bars

        data = self.data
        names = [_named(nodes, 3) for nodes in data["nodes"].values]
        starts = [f"greedy {start}" if start else "random" for start in data["start"].values]
        return bars(
            data["left"], y="set", bar="of", title=self.title, unit="share of the gap", low=data["left_low"],
            high=data["left_high"], quantity="left without these nodes",
            y_labels=[f"{start}: {name}" for start, name in zip(starts, names, strict=True)],
        )  # fmt: skip


def completeness(
    model: LanguageModel,
    task: Pairs,
    circuit: Circuit,
    *,
    n_random: int = 10,
    starts: int = 2,
    depth: int = 4,
    candidates: int = 6,
    ablation: str | Ablation = "resample",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> Completeness:
    """The nodes without which a circuit is most unlike the model, as far as a search of stated cost finds them.

    Args:
        n_random: random sets.
        starts: greedy searches.
        depth: nodes that each takes away, one after the other.
        candidates: nodes of which each step takes the worst.
        ablation: what edges carry outside of the circuit, and those that leave K; as in `evaluate` (an optimal one is
            learned anew for every set).
        budget: as in `EdgePatching`.
        progress: over random sets, then over the steps of all greedy searches.
        seed: of sets, candidates, halves and intervals.

    Raises:
        InterpError: as `Problem.of` and `Ablation`; a circuit of another model, or without a node but the embedding; no
            set to try.
        PairError: as `Problem.of` and `Cut`; fewer than two pairs to search on and measure; a gap between the model and
            no edges within its own uncertainty, in either half.
    """
    if min(n_random, starts, depth, candidates) < 0 or n_random + starts * depth * candidates == 0:
        raise InterpError(
            f"{n_random} random sets and {starts} greedy searches of {depth} steps among {candidates} nodes: there is "
            "nothing to try."
        )
    problem = Problem.of(model, task, metric, only_right)
    if (circuit.graph.weights, circuit.graph.model) != (problem.graph.weights, problem.graph.model):
        raise InterpError(f"This is of {circuit.graph.model}; {model.name} has other weights.")
    edges, nodes = circuit.edges, inner_nodes(circuit.edges)
    if not len(nodes):
        raise InterpError("This circuit has no node but the embedding; there is nothing to take away.")
    generator = np.random.default_rng(seed)
    halves = _halves(problem, generator)
    cut = Cut(problem, Ablation.of(ablation), budget, progress)
    clean = problem.values["clean"].double().cpu().numpy()
    same = cut.ablation.kind == "resample"
    empty = problem.values["corrupted"].double().cpu().numpy() if same else cut.kept(edges & False)
    for rows in halves:  # refuses pairs without a gap before any work
        recovered(empty[None, rows], clean[rows], empty[rows], problem.metric.name, seed=seed)
    search = _Search(cut, edges, halves[0])
    for _ in progress(range(n_random), "random sets"):
        search.keep("random", 0, some_nodes(edges, generator))
    gone = [np.zeros(len(edges), dtype=bool)] * starts
    for start, _ in progress([(i, j) for i in range(starts) for j in range(depth)], "greedy steps"):
        left = nodes[~gone[start][nodes]]
        tried = generator.choice(left, min(candidates, len(left)), replace=False)
        if len(tried):
            sets = [gone[start] | (np.arange(len(edges)) == node) for node in tried]
            gone[start] = max(sets, key=search.chosen_by)
            search.keep("greedy", start + 1, gone[start])
    data = search.dataset(clean, empty, halves[1], seed)
    facts: dict[str, Any] = {
        "selection": circuit.provenance["selection"], "n_edges": int(edges.sum()), "n_tried": len(search.values),
        "n_passes": 2 * len(search.values) + (not same), "n_searched": len(halves[0]),
        "n_measured": len(halves[1]), "n_random": n_random, "starts": starts, "depth": depth,
        "candidates": candidates, "seed": seed, **cut.ablation.record(),
    }  # fmt: skip
    return Completeness(
        data, {**problem.record(circuit.provenance["method"], **facts), "experiment": "completeness of a circuit"}
    )


class _Search:
    """Sets of nodes that were tried, and those that are kept."""

    def __init__(self, cut: Cut, edges: np.ndarray, rows: np.ndarray) -> None:
        self.cut, self.edges, self.rows = cut, edges, rows
        self.values: dict[bytes, np.ndarray] = {}  # by set, the metric [which, example] without it
        self.kept: list[tuple[str, int, np.ndarray]] = []

    def keep(self, search: str, start: int, gone: np.ndarray) -> None:
        """A set for the result."""
        self.chosen_by(gone)
        self.kept.append((search, start, gone))

    def chosen_by(self, gone: np.ndarray) -> float:
        """|circuit − model| without a set, in the metric's unit, mean over the pairs to search on."""
        if gone.tobytes() not in self.values:
            self.values[gone.tobytes()] = without_nodes(self.cut, self.edges, gone)
        circuit, model = self.values[gone.tobytes()][:, self.rows].mean(-1)
        return abs(float(circuit - model))

    def dataset(self, clean: np.ndarray, empty: np.ndarray, rows: np.ndarray, seed: int) -> xr.Dataset:
        """What is left without the kept sets, on the pairs to measure on."""
        import xarray as xr

        problem, share = self.cut.problem, {"unit": "share of the gap"}
        values = np.stack([self.values[gone.tobytes()] for _, _, gone in self.kept], 1)
        gap = abs(float((clean - empty)[self.rows].mean()))

        def shares(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return recovered(x[..., rows], clean[rows], empty[rows], problem.metric.name, seed=seed)

        names = np.array(problem.graph.senders)
        left, apart = shares(values), shares(values[0] - values[1] + empty)
        variables: dict[str, Any] = {
            **{
                name: (("of", "set"), x, share) for name, x in zip(("left", "left_low", "left_high"), left, strict=True)
            },
            **{name: ("set", x, share) for name, x in zip(("difference", "low", "high"), apart, strict=True)},
            "chosen_by": ("set", [self.chosen_by(gone) / gap for _, _, gone in self.kept], share),
            "search": ("set", [search for search, _, _ in self.kept]),
            "start": ("set", [start for _, start, _ in self.kept]),
            "n_nodes": ("set", [int(gone.sum()) for _, _, gone in self.kept]),
            "nodes": ("set", [", ".join(names[gone]) for _, _, gone in self.kept]),
        }
        return xr.Dataset(variables, {"of": ["circuit", "model"], "set": list(range(len(self.kept)))})


def _halves(problem: Problem, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to search on, and rows to measure on."""
    n = len(problem.encoded)
    if n < 2:
        raise PairError(
            "Sets are searched on one half of the pairs and measured on the other; give at least two pairs."
        )
    order = generator.permutation(n)
    return order[: n // 2], order[n // 2 :]


def _named(nodes: str, most: int) -> str:
    """Some of the nodes' names."""
    names = nodes.split(", ")
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
