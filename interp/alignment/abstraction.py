"""Does a network compute as a *whole* causal model does? Every set of its variables exchanged, and where that fails.

An alignment of one variable says that this variable can be set. A causal model claims more: that its variables can be
set together, each from a source of its own, at their places (`interp.alignment.joint`), and that the network then
answers as the model does. Over every set S of variables that is not empty,

    score = mean over S of the share of examples on which network and model agree when S is exchanged

so that every set counts alike; the worst set stands beside it. With one variable this is its IIA.

Beside the fitted maps stand, on the same examples: no interchange (the base run's answer), random subspaces of the same
ranks, the exchange of whole states (where a place has one exchanged variable), and a network of random weights with
maps fitted there in the same way. `interp.alignment.failures` says on which inputs network and model part.

When it misleads: the score is over the inputs that were drawn, and over the places that were chosen: no network is
shown to have no such variables elsewhere. A score below 1 means that the model is at best an approximation.

Start with `language_abstraction` for a language model; `abstraction` knows only continuations.

Sources: Geiger, Potts & Icard 2023 (arXiv:2301.04709), approximate causal abstraction: agreement over a distribution of
interventions; Geiger et al. 2023 (arXiv:2303.02536), IIA. The uniform weight of the sets, the controls and the
description of failures are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.failures import describe_failures, failure_rates
from interp.alignment.fit import best
from interp.alignment.joint import Aligned, check_aligned, joint_outputs
from interp.errors import InterpError, PairError
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval
from interp.tasks.causal_model import CausalModel, Setting

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

WAYS = ("fitted", "no interchange", "random subspaces", "random model", "full swap")
"""What is exchanged: the blocks of the fitted maps, or what stands beside them."""
_SHOWN = 12
"""Conditions in a figure."""


@dataclass(frozen=True, slots=True, eq=False)
class Interchanges:
    """Held-out examples in which the same variables are exchanged together.

    Attributes:
        exchanged: the variables, in the order of the continuation's sources.
        continuation: the network on these examples.
        label: what it should answer to each.
        base: of each example, inputs (and, if known, all variables) of the causal model.
        sources: the same, of each exchanged variable's source.
        words: each example, for a reader.
    """

    exchanged: tuple[str, ...]
    continuation: Continuation
    label: Int[Tensor, "example"]
    base: Sequence[Setting]
    sources: Sequence[Sequence[Setting]]
    words: Sequence[str]

    @property
    def name(self) -> str:
        """The variables, joined."""
        return " + ".join(self.exchanged)


@dataclass(frozen=True, repr=False, eq=False)
class Abstraction(Result):
    """How often a network answers as a causal model does, over every set of variables exchanged, beside the controls.

    `.data` holds over `way` × `exchanged` (the variables exchanged together) × `example`: `correct` (1, 0; NaN where a
    way was not run, or a set has fewer examples); over `way` × `exchanged` their mean `iia`, with its 95 % interval
    `low` to `high` (bootstrap over examples); over `way` the `score`, the mean over the sets that ran, with `score_low`
    to `score_high`. Over `exchanged` × `example`, of the fitted maps: `words`, the example; `label` and `answer`, of
    causal model and network. Over `condition`: `n` examples under it, `failed` of them, the `rate` with its interval
    `rate_low` to `rate_high`, and adjusted `p`. `description`: where failures gather, "" if there is no pattern.
    """

    @property
    def title(self) -> str:
        """One line that states what was compared."""
        p = self.provenance
        return f"causal model {p['causal_model']!r} in {p['network']}"

    @property
    def worst(self) -> str:
        """The set of variables with the lowest IIA."""
        return str(self.data["exchanged"].values[int(self.data["iia"].sel(way="fitted").values.argmin())])

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The sets whose interval reaches down to a control's IIA (the full swap, which is no rival, left out)."""
        rivals = self.data["iia"].drop_sel(way=["fitted", "full swap"], errors="ignore").max("way")
        bad = ~(self.data["low"].sel(way="fitted", drop=True) > rivals)
        return tuple(str(name) for name in self.data["exchanged"].values[bad.values])

    def failures(self) -> pandas.DataFrame:
        """The examples on which network and model part: variables exchanged, example, label, answer."""
        frame = self.data[["words", "label", "answer"]].to_dataframe()
        wrong = self.data["correct"].sel(way="fitted", drop=True).to_series() == 0
        return frame[wrong].reset_index().drop(columns="example")

    def summary(self) -> str:
        """A row per set of variables with its controls, the score, whether it holds, and where it fails."""
        data, p = self.data, self.provenance
        ways, sets = [str(way) for way in data["way"].values], [str(name) for name in data["exchanged"].values]
        width = max(len("every set alike"), *map(len, sets))
        lines = [f"Abstraction: {self.title}", *(f"  {line}" for line in p["aligned"])]
        lines.append("  share of held-out interventions on which the network answers as the model:")
        lines.append(f"  {'exchanged':{width}}     n  " + "  ".join([f"{'fitted':<20}", *ways[1:]]))
        for name in sets:
            here = data.sel(exchanged=name)
            n = int(here["correct"].sel(way="fitted").notnull().sum())
            ends = (float(here[end].sel(way="fitted")) for end in ("low", "high"))
            lines.append(_row(name, width, n, here["iia"], ways, *ends))
        n = int(data["correct"].sel(way="fitted").notnull().sum())
        ends = (float(data[end].sel(way="fitted")) for end in ("score_low", "score_high"))
        lines.append(_row("every set alike", width, n, data["score"], ways, *ends))
        lines.append(f"  {self._verdict(n)}")
        if missing := [way for way in WAYS if way not in ways]:
            lines.append(f"  NOT run: {', '.join(missing)}")
        if description := str(data["description"].item()):
            lines.append(f"  fails {description}")
        return "\n".join([*lines, *(f"  {note}" for note in p["notes"])])

    def _verdict(self, n: int) -> str:
        iia, bad = self.data["iia"].sel(way="fitted"), self.unsupported
        if bad:
            return f"Does NOT hold: not above the controls when exchanging {', '.join(bad)}"
        failed = int((self.data["correct"].sel(way="fitted") == 0).sum())
        if not failed:
            return f"Holds in all {n} interventions that were tried"
        worst = f", most often exchanging {self.worst} ({float(iia.min()):.3f})" if iia.size > 1 else ""
        return f"Above the controls for every set; does NOT hold in {failed} of {n} ({failed / n:.1%}){worst}"

    def plot(self) -> Figure:
        """Bars: the IIA of every set of variables, and of all sets alike, beside the controls."""
        import xarray as xr

        from interp.plots import bars

        last = xr.Variable("exchanged", ["every set alike"])
        drawn = [
            xr.concat([self.data[name], self.data[of].expand_dims(exchanged=last)], "exchanged")
            for name, of in (("iia", "score"), ("low", "score_low"), ("high", "score_high"))
        ]
        return bars(
            drawn[0], y="exchanged", bar="way", low=drawn[1], high=drawn[2], unit="IIA", quantity="agreement",
            title=f"Interventions on which network and model agree: {self.title}",
        )  # fmt: skip

    def plot_failures(self) -> Figure:
        """Bars: the failure rate under each condition, the twelve least likely by chance.

        Raises:
            InterpError: nothing failed.
        """
        from interp.plots import bars

        if not int(self.data["failed"].sum()):
            raise InterpError("No intervention failed; there is nothing to draw.")
        first = self.data[["rate", "rate_low", "rate_high", "n", "failed"]].isel(condition=slice(_SHOWN))
        labels = [
            f"{name}  ({int(bad)} of {int(n)})"
            for name, bad, n in zip(first["condition"].values, first["failed"].values, first["n"].values, strict=True)
        ]
        one = first.expand_dims(bar=["failure rate"])
        overall = 1 - float(self.data["correct"].sel(way="fitted").mean())
        return bars(
            one["rate"], y="condition", bar="bar", low=one["rate_low"], high=one["rate_high"], unit="share",
            quantity="failures", y_labels=labels,
            title=f"Where network and model part ({overall:.1%} of all interventions): {self.title}",
        )  # fmt: skip


