"""What a graph says would follow when some of its nodes are set, beside what the model does.

The graph's prediction for a node that follows, at each place: the sum over its edges of the effect of the edge times
by how much the parent has changed, in typical codes; level by level, so that a grandchild's parents are predictions
themselves. A node that is set changes from its code to the value, one that is held by nothing. Then the nodes are set
in the model (`interp.concepts.graph_edits`), and all codes read again.

When it misleads: effects were measured from off to on and are used as slopes, so a parent that is set to many times its
typical code, or a child that would fall below 0, goes beyond what the graph knows. A clamp of many places at once also
acts through attention, from other places; the graph's own effects are of few (`Clamping.cells`). On the inputs that the
graph was made of, the prediction has seen the answer: take others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from interp.concepts.graph_edits import Wanted, known_edits, wanted_codes
from interp.concepts.graph_result import ConceptGraph, explained
from interp.concepts.levels import ConceptLevel, check_order, observe
from interp.models.denoiser import Denoiser
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_DRAWN = 40


@dataclass(frozen=True, repr=False, eq=False)
class GraphResponse(Result):
    """Changes of the nodes of a concept graph, some of which were set.

    `.data` holds by `node` (its name in the graph), all in the node's typical code and as means over places: `before`,
    the code in the unedited run; `predicted` by the graph, and `measured`, changes from it, with the 95 % interval
    `measured_low` to `measured_high` (bootstrap over examples); `part`: `"set"`, `"held"`, `"follows"`, or `"earlier"`
    of levels that are computed before. A node that was never on when the graph was made has no typical code: NaN.
    """

    @property
    def title(self) -> str:
        """One line that states what was done."""
        p = self.provenance
        held = f", {', '.join(p['held'])} held" if p["held"] else ""
        values = ", ".join(f"{name} = {value:g}" for name, value in p["values"].items())
        return f"{values}{held} · {p['model']}"

    def r2(self) -> float:
        """How well the graph foretold the nodes that follow: 1 − Σ(m − p)² / Σ(m − m̄)²; NaN with fewer than two.

        Below 0 it says nothing where nothing follows: all measurements are then about 0.
        """
        own = (self.data["part"].values == "follows") & ~np.isnan(self.data["measured"].values)
        return explained(*(self.data[name].values[own] for name in ("predicted", "measured")))

    def summary(self) -> str:
        """What was set, how well the graph foretold the rest, and the nodes that moved most."""
        data = self.data
        part, measured = data["part"].values, data["measured"].values
        lines = [
            f"GraphResponse: {self.title}",
            f"  {self.provenance['n_scored']} places of {self.provenance['n_examples']} examples; "
            f"{int((part == 'follows').sum())} concepts follow, foretold with R² {self.r2():.2f}",
        ]
        for i in self._shown()[:10]:
            low, high = (data[f"measured_{end}"].values[i] for end in ("low", "high"))
            lines.append(
                f"  {data['node'].values[i]} ({part[i]}): predicted {data['predicted'].values[i]:+.2f}, "
                f"measured {measured[i]:+.2f} ({low:+.2f} to {high:+.2f})"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Predicted and measured changes side by side, of the nodes that moved most."""
        import xarray as xr

        from interp.plots import bars

        data = self.data.isel(node=self._shown()[:_DRAWN])
        nothing = np.full(data.sizes["node"], np.nan)

        def sides(predicted: Any, measured: Any) -> Any:
            return xr.DataArray(
                np.stack([predicted, measured], 1),
                {"node": data["node"].values, "way": ["predicted by the graph", "measured"]},
                ("node", "way"),
            )

        return bars(
            sides(data["predicted"].values, data["measured"].values), y="node", bar="way", title=self.title,
            quantity="change", unit="typical code", low=sides(nothing, data["measured_low"].values),
            high=sides(nothing, data["measured_high"].values),
            y_labels=[f"{n} ({p})" for n, p in zip(data["node"].values, data["part"].values, strict=True)],
        )  # fmt: skip

    def _shown(self) -> Int[np.ndarray, "shown"]:
        """Nodes that were set or held, then those that follow, the largest change first."""
        part, measured = self.data["part"].values, self.data["measured"].values
        known = np.flatnonzero(~np.isnan(measured) & (part != "earlier"))
        size = np.maximum(np.abs(measured), np.abs(self.data["predicted"].values))
        return known[np.lexsort((-size[known], part[known] == "follows"))]


