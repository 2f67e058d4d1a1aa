"""Causal tracing of pictures: which states of a denoiser, and when, carry an attribute of the prompt into the picture?

1. *clean*: the prompt, "a red circle at top left";
2. *corrupted*: the same noise, but the attribute is gone: another word in its place (`corruption="replacement"`,
   which keeps the model on its own distribution) or noise on the word's embedding (`corruption="noise"`, the protocol
   of Basu et al., "Localizing and Editing Knowledge in Text-to-Image Generative Models", 2023);
3. *restored*: as 2, but one part of one block takes its clean value in a window of steps. How much of the attribute
   comes back, by the judge's log-probability of it, is the cell's value.

Two kinds of clean value, and a result says which it holds:

- `matching="state"`: what the block would have *in this very state* x_t under the clean prompt. It isolates what the
  prompt does at that place;
- `matching="trajectory"`: what the block had at the same step of the clean run, whose x_t has gone its own way. It
  also carries what earlier steps made of the picture.

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
from interp.interventions.denoise import denoise
from interp.interventions.edits import Add, Edit, Replace, UnderPrompt, When
from interp.interventions.schedule import Savings
from interp.interventions.sweep import plan_sweep
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.pipelines import tokens_of_word
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval, recovered
from interp.tasks.image_metrics import ImageMetric, JudgeLogProbability, PixelChange, as_bytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset


@dataclass(frozen=True, repr=False, eq=False)
class ImageTraceResult(Result):
    """A causal trace of pictures.

    `.data` holds for each metric `m` [block, window, example]; `m_mean`, `m_low`, `m_high` (95 % bootstrap interval of
    the mean over examples: seeds of the noise); `m_clean`, `m_corrupted` [example]; and the pictures `clean` and
    `corrupted` [example, y, x, rgb] (uint8). The first metric is that of the traced attribute.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return (
            f"Restoring {p['part']} ({p['matching']}-matched, {p['window']} steps) after {p['corruption']} of "
            f"{p['attribute']!r} · {p['prompt']!r} · {p['model']}"
        )

    def recovered(self) -> Dataset:
        """(mean restored − mean corrupted) / (mean clean − mean corrupted), with intervals; see `statistics.recovered`.

        Raises:
            PairError: clean and corrupted do not differ by more than the gap's own uncertainty.
        """
        import xarray as xr

        m, data = self.provenance["metrics"][0], self.data
        clean, corrupted = data[f"{m}_clean"].values, data[f"{m}_corrupted"].values
        value, low, high = recovered(data[m].values, clean, corrupted, m, seed=self.provenance["seed"])
        axes = ("block", "window")
        return xr.Dataset({"recovered": (axes, value), "low": (axes, low), "high": (axes, high)}, data.coords)

    def plot(self, metric: str | None = None) -> Figure:
        """Heat map of the mean effect of restoring each block in each window of steps."""
        from interp.plots import heatmap

        m = metric or self.provenance["metrics"][0]
        corrupted = float(self.data[f"{m}_corrupted"].mean())
        effect, low, high = (self.data[f"{m}_{what}"] - corrupted for what in ("mean", "low", "high"))
        unit = f"effect on {m.replace('_', ' ')} ({self.data[m].attrs['unit']})"
        return heatmap(
            effect, x="window", y="block", title=self.title, unit=unit, low=low, high=high,
            x_labels=[str(w) for w in self.data["window"].values], y_labels=[str(b) for b in self.data["block"].values],
        )  # fmt: skip

    def summary(self) -> str:
        """Clean and corrupted values, and the cells that bring most back."""
        p, data = self.provenance, self.data
        lines = [f"ImageTraceResult: {self.title}"]
        for m in p["metrics"]:
            clean, corrupted = (float(data[f"{m}_{which}"].mean()) for which in ("clean", "corrupted"))
            lines.append(f"  {m} ({data[m].attrs['unit']}): clean {clean:.3f}, corrupted {corrupted:.3f}")
        lines.append(f"  {p['rows_run']} rows run, {p['rows_skipped']} known without running; {p['n_scored']} examples")
        m = p["metrics"][0]
        mean = data[f"{m}_mean"].values
        for i in np.argsort(-mean, axis=None)[:4]:
            b, w = np.unravel_index(i, mean.shape)
            lines.append(f"  {data['block'].values[b]:>10} steps {data['window'].values[w]:>7}: {mean[b, w]:.3f}")
        return "\n".join(lines)