def _row(name: str, width: int, n: int, values: Any, ways: Sequence[str], low: float, high: float) -> str:
    fitted = f"{float(values.sel(way='fitted')):.3f} [{low:.3f}, {high:.3f}]"
    beside = [(way, float(values.sel(way=way))) for way in ways[1:]]
    shown = [f"{'–' if np.isnan(x) else f'{x:.3f}':>{len(way)}}" for way, x in beside]
    return f"  {name:{width}}  {n:4}  " + "  ".join([f"{fitted:<20}", *shown])


def abstraction(
    causal: CausalModel,
    aligned: Sequence[Aligned],
    examples: Sequence[Interchanges],
    *,
    network: str,
    untrained: tuple[Sequence[Aligned], Sequence[Interchanges]] | None = None,
    among: Int[Tensor, "answer"] | None = None,
    told: Callable[[int], str] = str,
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Abstraction:
    """Exchange every set of variables that there are examples of, and compare with the causal model.

    Args:
        causal: what the network is to be an instance of.
        aligned: places and maps of its variables.
        examples: one entry for each set of variables.
        network: its name, for titles.
        untrained: the same for a network of random weights, with maps that were fitted to it.
        among: the network's answer is the highest logit among these classes; all if not given.
        told: a class in the causal model's words, as `str` gives the model's own values.
        about: facts for the provenance.
        notes: what a reader must know, lines of the repr.
        seed: of random subspaces, intervals and shuffles.

    Raises:
        InterpError: no example; a set of variables twice; variables that are not aligned, or that the causal model does
            not have; as `joint_outputs`.
        PairError: a label that is not the causal model's (the example is shown).
    """
    _check(causal, aligned, examples, told)
    ways: dict[str, list[np.ndarray | None]] = {"fitted": [], "no interchange": [], "random subspaces": []}
    drawn = [one.random(seed + i) for i, one in enumerate(aligned)]
    answers = []
    for one in examples:
        token, correct = _judged(aligned, one.exchanged, one, among)
        answers.append([told(int(x)) for x in token])
        ways["fitted"].append(correct)
        ways["no interchange"].append(_judged(aligned, (), one, among)[1])
        ways["random subspaces"].append(_judged(drawn, one.exchanged, one, among)[1])
    if untrained is not None:
        theirs, on = untrained
        if [one.exchanged for one in on] != [one.exchanged for one in examples]:
            raise InterpError("The random model needs examples of the same sets of variables, in the same order.")
        ways["random model"] = [_judged(theirs, one.exchanged, one, among)[1] for one in on]
    whole = [_whole(aligned, one.exchanged) for one in examples]
    if any(whole):
        ways["full swap"] = [
            None if some is None else _judged(some, one.exchanged, one, among)[1]
            for some, one in zip(whole, examples, strict=True)
        ]
    data = _dataset(causal, examples, ways, answers, told, seed)
    record = provenance(
        experiment="causal abstraction", causal_model=causal.name, source=causal.source, network=network,
        aligned=[str(one) for one in aligned], seed=seed, notes=list(notes),
        n_scored=sum(len(one.label) for one in examples),
        **(about or {}),
    )  # fmt: skip
    return Abstraction(data, record)


def _check(
    causal: CausalModel, aligned: Sequence[Aligned], examples: Sequence[Interchanges], told: Callable[[int], str]
) -> None:
    known = check_aligned(aligned)
    if not examples:
        raise InterpError("There are no examples; give some for each set of variables (`subsets`).")
    seen: list[frozenset[str]] = []
    for one in examples:
        for name in one.exchanged:
            _ = causal[name]
            if name not in known:
                raise InterpError(f"{name!r} is exchanged and not aligned; aligned are {', '.join(known)}.")
        if frozenset(one.exchanged) in seen:
            raise InterpError(f"{one.name} is exchanged in two entries; give all its examples in one.")
        seen.append(frozenset(one.exchanged))
        for row, base in enumerate(one.base):
            sources = {v: of[row] for v, of in zip(one.exchanged, one.sources, strict=True)}
            value, label = causal.interchange(base, sources)[causal.output], told(int(one.label[row]))
            if str(value) != label:
                raise PairError(
                    f"Exchanging {one.name}, example {row}: causal model {causal.name!r} answers {str(value)!r}, the "
                    f"label is {label!r} ({one.words[row]})."
                )


@torch.no_grad()
def _judged(
    aligned: Sequence[Aligned], exchanged: Sequence[str], examples: Interchanges, among: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """(answers, whether they are the labels)."""
    token, finite = best(joint_outputs(aligned, exchanged, examples.continuation), among)
    return token.cpu().numpy(), ((token == examples.label) & finite).cpu().numpy()


def _whole(aligned: Sequence[Aligned], exchanged: Sequence[str]) -> list[Aligned] | None:
    """The exchange of whole states, if no place has two exchanged variables."""
    found = [one.whole(exchanged) for one in aligned if set(one.variables) & set(exchanged)]
    kept = [one for one in found if one is not None]
    return kept if len(kept) == len(found) else None


def _dataset(
    causal: CausalModel, examples: Sequence[Interchanges], ways: Mapping[str, list[np.ndarray | None]],
    answers: Sequence[Sequence[str]], told: Callable[[int], str], seed: int,
) -> Any:  # fmt: skip
    import xarray as xr

    most, order = max(len(one.label) for one in examples), [way for way in WAYS if way in ways]
    correct = np.full((len(order), len(examples), most), np.nan)
    for i, way in enumerate(order):
        for j, values in enumerate(ways[way]):
            if values is not None:
                correct[i, j, : len(values)] = values
    scored = ~np.isnan(correct)
    n = scored.sum(-1)
    iia = np.divide(np.nansum(correct, -1), n, out=np.full(n.shape, np.nan), where=n > 0)
    low, high = bootstrap_interval(correct, seed=seed)
    # Weights with which the mean over all examples of a way is the mean over its sets.
    weight = np.divide(n.sum(1, keepdims=True), (n > 0).sum(1, keepdims=True) * n, out=np.ones(n.shape), where=n > 0)
    weighted = (correct * weight[..., None]).reshape(len(order), -1)
    score_low, score_high = bootstrap_interval(weighted, seed=seed)

    def padded(rows: Sequence[Sequence[str]]) -> np.ndarray:
        return np.array([[*row, *[""] * (most - len(row))] for row in rows], dtype=str)

    labels = [[told(int(x)) for x in one.label] for one in examples]
    columns = _columns(causal, examples, labels)
    failed = np.concatenate([values == 0 for values in ways["fitted"] if values is not None])
    rates, described = failure_rates(columns, failed), describe_failures(columns, failed, seed=seed)
    cells, each, share = ("way", "exchanged"), ("exchanged", "example"), {"unit": "share"}
    variables: dict[str, Any] = {
        "correct": ((*cells, "example"), correct), "iia": (cells, iia, share), "low": (cells, low, share),
        "high": (cells, high, share), "score": ("way", np.nansum(iia, 1) / (n > 0).sum(1), share),
        "score_low": ("way", score_low, share), "score_high": ("way", score_high.clip(max=1), share),
        "words": (each, padded([one.words for one in examples])), "label": (each, padded(labels)),
        "answer": (each, padded(answers)),
        "n": ("condition", [r.n for r in rates]), "failed": ("condition", [r.failed for r in rates]),
        "rate": ("condition", [r.failed / r.n for r in rates], share),
        "rate_low": ("condition", [r.low for r in rates], share),
        "rate_high": ("condition", [r.high for r in rates], share), "p": ("condition", [r.p for r in rates]),
        "description": ((), "" if described is None else str(described)),
    }  # fmt: skip
    coords = {"way": order, "exchanged": [one.name for one in examples], "condition": [r.condition for r in rates]}
    return xr.Dataset(variables, coords)


def _columns(
    causal: CausalModel, examples: Sequence[Interchanges], labels: Sequence[Sequence[str]]
) -> dict[str, list[str]]:
    """What there is to say of each intervention, set after set: what is computed first, then the inputs."""
    columns: dict[str, list[str]] = {"exchanged": [one.name for one in examples for _ in one.label]}
    several = len(examples) > 1
    names = [*causal.inner, *causal.inputs]
    of_base: dict[str, list[str]] = {name: [] for name in names}
    of_source: dict[str, list[str]] = {}
    aligned = dict.fromkeys(v for one in examples for v in one.exchanged)
    answer, moved = [], []
    for one, wanted in zip(examples, labels, strict=True):
        known = [causal.run(base) for base in one.base]
        lent = dict(zip(one.exchanged, one.sources, strict=True))
        for name in names:
            of_base[name] += [str(values[name]) for values in known]
        answer += [label.strip() for label in wanted]
        moved += ["changed" if str(v[causal.output]) != w else "kept" for v, w in zip(known, wanted, strict=True)]
        for variable in aligned:
            values = [causal.run(source) for source in lent[variable]] if variable in lent else None
            for name in names:
                column = of_source.setdefault(f"{name} of {variable}’s source", [])
                column += [""] * len(known) if values is None else [str(each[name]) for each in values]
            if several:
                column = columns.setdefault(f"{variable} exchanged", [])
                column += ["yes" if variable in lent else "no"] * len(known)
    columns |= {"answer of the base": moved, "answer under the interchange": answer}
    columns |= {f"base’s {name}": values for name, values in of_base.items()}
    return columns | of_source
