"""Scores of nodes and edges, and circuits: labelled arrays that know their graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.circuits.graph import Graph
from interp.circuits.problem import Problem
from interp.results import Result

if TYPE_CHECKING:
    from networkx import DiGraph
    from pandas import DataFrame
    from plotly.graph_objects import Figure


class _OfGraph(Result):
    """What results about a graph share."""

    @cached_property
    def graph(self) -> Graph:
        """The graph that the labels belong to."""
        return Graph(**self.provenance["graph"])

    @property
    def _about(self) -> str:
        p = self.provenance
        if "task" not in p:  # read from a file of another tool
            return p["model"]
        return f"{p['task']} ({p['n_scored']} pair{'s' if p['n_scored'] > 1 else ''}) · {p['model']}"

    @property
    def _method(self) -> str:
        """How it was found; another ablation than that of the corrupted run is named."""
        p, usual = self.provenance, "resample"
        return p["method"] + (f", {p['ablation']} ablation" if p.get("ablation", usual) != usual else "")

    @property
    def _score_unit(self) -> str:
        return self.provenance.get("score_unit") or self.provenance["unit"]

    def _ends(self) -> str:
        p = self.provenance
        if "task" not in p:
            return "  its prompts are not known"
        clean, corrupted = (float(self.data[which].mean()) for which in ("clean", "corrupted"))
        unit = self.data["clean"].attrs["unit"]
        return (
            f"  {p['metric']} clean {clean:+.3f}, corrupted {corrupted:+.3f} {unit}; the model gets "
            f"{p['n_right']} of {p['n_attempted']} pairs right, {p['n_scored']} scored"
        )


@dataclass(frozen=True, repr=False, eq=False)
class NodeScores(_OfGraph):
    """Scores of the senders.

    `.data` holds over `node`: `score`, in the metric's unit: (an estimate of) how much the metric gains when this
    node writes its clean instead of its corrupted term, mean over examples; `error`, the standard error of that
    mean; and per `example` the metric's `clean` and `corrupted`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        return f"Node scores by {self.provenance['method']} · {self._about}"

    @property
    def scores(self) -> np.ndarray:
        """[sender]."""
        return self.data["score"].values

    def summary(self) -> str:
        """The strongest nodes."""
        order = np.argsort(-np.abs(self.scores), kind="stable")[:5]
        error = self.data["error"].values
        lines = [f"  {self.scores[i]:+.3f} ± {error[i]:.3f} {self.graph.senders[i]}" for i in order]
        return "\n".join([f"NodeScores: {self.title}", self._ends(), "  strongest (± standard error):", *lines])

    def plot(self) -> Figure:
        """Heat map of the scores: layer by layer, the heads and the MLP (the embedding is in the title)."""
        return _map(self, self.scores, f"{self.title} · input {self.scores[0]:+.2f}", self._score_unit)


