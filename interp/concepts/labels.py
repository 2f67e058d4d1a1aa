"""What should a latent be called, and is the name right? Labels from a vocabulary, tested on what did not suggest them.

A *label* says of every row whether it holds: "a day of the week", "the cell shows red". Half of the inputs (texts,
pictures; never rows of one input) suggest: for every label the threshold with the largest F1 of "the code exceeds the
threshold", and of all labels the one whose F1 gains most on that of a latent that is always on, as a share of what
there is to gain. (A label that holds nearly everywhere has a large F1 with anything.) On the other half, latent,
threshold and label being fixed, are counted

    precision: of the rows where the latent is on, the share for which the label holds (does the label say enough?)
    recall:    of the rows for which the label holds, the share where the latent is on (does it say too much?)

and their harmonic mean F1, with a bootstrap interval over inputs. That is the *observational* test. A latent that
agrees with a label need not do what the label says: `label_effects` (pictures) and `token_effects` ask what it does.

The control: the same search with labels that have changed places among inputs. The `chance` of a label is the largest
held-out F1 that any latent then reaches for it, over all shuffles: names at or below it are not kept.

Source: the observational mode of Huang et al. 2023, "Rigorously Assessing Natural Language Explanations of Neurons"
(arXiv:2309.10312). We differ: labels are predicates of a vocabulary, not sentences judged by a language model.

When it misleads: no label that is not in the vocabulary is found, and the best of a poor one is called by it all the
same; read F1, not the name. Rare labels have wide intervals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.concepts.coded_rows import CodedRows
from interp.errors import InterpError, PairError, ShapeError
from interp.models.language_model import LanguageModel
from interp.models.prompts import token_strings
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import ratio_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.dictionaries.store import Store

FEWEST = 20
"""Rows of either half for which a label must hold, to be tried."""

WORDS: Mapping[str, str] = {
    "a day of the week": r"(mon|tues|wednes|thurs|fri|satur|sun)days?",
    "a month": r"january|february|march|april|june|july|august|september|october|november|december",
    "a number": r"[0-9]+",
    "a number word": r"one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand|million",
    "an ordinal": r"first|second|third|fourth|fifth|last|next|previous",
    "a full stop": r"[.!?]+",
    "a comma": r",",
    "a colon or semicolon": r"[:;]",
    "an opening bracket": r".*[(\[{]",
    "a closing bracket": r"[)\]}].*",
    "a quotation mark": r".*[\"'`“”\u2018\u2019]+",
    "an operator": r"[-+*/%=<>|&^~@]+",
    "an underscore": r".*_.*",
    "an article": r"a|an|the",
    "a personal pronoun": r"i|you|he|she|it|we|they|me|him|her|us|them",
    "a possessive": r"my|your|his|its|our|their|mine|yours|hers|ours|theirs",
    "a conjunction": r"and|or|but|nor|so|yet|if|because|while|although|unless|when",
    "a preposition": r"of|in|on|at|by|for|from|with|to|into|onto|about|between|through|over|under|after|before",
    "a negation": r"not|no|never|none|nothing|neither|nor|cannot",
    "a form of be": r"be|is|are|was|were|been|being|am",
    "a form of have": r"have|has|had|having",
    "a modal verb": r"can|could|may|might|must|shall|should|will|would",
    "a question word": r"who|what|when|where|why|how|which|whose",
    "a Python keyword": r"def|class|return|lambda|yield|async|await|import|except|finally|raise|elif|assert|del|global",
    "a Python type": r"int|str|float|list|dict|tuple|set|bool|bytes|object|none|true|false",
}
"""Patterns of whole tokens, without regard to case and to white space around them."""


def token_labels(
    store: Store, model: LanguageModel, words: Mapping[str, str] = WORDS
) -> dict[str, Bool[np.ndarray, "row"]]:
    """Of every row of a store of texts, for which labels its token holds.

    Args:
        words: by label a regular expression, which the whole token must match (white space around it, and case, do not
            count).

    Raises:
        InterpError: a store of pictures; a pattern that is none.
    """
    if store.about.get("inputs") != "texts":
        raise InterpError("Labels of tokens need a store of texts.")
    token = store.label("token").numpy()
    ids, number = np.unique(token, return_inverse=True)
    texts = [text.strip() for text in token_strings(model.tokenizer, ids.tolist())]
    held = {}
    for label, pattern in words.items():
        try:
            matches = re.compile(pattern, re.IGNORECASE).fullmatch
        except re.error as error:
            raise InterpError(f"The pattern of {label!r} is none: {error}.") from error
        held[label] = np.array([matches(text) is not None for text in texts])[number]
    return held


def cell_labels(store: Store, least: float = 0.5) -> dict[str, Bool[np.ndarray, "row"]]:
    """Of every row of a store of pictures of the shapes world, which concepts cover its cell.

    Args:
        least: share of a cell's pixels that must show the concept, in the finished picture.

    Raises:
        InterpError: a store without masks.
    """
    concepts = store.about.get("concepts")
    if not concepts:
        raise InterpError("The store has no masks of concepts: it is not of pictures of the shapes world.")
    masks = store.extra("masks").float()  # [picture, concept, y, x]
    height, width = store.about["grid"]
    covered = masks.unflatten(2, (height, -1)).unflatten(4, (width, -1)).mean((3, 5)).flatten(2) >= least
    picture, cell = store.label("picture"), store.label("cell")
    return {name: covered[picture, number, cell].numpy() for number, name in enumerate(concepts)}


@dataclass(frozen=True, repr=False, eq=False)
class Labels(Result):
    """Names of latents, with the evidence.

    `.data` holds by `latent`: `label` (empty where F1 is not above chance), `candidate` (the best of the vocabulary,
    kept or not), `threshold` of the code, and on held-out inputs `precision`, `recall`, `f1` with its 95 % interval
    `f1_low`, `f1_high`, and its label's `f1_chance`. By `shuffle` × `name` (of labels) `chance`: the largest held-out
    F1 of any latent, with shuffled labels.
    """

    @property
    def title(self) -> str:
        """One line that states what was labelled."""
        p = self.provenance
        return f"Labels of {self.data.sizes['latent']} latents from a vocabulary of {p['n_labels']}"

    def summary(self) -> str:
        """How many names held, against chance, and the best."""
        data, p = self.data, self.provenance
        kept = data["label"].values != ""
        chance = data["chance"].max("shuffle")
        by_label = f"{float(chance.min()):.2f} to {float(chance.max()):.2f}, by label; {data.sizes['shuffle']} shuffles"
        lines = [
            f"Labels: {self.title}",
            f"  {int(kept.sum())} of {data.sizes['latent']} have a held-out F1 above the largest with labels of other "
            f"inputs ({by_label})",
            f"  suggested on {p['n_suggesting']} inputs, tested on {p['n_testing']}",
        ]
        for i in np.argsort(-np.where(kept, data["f1"].values, -1), kind="stable")[: min(8, int(kept.sum()))]:
            one = data.isel(latent=int(i))
            lines.append(
                f"  latent {int(one['latent'])}: {one['label'].item()!r} F1 {float(one['f1']):.2f} "
                f"[{float(one['f1_low']):.2f}, {float(one['f1_high']):.2f}], precision {float(one['precision']):.2f}, "
                f"recall {float(one['recall']):.2f}"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Precision against recall of every candidate."""
        from interp.plots import points

        data = self.data
        names = [f"latent {i}: {c}" for i, c in zip(data["latent"].values, data["candidate"].values, strict=True)]
        return points(data["recall"], data["precision"], title=self.title, x="recall", y="precision", names=names)


