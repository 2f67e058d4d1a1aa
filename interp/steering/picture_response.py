"""Steering of the shapes model, judged: `picture_dose_response`.

Prompts say everything, the target's opposite among it; pictures are drawn from the same noise at every dose and read by
the analytic checker and the learned judge. Per picture:

- *success*: the object (the background) shows the target; with `remove`, it no longer shows the concept.
- *kept*, of every other factor: it is as the prompt says. *damage*: something else is not as the prompt says.
- *garbage*: a reader sees something `UNCLEAR`: a brown object, a blot, a background that is none.
- *distance*: of the edited states from unedited ones, at the sites whose `Manifold` is given.

The prompt edit (the target's word in the prompt) is always drawn too: what perfect steering would draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import torch

from interp.errors import InterpError, PairError
from interp.interventions.captured import DenoisingRun
from interp.interventions.denoise import denoise
from interp.interventions.edits import Edit, UnderPrompt, When
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.progress import Progress, silent
from interp.results import provenance
from interp.shapes.caption import full_caption
from interp.shapes.checker import check
from interp.shapes.judge import load_judge
from interp.shapes.reading import UNCLEAR, Reading, compare, ideal
from interp.shapes.scene import CELLS, FACTORS, Scene, sample_scene
from interp.steering.measured import Manifold
from interp.steering.response import PROMPT_EDIT, DoseResponse, Method, Planned, planned, response_dataset
from interp.tasks.image_metrics import as_bytes

READERS = ("checker", "judge")
SHOWN = 6
"""Pictures that a result keeps of each method and dose."""
_AT_ONCE = 32
_LEAVES = ("shape", "colour", "size")


@dataclass(frozen=True, eq=False)
class PictureGoal:
    """What shall be steered, and from where.

    Attributes:
        scenes: what the prompts ask for; the steered object is each scene's first.
        factor: `"shape"`, `"colour"`, `"size"` or `"background"`.
        target: the value that shall appear, or, with `remove`, disappear.
        prompts: of each scene; its full caption if not given.
        first_seed: of the noise; scene i starts from `first_seed` + i.

    Raises:
        PairError: no scenes, or prompts of another number; an unknown factor or value; a scene that shows the target
            already (with `remove`, one that does not).
    """

    scenes: tuple[Scene, ...]
    factor: str
    target: str
    remove: bool = False
    prompts: tuple[str, ...] = ()
    first_seed: int = 7_000_000
    wanted: tuple[Scene, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.scenes:
            raise PairError("No scenes: nothing to steer.")
        if not self.prompts:
            object.__setattr__(self, "prompts", tuple(full_caption(scene) for scene in self.scenes))
        if len(self.prompts) != len(self.scenes):
            raise PairError(f"{len(self.prompts)} prompts for {len(self.scenes)} scenes.")
        wanted = tuple(scene.counterfactual(self.factor, self.target) for scene in self.scenes)  # checks both names
        object.__setattr__(self, "wanted", wanted)
        for scene in self.scenes:
            if (value_of(scene, self.factor) == self.target) is not self.remove:
                raise PairError(
                    f"{full_caption(scene)!r} {'does not show' if self.remove else 'shows'} {self.target!r}"
                    f"{'' if self.remove else ' already'}: there is nothing to steer."
                )

    def sampling(self, model: Denoiser, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """The rows to draw."""
        made = model.sampling(list(self.prompts), steps=steps, guidance=guidance)
        return replace(made, seeds=tuple(range(self.first_seed, self.first_seed + len(self.scenes))))


def value_of(scene: Scene, factor: str, which: int = 0) -> str:
    """The value that a scene (its object) has."""
    return scene.background if factor == "background" else getattr(scene.objects[which], factor)


def picture_dose_response(
    model: Denoiser,
    goal: PictureGoal,
    methods: Mapping[str, Method],
    doses: Sequence[float],
    *,
    manifolds: Sequence[Manifold] = (),
    limit: float = 0.1,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> DoseResponse:
    """Draw, read and count at every dose of every method.

    `.data` also holds `kept` [way, dose, factor, reader], the share of pictures in which each other factor is as it
    was, `success_by` and `garbage_by` [way, dose, reader], and `pictures` [way, dose, shown, y, x, rgb]. The
    measures that all `DoseResponse`s have are the checker's.

    Args:
        methods: by name; with the prompt edit, which is added (not where something is removed).
        doses: 0 is worth asking for: what is not steered.
        manifolds: of the edited sites, in the conditional branch.
        limit: of the damage, for `best`.

    Raises:
        InterpError: a model whose pictures the readers cannot read, doses and methods as `planned`; manifolds of
            another schedule; as `denoise`.
    """
    from interp.shapes.pipeline import ShapesPipeline
    from interp.shapes.transformer import ShapesTransformerPipeline

    if not isinstance(model.pipeline, ShapesPipeline | ShapesTransformerPipeline):
        raise InterpError(
            f"{model.name} is a {type(model.pipeline).__name__}: only pictures of the shapes world are read."
        )
    numbers, plans = planned(methods, doses)
    sampling = goal.sampling(model, steps, guidance)
    if not goal.remove:
        plans[PROMPT_EDIT] = Planned(False, ([],))
    factors = _others(goal.factor)
    shape = (len(plans), len(numbers))
    n = len(goal.scenes)
    each = {name: np.full((*shape, n), np.nan) for name in ("success", "damage", "garbage", "distance")}
    by = {name: np.full((*shape, len(READERS)), np.nan) for name in ("success", "garbage")}
    kept = np.full((*shape, len(factors), len(READERS)), np.nan)
    shown: dict[tuple[int, int], np.ndarray] = {}
    work = [(m, name, d) for m, (name, plan) in enumerate(plans.items()) for d in range(len(plan.edits))]
    judge = load_judge()
    for m, name, d in progress(work, f"{n} pictures each"):
        rows = replace(sampling, prompts=tuple(map(full_caption, goal.wanted))) if name == PROMPT_EDIT else sampling
        pictures, away = _drawn(model, rows, plans[name].edits[d], manifolds)
        at = (m, d) if plans[name].dosed else (m, slice(None))
        shown[m, d] = pictures[:SHOWN]
        for r, readings in enumerate(([check(p) for p in pictures], judge.judge(pictures).readings())):
            answers = [answer(goal, i, seen) for i, seen in enumerate(readings)]
            for key in by:
                by[key][(*at, r)] = np.mean([a[key] for a in answers])
            for f, factor in enumerate(factors):
                told = [a[factor] for a in answers if factor in a]
                kept[(*at, f, r)] = np.mean(told) if told else np.nan
            if r == 0:
                for key in ("success", "damage", "garbage"):
                    each[key][at] = np.array([a[key] for a in answers], dtype=float)
        each["distance"][at] = away
    pictures = np.stack([[shown[m, d if (m, d) in shown else 0] for d in range(shape[1])] for m in range(shape[0])])
    axes = ("way", "dose")
    share = "share of pictures"
    extra = {
        "kept": ((*axes, "factor", "reader"), kept, {"unit": share}),
        **{f"{k}_by": ((*axes, "reader"), v, {"unit": share}) for k, v in by.items()},
        "pictures": ((*axes, "shown", "y", "x", "rgb"), pictures, {"unit": "0 to 255"}),
    }
    units = {
        "success": share,
        "damage": "share of pictures with another change",
        "garbage": share,
        "distance": "× typical",
    }
    coords = {"factor": factors, "reader": list(READERS), "shown": list(goal.prompts[:SHOWN])}
    record = provenance(
        experiment="dose response of pictures", model=model.name, weights=model.weights_hash, factor=goal.factor,
        target=f"no {goal.target}" if goal.remove else goal.target, prompts=list(goal.prompts),
        first_seed=goal.first_seed, steps=sampling.steps, guidance=sampling.guidance, limit=limit, seed=seed,
        n_attempted=n, n_scored=n, examples="pictures",
    )  # fmt: skip
    return DoseResponse(response_dataset(plans, numbers, each, units, extra, coords, seed), record)


def _drawn(
    model: Denoiser, sampling: Sampling, edits: Sequence[Edit], manifolds: Sequence[Manifold]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, and of each the mean distance of its states from the manifolds (NaN without any)."""
    pictures, away = [], []
    for start in range(0, len(sampling), _AT_ONCE):
        rows = list(range(start, min(start + _AT_ONCE, len(sampling))))
        found = denoise(
            model, sampling.select(rows), _of_rows(edits, rows, len(sampling)), [m.site for m in manifolds],
            when=When(branch=Branch.COND) if manifolds else None,
        )  # fmt: skip
        assert found.images is not None
        pictures.append(as_bytes(found.images))
        away.append(_distance(found, manifolds))
    return np.concatenate(pictures), np.concatenate(away)