@dataclass(frozen=True, repr=False, eq=False)
class EdgeScores(_OfGraph):
    """Scores of the edges.

    `.data` holds over `sender` × `receiver`: `score`, in the metric's unit: (an estimate of) how much the metric
    gains when this edge alone carries the clean instead of the corrupted (or otherwise ablated) term, mean over
    examples, NaN where there is no edge; `error`, the standard error of that mean (values per example would take a
    matrix per pair); and per `example` the metric's `clean` and `corrupted`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        return f"Edge scores by {self._method} · {self._about}"

    @property
    def scores(self) -> np.ndarray:
        """[sender, receiver]; NaN where there is no edge."""
        return self.data["score"].values

    def strongest(self, n: int = 10) -> list[tuple[str, float]]:
        """The n edges of largest |score|, by name."""
        graph, scores = self.graph, self.scores
        at = np.argwhere(graph.edges)
        values = scores[graph.edges]
        order = np.argsort(-np.abs(values), kind="stable")[:n]
        return [(f"{graph.senders[i]}->{graph.receivers[j]}", float(scores[i, j])) for i, j in at[order]]

    def summary(self) -> str:
        """The strongest edges."""
        error = self.data["error"].values if "error" in self.data else np.full(self.scores.shape, np.nan)
        lines = [f"  {score:+.3f} ± {error[self.graph.index(name)]:.3f} {name}" for name, score in self.strongest(5)]
        head = [f"EdgeScores: {self.title}", f"  {self.graph.n_edges:,} edges;{self._ends()[1:]}"]
        if "missing" in self.provenance:
            steps, missing = self.provenance["steps"], self.provenance["missing"]
            more = "" if abs(missing) <= 0.1 else ": take more steps, the metric bends between them"
            said = (
                f"fall short of the difference by {missing:.1%}"
                if missing > 0
                else f"exceed the difference by {-missing:.1%}"
            )
            head.append(f"  {steps} steps; the scores of the input's edges {said}{more}")
        return "\n".join([*head, "  strongest (± standard error):", *lines])

    def plot(self) -> Figure:
        """Heat map of what leaves each node: the sum of its outgoing edges' |score|."""
        leaving = np.nansum(np.abs(self.scores), 1)
        title = f"Sum of |score| of each node's outgoing edges: {self.title} · input {leaving[0]:.2f}"
        return _map(self, leaving, title, self._score_unit, signed=False)

    def networkx(self) -> DiGraph:
        """Every edge with its score, as a networkx graph."""
        return self.graph.networkx(None, self.scores)


@dataclass(frozen=True, repr=False, eq=False)
class Circuit(_OfGraph):
    """A subgraph.

    `.data` holds over `sender` × `receiver`: `edge`, whether it is in the circuit, and `score`, by which it was
    chosen (NaN where there is no edge), with its `error` where that is known. One that was evaluated
    (`Evaluation.circuit`) carries the `verdict` in its provenance, and says it in its `repr`.
    """

    @property
    def title(self) -> str:
        """One line that states what it is."""
        n = f"{int(self.edges.sum()):,} of {self.graph.n_edges:,}"
        return f"Circuit of {n} edges by {self._method} · {self._about}"

    @property
    def edges(self) -> np.ndarray:
        """Bool [sender, receiver]."""
        return self.data["edge"].values

    @property
    def scores(self) -> np.ndarray:
        """[sender, receiver]."""
        return self.data["score"].values

    @property
    def names(self) -> list[str]:
        """The edges' names, in forward order of their senders."""
        graph = self.graph
        return [f"{graph.senders[i]}->{graph.receivers[j]}" for i, j in np.argwhere(self.edges)]

    @property
    def nodes(self) -> list[str]:
        """Nodes that an edge of the circuit leaves or helps to compute."""
        graph = self.graph
        used = self.edges.any(0) @ graph.feeds
        used[:-1] |= self.edges.any(1)
        return [node for node, inside in zip(graph.nodes, used, strict=True) if inside]

    def table(self) -> DataFrame:
        """Its edges, strongest first: `sender`, `receiver`, `score`, and `error` where that is known."""
        from pandas import DataFrame

        graph, chosen = self.graph, np.argwhere(self.edges)
        chosen = chosen[np.argsort(-np.abs(self.scores[self.edges]), kind="stable")]
        names = {"sender": [graph.senders[i] for i, _ in chosen], "receiver": [graph.receivers[j] for _, j in chosen]}
        values = {name: self.data[name].values[tuple(chosen.T)] for name in ("score", "error") if name in self.data}
        return DataFrame(names | values)

    def networkx(self) -> DiGraph:
        """As a networkx graph."""
        return self.graph.networkx(self.edges, self.scores)

    def summary(self) -> str:
        """Its size and how it was chosen."""
        share = self.edges.sum() / self.graph.n_edges
        lines = [
            f"Circuit: {self.title}",
            f"  {share:.2%} of the edges, {len(self.nodes)} of {len(self.graph.nodes)} nodes",
        ]
        p = self.provenance
        if "verdict" not in p:
            return "\n".join([*lines, f"  chosen by {p['selection']}; not evaluated: interp.circuits.evaluate"])
        verdict = p["verdict"]
        lines += [f"  chosen by {p['selection']}", f"  {said_verdict(verdict)}"]
        return "\n".join([*lines, f"  on {verdict['where']}: {'; '.join(verdict['notes'])}"])

    def plot(self, most: int = 300) -> Figure:
        """The graph: input below, logits above, edges as wide as their scores are large; numbers under the pointer.

        Args:
            most: edges that are drawn, the strongest.
        """
        from interp.plots import Edge, circuit_graph

        graph, table = self.graph, self.table()
        rows = table.assign(error=table.get("error", np.nan)).head(most).itertuples(index=False, name=None)
        drawn = [Edge(sender, receiver, float(score), float(error)) for sender, receiver, score, error in rows]
        title = self.title if len(drawn) == len(table) else f"{self.title} · the {most} strongest are drawn"
        group = graph.n_heads // graph.n_kv_heads
        return circuit_graph(drawn, title=title, unit=self._score_unit, group=group)