def label_latents(
    coded: CodedRows,
    labels: Mapping[str, Bool[np.ndarray, "row"]],
    group: Int[np.ndarray, "row"],
    latents: Sequence[int] | None = None,
    *,
    shuffles: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> Labels:
    """Suggest a label for each latent on one half of the inputs, and test it on the other.

    Args:
        coded: the codes of all rows.
        labels: of each label whether it holds in each row.
        group: of each row the number of its input: `store.label("text")`, `store.label("picture")`.
        latents: to be named; all that are on in both halves, if not given.
        shuffles: of the labels' inputs.
        seed: of the halves, and of the shuffles.

    Raises:
        PairError: no label that holds in at least 20 rows of each half.
        ShapeError: labels or groups of another number of rows; fewer than four inputs.
    """
    import xarray as xr

    group = np.unique(np.asarray(group), return_inverse=True)[1]
    if {len(group), *(len(held) for held in labels.values())} != {coded.n_rows}:
        raise ShapeError(f"Labels and groups must speak of {coded.n_rows} rows each.")
    n_groups = int(group.max()) + 1
    if n_groups < 4:
        raise ShapeError(f"{n_groups} inputs; halves need at least four.")
    random = np.random.default_rng(seed)
    suggesting = random.permutation(n_groups) < n_groups // 2
    half = suggesting[group]
    wanted = (
        np.stack([np.asarray(held, bool) for held in labels.values()], 1)
        if labels
        else np.zeros((coded.n_rows, 0), bool)
    )
    enough = (wanted[half].sum(0) >= FEWEST) & (wanted[~half].sum(0) >= FEWEST)
    names = [name for name, kept in zip(labels, enough, strict=True) if kept]
    if not names:
        raise PairError(
            f"No label holds in at least {FEWEST} rows of each half of the inputs; give more inputs, or other labels."
        )
    wanted = wanted[:, enough]
    both = [i for i in range(coded.n_latents) if half[coded.of(i)[0]].any() and not half[coded.of(i)[0]].all()]
    chosen = both if latents is None else [int(i) for i in latents]
    found = [
        _tested(coded, latent, wanted, half, group) for latent in progress(chosen, f"labels of {len(chosen)} latents")
    ]
    chance = np.zeros((shuffles, len(names)))
    for shuffle in progress(range(shuffles), "shuffled labels"):
        other = _exchanged(wanted, group, half, random)
        for latent in chosen:
            chance[shuffle] = np.maximum(chance[shuffle], _cut(coded, latent, other, half)[2])
    best = chance.max(0, initial=0.0)
    f1, of_label = np.array([one.f1 for one in found]), np.array([one.label for one in found], int)
    by_chance = np.where(of_label >= 0, best[of_label], np.nan)
    ends = np.array([one.interval() for one in found]).reshape(-1, 2)
    candidate = np.array([names[one.label] if one.label >= 0 else "" for one in found], dtype=object)
    data = xr.Dataset(
        {
            "label": ("latent", np.where(f1 > by_chance, candidate, "")),
            "candidate": ("latent", candidate),
            "threshold": ("latent", np.array([one.threshold for one in found])),
            "precision": ("latent", np.array([one.precision for one in found])),
            "recall": ("latent", np.array([one.recall for one in found])),
            "f1": ("latent", f1), "f1_low": ("latent", ends[:, 0]), "f1_high": ("latent", ends[:, 1]),
            "f1_chance": ("latent", by_chance), "chance": (("shuffle", "name"), chance),
        },
        {"latent": chosen, "name": names},
    )  # fmt: skip
    about = provenance(
        experiment="labels of latents", seed=seed, n_labels=len(names), labels=names, n_rows=coded.n_rows,
        n_suggesting=int(suggesting.sum()), n_testing=int((~suggesting).sum()),
    )  # fmt: skip
    return Labels(data, about)


@dataclass(frozen=True, slots=True, eq=False)
class _Test:
    """A candidate, and by held-out input (2 TP, 2 TP + FP + FN)."""

    label: int
    threshold: float
    precision: float
    recall: float
    counts: Float[np.ndarray, "input 2"]

    @property
    def f1(self) -> float:
        hit, size = self.counts.sum(0)
        return float(hit / size) if size else 0.0

    def interval(self) -> tuple[float, float]:
        if not self.counts[:, 1].sum():
            return np.nan, np.nan
        _, low, high = ratio_interval(self.counts[:, 0], self.counts[:, 1])
        return float(low), float(high)


def _cut(
    coded: CodedRows, latent: int, wanted: Bool[np.ndarray, "row label"], half: Bool[np.ndarray, "row"]
) -> tuple[Float[np.ndarray, "label"], Float[np.ndarray, "label"], Float[np.ndarray, "label"]]:
    """Of every label the largest F1 on the suggesting half, the threshold for it, and its F1 on the other half."""
    row, value = coded.of(latent)
    mine, label = half[row], np.arange(wanted.shape[1])
    nothing = np.zeros(len(label))
    if not mine.any():
        return nothing, nothing, nothing
    strengths, hits = value[mine], wanted[row[mine]].cumsum(0)  # the strongest first: a threshold keeps a beginning
    f1 = 2 * hits / (np.arange(1, len(hits) + 1)[:, None] + wanted[half].sum(0))
    following = np.append(strengths[1:], 0)
    f1[strengths == following] = 0  # no threshold parts equal codes
    cut = f1.argmax(0)
    threshold = (strengths[cut] + following[cut]) / 2
    others = value[~mine]
    on = np.searchsorted(-others, -threshold)  # of the other half's rows so many exceed it
    held_out = np.concatenate([np.zeros((1, len(label)), int), wanted[row[~mine]].cumsum(0)])[on, label]
    return f1[cut, label], threshold, 2 * held_out / np.maximum(on + wanted[~half].sum(0), 1)


def _tested(
    coded: CodedRows, latent: int, wanted: Bool[np.ndarray, "row label"], half: Bool[np.ndarray, "row"],
    group: Int[np.ndarray, "row"],
) -> _Test:  # fmt: skip
    """The label that gains most on the suggesting half, counted on the other."""
    f1, thresholds, _ = _cut(coded, latent, wanted, half)
    if not f1.any():
        return _Test(-1, 0.0, np.nan, np.nan, np.zeros((0, 2)))
    share = wanted[half].mean(0)
    always = 2 * share / (1 + share)
    label = int(((f1 - always) / np.maximum(1 - always, 1e-9)).argmax())
    threshold = float(thresholds[label])
    held_out = np.flatnonzero(~half)
    row, value = coded.of(latent)
    on = np.zeros(coded.n_rows, bool)
    on[row[value > threshold]] = True
    on, true = on[held_out], wanted[held_out, label]
    both = on & true
    counts = np.zeros((int(group.max()) + 1, 2))
    np.add.at(counts, group[held_out], np.stack([2 * both, on.astype(int) + true], 1))
    precision = both.sum() / on.sum() if on.any() else np.nan
    recall = both.sum() / true.sum() if true.any() else np.nan
    return _Test(label, threshold, float(precision), float(recall), counts[np.unique(group[held_out])])


def _exchanged(
    wanted: Bool[np.ndarray, "row label"], group: Int[np.ndarray, "row"], half: Bool[np.ndarray, "row"],
    random: np.random.Generator,
) -> Bool[np.ndarray, "row label"]:  # fmt: skip
    """Every input gets labels of others of its half: rows of inputs, in a new order, laid over the old ones."""
    out = np.empty_like(wanted)
    for part in (half, ~half):
        rows = np.flatnonzero(part)
        own = group[rows]
        order = random.permutation(np.unique(own))
        place = np.argsort(np.argsort(order)[np.searchsorted(np.sort(order), own)], kind="stable")
        out[rows] = np.roll(wanted[rows[place]], int(random.integers(1, len(rows))), 0)
    return out