def _of_rows(edits: Sequence[Edit], rows: Sequence[int], n: int) -> list[Edit]:
    """Edits of all rows, as edits of some: what is given row by row is taken for these.

    Raises:
        InterpError: edits of single rows, or values of a run, which cannot be taken apart.
    """
    if len(rows) == n:
        return list(edits)
    own: list[Edit] = []
    for edit in edits:
        if edit.rows is not None:
            raise InterpError(f"The edit at {edit.site} names rows; give positions of every row instead.")
        at = edit.positions
        if isinstance(at, torch.Tensor) and at.ndim == 2 and len(at) == n:
            edit = replace(edit, positions=at[list(rows)])
        for name in ("value", "source"):
            value = getattr(edit, name, None)
            if (taken := _value_of_rows(edit, value, rows, n)) is not value:
                edit = replace(edit, **{name: taken})
        own.append(edit)
    return own


def _value_of_rows(edit: Edit, value: Any, rows: Sequence[int], n: int) -> Any:
    if isinstance(value, DenoisingRun) and len(value.sampling) > 1:
        raise InterpError(f"The edit at {edit.site} takes values of a run of {n} rows; use `UnderPrompt` for so many.")
    if isinstance(value, UnderPrompt) and isinstance(value.prompt, tuple):
        return replace(value, prompt=tuple(value.prompt[row] for row in rows))
    if isinstance(value, torch.Tensor) and value.ndim >= 3 and len(value) == n:  # [row, position, …]
        return value[list(rows)]
    return value