def graph_response(
    model: LanguageModel | Denoiser,
    inputs: Any,
    graph: ConceptGraph,
    levels: Sequence[ConceptLevel],
    values: Mapping[str, float],
    held: Sequence[str] = (),
    *,
    branch: Branch = Branch.COND,
    first: int = 1,
) -> GraphResponse:
    """Set nodes of a graph on some inputs, and compare what follows with what the graph says.

    Args:
        inputs: and the other arguments, as in `graph_edits_on`.

    Raises:
        InterpError: as `graph_edits_on`.
    """
    import xarray as xr

    wanted = wanted_codes(graph, levels, values, held)
    check_order(model, levels)
    given = model.sampling(inputs) if isinstance(model, Denoiser) else model.prompts(inputs)
    seen = observe(model, given, levels, branch, first)
    after = observe(model, given, levels, branch, first, known_edits(model, seen, levels, wanted, branch, first))
    before, now = (np.concatenate([c.double().cpu().numpy() for c in one.codes], 1) for one in (seen, after))
    typical = graph.data["typical"].values
    base, example = before / typical, seen.example.numpy()
    predicted, part = _foretold(graph, base, wanted, levels)
    by_example = _by_example((now - before) / typical, example)
    low, high = bootstrap_interval(by_example.T)
    own, unit = ("node",), {"units": "typical code"}
    data = xr.Dataset(
        {
            "before": (own, _by_example(base, example).mean(0), unit),
            "predicted": (own, _by_example(predicted, example).mean(0), unit),
            "measured": (own, by_example.mean(0), unit),
            "measured_low": (own, low, unit),
            "measured_high": (own, high, unit),
            "part": (own, part),
        },
        {"node": graph.names},
    )
    record = provenance(
        experiment="concepts set through their graph", model=model.name, weights=model.weights_hash,
        levels=graph.provenance["levels"], graph=graph.provenance.get("pruned", "whole"), values=dict(values),
        held=list(held), branch=branch.value, first=first, n_examples=len(by_example), n_attempted=len(example),
        n_scored=len(example),
    )  # fmt: skip
    return GraphResponse(data, record)


def _foretold(
    graph: ConceptGraph, base: Float[np.ndarray, "place node"], wanted: Wanted, levels: Sequence[ConceptLevel]
) -> tuple[Float[np.ndarray, "place node"], list[str]]:
    """Changes at every place by the graph's edges, in typical codes; and which part each node has in them."""
    change, part = np.zeros_like(base), ["earlier"] * base.shape[1]
    data, typical = graph.data, graph.data["typical"].values
    edges = np.flatnonzero(data["edge"].values)
    begin, node = min(number for number, own in enumerate(wanted) if own), 0
    for number, level in enumerate(levels):
        for column in range(len(level.latents)):
            if column in wanted[number]:
                code = wanted[number][column]
                change[:, node] = 0.0 if code is None else code / typical[node] - base[:, node]
                part[node] = "held" if code is None else "set"
            elif number > begin:
                for k in edges[data["child"].values[edges] == node]:
                    change[:, node] += data["effect"].values[k] * change[:, data["parent"].values[k]]
                part[node] = "follows"
            node += 1
    return change, part


def _by_example(
    values: Float[np.ndarray, "place node"], example: Int[np.ndarray, "place"]
) -> Float[np.ndarray, "example node"]:
    """Means over the places of each example."""
    return np.stack([values[example == one].mean(0) for one in np.unique(example)])
