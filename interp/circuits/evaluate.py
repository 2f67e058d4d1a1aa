"""How far to trust a circuit: does it do alone what the whole model does, and do random ones not?

A circuit runs on the clean prompts; every edge outside of it carries another term (`interp.circuits.ablation`), if
nothing else is said the corrupted run's. With m the mean of the metric over pairs, and ∅ the circuit of no edges,

    faithfulness f(C) = (m(C) − m(∅)) / (m(clean) − m(∅))

is 1 where the circuit does as well as the model, 0 where it is as good as none; it may exceed 1, where what was cut
away spoke against the answer. Over circuits of growing size, a share k of the edges,

    CPR = ∫ f dk (higher is better)        CMD = ∫ |1 − f| dk (lower is better)

by the trapezoid rule between the first and the last size, so that f = 1 everywhere gives CPR = last − first size.
One circuit is examined: sufficiency, partial necessity, minimality of its edges, completeness
(`interp.circuits.hypotheses`), and what it did not pass it says from then on (`Evaluation.circuit`).

Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (arXiv:2504.13151). Like there, sizes are
counted before dead ends are pruned. Intervals, random circuits and tests are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import binomtest

from interp.circuits.ablation import Ablation, Cut
from interp.circuits.hypotheses import Examined, Trials, edge_p, edge_power, examine, judged, random_circuits, rank_p
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import Circuit, EdgeScores, said_verdict
from interp.circuits.select import MIB_SIZES, nested
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result
from interp.statistics import recovered

if TYPE_CHECKING:
    import pandas
    import xarray as xr
    from plotly.graph_objects import Figure

STANDARD = Trials()
_RESAMPLES = 2000
_PROMPTS = ("clean", "corrupted", "answers", "wrong_answers")


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Result):
    """Faithfulness of circuits of growing size, and of random ones; and the tests of one of them.

    `.data` holds over `size` (share of the edges): `edges`, their number; `value`, the metric of each circuit per
    `example`; `faithfulness`, with its 95 % bootstrap interval over pairs, `low` and `high`; `random`, the faithfulness
    of `draw` random circuits (see `interp.circuits.connected`; with dead ends where there are too few without; NaN
    where fewer were drawn), and `p`, the share of circuits (this one counted among the random ones) that are at least
    as faithful. Scalars `cpr` and `cmd`, with `_low` and `_high`, exist from two sizes on; per `example` the metric's
    `clean`, `corrupted` and `empty`, that of the circuit of no edges. `edge` over `size` × `sender` × `receiver` are
    the circuits, and `score` what they were chosen by.

    Of the examined circuit: `lost`, the share of the gap that the model loses without it, `lost_random` without
    random circuits outside of it, and `p_necessity`; per `tested` edge its `edge_change` (share of the gap),
    adjusted `edge_p` (it is needed more than random ones) and `edge_p_less` (it is not), and `random_change` of the
    random edges; per `subset` of nodes, `left_circuit` and `left_model`,
    the faithfulness of circuit and model without them; `p_task`, of the model's right answers.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Faithfulness of circuits by {p['method']} · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    def circuit(self, size: float | None = None) -> Circuit:
        """One of the circuits, with what was found about it in its `repr`.

        Args:
            size: share of the edges; if not given, the examined one (the largest, if none was).

        Raises:
            InterpError: no circuit of that size.
        """
        sizes = self.data["size"].values
        number = len(sizes) - 1 if self._examined is None else self._examined
        if size is not None:
            found = np.flatnonzero(np.isclose(sizes, size, rtol=1e-6))
            if not len(found):
                raise InterpError(
                    f"No circuit of {size:g} of the edges; there are {', '.join(map('{:g}'.format, sizes))}."
                )
            number = int(found[0])
        data = self.data[["score", "edge"]].isel(size=number, drop=True)
        return Circuit(data, {**self.provenance["found"][number], "verdict": self._verdict(number)})

    @property
    def verdict(self) -> dict[str, Any]:
        """Of the examined circuit (the largest, if none was): `passed` (None: not settled), and the `reasons`."""
        return self._verdict(len(self.data["size"]) - 1 if self._examined is None else self._examined)

    @property
    def _examined(self) -> int | None:
        return self.provenance["examined"]

    def _verdict(self, number: int) -> dict[str, Any]:
        data, p = self.data, self.provenance
        facts = {"faithfulness": float(data["faithfulness"][number]), "task": float(data["p_task"])}
        here = number == self._examined
        # A few circuits drawn for the curve alone are no test.
        facts["sufficiency"] = float(data["p"][number]) if here and p["like"][0] else nan
        facts["necessity"] = float(data["p_necessity"]) if here else nan
        found = judged(facts, Trials(**p["trials"]))
        where = f"{p['task']} ({p['n_scored']} pairs), {p['ablation']} ablation"
        return {**found, "where": where, "notes": [f"faithfulness {facts['faithfulness']:.2f}", *self._notes(number)]}

    def _notes(self, number: int) -> list[str]:
        """Minimality and completeness, which inform and do not decide."""
        data, notes = self.data, []
        if number != self._examined:
            return notes
        if data.sizes.get("tested"):
            needed, spare = (len(self._edges(name)) for name in ("needed", "spare"))
            said = f"{needed} of {data.sizes['tested']} edges tested are needed more than random ones"
            said += f", {spare} no more than those" if spare else ""
            left = data.sizes["tested"] - needed - spare
            said += f", {left} cannot be decided with {self._n_random_edges} random edges" if left else ""
            notes.append(said)
        if data.sizes.get("subset"):
            apart, whole = float(np.abs(data["left_circuit"] - data["left_model"]).mean()), data["left_model"]
            notes.append(
                f"without random nodes, circuit and model differ by {apart:.2f} of the gap (the model loses "
                f"{float(1 - whole.mean()):.2f})"
            )
        return notes

    @property
    def _n_random_edges(self) -> int:
        return int(self.data["random_change"].notnull().sum()) if "random_change" in self.data else 0

    def _edges(self, which: str) -> list[str]:
        """Names of the tested edges that are `needed` more than random ones, `spare` (no more), or `open`."""
        data, level = self.data, self.provenance["trials"]["level"]
        needed = data["edge_p"].values <= level
        spare = data["edge_p_less"].values <= level
        return data["tested"].values[{"needed": needed, "spare": spare, "open": ~needed & ~spare}[which]].tolist()

    def summary(self) -> str:
        """A line per size, whether it beats chance, and what the tests of the examined one say."""
        data, p = self.data, self.provenance
        lines = [f"Evaluation: {self.title}", f"  outside: {p['ablation']} ablation; {self._gap()}"]
        if "cpr" in data:
            low, high = float(data["cpr_low"]), float(data["cpr_high"])
            lines.append(
                f"  CPR {float(data['cpr']):.3f} ({low:.3f} to {high:.3f}), CMD {float(data['cmd']):.3f} "
                f"({float(data['cmd_low']):.3f} to {float(data['cmd_high']):.3f}), sizes {float(data['size'][0]):g} to "
                f"{float(data['size'][-1]):g}"
            )
        for i, size in enumerate(data["size"].values):
            chance = ""
            if "random" in data and not np.isnan(data["p"].values[i]):
                drawn = data["random"].values[i]
                drawn = drawn[~np.isnan(drawn)]
                chance = f"; {len(drawn)} random {drawn.mean():.3f}"
                chance += f" (p {data['p'].values[i]:.2g})" if len(drawn) >= 19 else ""
                chance += ": NOT better than random" if data["p"].values[i] > max(0.05, 1 / (1 + len(drawn))) else ""
            lines.append(
                f"  {size:.2%} ({int(data['edges'].values[i]):,} edges): {data['faithfulness'].values[i]:.3f} "
                f"({data['low'].values[i]:.3f} to {data['high'].values[i]:.3f}){chance}"
            )
        if self._examined is not None:
            lines += self._tests()
        lines.append(f"  the model gets {p['n_right']} of {p['n_attempted']} pairs right, {p['n_scored']} scored")
        return "\n".join(lines)

    def _gap(self) -> str:
        clean, empty = float(self.data["clean"].mean()), float(self.data["empty"].mean())
        return f"{self.provenance['metric']} of the model {clean:+.3f}, of no edges {empty:+.3f}"

    def _tests(self) -> list[str]:
        data, p, number = self.data, self.provenance, self._examined
        said = said_verdict(self.verdict)
        lines = [f"  examined, {float(data['size'][number]):.2%}: {said}"]
        for test, like in zip(("sufficiency", "partial necessity"), p["like"], strict=True):
            if not like:
                why = "there are too few other circuits of this size" if p["trials"]["n_random"] else "n_random is 0"
                lines.append(f"    {test}: not tested, {why}")
        if p["like"][0]:
            lines.append(
                f"    sufficiency: {float(data['faithfulness'][number]):.3f} against "
                f"{float(np.nanmean(data['random'][number])):.3f} of random circuits ({p['like'][0]}), "
                f"p {float(data['p'][number]):.2g}"
            )
        if p["like"][1]:
            lines.append(
                f"    partial necessity: without it the model loses {float(data['lost']):.3f} of the gap, without "
                f"random ones outside of it {float(np.nanmean(data['lost_random'])):.3f}, "
                f"p {float(data['p_necessity']):.2g}"
            )
        lines += [f"    {note}" for note in self._notes(number or 0)]
        n, random = data.sizes.get("tested", 0), self._n_random_edges
        if n and random:
            enough, chance = edge_power(n, random, p["trials"]["level"])
            lines.append(
                f"    (an edge must exceed up to {enough} of {random} random ones; one that "
                f"exceeds 9 in 10 of all does with a chance of {chance:.2f}; least p {n * 0.5**random:.1g})"
            )
            for which, said in (("spare", "needed no more than random edges"), ("open", "not decided")):
                names = self._edges(which)
                lines += [f"    {said}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"] * bool(names)
        return lines

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per size, without the circuits' edges, the single pairs and random circuits."""
        along = [name for name, x in self.data.data_vars.items() if x.dims == ("size",)]
        return self.data[along].to_dataframe().reset_index()

    def plot(self) -> Figure:
        """Faithfulness over size, with its interval; random circuits with the range of those drawn."""
        import xarray as xr

        from interp.plots import curves, plain

        data = self.data
        rows = [[data[name].values for name in ("faithfulness", "low", "high")]]
        lines = [self.provenance["method"]]
        if "random" in data:
            drawn = data["random"]
            rows.append([x.values for x in (drawn.mean("draw"), drawn.min("draw"), drawn.max("draw"))])
            lines.append("random")
        stacked = np.array(rows).transpose(1, 0, 2)
        y, low, high = (
            xr.DataArray(x, dims=("circuits", "size"), coords={"circuits": lines, "size": data["size"].values})
            for x in stacked
        )
        figure = curves(
            y, x="size", line="circuits", low=low, high=high, title=self.title, unit="share of the gap",
            quantity="faithfulness", x_title="edges in the circuit", baseline=1.0, bars=False,
        )  # fmt: skip
        sizes = data["size"].values
        names = [f"{size:.3g} %" for size in 100 * sizes]
        figure.update_xaxes(type="log", tickvals=sizes, ticktext=names, tickangle=-90 if len(sizes) > 8 else 0)
        outside = "the corrupted run" if self.provenance["ablation"] == "resample" else self.provenance["ablation"]
        note = f"f = (m(circuit) − m(no edges)) / (m(clean) − m(no edges)); the other edges: {plain(outside)}"
        if "cpr" in data:
            note += f"<br>as MIB defines them: CPR = ∫ f dk = {float(data['cpr']):.3f}, "
            note += f"CMD = ∫ |1 − f| dk = {float(data['cmd']):.3f}, over shares k of the edges"
        figure.add_annotation(
            text=note, x=0, y=0, xref="paper", yref="paper", xshift=-60, yshift=-80, showarrow=False, align="left",
            xanchor="left", yanchor="top", font={"size": 11, "color": "#666666"},
        )  # fmt: skip
        layout = figure.to_dict()["layout"]
        figure.update_layout(height=layout["height"] + 60, margin_b=layout["margin"]["b"] + 60)  # room for the note
        return figure


