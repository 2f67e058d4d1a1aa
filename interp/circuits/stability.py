"""Would the circuit have been another one? Agreement of circuits found in several ways.

Give scores that should agree: of other prompts, seeds, methods or directions. Of each, the circuit of n edges is
taken, and pairs of them are compared, beside what random circuits with as many edges of every type would share:

    Jaccard = edges in both / edges in either     overlap = edges in both / n     rank = Spearman's, of every |score|

A circuit that half of the prompts do not find again is one of many, however faithful it is. `by_prompts` makes the
scores of halves, which share no prompt, or of bootstrap draws, which share most of them and so agree more.

Source: comparing circuits by Jaccard or overlap of edges is common (Hanna et al. 2024, arXiv:2403.17806); the random
level by types is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.circuits.problem import Pairs
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.score import score
from interp.circuits.select import edge_types, greedy, top_n
from interp.errors import InterpError, PairError
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.tasks.pairs import EncodedTask, PromptPair

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class Stability(Result):
    """Agreement of circuits, pair by pair.

    `.data` holds over `circuit` × `other`: `jaccard`, `overlap`, `rank`, and `random`, the Jaccard index of random
    circuits (at the number of edges that they are expected to share). Scalar `core`: edges that all circuits have.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Agreement of {len(self.data['circuit'])} circuits of {p['n']:,} edges · {p['model']}"

    def mean(self, name: str) -> float:
        """The mean of a variable over pairs of different circuits."""
        values = self.data[name].values
        return float(values[~np.eye(len(values), dtype=bool)].mean())

    def summary(self) -> str:
        """Means over pairs, the random level, and the pairs themselves if they are few."""
        names, jaccard = self.data["circuit"].values, self.data["jaccard"].values
        lines = [
            f"Stability: {self.title}",
            f"  Jaccard {self.mean('jaccard'):.3f} (random {self.mean('random'):.3f}), overlap "
            f"{self.mean('overlap'):.3f}, "
            f"rank correlation {self.mean('rank'):.3f} (random 0); {int(self.data['core'])} edges in all of them",
        ]
        pairs = [(i, j) for i in range(len(names)) for j in range(i)]
        lines += [f"  {jaccard[i, j]:.3f} {names[j]} · {names[i]}" for i, j in pairs if len(pairs) <= 10]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Heat map of the Jaccard index; the random level is in the title."""
        from interp.plots import heatmap

        title = f"{self.title} · random circuits {self.mean('random'):.3f}"
        return heatmap(self.data["jaccard"], x="other", y="circuit", title=title, unit="Jaccard", diverging=False)


def stability(scores: Mapping[str, EdgeScores], n: int, *, absolute: bool = True, grow: bool = False) -> Stability:
    """How much circuits of n edges share that should be one.

    Args:
        scores: by name.
        n: edges of each circuit.
        absolute: as in `top_n`; ranks are of |score| as well, or of scores.
        grow: `greedy` instead of `top_n`.

    Raises:
        InterpError: fewer than two scores, or scores of different models; as `top_n`.
    """
    import xarray as xr
    from scipy.stats import rankdata

    found = list(scores.values())
    if len(found) < 2:
        raise InterpError(f"Stability compares at least two scores; got {len(found)}.")
    graph = found[0].graph
    if strangers := [name for name, one in scores.items() if one.graph != graph]:
        raise InterpError(f"{strangers[0]!r} is of {scores[strangers[0]].graph.model}, not of {graph.model}.")
    pick = greedy if grow else top_n
    circuits = [pick(one, n, absolute=absolute) for one in found]
    values = [one.scores[graph.edges] for one in found]
    ranks = np.array([rankdata(np.abs(x) if absolute else x) for x in values])
    shared = np.array([[int((one.edges & other.edges).sum()) for other in circuits] for one in circuits])
    expected = _shared_by_chance(circuits)
    with np.errstate(invalid="ignore", divide="ignore"):  # equal scores have no ranks to correlate
        correlation = np.corrcoef(ranks)
    dims = ("circuit", "other")
    data = xr.Dataset(
        {
            "jaccard": (dims, shared / (2 * n - shared)), "overlap": (dims, shared / n), "rank": (dims, correlation),
            "random": (dims, expected / (2 * n - expected)),
            "core": ((), int(np.all([one.edges for one in circuits], 0).sum())),
        },
        {"circuit": list(scores), "other": list(scores)},
    )  # fmt: skip
    methods = [one.provenance["method"] for one in found]
    facts = {"model": graph.model, "weights": graph.weights, "n": n, "methods": methods, "absolute": absolute}
    return Stability(data, provenance(experiment="stability of circuits", grow=grow, **facts))


def by_prompts(
    model: LanguageModel,
    task: Pairs,
    method: str = "eap-ig",
    *,
    kind: Literal["halves", "bootstrap"] = "halves",
    repeats: int = 1,
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, EdgeScores]:
    """Scores of parts of the prompts, for `stability`.

    Args:
        method: as in `score`.
        kind: `"halves"`: a random split, two scores per repeat; `"bootstrap"`: as many pairs as there are, drawn with
            replacement, one score per repeat.
        progress: over scores.
        **options: of the method.

    Raises:
        InterpError: an unknown kind, no repeat, or a single draw, which agrees with nothing; as `score`.
        PairError: too few pairs to halve.
    """
    if kind not in ("halves", "bootstrap") or repeats < (1 if kind == "halves" else 2):
        raise InterpError(
            f"Prompts are split in 'halves' (once or more), or 'bootstrap' (twice or more); got {kind!r}, {repeats}."
        )
    if isinstance(task, PromptPair) or len(task) < 2:
        raise PairError("A single pair has no halves; give a task of several pairs.")
    encoded = task if isinstance(task, EncodedTask) else task.encode(model)
    generator, n = np.random.default_rng(seed), len(encoded)
    parts: dict[str, np.ndarray] = {}
    for repeat in range(1, repeats + 1):
        if kind == "halves":
            order = generator.permutation(n)
            parts |= {f"half {repeat}a": order[: n // 2], f"half {repeat}b": order[n // 2 :]}
        else:
            parts[f"draw {repeat}"] = generator.integers(0, n, n)
    return {
        name: score(model, encoded.select(rows.tolist()), method, **options)
        for name, rows in progress(list(parts.items()), "parts of the prompts")
    }


def _shared_by_chance(circuits: list[Circuit]) -> np.ndarray:
    """Edges [circuit, other] that random circuits of these types share on average."""
    types = edge_types(circuits[0].graph)
    counts = np.array([[int((one.edges & of).sum()) for of in types] for one in circuits], dtype=float)
    sizes = np.array([max(1, int(of.sum())) for of in types])
    return (counts / sizes) @ counts.T
