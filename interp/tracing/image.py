"""Causal tracing of pictures: which states of a denoiser, and when, carry an attribute of the prompt into the picture?

1. *clean*: the prompt, "a red circle at top left";
2. *corrupted*: the same noise, but the attribute is gone: another word in its place (`corruption="replacement"`,
   which keeps the model on its own distribution) or noise on the word's embedding (`corruption="noise"`, the protocol
   of Basu et al., "Localizing and Editing Knowledge in Text-to-Image Generative Models", 2023);
3. *restored*: as 2, but one part of one block takes its clean value in a window of steps, or one layer of the text
   encoder at one token. How much of the attribute comes back, by the judge's probability of it, is the cell's value.
   (Its log-probability, or the difference of two, has no floor: it moves by many nats where nothing is to be seen.)

Two kinds of clean value, and a result says which it holds:

- `matching="state"`: what the block would have *in this very state* x_t under the clean prompt. It isolates what the
  prompt does at that place;
- `matching="trajectory"`: what the block had at the same step of the clean run, whose x_t has gone its own way. It
  also carries what earlier steps made of the picture. A text encoder sees no x_t, so there the two are one.

Control attributes, which the corruption did not touch, are measured in the same pictures, as is the change of pixels
inside and outside the object's quarter: a place that moves everything carries no attribute in particular.

When it misleads: a window of steps shows more than its steps; UNet skips pass by the middle; a judge can be fooled by
pictures that it never saw; and a picture of another model than `"shapes"` needs another judge (`metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, PairError, nearest
from interp.interventions.edits import Add, Edit, When
from interp.interventions.exchange import Exchanged, ExchangeGrid, Matching, exchange
from interp.interventions.schedule import Savings
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.pipelines import tokens_of_word
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval, recovered
from interp.tasks.image_metrics import (
    ImageMetric,
    JudgeLogitDifference,
    JudgeLogProbability,
    JudgeProbability,
    PixelChange,
    as_bytes,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset


@dataclass(frozen=True, repr=False, eq=False)
class ImageTraceResult(Result):
    """A causal trace of pictures.

    `.data` holds for each metric `m` [block, window, example] ([block, pos, example] in a text encoder); `m_mean`,
    `m_low`, `m_high` (95 % bootstrap interval of the mean over examples: seeds of the noise); `m_clean`, `m_corrupted`
    [example]. The first metric is that of the traced attribute. Pictures (uint8): `clean` and `corrupted`
    [example, y, x, rgb], and `restored` [shown, drawn, y, x, rgb], of the strongest cells for the first examples.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        how = "" if p["text"] else f" ({p['matching']}-matched, {p['window']} steps)"
        return (
            f"Restoring {p['part']}{how} after {p['corruption']} of {p['attribute']!r} · {p['prompt']!r} · {p['model']}"
        )

    def recovered(self, metric: str | None = None) -> Dataset:
        """(mean restored − mean corrupted) / (mean clean − mean corrupted), with intervals; see `statistics.recovered`.

        Raises:
            PairError: clean and corrupted do not differ by more than the gap's own uncertainty.
        """
        import xarray as xr

        m, data = metric or self.provenance["metrics"][0], self.data
        clean, corrupted = data[f"{m}_clean"].values, data[f"{m}_corrupted"].values
        value, low, high = recovered(data[m].values, clean, corrupted, m, seed=self.provenance["seed"])
        axes = data[m].dims[:-1]
        return xr.Dataset({"recovered": (axes, value), "low": (axes, low), "high": (axes, high)}, data[m].coords)

    def plot(self, metric: str | None = None) -> Figure:
        """Heat map of the mean effect of restoring each block in each window of steps (each layer at each token)."""
        from interp.plots import heatmap

        m = metric or self.provenance["metrics"][0]
        unit = self.data[m].attrs["unit"]
        corrupted = float(self.data[f"{m}_corrupted"].mean())
        effect, low, high = (self.data[f"{m}_{what}"] - corrupted for what in ("mean", "low", "high"))
        unit = f"effect on {m.replace('_', ' ')}" + ("" if unit in m else f" ({unit})")
        x = str(effect.dims[1])
        entries = self.data["token" if x == "pos" else x].values
        return heatmap(
            effect.drop_vars("token", errors="ignore"), x=x, y="block", title=self.title, unit=unit,
            low=low.drop_vars("token", errors="ignore"), high=high.drop_vars("token", errors="ignore"),
            x_labels=[str(entry) for entry in entries], y_labels=[str(b) for b in self.data["block"].values],
        )  # fmt: skip

    def plot_pictures(self) -> Figure:
        """Clean, corrupted, what the strongest cells restore, and where the first of them changes the picture."""
        from interp.plots import picture_grid

        shown = [str(cell) for cell in self.data["shown"].values]
        drawn = self.data["drawn"].values.tolist()
        columns = {which: self.data[which].sel(example=drawn) for which in ("clean", "corrupted")}
        columns |= {cell: self.data["restored"].isel(shown=i) for i, cell in enumerate(shown)}
        rows = [f"seed {self.provenance['seeds'][example]}" for example in drawn]
        return picture_grid(columns, rows=rows, title=self.title, difference=(shown[0], "corrupted"))

    def summary(self) -> str:
        """Clean and corrupted values, and the cells that bring most back."""
        p, data = self.provenance, self.data
        lines = [f"ImageTraceResult: {self.title}"]
        for m in p["metrics"]:
            clean, corrupted = (float(data[f"{m}_{which}"].mean()) for which in ("clean", "corrupted"))
            lines.append(f"  {m} ({data[m].attrs['unit']}): clean {clean:.3f}, corrupted {corrupted:.3f}")
        lines.append(f"  {p['rows_run']} rows run, {p['rows_skipped']} known without running; {p['n_scored']} examples")
        m = p["metrics"][0]
        mean, low, high = (data[f"{m}_{what}"].values for what in ("mean", "low", "high"))
        entries = data["token" if p["text"] else "window"].values
        for i in np.argsort(-mean, axis=None)[:4]:
            at = np.unravel_index(i, mean.shape)
            place = f"{data['block'].values[at[0]]:>10} {'token' if p['text'] else 'steps'} {entries[at[1]]:>7}"
            lines.append(f"  {place}: {mean[at]:.3f} ({low[at]:.3f} to {high[at]:.3f})")
        return "\n".join(lines)