def evaluate(
    model: LanguageModel,
    task: Pairs,
    circuits: EdgeScores | Circuit | Sequence[Circuit],
    *,
    sizes: Sequence[float] = MIB_SIZES,
    absolute: bool = True,
    grow: bool = False,
    ablation: str | Ablation = "resample",
    trials: Trials | None = STANDARD,
    at: float | None = None,
    n_random: int = 3,
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
    seed: int = 0,
) -> Evaluation:
    """Faithfulness of nested circuits against random circuits, and tests of one of them.

    Scores that were found on the same pairs have been fitted to them: evaluate on others. A circuit passes if it is
    faithful, sufficient, partially necessary, and the model does the task at all; how many of its edges are needed,
    and how complete it is, is said beside that. By default this takes about 135 passes over all pairs.

    Args:
        circuits: scores, from which circuits of `sizes` are taken (`nested`); or a circuit, or some of growing size.
        sizes: shares of the edges.
        absolute: as in `top_n`.
        grow: as in `nested`.
        ablation: what edges outside carry: a kind, or an `Ablation`. An optimal one is learned anew for every
            circuit, random ones too.
        trials: how thoroughly one circuit is examined; `None`: not at all.
        at: its size, a share of the edges; if not given, the smallest that is faithful (or the largest).
        n_random: random circuits at each of the other sizes; 0 for none.
        budget: as in `EdgePatching`.
        progress: over circuits, then over the passes of each test.
        seed: of random circuits, edges and nodes, and the bootstrap.

    Raises:
        InterpError: as `Problem.of`, `nested` and `Ablation`; a circuit of another model; circuits that do not grow;
            no circuit of size `at`.
        PairError: as `Problem.of` and `Cut`; a gap between the model and no edges within its own uncertainty.
    """
    problem = Problem.of(model, task, metric, only_right)
    shares, chosen, method = _chosen(problem, circuits, sizes, absolute, grow)
    if at is not None and not np.isclose(shares, at, rtol=1e-6).any():
        raise InterpError(f"There is no circuit of {at:g} of the edges; the sizes are {shares}.")
    cut = Cut(problem, Ablation.of(ablation), budget, progress)
    clean = problem.values["clean"].double().cpu().numpy()
    nothing = np.zeros(problem.graph.edges.shape, dtype=bool)
    same = cut.ablation.kind == "resample"
    empty = problem.values["corrupted"].double().cpu().numpy() if same else cut.kept(nothing)
    what = (
        problem.metric.name
        if same
        else f"{problem.metric.name} (here 'corrupted' is no edges under {cut.ablation.kind} ablation)"
    )
    recovered(empty[None], clean, empty, what, seed=seed)  # refuses pairs without a gap before any work
    generator = np.random.default_rng(seed)
    values = np.empty((len(chosen), len(problem.encoded)))
    drawn = np.full((len(chosen), max(n_random, trials.n_random if trials else 0), len(clean)), np.nan)
    for i, one in enumerate(progress(chosen, "circuits")):
        values[i] = cut.kept(one.edges)
    examined, number = None, None
    if trials is not None:
        f = (values.mean(-1) - empty.mean()) / (clean.mean() - empty.mean())
        faithful = np.flatnonzero(f >= trials.least)
        number = int(faithful[0]) if len(faithful) else len(chosen) - 1
        number = number if at is None else int(np.argmin(np.abs(np.array(shares) - at)))
        examined = examine(cut, chosen[number], trials, generator, progress)
        drawn[number, : trials.n_random] = examined.random
    others = [i for i in range(len(chosen)) if examined is None or i != number or not examined.like[0]]
    connected = trials.connected if trials else True
    for i in progress(others, "random circuits of other sizes") if n_random else ():
        if _whole(chosen[i]):
            drawn[i, :n_random] = values[i]
            continue
        some = random_circuits(chosen[i], n_random, generator, connected)[0]
        for j, edges in enumerate(some or random_circuits(chosen[i], n_random, generator, False)[0]):
            drawn[i, j] = cut.kept(edges)
    found = _curve(problem, shares, chosen, (clean, empty), values, drawn, seed)
    variables, coords, like = _tests(problem, examined, values, number, (clean, empty), trials)
    record = problem.record(
        method, selection=[one.provenance["selection"] for one in chosen], n_random=n_random, seed=seed,
        trials=asdict(trials or STANDARD), examined=number, like=like, found=[_origin(one) for one in chosen],
        **cut.ablation.record(),
    )  # fmt: skip
    return Evaluation(found.assign(variables).assign_coords(coords), {**record, "experiment": "circuit evaluation"})


