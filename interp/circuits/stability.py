"""Would the circuit have been another one? Agreement of circuits found in several ways.

Give scores that should agree: of other prompts, seeds, methods, directions or ablations. Of each, the circuit of n
edges is taken, and pairs of them are compared, beside what random circuits with as many edges of every type would
share:

    Jaccard = edges in both / edges in either
    overlap = edges in both / edges of the smaller one
    rank = Spearman's, of every |score|

A circuit that half of the prompts do not find again is one of many, however faithful it is. `by_prompts` makes the
scores of halves, which share no prompt, or of bootstrap draws, which share most of them and so agree more.
`by_ablations` makes those of several ablations.

Circuits that share few edges may still do the same, and one circuit may do it under one ablation only. So, given a
model and pairs (others than the scores are of), each circuit's faithfulness is measured under each of some ablations.

Source: comparing circuits by Jaccard or overlap of edges is common (Hanna et al. 2024, arXiv:2403.17806); the random
level by types is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.circuits.ablation import Ablation
from interp.circuits.acdc import acdc
from interp.circuits.evaluate import evaluate
from interp.circuits.problem import Pairs
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.score import score
from interp.circuits.select import edge_types, greedy, top_n
from interp.errors import InterpError, PairError
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.tasks.pairs import EncodedTask, PromptPair, Task

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class Stability(Result):
    """Agreement of circuits, pair by pair.

    `.data` holds over `circuit` × `other`: `jaccard`, `overlap`, `rank`, and `random`, the Jaccard index of random
    circuits (at the number of edges that they are expected to share). Scalar `core`: edges that all circuits have; per
    `circuit` its number of `edges`. If circuits were evaluated, over `circuit` × `ablation` their `faithfulness`, with
    its 95 % bootstrap interval over pairs, `low` and `high`; and per `ablation` the mean metric of the model, `whole`,
    and of no edges, `empty`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        least, most = int(self.data["edges"].min()), int(self.data["edges"].max())
        sizes = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"Agreement of {len(self.data['circuit'])} circuits of {sizes} edges · {self.provenance['model']}"

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
        if "faithfulness" in self.data:
            p = self.provenance
            lines.append(f"  faithfulness, outside of the circuit ({p['task']}, {p['n_scored']} pairs):")
            for one in self.data["circuit"].values:
                found = self.data[["faithfulness", "low", "high"]].sel(circuit=one)
                values = (
                    f"{kind} {float(x['faithfulness']):.3f} ({float(x['low']):.3f} to {float(x['high']):.3f})"
                    for kind in found["ablation"].values
                    for x in [found.sel(ablation=kind)]
                )
                lines.append(f"    {one}: {', '.join(values)}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Heat map of the Jaccard index; the random level is in the title."""
        from interp.plots import heatmap

        title = f"{self.title} · random circuits {self.mean('random'):.3f}"
        return heatmap(self.data["jaccard"], x="other", y="circuit", title=title, unit="Jaccard", diverging=False)

    def plot_faithfulness(self) -> Figure:
        """Heat map of each circuit's faithfulness under each ablation.

        Raises:
            InterpError: it was not measured.
        """
        from interp.plots import heatmap

        if "faithfulness" not in self.data:
            raise InterpError("Faithfulness was not measured: give `model` and `task` to `stability`.")
        p, data = self.provenance, self.data
        title = (
            f"Faithfulness of {len(data['circuit'])} circuits by what edges outside carry · {p['task']} · {p['model']}"
        )
        return heatmap(
            data["faithfulness"], x="ablation", y="circuit", title=title, unit="share of the gap",
            low=data["low"], high=data["high"],
        )  # fmt: skip


def stability(
    found: Mapping[str, EdgeScores | Circuit],
    n: int | None = None,
    *,
    absolute: bool = True,
    grow: bool = False,
    model: LanguageModel | None = None,
    task: Pairs | None = None,
    ablations: Sequence[str | Ablation] = ("resample", "mean", "zero"),
    metric: str = "logit_difference",
    only_right: bool = False,
    progress: Progress = silent,
    seed: int = 0,
) -> Stability:
    """How much circuits share that should be one, and whether each does the task under several ablations.

    Args:
        found: scores, or circuits as they are (`acdc` finds such), by name.
        n: edges of each circuit that is chosen by scores.
        absolute: as in `top_n`; ranks are of |score| as well, or of scores.
        grow: `greedy` instead of `top_n`.
        model: of the circuits; with `task`, to measure their faithfulness.
        task: pairs to measure it on.
        ablations: under which, each kind once.
        metric: of faithfulness.
        only_right: of faithfulness: leave out pairs that the model gets wrong.
        progress: over ablations.
        seed: of the intervals.

    Raises:
        InterpError: fewer than two of them, or some of different models; scores without `n`; a model without a task or
            a task without a model; an ablation twice; as `top_n` and `evaluate`.
        PairError: as `evaluate`.
    """
    import xarray as xr
    from scipy.stats import rankdata

    given = list(found.values())
    if len(given) < 2:
        raise InterpError(f"Stability compares at least two scores, or circuits; got {len(given)}.")
    graph = given[0].graph
    if strangers := [name for name, one in found.items() if one.graph != graph]:
        raise InterpError(f"{strangers[0]!r} is of {found[strangers[0]].graph.model}, not of {graph.model}.")
    if unsized := [name for name, one in found.items() if n is None and isinstance(one, EdgeScores)]:
        raise InterpError(f"{unsized[0]!r} holds scores: say of how many edges, n, a circuit is to be taken from them.")
    if (model is None) != (task is None):
        raise InterpError("Faithfulness is measured on pairs, by the model: give both `model` and `task`, or neither.")
    pick = greedy if grow else top_n
    circuits = [one if isinstance(one, Circuit) else pick(one, n or 0, absolute=absolute) for one in given]
    values = [one.scores[graph.edges] for one in given]
    ranks = np.array([rankdata(np.abs(x) if absolute else x) for x in values])
    shared = np.array([[int((one.edges & other.edges).sum()) for other in circuits] for one in circuits])
    sizes, expected = shared.diagonal(), _shared_by_chance(circuits)
    both = sizes[:, None] + sizes
    with np.errstate(invalid="ignore", divide="ignore"):  # equal scores have no ranks to correlate
        correlation = np.corrcoef(ranks)
    dims = ("circuit", "other")
    data = xr.Dataset(
        {
            "jaccard": (dims, shared / (both - shared)), "overlap": (dims, shared / np.minimum(sizes[:, None], sizes)),
            "rank": (dims, correlation), "random": (dims, expected / (both - expected)), "edges": ("circuit", sizes),
            "core": ((), int(np.all([one.edges for one in circuits], 0).sum())),
        },
        {"circuit": list(found), "other": list(found)},
    )  # fmt: skip
    methods = [one.provenance["method"] for one in given]
    facts = {"model": graph.model, "weights": graph.weights, "n": n, "methods": methods, "absolute": absolute}
    if model is not None and task is not None:
        how = {"metric": metric, "only_right": only_right, "seed": seed}
        evaluated, more = _faithful(model, task, circuits, [Ablation.of(one) for one in ablations], how, progress)
        data, facts = data.assign(evaluated).assign_coords(ablation=more["ablations"]), facts | more
    return Stability(data, provenance(experiment="stability of circuits", grow=grow, **facts))


def _faithful(
    model: LanguageModel,
    task: Pairs,
    circuits: list[Circuit],
    ablations: list[Ablation],
    how: dict[str, Any],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, provenance) of each circuit's faithfulness under each ablation."""
    kinds = [one.kind for one in ablations]
    if not kinds or len(set(kinds)) < len(kinds):
        raise InterpError(f"Give ablations of different kinds, each once; got {kinds}.")
    if isinstance(task, Task):
        task = task.encode(model)
    found = np.empty((3, len(circuits), len(kinds)))
    ends, record = np.empty((2, len(kinds))), {}
    for column, ablation in enumerate(progress(ablations, "ablations")):
        for row, one in enumerate(circuits):
            result = evaluate(model, task, one, ablation=ablation, trials=None, n_random=0, **how)
            found[:, row, column] = [float(result.data[name][0]) for name in ("faithfulness", "low", "high")]
        ends[:, column] = [float(result.data[name].mean()) for name in ("clean", "empty")]
        kept = ("task", "source", "task_seed", "metric", "unit", "n_attempted", "n_right", "n_scored")
        record = {name: result.provenance[name] for name in kept}
    share, dims = {"unit": "share of the gap"}, ("circuit", "ablation")
    names = zip(("faithfulness", "low", "high"), found, strict=True)
    variables = {name: (dims, x, share) for name, x in names}
    unit = {"unit": record["unit"]}
    variables |= {name: ("ablation", x, unit) for name, x in zip(("whole", "empty"), ends, strict=True)}
    details = [one.record() for one in ablations]
    return variables, {**record, "ablations": kinds, "ablation_details": details, "seed": how["seed"]}


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
) -> dict[str, EdgeScores | Circuit]:
    """Scores (by ACDC, circuits) of parts of the prompts, for `stability`.

    Args:
        method: as in `score`; or `"acdc"`, whose `threshold` is one of the options.
        kind: `"halves"`: a random split, two scores per repeat; `"bootstrap"`: as many pairs as there are, drawn with
            replacement, one score per repeat.
        progress: over scores.
        **options: of the method.

    Raises:
        InterpError: an unknown kind, no repeat, or a single draw, which agrees with nothing; as `score` and `acdc`.
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
    find = acdc if method == "acdc" else partial(score, method=method)
    return {
        name: find(model, encoded.select(rows.tolist()), **options)
        for name, rows in progress(list(parts.items()), "parts of the prompts")
    }


def by_ablations(
    model: LanguageModel,
    task: Pairs,
    method: str = "eap",
    ablations: Sequence[str | Ablation] = ("resample", "mean", "zero"),
    *,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, EdgeScores]:
    """Scores under several ablations, for `stability`.

    Args:
        method: as in `score`, one that takes an ablation: `"eap"`, `"eap-ig-activations"`, `"exact"` or `"edge-masks"`.
        ablations: each kind once.
        progress: over ablations.
        **options: of the method.

    Raises:
        InterpError: fewer than two ablations, or one twice; a method that takes none; as `Ablated`.
        PairError: as `Ablated`.
    """
    chosen = [Ablation.of(one) for one in ablations]
    kinds = [one.kind for one in chosen]
    if len(kinds) < 2 or len(set(kinds)) < len(kinds):
        raise InterpError(f"Give at least two ablations of different kinds; got {kinds}.")
    return {one.kind: score(model, task, method, ablation=one, **options) for one in progress(chosen, "ablations")}


def _shared_by_chance(circuits: list[Circuit]) -> np.ndarray:
    """Edges [circuit, other] that random circuits of these types share on average."""
    types = edge_types(circuits[0].graph)
    counts = np.array([[int((one.edges & of).sum()) for of in types] for one in circuits], dtype=float)
    sizes = np.array([max(1, int(of.sum())) for of in types])
    return (counts / sizes) @ counts.T