def trace_image(
    model: Denoiser,
    prompt: str,
    *,
    attribute: str,
    replacement: str | None = None,
    part: str = "cross_attn_out",
    matching: Matching = "state",
    corruption: Literal["noise", "replacement"] = "replacement",
    noise: float | None = None,
    window: int | None = None,
    stride: int | None = None,
    blocks: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 8,
    metrics: Sequence[ImageMetric] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> ImageTraceResult:
    """Trace one attribute of a prompt over blocks and windows of steps; `interp.trace` on a denoiser.

    Args:
        attribute: a word of the prompt.
        replacement: the word that the corrupted prompt has in its place; for the shapes model another value of the same
            factor if not given.
        part: what is restored, a part of the blocks, or of a text encoder: `embed resid_pre attn_out mlp_out
            resid_post final_norm` (`interp.models.site`).
        matching: where clean values come from: `"state"` or `"trajectory"`.
        corruption: `"replacement"`, or `"noise"` on the attribute's token embeddings.
        noise: σ of that noise, in the embeddings' units; 3 × their standard deviation if not given.
        window: steps restored together, half of the run's if not given.
        stride: from one window to the next; half a window if not given, so that windows overlap.
        blocks: addresses; all that have the part if not given.
        seeds: seeds of the starting noise, or how many.
        metrics: of pictures, the first being the attribute's (`interp.tasks.image_metrics`). If not given the shapes
            judge's probability of the attribute, its logit difference to the replacement (its log-probability, for
            noise), its probability of attributes that were not changed, and the pixels that changed.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.
        seed: of the noise on embeddings and of the bootstrap.
        exact: as in `interp.sweep`; so are budget, progress and checkpoint.

    Raises:
        PairError: an attribute that does not occur exactly once in the prompt, or that the judge does not know; in a
            text encoder, a replacement of another number of tokens.
        SiteError: a part or block that the model does not have.
        InterpError: another matching or corruption; a window or stride that does not fit the run.
    """
    if corruption not in ("noise", "replacement"):
        raise InterpError(f"corruption={corruption!r}: allowed are 'replacement' or 'noise'.")
    words = prompt.split()
    if words.count(attribute) != 1:
        raise PairError(
            f"{attribute!r} occurs {words.count(attribute)} times in {prompt!r}, not once." + nearest(attribute, words)
        )
    each = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    settings: dict[str, Any] = {"seeds": each, "steps": steps, "guidance": guidance}
    clean = model.sampling(prompt, **settings)
    replacing = None if corruption == "noise" else _replacement(model, attribute, replacement)
    other = prompt if replacing is None else " ".join(replacing if w == attribute else w for w in words)
    base = replace(clean, prompts=(other,) * len(each))
    grid = ExchangeGrid.of(model, clean, part, None, blocks, window, stride)
    edits = [] if replacing is not None else [_noise(model, clean, words.index(attribute), noise, seed)]

    def measures(clean_images: Tensor, corrupted_images: Tensor) -> Sequence[ImageMetric]:
        return list(metrics) if metrics is not None else _judged(attribute, replacing, clean_images, corrupted_images)

    found = exchange(
        grid, base, clean, matching, measures,
        edits=edits, exact=exact, budget=budget, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    record = provenance(
        experiment="causal tracing of pictures", model=model.name, weights=model.weights_hash, prompt=prompt,
        corrupted=other, attribute=attribute, part=part, text=bool(grid.tokens),
        matching="clean run" if grid.tokens else matching, corruption=corruption,
        window=None if grid.tokens else len(grid.windows[0]),
        steps=clean.steps, guidance=clean.guidance, seeds=list(each), seed=seed,
        metrics=[metric.name for metric in found.metrics],
        scheduler=type(model.pipeline.scheduler).__name__, exact=str(exact),
        rows_run=found.plan.cost.rows, rows_skipped=found.plan.cost.skipped, n_attempted=len(each), n_scored=len(each),
    )  # fmt: skip
    return ImageTraceResult(_dataset(found, seed), record)


def _replacement(model: Denoiser, attribute: str, replacement: str | None) -> str:
    if replacement is not None:
        return replacement
    from interp.shapes.judge import ANSWERS
    from interp.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES

    for values in (COLOURS, SHAPES, SIZES, BACKGROUNDS):
        if attribute in values:
            return values[(values.index(attribute) + len(values) // 2) % len(values)]
    known = [value for answers in ANSWERS.values() for value in answers]
    raise PairError(f"What should stand in place of {attribute!r}? Give `replacement`." + nearest(attribute, known))


def _noise(model: Denoiser, clean: Sampling, word: int, sigma: float | None, seed: int) -> Edit:
    """Noise on the embedding of one word, another draw for every row."""
    site = model.check(Site("embed", "text"))
    _, tokenizer = model.family.encoders[0]
    positions = tokens_of_word(getattr(model.pipeline, tokenizer), str(clean.prompts[0]), word)
    if sigma is None:
        weight = next(model.tap(site).module.parameters())
        sigma = 3 * float(weight.float().std())
    generator = torch.Generator().manual_seed(seed)
    value = sigma * torch.randn(len(clean), len(positions), model.width_of(site), generator=generator)
    return Add(site, value.to(model.device, model.dtype), positions=positions, when=When(branch=Branch.COND))


def _judged(attribute: str, replaced: str | None, clean: Tensor, corrupted: Tensor) -> list[ImageMetric]:
    """The judge of an attribute and of the factors that should stay, and the pixels in and out of its cell."""
    from interp.shapes.judge import ANSWERS, load_judge
    from interp.shapes.scene import CELLS, COLOURS, SHAPES, SIZES

    factors = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
    factor = next((name for name, values in factors.items() if attribute in values), None)
    judge = load_judge()
    if factor is None:
        raise PairError(f"The judge knows no attribute {attribute!r} of an object; give `metrics`.")
    verdict = judge.judge(as_bytes(clean))
    answer = ANSWERS[factor].index(attribute)
    at = getattr(verdict, factor)[..., answer] + torch.log1p(-verdict.shape[..., 0].exp().clamp(max=1 - 1e-6))
    cell = at.argmax(1)  # where the clean picture most likely has it, and where there is something at all
    cells, n = [CELLS[i] for i in cell.tolist()], len(clean)
    right = JudgeLogProbability(factor, [attribute] * n, cells, judge)
    metrics: list[ImageMetric] = [JudgeProbability(factor, [attribute] * n, cells, judge), right]
    if replaced in factors[factor]:
        metrics[1] = JudgeLogitDifference(right, JudgeLogProbability(factor, [str(replaced)] * n, cells, judge))
    rows = torch.arange(n)
    for name in factors:
        if name != factor:
            seen = getattr(verdict, name)[rows, cell].argmax(-1).tolist()
            metrics.append(JudgeProbability(name, [ANSWERS[name][i] for i in seen], cells, judge))
    side = clean.shape[-1] // 2
    inside = torch.zeros(n, *clean.shape[-2:], dtype=torch.bool)
    for row, i in enumerate(cell.tolist()):
        inside[row, (i // 2) * side : (i // 2 + 1) * side, (i % 2) * side : (i % 2 + 1) * side] = True
    metrics += [
        PixelChange(corrupted, inside, "pixel_change_inside"),
        PixelChange(corrupted, ~inside, "pixel_change_outside"),
    ]
    return metrics


def _dataset(found: Exchanged, seed: int) -> Dataset:
    import xarray as xr

    grid, variables = found.grid, {}
    axes = grid.axes
    for metric in found.metrics:
        m, attrs = metric.name, {"unit": metric.unit}
        values = found.values[m]
        low, high = bootstrap_interval(values, seed=seed)
        variables |= {
            m: ((*axes, "example"), values, attrs),
            f"{m}_mean": (axes, values.mean(-1), attrs),
            f"{m}_low": (axes, low, attrs),
            f"{m}_high": (axes, high, attrs),
            f"{m}_clean": ("example", found.source[m], attrs),
            f"{m}_corrupted": ("example", found.base[m], attrs),
        }
    examples = list(range(len(found.base_images)))
    for name, images in (("clean", found.source_images), ("corrupted", found.base_images)):
        variables[name] = (("example", "y", "x", "rgb"), as_bytes(images), {"unit": "0 to 255"})
    names, restored = found.strongest(examples[:4])
    variables["restored"] = (("shown", "drawn", "y", "x", "rgb"), restored, {"unit": "0 to 255"})
    coords: dict[str, Any] = {**grid.coords, "example": examples, "shown": names, "drawn": examples[:4]}
    if grid.tokens:
        coords["token"] = ("pos", [token for token, _ in grid.tokens])
    return xr.Dataset(variables, coords)
