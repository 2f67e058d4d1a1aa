"""A concept graph: nodes, edges with two weights and their nulls; pruned, compared, saved, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.concepts.levels import ConceptLevel
from interp.errors import InterpError
from interp.results import Result

if TYPE_CHECKING:
    from networkx import DiGraph
    from plotly.graph_objects import Figure


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two graphs over the same latents.

    Attributes:
        jaccard: edges of both, divided by edges of either; NaN if neither has one.
        predicted: correlation of the statistical weights over pairs, and `effect` of the interventional ones.
    """

    jaccard: float
    predicted: float
    effect: float


@dataclass(frozen=True, repr=False, eq=False)
class ConceptGraph(Result):
    """Concepts, and which of them compose which.

    `.data` holds, per `node`: its `level` and `latent`, `frequency`, `typical` code, `spread` within an example (0 one
    place, 1 everywhere), `breadth` (children moved), `decodable` (first level that tells it); per `pair` of nodes of
    adjacent levels: `parent` and `child` (nodes), `predicted` and `effect` in the child's typical code, the interval
    `effect_low` to `effect_high` (95 %, bootstrap over examples), both quantiles in their nulls, and whether it is an
    `edge`. `covariance` of the codes serves `pruned`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        levels = " → ".join(level["name"] for level in self.provenance["levels"])
        return f"Concept graph of {self.provenance['model']}: {levels}"

    @property
    def names(self) -> list[str]:
        """Of the nodes: level and latent."""
        return [
            f"{lv}/{i}" for lv, i in zip(self.data["level"].values, self.data["latent"].values.tolist(), strict=True)
        ]

    @property
    def agreement(self) -> Float[np.ndarray, "pair"]:
        """Of the two weights of every pair: twice the smaller over their sum; 0 if their signs differ."""
        a, b = (self.data[name].values for name in ("predicted", "effect"))
        total = np.abs(a) + np.abs(b)
        share = 2 * np.minimum(np.abs(a), np.abs(b)) / np.where(total > 0, total, 1)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(np.sign(a) == np.sign(b), share, 0.0))

    def r2(self) -> float:
        """How well the statistical weights of the edges predict the measured effects: 1 − Σ(e − p)² / Σ(e − ē)².

        NaN with fewer than two edges.
        """
        edge = self.data["edge"].values
        return explained(*(self.data[name].values[edge] for name in ("predicted", "effect")))

    def networkx(self) -> DiGraph:
        """The edges, with all that is known of them; nodes are named as in `names`, concepts without edges included."""
        from networkx import DiGraph

        graph, names, data = DiGraph(), self.names, self.data
        per_node = [n for n in data.data_vars if data[n].dims == ("node",)]
        per_pair = [n for n in data.data_vars if data[n].dims == ("pair",)]
        for i, name in enumerate(names):
            own = {str(n): float(data[n].values[i]) for n in per_node}
            graph.add_node(name, level=str(data["level"].values[i]), latent=int(data["latent"].values[i]), **own)
        agreement = self.agreement
        for k in np.flatnonzero(data["edge"].values):
            ends = (names[int(data[end].values[k])] for end in ("parent", "child"))
            weights = {str(n): float(data[n].values[k]) for n in per_pair if n != "edge"}
            graph.add_edge(*ends, agreement=float(agreement[k]), **weights)
        return graph

    def pruned(self, tolerance: float | int = 0.05) -> ConceptGraph:
        """The fewest edges that explain the children: of each child, parents are taken away while the others suffice.

        A set of parents explains a child by R² of its code on theirs, linearly. The parent whose loss costs least goes
        first, and as long as at least 1 − `tolerance` of what all of them explained is left.

        Raises:
            InterpError: a tolerance that is not between 0 and 1.
        """
        if not 0 <= tolerance < 1:
            raise InterpError(f"tolerance={tolerance}: a share of what is explained, from 0 to below 1.")
        data = self.data.copy(deep=True)
        covariance, kept = data["covariance"].values, data["edge"].values.copy()
        parent, child = data["parent"].values, data["child"].values
        for node in np.unique(child[kept]).tolist():
            own = list(np.flatnonzero(kept & (child == node)))
            least = (1 - tolerance) * _explained(covariance, parent[own], node)
            while len(own) > 1:
                without = [_explained(covariance, parent[[k for k in own if k != out]], node) for out in own]
                if max(without) < least:
                    break
                own.pop(int(np.argmax(without)))
            kept[child == node] = False
            kept[own] = True
        data["edge"] = ("pair", kept, data["edge"].attrs)
        return ConceptGraph(data, {**self.provenance, "pruned": tolerance})

    def check(self, levels: Sequence[ConceptLevel]) -> None:
        """Refuse to speak of other concepts than those of this graph.

        Raises:
            InterpError: another number of levels, another dictionary, place or latents in one of them.
        """
        mine = self.provenance["levels"]
        if len(levels) != len(mine):
            raise InterpError(f"This graph has {len(mine)} levels, and {len(levels)} are given.")
        latents = self.data["latent"].values
        for one, level in zip(mine, levels, strict=True):
            own = latents[self.data["level"].values == one["name"]].tolist()
            found = {"site": str(level.site), "step": level.step, "dictionary": level.mark}
            wrong = [what for what, value in found.items() if one[what] != value]
            wrong += ["latents"] if own != list(level.latents) else []
            if wrong:
                raise InterpError(
                    f"This graph is of another dictionary than level {level.name!r}: {', '.join(wrong)} of its level "
                    f"{one['name']!r} differ. Build the graph anew with `concept_graph`."
                )

    def compare(self, other: ConceptGraph) -> Comparison:
        """With a graph over the same latents: of other inputs, another seed, another model.

        Raises:
            InterpError: a graph of other dictionaries or latents.
        """
        places = [[(lv["site"], lv["step"], lv["dictionary"]) for lv in g.provenance["levels"]] for g in (self, other)]
        if places[0] != places[1] or self.data["latent"].values.tolist() != other.data["latent"].values.tolist():
            raise InterpError(
                "These graphs are of different dictionaries or latents; their edges have nothing in common."
            )
        a, b = self.data["edge"].values, other.data["edge"].values
        either = int((a | b).sum())
        return Comparison(
            int((a & b).sum()) / either if either else float("nan"),
            *(_correlation(self.data[name].values, other.data[name].values) for name in ("predicted", "effect")),
        )

    def plot(self, pair: int = 0) -> Figure:
        """Effects of every parent on every child of one pair of adjacent levels; edges are outlined.

        Args:
            pair: 0 for the first two levels.

        Raises:
            InterpError: a pair that is not there.
        """
        from interp.plots import heatmap

        names = [level["name"] for level in self.provenance["levels"]]
        if not 0 <= pair < len(names) - 1:
            raise InterpError(f"There is no pair {pair} of adjacent levels; there are {len(names) - 1}, from 0.")
        table = self.table(pair)
        return heatmap(
            table["effect"], x="child", y="parent", title=self.title, unit="child's typical code",
            x_labels=[str(i) for i in table["child"].values], y_labels=[str(i) for i in table["parent"].values],
            low=table["effect_low"], high=table["effect_high"], marks=table["edge"], dots=False,
        )  # fmt: skip

    def table(self, pair: int = 0) -> Any:
        """The variables of one pair of adjacent levels as matrices [parent, child], labelled by latents."""
        import xarray as xr

        names = [level["name"] for level in self.provenance["levels"]]
        own = [np.flatnonzero(self.data["level"].values == names[pair + side]) for side in (0, 1)]
        here = np.isin(self.data["parent"].values, own[0])
        shape = tuple(map(len, own))
        latents = {end: self.data["latent"].values[i] for end, i in zip(("parent", "child"), own, strict=True)}
        variables = {
            str(n): (("parent", "child"), self.data[n].values[here].reshape(shape))
            for n in self.data.data_vars if self.data[n].dims == ("pair",)
        }  # fmt: skip
        variables["agreement"] = (("parent", "child"), self.agreement[here].reshape(shape))
        return xr.Dataset(variables, latents)

    def summary(self) -> str:
        """Nodes and edges, how well the two weights agree, and the strongest edges."""
        edge, effect = self.data["edge"].values, self.data["effect"].values
        found = np.flatnonzero(edge)
        lines = [
            f"ConceptGraph: {self.title}",
            f"  {len(self.names)} concepts, {len(found)} edges of {len(edge)} pairs; "
            f"predicted against measured effect: R² {self.r2():.2f}",
        ]
        names, agreement = self.names, self.agreement
        for k in found[np.argsort(-np.abs(effect[found]))][:8]:
            parent, child = (names[int(self.data[end].values[k])] for end in ("parent", "child"))
            lines.append(
                f"  {parent} → {child}: predicted {self.data['predicted'].values[k]:+.2f}, measured {effect[k]:+.2f} "
                f"({self.data['effect_low'].values[k]:+.2f} to {self.data['effect_high'].values[k]:+.2f}), "
                f"agreement {agreement[k]:.2f}"
            )
        return "\n".join(lines)


def explained(predicted: Float[np.ndarray, "n"], measured: Float[np.ndarray, "n"]) -> float:
    """R² of measurements by predictions that were made without them: 1 − Σ(m − p)² / Σ(m − m̄)²; NaN below two."""
    total = ((measured - measured.mean()) ** 2).sum() if len(measured) > 1 else 0.0
    return float(1 - ((measured - predicted) ** 2).sum() / total) if total > 0 else float("nan")


def _explained(covariance: np.ndarray, parents: Int[np.ndarray, "parent"], child: int) -> float:
    """R² of a variable on others, from covariances."""
    if not len(parents) or covariance[child, child] <= 0:
        return 0.0
    between = covariance[np.ix_(parents, parents)]
    with_child = covariance[parents, child]
    return float(with_child @ np.linalg.lstsq(between, with_child, rcond=None)[0] / covariance[child, child])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    both: Bool[np.ndarray, "pair"] = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 2 or a[both].std() == 0 or b[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])