def _chosen(
    problem: Problem,
    circuits: EdgeScores | Circuit | Sequence[Circuit],
    sizes: Sequence[float],
    absolute: bool,
    grow: bool,
) -> tuple[list[float], list[Circuit], str]:
    found = [circuits] if isinstance(circuits, Circuit) else circuits
    for one in [found] if isinstance(found, EdgeScores) else found:
        if (one.graph.weights, one.graph.model) != (problem.graph.weights, problem.graph.model):
            raise InterpError(f"This is of {one.graph.model}; {problem.model.name} has other weights.")
    if isinstance(found, EdgeScores):
        shares, chosen = list(sizes), nested(found, sizes, absolute=absolute, grow=grow)
        method = found.provenance["method"]
    else:
        chosen = list(found)
        shares = [float(one.edges.sum() / problem.graph.n_edges) for one in chosen]
        method = chosen[0].provenance["method"] if chosen else ""
    if not shares or shares != sorted(set(shares)):
        raise InterpError(f"Give at least one circuit, and several by growing size; got shares of the edges {shares}.")
    return shares, chosen, method


def _origin(one: Circuit) -> dict[str, Any]:
    """A circuit's provenance without its prompts."""
    return {key: value for key, value in one.provenance.items() if key not in _PROMPTS}


def _tests(
    problem: Problem,
    examined: Examined | None,
    values: np.ndarray,
    number: int | None,
    ends: tuple[np.ndarray, np.ndarray],
    trials: Trials | None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(variables, coordinates, what random circuits shared) of the examined circuit."""
    right = binomtest(int(problem.right.sum()), len(problem.right), 0.5, alternative="greater")
    variables: dict[str, Any] = {"p_task": ((), float(right.pvalue))}
    if examined is None or number is None or trials is None:
        return variables, {}, ["", ""]
    clean, empty = (x.mean() for x in ends)
    gap, share = clean - empty, {"unit": "share of the gap"}
    lost, random = ((clean - x.mean(-1)) / gap for x in (examined.knocked_out, examined.knocked_out_random))
    tolerance = 1e3 * torch.finfo(problem.model.dtype).eps * max(1.0, float(np.abs(ends[0]).max()))
    changes, p, less = edge_p(values[number], examined, tolerance)
    left = (examined.broken.mean(-1) - empty) / gap
    variables |= {
        "lost": ((), float(lost), share), "p_necessity": ((), rank_p(float(lost), random)),
        "edge_change": ("tested", changes / abs(gap), share), "edge_p": ("tested", p),
        "edge_p_less": ("tested", less),
        "left_circuit": ("subset", left[0], share), "left_model": ("subset", left[1], share),
    }  # fmt: skip
    if trials.n_random:
        variables["lost_random"] = ("knock_out", random, share)
    if trials.n_inflated:
        random_changes = np.abs(examined.inflated[0] - examined.inflated[1]).mean(-1)
        variables["random_change"] = ("inflated", random_changes / abs(gap), share)
    coords = {"tested": examined.edges, "subset": [", ".join(nodes) for nodes in examined.subsets]}
    return variables, coords, list(examined.like)


def _curve(
    problem: Problem,
    shares: Sequence[float],
    chosen: Sequence[Circuit],
    ends: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    drawn: np.ndarray,
    seed: int,
) -> xr.Dataset:
    import xarray as xr

    name, unit, share = problem.metric.name, {"unit": problem.metric.unit}, {"unit": "share of the gap"}
    clean, empty = ends
    corrupted = problem.values["corrupted"].double().cpu().numpy()
    f, low, high = recovered(values, clean, empty, name, seed=seed)
    variables: dict[str, Any] = {
        "edges": ("size", [int(one.edges.sum()) for one in chosen]),
        "value": (("size", "example"), values, unit),
        "faithfulness": ("size", f, share), "low": ("size", low, share), "high": ("size", high, share),
        "clean": ("example", clean, unit), "corrupted": ("example", corrupted, unit),
        "empty": ("example", empty, unit),
        "edge": (("size", "sender", "receiver"), np.stack([one.edges for one in chosen])),
        "score": (("sender", "receiver"), chosen[0].scores),
    }  # fmt: skip
    if drawn.shape[1]:
        chance = (drawn.mean(-1) - empty.mean()) / (clean.mean() - empty.mean())
        p = [nan if _whole(one) else rank_p(x, row) for one, x, row in zip(chosen, f, chance, strict=True)]
        variables["random"] = (("size", "draw"), chance, share)
        variables["p"] = ("size", p, {"unit": "share of random circuits"})
    if len(shares) > 1:
        for key, (value, *interval) in areas(np.array(shares), values, clean, empty, seed).items():
            for suffix, x in zip(("", "_low", "_high"), (value, *interval), strict=True):
                variables[key + suffix] = ((), x, {"unit": "area"})
    graph = problem.graph
    coords = {"sender": list(graph.senders), "receiver": list(graph.receivers)}
    return xr.Dataset(variables, {"size": list(shares), "example": list(range(len(clean))), **coords})


def _whole(one: Circuit) -> bool:
    """Whether it is the model: there is only one such circuit."""
    return bool((one.edges == one.graph.edges).all())


def areas(
    shares: np.ndarray, values: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """CPR and CMD, each with a 95 % percentile bootstrap interval over pairs (NaN for a single pair).

    Args:
        shares: [size], growing.
        values: metric of each circuit [size, example].
        clean: of the model on clean prompts [example].
        corrupted: on corrupted ones, or of the circuit of no edges [example].
        seed: of the draws.
    """
    from scipy.integrate import trapezoid

    n = len(clean)

    def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(CPR, CMD) of draws [draw, example]."""
        gap = (clean - corrupted)[rows].mean(-1)
        f = (values[:, rows].mean(-1) - corrupted[rows].mean(-1)) / gap
        return trapezoid(f, shares, axis=0), trapezoid(np.abs(1 - f), shares, axis=0)

    means = of(np.arange(n)[None])
    found = {}
    draws = of(np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))) if n > 1 else None
    for number, name in enumerate(("cpr", "cmd")):
        ends = (np.nan, np.nan) if draws is None else np.quantile(draws[number], [0.025, 0.975])
        found[name] = (float(means[number][0]), float(ends[0]), float(ends[1]))
    return found
