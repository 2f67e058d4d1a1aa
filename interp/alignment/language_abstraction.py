"""A whole causal model in a language model: its variables exchanged together, each at its own place.

    number, tense = (align(model, …).aligned() for each)            # places and maps, from searches
    tasks = [number_interchange(64, 1, some, "held out") for some in subsets(("number", "tense"))]
    language_abstraction(model, number_model(), [number, tense], tasks, train=…)

Variables at one place must be blocks of one map: `align` with a `merged` task of all their sets fits such a map.

Cost: bases and sources run once for every set of variables; each way to exchange reruns what lies above the lowest
place, packed, and where places lie above one another the whole run once more for each higher one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp.alignment.abstraction import Abstraction, Interchanges, abstraction
from interp.alignment.fit import Cells, Training, fit
from interp.alignment.joint import Aligned, check_aligned
from interp.alignment.language import LanguageContinuation, Place, kept
from interp.alignment.maps import LowRank
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.reset import reset
from interp.progress import Progress, silent
from interp.tasks.causal_model import CausalModel
from interp.tasks.interchange import EncodedInterchange, InterchangeTask, merged


def language_abstraction(
    model: LanguageModel,
    causal: CausalModel,
    aligned: Sequence[Aligned],
    tasks: Sequence[InterchangeTask],
    *,
    train: Sequence[InterchangeTask] = (),
    training: Training = Training(),
    among_answers: bool = False,
    only_right: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Abstraction:
    """Exchange every set of variables that there is a task of, and compare with the causal model.

    Args:
        causal: what the language model is to be an instance of.
        aligned: of each variable, place and map: `found.aligned()` of an `align`.
        tasks: held-out examples, one task for each set of variables.
        train: tasks for the control with random weights: those that the maps were fitted to, one for each set of
            variables that share a place. None: that control is not run, which the result says.
        training: of that control, the same as that of the maps.
        among_answers: the answer is the highest logit among the tasks' answers, not of the vocabulary.
        only_right: keep the examples whose base and sources the model answers rightly, by the same rule.
        seed: of the random subspaces, the random model and the intervals.
        budget: bytes for activations at once.

    Raises:
        InterpError: places that are none of a language model; training tasks that leave out a variable; as
            `abstraction`.
        PairError: nothing left that the model answers rightly; labels that are not the causal model's.
    """
    check_aligned(aligned)
    places = [one.place for one in aligned if isinstance(one.place, Place)]
    if len(places) < len(aligned):
        raise InterpError("A place of a language model is a `Place`: a site and a region.")
    seen = [kept(model, task, among_answers, only_right) for task in tasks]
    among = torch.cat([one.answers for one in seen]).unique() if among_answers and seen else None

    def examples(of: LanguageModel) -> list[Interchanges]:
        return [_examples(of, one, places, budget) for one in seen]

    untrained = None
    if train:
        other = reset(model, seed)
        wanted = [kept(model, task, among_answers, only_right) for task in train]
        maps = [_fitted(other, one, wanted, training, seed, budget, progress) for one in aligned]
        untrained = maps, examples(other)
    about = {
        "model": model.name, "weights": model.weights_hash, "tasks": [task.name for task in tasks],
        "train": [task.name for task in train], "only_right": only_right, "n_attempted": sum(map(len, tasks)),
        "answers": f"the tasks' {len(among)}" if among is not None else f"{model.d_vocab:,} tokens",
    }  # fmt: skip
    rule = "those whose base and sources the model answers rightly" if only_right else "all"
    note = f"kept {sum(map(len, seen))} of {sum(map(len, tasks))} examples: {rule}; answers among {about['answers']}"
    return abstraction(
        causal, aligned, examples(model), network=model.name, untrained=untrained, among=among,
        told=lambda token: model.tokenizer.decode([token]), about=about, notes=[note], seed=seed,
    )  # fmt: skip


def _examples(
    model: LanguageModel, task: EncodedInterchange, places: Sequence[Place], budget: int | None
) -> Interchanges:
    rows = task.task.examples
    names = task.task.variables
    words = [
        " ← ".join([e.base.text, *(f"{v} of {s.text}" for v, s in zip(names, e.sources, strict=True))]) for e in rows
    ]
    sources = [[e.sources[i].setting for e in rows] for i in range(len(names))]
    ready = LanguageContinuation(model, task, places, budget=budget)
    return Interchanges(names, ready, task.label, [e.base.setting for e in rows], sources, words)


def _fitted(
    model: LanguageModel, one: Aligned, train: Sequence[EncodedInterchange], training: Training, seed: int,
    budget: int | None, progress: Progress,
) -> Aligned:  # fmt: skip
    """Subspaces of the same sizes at the same place, fitted to this model."""
    own = [task for task in train if set(task.task.variables) <= set(one.variables)]
    if left := set(one.variables) - {v for task in own for v in task.task.variables}:
        raise InterpError(
            f"`train` has no task that exchanges {', '.join(sorted(left))} and nothing but {', '.join(one.variables)}."
        )
    few = min(map(len, own))
    whole = merged([task.task[:few] for task in own])
    ordered = tuple(one.variables.index(v) for v in whole.variables)
    maps = LowRank(one.map.width, [one.map.sizes[i] for i in ordered], seed=seed).to(model.device)
    assert isinstance(one.place, Place)
    task = whole.encode(model)
    ready = LanguageContinuation(model, task, [one.place], budget=budget)
    cells = Cells(maps.eval(), *_one_cell(model), (f"{one.place}, random model",))
    fit([cells], ready, task.label[None], training, progress=progress)
    return Aligned(whole.variables, one.place, maps.frozen())


def _one_cell(model: LanguageModel) -> tuple[Int[Tensor, "cell"], Int[Tensor, "cell"]]:
    zero = torch.zeros(1, dtype=torch.long, device=model.device)
    return zero, zero