def _distance(found: DenoisingRun, manifolds: Sequence[Manifold]) -> np.ndarray:
    rows = len(found.sampling)
    if not manifolds:
        return np.full(rows, np.nan)
    each = []
    for one in manifolds:
        if one.timesteps not in (None, found.timesteps):
            raise InterpError(
                f"The manifold of {one.site} was fitted at {len(one.timesteps or ())} other timesteps than the "
                f"{len(found.timesteps)} of this run; measure states with the same steps."
            )
        x = found[one.site][:, 0]  # [step, row, pos, width]
        each.append(one.distance(x.flatten(1, 2)).unflatten(1, (rows, -1)).mean((0, 2)))
    return torch.stack(each).mean(0).cpu().numpy().astype(float)


# -- what a picture answers ------------------------------------------------------------------------------------


def _others(factor: str) -> list[str]:
    """The factors that steering should leave alone."""
    return [*(name for name in ("background", *_LEAVES) if name != factor), "cells", "other object"]


def answer(goal: PictureGoal, row: int, seen: Reading) -> dict[str, bool]:
    """What a reading says about one picture of the goal."""
    scene, wanted = goal.scenes[row], ideal(goal.scenes[row])
    cell = CELLS.index(scene.objects[0].cell)
    have = seen.cells[cell]
    shows = seen.background if goal.factor == "background" else None if have is None else getattr(have, goal.factor)
    agrees = compare(seen, wanted)
    objects = [i for i, one in enumerate(wanted.cells) if one is not None]
    first = objects.index(cell)
    kept = {name: agrees[name][first] for name in _LEAVES if name != goal.factor}
    kept["cells"] = agrees["cells"][0]
    if goal.factor != "background":
        kept["background"] = agrees["background"][0]
    if len(objects) == 2:
        kept["other object"] = all(agrees[name][1 - first] for name in _LEAVES)
    things = [one for one in seen.cells if one is not None]
    garbage = seen.background == UNCLEAR or any(UNCLEAR in (one.shape, one.colour, one.size) for one in things)
    success = (shows != goal.target) if goal.remove else (shows == goal.target)
    return {"success": success, "damage": not all(kept.values()), "garbage": garbage} | kept


def scenes_for(
    factor: str, target: str, n: int, seed: int = 0, *, having: bool = False, two: float = 0.0
) -> tuple[Scene, ...]:
    """`n` scenes whose first object (background) does not have the target, or, with `having`, has it.

    Args:
        two: the share of scenes with a second object; it never has the target.

    Raises:
        PairError: a target that is no value of the factor.
    """
    known = {name: FACTORS[name].values for name in ("background", *_LEAVES)}
    if target not in known.get(factor, ()):
        raise PairError(
            f"{factor!r} {target!r}: " + "; ".join(f"{name}: {', '.join(values)}" for name, values in known.items())
        )
    random, found = Random(f"scenes to steer {factor} {target} {seed}"), []
    while len(found) < n:
        scene = sample_scene(random, two=two)
        values = [value_of(scene, factor, which) for which in range(len(scene.objects))]
        if (values[0] == target) is having and (factor == "background" or target not in values[1:]):
            found.append(scene)
    return tuple(found)