def said_verdict(verdict: Mapping[str, Any]) -> str:
    """A circuit's verdict in words: passed or not (`None`: not settled), and why."""
    if verdict["passed"]:
        return "PASSES: faithful, sufficient, partially necessary"
    if verdict["passed"] is None:
        return f"NOT SETTLED: faithful, but {' and '.join(verdict['untested'])} not tested"
    return f"DOES NOT PASS: {'; '.join(verdict['reasons'])}"


def node_scores(problem: Problem, method: str, score: np.ndarray, error: np.ndarray, **facts: Any) -> NodeScores:
    """The result of scores [sender], in the metric's unit if no `score_unit` is given."""
    data = _dataset(problem, ("node",), {"score": score, "error": error}, facts.get("score_unit"))
    return NodeScores(data, problem.record(method, **facts))


def edge_scores(problem: Problem, method: str, score: np.ndarray, error: np.ndarray, **facts: Any) -> EdgeScores:
    """The result of scores [sender, receiver], in the metric's unit if no `score_unit` is given."""
    arrays = {name: np.where(problem.graph.edges, x, np.nan) for name, x in (("score", score), ("error", error))}
    data = _dataset(problem, ("sender", "receiver"), arrays, facts.get("score_unit"))
    return EdgeScores(data, problem.record(method, **facts))


def _dataset(problem: Problem, dims: tuple[str, ...], arrays: dict[str, np.ndarray], unit: str | None):
    import xarray as xr

    attrs = {"unit": problem.metric.unit}
    variables: dict[str, Any] = {name: (dims, x, {"unit": unit} if unit else attrs) for name, x in arrays.items()}
    for which, values in problem.values.items():
        variables[which] = ("example", values.double().cpu().numpy(), attrs)
    names = {"node": problem.graph.senders, "sender": problem.graph.senders, "receiver": problem.graph.receivers}
    coords: dict[str, Any] = {dim: list(names[dim]) for dim in dims}
    return xr.Dataset(variables, coords | {"example": list(range(len(problem.encoded)))})


def _map(result: _OfGraph, senders: np.ndarray, title: str, unit: str, *, signed: bool = True) -> Figure:
    import xarray as xr

    from interp.plots import heatmap

    graph = result.graph
    grid = senders[1:].reshape(graph.n_layers, graph.n_heads + 1)
    columns = [*(f"head {head}" for head in range(graph.n_heads)), "MLP"]
    data = xr.DataArray(grid, dims=("layer", "node"), coords={"layer": list(range(graph.n_layers)), "node": columns})
    return heatmap(data, x="node", y="layer", title=title, unit=unit, diverging=signed)
