"""What an edit of the shapes model did: is the concept gone, is the target there, is everything else as it was?

Pictures of prompts that took no part in the edit, drawn with the same noise by

- *before*: the original model;
- *edited*: the edited one;
- *prompt edit*: the original, given the target's word in the prompt: what a perfect edit would draw;
- *random edit*: the original after a random change of the same weights, of the same rank and norm.

Half of the prompts name the concept (once, the other object does not have it), half do not. Both readers of the shapes
world answer: the analytic checker and the learned judge. Start with `edit_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from interp.errors import InterpError, PairError, nearest
from interp.interventions.denoise import denoise
from interp.models.denoiser import Denoiser
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.shapes.reading import Reading, compare, ideal
from interp.shapes.scene import Scene
from interp.steering.weight_edit import EditedDenoiser, random_edit
from interp.tasks.image_metrics import as_bytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

CONDITIONS = ("before", "edited", "prompt edit", "random edit")
_LEAVES = ("shape", "colour", "size")
_OTHERS = ("background", "cells", *_LEAVES, "scene")
SHOWN = 8
"""Pictures of each condition that a report keeps."""
_AT_ONCE = 50


@dataclass(frozen=True, repr=False, eq=False)
class EditReport(Result):
    """How pictures answer before and after an edit, and after its controls.

    `.data` holds `right` [question, condition, reader, example]: 1 where the whole picture answers the question as it
    should, 0 where not, NaN where it is not asked; `share`, `low`, `high` (Wilson's 95 % interval over pictures)
    [question, condition, reader]; `pictures` [condition, shown, y, x, rgb], the first that name the concept.

    Questions about prompts that name the concept: `concept gone` (the object, or background, that should have it does
    not), `target shown`, and each factor for which the edit should change nothing. Questions about the others begin
    with `others: `; `others: scene` asks for all factors at once.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Reading {p['concept']!r} as {p['target']!r}: {p['n_scored']} unselected prompts · {p['model']}"

    def plot(self, reader: str = "checker") -> Figure:
        """Share of pictures with the right answer, per question and condition."""
        from interp.plots import bars

        share, low, high = (self.data[name].sel(reader=reader) for name in ("share", "low", "high"))
        return bars(
            share, y="question", bar="condition", low=low, high=high, title=f"{self.title} · {reader}",
            unit="of pictures", quantity="share",
        )  # fmt: skip

    def plot_pictures(self) -> Figure:
        """The first pictures whose prompts name the concept, by condition."""
        from interp.plots import picture_grid

        pictures = self.data["pictures"]
        columns = {condition: pictures.sel(condition=condition).values for condition in CONDITIONS}
        return picture_grid(columns, rows=[str(prompt) for prompt in pictures["shown"].values], title=self.title)

    def summary(self) -> str:
        """The table of shares by the checker."""
        share = self.data["share"].sel(reader="checker")
        lines = [f"EditReport: {self.title}", f"  {'':24}" + "".join(f"{c:>13}" for c in CONDITIONS)]
        for question in self.data["question"].values:
            values = [float(share.sel(question=question, condition=c)) for c in CONDITIONS]
            lines.append(f"  {question:24}" + "".join(f"{v:13.1%}" if v == v else f"{'–':>13}" for v in values))
        return "\n".join(lines)


def edit_report(
    edited: EditedDenoiser,
    *,
    n: int = 100,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    progress: Progress = silent,
) -> EditReport:
    """Draw, read and compare.

    Args:
        n: prompts that name the concept; as many do not.
        seed: of the prompts, of the noise and of the random edit.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.

    Raises:
        InterpError: a model whose pictures the readers of the shapes world cannot read, or n below 1.
        PairError: an edit between things that are no two values of one factor.
    """
    from interp.shapes.checker import check
    from interp.shapes.judge import load_judge
    from interp.shapes.pipeline import ShapesPipeline

    original = edited.original
    if not isinstance(original.pipeline, ShapesPipeline):
        raise InterpError(
            f"{original.name} is a {type(original.pipeline).__name__}: only pictures of the shapes world can be read. "
            "For others, run both models and compare with metrics of your own."
        )
    if n < 1:
        raise InterpError(f"n={n}: at least one prompt.")
    concept, target = str(edited.record["concept"]), str(edited.record["target"])
    factor = factor_of(concept, target)
    scenes, prompts = report_prompts(concept, factor, n, seed)
    reworded = [" ".join(target if word == concept else word for word in prompt.split()) for prompt in prompts]
    plans = {
        "before": (original, prompts),
        "edited": (edited, prompts),
        "prompt edit": (original, reworded),
        "random edit": (random_edit(edited, seed), prompts),
    }
    first = 1_000_000 * (seed + 1)  # of the noise: none that other examples use
    questions = _questions(factor)
    judge, readers = load_judge(), ("checker", "judge")
    right = np.full((len(questions), len(CONDITIONS), len(readers), n), np.nan)
    shown = []
    for c, condition in enumerate(progress(CONDITIONS, f"{2 * n} pictures each")):
        which, texts = plans[condition]
        pictures = drawn(which, texts, first, steps, guidance)
        shown.append(pictures[:SHOWN])
        for r, readings in enumerate(([check(picture) for picture in pictures], judge.judge(pictures).readings())):
            for row, (scene, seen) in enumerate(zip(scenes, readings, strict=True)):
                answers = answers_named(scene, seen, concept, target, factor) if row < n else answers_other(scene, seen)
                for question, answer in answers.items():
                    right[questions.index(question), c, r, row % n] = answer
    record = provenance(
        experiment="report of a closed-form edit", model=original.name, weights=original.weights_hash, concept=concept,
        target=target, edit=dict(edited.record), norm=edited.norm, seed=seed, first_noise_seed=first, steps=steps,
        guidance=guidance, n_attempted=2 * n, n_scored=2 * n, prompts=prompts,
    )  # fmt: skip
    return EditReport(_dataset(right, questions, readers, np.stack(shown), prompts[:SHOWN]), record)


def _dataset(
    right: np.ndarray, questions: Sequence[str], readers: Sequence[str], shown: np.ndarray, prompts: Sequence[str]
) -> Dataset:
    import xarray as xr

    from interp.shapes.evaluate import Share

    asked, yes = (~np.isnan(right)).sum(-1), np.nansum(right, -1)
    share, low, high = (np.full(yes.shape, np.nan) for _ in range(3))
    for at in np.argwhere(asked):
        counted = Share(int(yes[tuple(at)]), int(asked[tuple(at)]))
        share[tuple(at)] = counted.right / counted.of
        low[tuple(at)], high[tuple(at)] = np.clip(counted.interval(), 0, 1)
    axes, unit = ("question", "condition", "reader"), {"unit": "of pictures"}
    return xr.Dataset(
        {
            "right": ((*axes, "example"), right),
            "share": (axes, share, unit),
            "low": (axes, low, unit),
            "high": (axes, high, unit),
            "pictures": (("condition", "shown", "y", "x", "rgb"), shown, {"unit": "0 to 255"}),
        },
        {
            "question": list(questions),
            "condition": list(CONDITIONS),
            "reader": list(readers),
            "shown": list(prompts),
        },
    )


def factor_of(concept: str, target: str) -> str:
    """The factor that both are values of."""
    from interp.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES

    factors = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "background": BACKGROUNDS}
    found = next((name for name, values in factors.items() if concept in values and target in values), None)
    if found is None or concept == target:
        known = [value for values in factors.values() for value in values]
        raise PairError(
            f"{concept!r} → {target!r}: the readers tell only between two values of one factor."
            + nearest(target if concept in known else concept, known)
        )
    return found