def trace_image(
    model: Denoiser,
    prompt: str,
    *,
    attribute: str,
    replacement: str | None = None,
    part: str = "cross_attn_out",
    matching: Literal["state", "trajectory"] = "state",
    corruption: Literal["noise", "replacement"] = "replacement",
    noise: float | None = None,
    window: int = 5,
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
        part: what is restored, a part of the blocks (`interp.models.site`).
        matching: where clean values come from: `"state"` or `"trajectory"`.
        corruption: `"replacement"`, or `"noise"` on the attribute's token embeddings.
        noise: σ of that noise, in the embeddings' units; 3 × their standard deviation if not given.
        window: steps restored together; stride: distance between windows, the window if not given.
        blocks: addresses; all that have the part if not given.
        seeds: seeds of the starting noise, or how many.
        metrics: of pictures, the first being the attribute's; the shapes judge's if not given.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.
        seed: of the noise on embeddings and of the bootstrap.
        exact: as in `interp.sweep`; so are budget, progress and checkpoint.

    Raises:
        PairError: an attribute that does not occur exactly once in the prompt, or that the judge does not know.
        SiteError: a part or block that the model does not have.
    """
    if matching not in ("state", "trajectory") or corruption not in ("noise", "replacement"):
        raise InterpError(
            f"matching={matching!r}, corruption={corruption!r}: allowed are 'state' or 'trajectory', and 'replacement' "
            "or 'noise'."
        )
    words = prompt.split()
    if words.count(attribute) != 1:
        raise PairError(
            f"{attribute!r} occurs {words.count(attribute)} times in {prompt!r}, not once." + nearest(attribute, words)
        )
    each = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    settings: dict[str, Any] = {"seeds": each, "steps": steps, "guidance": guidance}
    clean = model.sampling(prompt, **settings)
    other = (
        prompt
        if corruption == "noise"
        else " ".join(_replacement(model, attribute, replacement) if w == attribute else w for w in words)
    )
    base = replace(clean, prompts=(other,) * len(each))
    addresses = [site.layer for site in model.sites(part)] if blocks is None else list(blocks)
    sites = [model.check(Site(part, address)) for address in addresses]
    edits = [] if corruption == "replacement" else [_noise(model, clean, words.index(attribute), noise, seed)]
    clean_run = denoise(model, clean, (), sites if matching == "trajectory" else ())
    if window < 1 or window > clean.steps:
        raise InterpError(f"A window of {window} steps of a run of {clean.steps}.")
    starts = list(range(0, clean.steps - window + 1, stride or window))
    value = clean_run if matching == "trajectory" else UnderPrompt(prompt)
    # Unconditional passes do not see the prompt: in one state they agree, and on two trajectories both belong to it.
    branch = Branch.COND if matching == "state" else None
    variants: list[list[Edit]] = [
        [Replace(site, value, when=When(steps=range(start, start + window), branch=branch))]
        for site in sites
        for start in starts
    ]
    corrupted_run = denoise(model, base, edits)
    assert clean_run.images is not None and corrupted_run.images is not None
    chosen = list(metrics) if metrics is not None else _judged(attribute, clean_run.images, corrupted_run.images)
    swept = plan_sweep(model, base, variants, chosen, edits=edits, exact=exact, budget=budget).run(
        progress=progress, checkpoint=checkpoint
    )
    windows = [f"{start}–{start + window - 1}" if window > 1 else str(start) for start in starts]
    data = _dataset(chosen, swept, clean_run.images, corrupted_run.images, [str(a) for a in addresses], windows, seed)
    record = provenance(
        experiment="causal tracing of pictures", model=model.name, weights=model.weights_hash, prompt=prompt,
        corrupted=other, attribute=attribute, part=part, matching=matching, corruption=corruption, window=window,
        steps=clean.steps, guidance=clean.guidance, seeds=list(each), seed=seed, metrics=[m.name for m in chosen],
        scheduler=type(model.pipeline.scheduler).__name__, exact=str(exact),
        rows_run=swept.cost.rows, rows_skipped=swept.cost.skipped, n_attempted=len(each), n_scored=len(each),
    )  # fmt: skip
    return ImageTraceResult(data, record)


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


def _judged(attribute: str, clean: Tensor, corrupted: Tensor) -> list[ImageMetric]:
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
    cells = [CELLS[i] for i in cell.tolist()]
    metrics: list[ImageMetric] = [JudgeLogProbability(factor, [attribute] * len(clean), cells, judge)]
    rows = torch.arange(len(clean))
    for name in factors:
        if name != factor:
            seen = getattr(verdict, name)[rows, cell].argmax(-1).tolist()
            metrics.append(JudgeLogProbability(name, [ANSWERS[name][i] for i in seen], cells, judge))
    side = clean.shape[-1] // 2
    inside = torch.zeros(len(clean), *clean.shape[-2:], dtype=torch.bool)
    for row, i in enumerate(cell.tolist()):
        inside[row, (i // 2) * side : (i // 2 + 1) * side, (i % 2) * side : (i % 2 + 1) * side] = True
    metrics += [
        PixelChange(corrupted, inside, "pixel_change_inside"),
        PixelChange(corrupted, ~inside, "pixel_change_outside"),
    ]
    return metrics


def _dataset(
    metrics: Sequence[ImageMetric],
    swept: Any,
    clean: Tensor,
    corrupted: Tensor,
    blocks: list[str],
    windows: list[str],
    seed: int,
) -> Dataset:
    import xarray as xr

    axes, variables = ("block", "window"), {}
    everyone = torch.arange(len(clean))
    for metric in metrics:
        m, attrs = metric.name, {"unit": metric.unit}
        values = swept.values[m].view(len(blocks), len(windows), -1).double().cpu().numpy()
        low, high = bootstrap_interval(values, seed=seed)
        variables |= {
            m: ((*axes, "example"), values, attrs),
            f"{m}_mean": (axes, values.mean(-1), attrs),
            f"{m}_low": (axes, low, attrs),
            f"{m}_high": (axes, high, attrs),
            f"{m}_clean": ("example", metric.values(clean, everyone).double().cpu().numpy(), attrs),
            f"{m}_corrupted": ("example", swept.base[m].double().cpu().numpy(), attrs),
        }
    for name, images in (("clean", clean), ("corrupted", corrupted)):
        variables[name] = (("example", "y", "x", "rgb"), as_bytes(images), {"unit": "0 to 255"})
    return xr.Dataset(variables, {"block": blocks, "window": windows, "example": list(range(len(clean)))})
