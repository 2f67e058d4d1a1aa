"""From alignment to prediction: does an aligned variable tell when the model will be wrong?

`predict_correctness` takes one map at one place (what `align` found) and asks of held-out prompts, one by one, whether
their answers will be right. What the scores are, `interp.alignment.correctness` says. Each is judged by the area under
its ROC curve (AUC): the probability that a prompt with a right answer scores higher than one with a wrong answer; 0.5
is chance. It is judged on prompts like those of the training and, which is the question, on others.

Beside every score stand two controls: the same from a random subspace of the same rank, and the same with correctness
labels that were shuffled (those of the training, which the correctness probe sees, and those of the test), where it
must be 0.5. The reference is the network's confidence, of whose kinds the one that is best on the training prompts is
taken; `gain` is what a score has above it on the same prompts.

Cost: one forward pass over every prompt; for the simulation, what lies above and behind the place for every prompt
and base, twice (the random subspace). Nothing is trained but logistic regressions.

When it misleads: where most errors are one wrong answer, to know which answer was given already tells right from wrong,
and any score that differs between answers gains by it. The random subspace shows how much: there its AUC is not 0.5,
and only what is above it is the variable's. Prompts made of few words count for less than their number, so the
intervals are too narrow for a claim about other words. A rate of errors that differs between splits does not move an
AUC; other *kinds* of errors do. A site so late that the answer already stands there makes the simulation the confidence
under another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.alignment.correctness import (
    ALIGNED,
    CONFIDENCE,
    INFORMED,
    PROBE,
    SCORES,
    Bases,
    Observed,
    Values,
    aligned_scores,
    correctness_probe,
    joined,
    observed,
)
from interp.alignment.language import LanguageContinuation, Place, check_places
from interp.alignment.maps import AlignmentMap, Subspace
from interp.errors import InterpError, PairError, ShapeError, nearest
from interp.models.language_model import LanguageModel
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import auc_gain, auc_interval
from interp.tasks.causal_model import CausalModel, Value
from interp.tasks.interchange import Counterfactual, EncodedInterchange, InterchangeTask
from interp.tasks.pairs import continuation

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

PREDICTION_CONTROLS = ("random subspace", "shuffled labels")
"""What an AUC stands beside: the same scores from a random subspace of the same rank; the same scores judged by
correctness labels that were shuffled, the correctness probe fitted to such."""

_BATCH = 64
"""Prompts whose logits are held at once."""


@dataclass(frozen=True, repr=False, eq=False)
class Prediction(Result):
    """How well scores of single prompts predict whether a model's answer is right.

    `.data` holds over `score` × `split`: `auc`, its 95 % interval `low` to `high` (bootstrap over prompts), `gain`
    over the reference score (the confidence named in `provenance["reference"]`) with `gain_low` and `gain_high`; with
    `control` in front `control_auc`, `control_low`, `control_high`, NaN for scores that a control does not
    touch. Over `score` × `prompt`: `value`, higher for "right". Over `prompt`: `right`, `split_of`, `text`. Over
    `split`: `n` and `n_wrong`.
    """

    @property
    def title(self) -> str:
        """One line that states what was asked."""
        p = self.provenance
        return f"right or wrong, from the {' and '.join(p['variables'])} of {p['task']} in {p['place']} · {p['model']}"

    def summary(self) -> str:
        """A row for each score, the splits side by side; controls; gains over the confidence; what is missing."""
        p, data = self.provenance, self.data
        splits = [str(split) for split in data["split"].values]
        told = [f"{split} {int(data['n_wrong'][i])} of {int(data['n'][i])} wrong" for i, split in enumerate(splits)]
        lines = [f"Prediction: {self.title}", f"  AUC of {p['kind']}, rank {p['rank']}; {', '.join(told)}"]
        lines.append(_row("", splits))
        own, beside = ("auc", "low", "high"), ("control_auc", "control_low", "control_high")
        groups = [
            ("the aligned variable", ALIGNED, own, ""), ("without it", (*CONFIDENCE, PROBE), own, ""),
            ("who knows the right answer", INFORMED, own, ""),
            (PREDICTION_CONTROLS[0], (*ALIGNED, *INFORMED), beside, ""),
            (f"gain over {p['reference']}", (*ALIGNED, PROBE), ("gain", "gain_low", "gain_high"), "+"),
        ]  # fmt: skip
        for what, names, of, sign in groups:
            lines.append(f"  {what}")
            lines += [_row(f"    {name}", self._cells(name, of, sign)) for name in names]
        shuffled = data.sel(control=PREDICTION_CONTROLS[1])
        inside = ((shuffled["control_low"] <= 0.5) & (shuffled["control_high"] >= 0.5)).sum("score").values
        n = shuffled["control_auc"].notnull().sum("score").values
        told = [f"0.5 in {k} of {m} intervals" for k, m in zip(inside, n, strict=True)]
        lines.append(_row("  shuffled labels", told))
        lines += [f"  {why}" for why in p["failed"]]
        lines.append(
            f"  probes and {p['n_bases']} bases from {p['n_train']} prompts, {p['n_train_right']} answered rightly; "
            f"answers among {p['answers']}; {p['n_scored']} of {p['n_attempted']} prompts predicted: each text once, "
            "none of the training's"
        )
        return "\n".join(lines)

    def _cells(self, score: str, of: Sequence[str], sign: str) -> list[str]:
        """Of a score: a number and its interval, for each split."""
        here = self.data.sel(score=score, control=PREDICTION_CONTROLS[0])
        table = np.stack([here[name].values for name in of], -1)
        return ["–" if np.isnan(x) else f"{x:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]" for x, low, high in table]

    def plot(self) -> Figure:
        """AUC of every score, a bar for each split."""
        from interp.plots import bars

        auc, low, high = (self.data[name] for name in ("auc", "low", "high"))
        return bars(
            auc, y="score", bar="split", low=low, high=high, unit="0.5 is chance", quantity="AUC",
            title=f"AUC: {self.title}",
        )  # fmt: skip

    def plot_roc(self, split: str) -> Figure:
        """The ROC curves of a split: the share of right answers found against that of wrong ones let through.

        Raises:
            InterpError: another split.
        """
        import xarray as xr
        from sklearn.metrics import roc_curve

        from interp.plots import curves

        if split not in self.data["split"].values:
            raise InterpError(f"There is no split {split!r}." + nearest(split, self.data["split"].values.tolist()))
        here = self.data["split_of"].values == split
        names = [str(n) for n in self.data["score"].values if np.isfinite(self.data["auc"].sel(score=n, split=split))]
        let_through = np.linspace(0, 1, 101)
        found = []
        for name in names:
            value = self.data["value"].sel(score=name).values[here]
            ranks = np.unique(value, return_inverse=True)[1]  # scikit-learn takes no infinite scores
            wrong, right, _ = roc_curve(self.data["right"].values[here], ranks)
            found.append(np.interp(let_through, wrong, right))
        data = xr.DataArray(np.stack(found), dims=("score", "let_through"),
                            coords={"score": names, "let_through": let_through})  # fmt: skip
        area = self.data["auc"].sel(split=split)
        return curves(
            data, x="let_through", line="score", unit="share", quantity="right answers above the threshold", bars=False,
            baseline=None, x_title="wrong answers above the threshold (share)",
            line_labels=[f"{name}: {float(area.sel(score=name)):.2f}" for name in names],
            title=f"ROC, {split}: {self.title}",
        )  # fmt: skip


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{max(map(len, SCORES)) + 6}}{''.join(cell.ljust(25) for cell in cells)}".rstrip()


def predict_correctness(
    model: LanguageModel,
    causal: CausalModel,
    one: AlignmentMap,
    place: Place,
    train: InterchangeTask,
    tests: Mapping[str, InterchangeTask],
    *,
    n_bases: int = 16,
    among_answers: bool = False,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Prediction:
    """Predict, prompt by prompt, whether the model's answer is right; judge the predictions by AUC.

    Prompts are the bases of the tasks, each text once, and in tests none that is in `train`. Sources and labels are
    not read.

    Args:
        causal: the causal model of the tasks.
        one: the aligned variables' map at `place`, fitted; a map of one cell, as `Alignment.basis` gives it.
        train: prompts for the probes and the simulation's bases; those that the model answers rightly, but for the
            correctness probe.
        tests: what is predicted, by name: held-out prompts like those of `train`, and others.
        n_bases: of the simulation.
        among_answers: the model chooses among the tasks' answers, not in the vocabulary: its answer is the highest of
            their logits, and probabilities (also those of the simulation) are shares of theirs.
        seed: of the random subspace, the shuffle and the folds.
        budget: bytes for activations at once.

    Raises:
        InterpError: no test; a map of several cells, or of other variables; a causal model that disagrees with a
            task; training prompts of which only those of one value are answered rightly; a value that does not occur
            among them.
        PairError: a test in which the model is never or always right, with the counts: no AUC is defined; training
            prompts of which it answers none rightly; a test without a prompt that is not in `train`; as
            `InterchangeTask.encode`.
        SiteError: a site that the model does not have.
        ShapeError: a map of another width than the place.
    """
    _check(causal, one, train, tests, n_bases)
    width = model.width_of(check_places(model, [place])[0])
    if one.width != width:
        raise ShapeError(f"The map is for states {one.width} wide; those of {place} are {width} wide.")
    tasks = {"": _distinct(train, ()), **{split: _distinct(task, train) for split, task in tests.items()}}
    for split, task in tasks.items():
        if not len(task):
            raise PairError(f"Every prompt of {split!r} is one of the training's: nothing is left to predict.")
    whole = [task.encode(model) for task in tasks.values()]
    answers = torch.cat([each.answers for each in whole]).unique()
    encoded = {split: _alone(each) for split, each in zip(tasks, whole, strict=True)}
    seen = {
        split: _observed(model, each, place, answers, among_answers, budget, progress)
        for split, each in encoded.items()
    }
    token = _Tokens(model, tasks[""])
    known = seen[""]
    for split, prompts in seen.items():
        _check_both(model.name, split, prompts)
    right = np.flatnonzero(known.right).tolist()
    values = Values.occurring(causal, train.variables, [known.settings[row] for row in right])
    rows = _balanced(right, values.of([known.settings[row] for row in right]), n_bases)
    labels = token.table([values.answers(known.settings[row]) for row in rows])
    among = torch.cat([answers, labels[labels >= 0]]).unique() if among_answers else None
    bases = Bases(LanguageContinuation(model, encoded[""].select(rows), [place], budget=budget), labels, among)
    consistent = {
        split: (token.table([values.answers(setting) for setting in prompts.settings]) == prompts.answer[:, None])
        for split, prompts in seen.items()
    }
    texts = [example.base.text for split in tests for example in tasks[split]]
    found, reference, failed = compared(
        one, values, bases, known, {split: seen[split] for split in tests},
        {split: table.cpu().numpy() for split, table in consistent.items()}, seed,
    )  # fmt: skip
    found["text"] = ("prompt", np.array(texts, dtype=str))
    outside = {split: int((~consistent[split].any(1)).sum()) for split in tests}
    record = provenance(
        experiment="prediction of correctness", model=model.name, weights=model.weights_hash, causal=causal.name,
        task=train.name, task_seed=train.seed, source=train.source, variables=train.variables, place=str(place),
        kind=type(one).__name__, rank=sum(block.shape[-1] for block in one.coordinates(known.states[:1])),
        tests={split: [task.name, task.seed] for split, task in tests.items()}, n_bases=len(rows),
        answers=f"the tasks' {len(answers)}" if among_answers else f"{model.d_vocab:,} tokens", seed=seed,
        reference=reference, failed=failed, outside=outside, n_train=len(known), n_train_right=len(right),
        n_attempted=sum(map(len, tests.values())), n_scored=len(texts),
    )  # fmt: skip
    return Prediction(found, record)


def compared(
    one: AlignmentMap,
    values: Values,
    bases: Bases,
    train: Observed,
    tests: Mapping[str, Observed],
    consistent: Mapping[str, Bool[np.ndarray, "prompt value"]],
    seed: int = 0,
) -> tuple[xarray.Dataset, str, list[str]]:
    """Every score and control on every split: (data as in `Prediction`, reference score, what failed).

    Knows no language model; arguments as `aligned_scores` takes them, but that `train` has wrong prompts, too.

    Raises:
        InterpError: as `aligned_scores`.
    """
    import xarray as xr

    verified = train.select(np.flatnonzero(train.right).tolist())
    ranks = [block.shape[-1] for block in one.coordinates(train.states[:1])]
    drawn = Subspace.random(one.width, ranks, seed=seed).to(train.states)
    aligned, random = (aligned_scores(each, values, bases, verified, tests, consistent) for each in (one, drawn))
    generator = np.random.default_rng(seed)
    states, failed = train.states.double().cpu().numpy(), []
    probes = [lambda x: np.full(len(x), np.nan)] * 2
    try:
        shuffled = generator.permutation(train.right)
        probes = [correctness_probe(states, labels, seed) for labels in (train.right, shuffled)]
    except InterpError as error:
        failed.append(f"no {PROBE}: {error}")
    reference, cells, columns = _reference(train), [], []
    for split, prompts in tests.items():
        whole = prompts.states.double().cpu().numpy()
        plain: dict[str, np.ndarray] = dict(zip(CONFIDENCE, prompts.confidence.double().cpu().numpy(), strict=True))
        of = {**plain, **{name: by_split[split] for name, by_split in aligned.items()}}
        nothing = np.full(len(prompts), np.nan)
        value = np.stack([{**of, PROBE: probes[0](whole)}[name] for name in SCORES])
        misled = np.stack([{**of, PROBE: probes[1](whole)}[name] for name in SCORES])
        less = np.stack([random[name][split] if name in random else nothing for name in SCORES])
        right, coins = prompts.right, generator.permutation(prompts.right)
        beside = [auc_interval(less, right, seed=seed), auc_interval(misled, coins, seed=seed)]
        cells.append([*auc_interval(value, right, seed=seed), *auc_gain(value, plain[reference], right, seed=seed),
                      *(np.stack(each) for each in zip(*beside, strict=True))])  # fmt: skip
        columns.append((value, right, np.full(len(prompts), split)))
    names = ("auc", "low", "high", "gain", "gain_low", "gain_high", "control_auc", "control_low", "control_high")
    grid = {
        name: (("control", "score", "split") if name.startswith("control") else ("score", "split"),
               np.stack([cell[i] for cell in cells], -1), {"unit": "AUC"})
        for i, name in enumerate(names)
    }  # fmt: skip
    value, right, split_of = (np.concatenate([column[i] for column in columns], -1) for i in range(3))
    counts = [(len(prompts), int((~prompts.right).sum())) for prompts in tests.values()]
    data = xr.Dataset(
        {**grid, "value": (("score", "prompt"), value), "right": ("prompt", right), "split_of": ("prompt", split_of),
         "n": ("split", [n for n, _ in counts]), "n_wrong": ("split", [wrong for _, wrong in counts])},
        {"score": list(SCORES), "split": list(tests), "control": list(PREDICTION_CONTROLS)},
    )  # fmt: skip
    return data, reference, failed


def _reference(train: Observed) -> str:
    """The confidence that is best on the training prompts; the first, where they are all answered rightly."""
    if train.right.all():
        return CONFIDENCE[0]
    area, _, _ = auc_interval(train.confidence.double().cpu().numpy(), train.right, resamples=1)
    return CONFIDENCE[int(area.argmax())]


def _check(
    causal: CausalModel, one: AlignmentMap, train: InterchangeTask, tests: Mapping[str, InterchangeTask], n_bases: int
) -> None:
    if not tests:
        raise InterpError("There is nothing to predict: name at least one test, {'in distribution': task}.")
    if "" in tests:
        raise InterpError("A test has an empty name.")
    if n_bases < 1:
        raise InterpError(f"{n_bases} bases: a simulation needs at least one.")
    if one.cells != 1:
        raise InterpError(f"A map of {one.cells} cells; prediction takes one: map.select([cell]).")
    for task in (train, *tests.values()):
        if task.variables != train.variables:
            raise InterpError(f"{train.name} exchanges {train.variables}, {task.name} {task.variables}.")
        task.check(causal)
    if one.n_variables != len(train.variables):
        raise InterpError(
            f"The map has {one.n_variables} variables, {train.name} exchanges {len(train.variables)}: "
            f"{', '.join(train.variables)}."
        )


def _distinct(task: InterchangeTask, known: Iterable[Counterfactual]) -> InterchangeTask:
    """The first example of each base text that is not known: what is there twice is one observation."""
    seen = {example.base.text for example in known}
    rows = []
    for row, example in enumerate(task):
        if example.base.text not in seen:
            rows.append(row)
            seen.add(example.base.text)
    return task.select(rows)


def _alone(task: EncodedInterchange) -> EncodedInterchange:
    """The bases, without sources."""
    return replace(task, sources=(), source_answers=task.source_answers[:0], ends=task.ends[:1])


def _observed(
    model: LanguageModel, task: EncodedInterchange, place: Place, answers: Tensor, among_answers: bool,
    budget: int | None, progress: Progress,
) -> Observed:  # fmt: skip
    parts = []
    for first in progress(list(range(0, len(task), _BATCH)), f"prompts of {task.task.name}"):
        some = task.select(range(first, min(first + _BATCH, len(task))))
        ran = LanguageContinuation(model, some, [place], budget=budget)
        settings = [example.base.setting for example in some.task]
        parts.append(
            observed(ran.base[0], ran.base_logits, some.answer, settings, answers, among_answers=among_answers)
        )
    return joined(parts)


def _check_both(name: str, split: str, prompts: Observed) -> None:
    """Something right and, in a test, something wrong."""
    n = int(prompts.right.sum())
    if n == 0:
        raise PairError(
            f"{name} answers 0 of {len(prompts)} prompts of {split or 'train'!r} rightly: it does not do the task, and "
            "there is nothing to predict. Take an easier task, or among_answers=True."
        )
    if split and n == len(prompts):
        raise PairError(
            f"{name} answers {n} of {n} prompts of {split!r} rightly: there is no error to predict, an AUC is not "
            "defined. Take more or harder prompts."
        )


def _balanced(rows: Sequence[int], values: np.ndarray, n: int) -> list[int]:
    """The first n of the rows, values taking turns."""
    turn = [int((values[:i] == value).sum()) for i, value in enumerate(values)]
    order = sorted(range(len(rows)), key=lambda i: (turn[i], i))
    return [rows[i] for i in order[:n]]


class _Tokens:
    """Answers of a causal model as tokens of a model."""

    def __init__(self, model: LanguageModel, task: InterchangeTask) -> None:
        self.model, self.prompt = model, task.examples[0].base.text
        self.known: dict[Value | None, int] = {None: -1}

    def table(self, answers: Sequence[Sequence[Value | None]]) -> Int[Tensor, "prompt value"]:
        """−1 where there is no answer."""
        return torch.tensor([[self._of(one) for one in each] for each in answers], device=self.model.device)

    def _of(self, answer: Value | None) -> int:
        if answer not in self.known:
            where = f"The causal model's answer to {self.prompt!r}"
            self.known[answer] = continuation(where, self.model.tokenizer, self.prompt, str(answer))
        return self.known[answer]