def report_prompts(concept: str, factor: str, n: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes and captions that say everything: first `n` that have the concept once, then `n` that do not."""
    from interp.shapes.caption import caption
    from interp.shapes.scene import sample_scene

    random = Random(f"edit report {seed}")
    named: list[tuple[Scene, str]] = []
    others: list[tuple[Scene, str]] = []
    while min(len(named), len(others)) < n:
        scene = sample_scene(random)
        text = caption(scene, random, 1.0)
        values = [scene.background] if factor == "background" else [getattr(o, factor) for o in scene.objects]
        if values.count(concept) == 1 and text.split().count(concept) == 1:
            named.append((scene, text))
        elif concept not in values:
            others.append((scene, text))
    chosen = [*named[:n], *others[:n]]
    return [scene for scene, _ in chosen], [text for _, text in chosen]


def drawn(
    model: Denoiser, prompts: Sequence[str], first: int, steps: int | None, guidance: float | None
) -> UInt8[np.ndarray, "row height width 3"]:
    """One picture per prompt, prompt i from the noise of seed `first` + i."""
    sampling = model.sampling(list(prompts), seeds=0, steps=steps, guidance=guidance)
    sampling = replace(sampling, seeds=tuple(range(first, first + len(prompts))))
    pictures = []
    for start in range(0, len(prompts), _AT_ONCE):
        images = denoise(model, sampling.select(range(start, min(start + _AT_ONCE, len(prompts))))).images
        assert images is not None
        pictures.append(as_bytes(images))
    return np.concatenate(pictures)


def _questions(factor: str) -> list[str]:
    kept = [*(("background",) if factor != "background" else ()), "cells"]
    leaves = [f"other object's {leaf}" if leaf == factor else leaf for leaf in _LEAVES]
    return ["concept gone", "target shown", *kept, *leaves, *(f"others: {q}" for q in _OTHERS)]


def answers_named(scene: Scene, seen: Reading, concept: str, target: str, factor: str) -> dict[str, bool]:
    """Of a picture whose prompt names the concept."""
    wanted = ideal(scene)
    agrees = compare(seen, wanted)
    if factor == "background":
        shows = seen.background
    else:
        cell = next(i for i, want in enumerate(wanted.cells) if want is not None and getattr(want, factor) == concept)
        found = seen.cells[cell]
        shows = None if found is None else getattr(found, factor)
        objects = [want for want in wanted.cells if want is not None]
        rest = [right for right, want in zip(agrees[factor], objects, strict=True) if getattr(want, factor) != concept]
        agrees = agrees | {f"other object's {factor}": rest}
    asked = [question for question in _questions(factor)[2:] if not question.startswith("others")]
    kept = {question: all(agrees[question]) for question in asked if agrees[question]}
    return {"concept gone": shows != concept, "target shown": shows == target} | kept


def answers_other(scene: Scene, seen: Reading) -> dict[str, bool]:
    """Of a picture whose prompt does not."""
    agrees = compare(seen, ideal(scene))
    return {f"others: {question}": all(agrees[question]) for question in _OTHERS}
