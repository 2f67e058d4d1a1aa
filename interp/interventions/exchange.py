"""Exchanges between two runs of a pipeline that start from the same noise: what patching and tracing of pictures share.

A grid of places, each of which is written from one run (the *source*) into the other (the *base*), and the pictures
measured. An axis that the grid lacks is exchanged together: without `"window"` in every step, without `"block"` in
every block.

| axis | entries |
|---|---|
| `block` | addresses of the blocks that have the part; layers, in a text encoder |
| `window` | runs of denoising steps, which may overlap |
| `pos` | tokens of a text encoder's part; the padding, which some pipelines read, is one entry |
| `head` | heads, of parts that have them |
| `group` | of channels: as many equal runs of neighbouring channels as asked for |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from interp.errors import InterpError, PairError, SiteError, nearest
from interp.interventions.captured import DenoisingRun
from interp.interventions.denoise import denoise
from interp.interventions.denoise_sweep import DenoisingSweep, ImageReadout, plan_denoising_sweep
from interp.interventions.edits import Edit, Replace, UnderPrompt, When
from interp.interventions.schedule import Savings
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.site import BLOCK_PARTS, TEXT_PARTS, Site
from interp.progress import Progress, silent
from interp.tasks.image_metrics import ImageMetric, as_bytes

Matching: TypeAlias = Literal["state", "trajectory"]
"""Where source values come from: the base run's own x_t under the source's prompt, or the source run's x_t."""
AXES = ("block", "window", "pos", "head", "group")


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeGrid:
    """Every combination of the entries of some axes. Make one with `ExchangeGrid.of`.

    Attributes:
        sites: of the part, in forward order; windows: steps of each column; groups: of channels.
        tokens: of a text encoder's part, what stands at each entry of `pos`, and its positions.
    """

    model: Denoiser
    part: str
    axes: tuple[str, ...]
    sites: tuple[Site, ...]
    windows: tuple[range, ...]
    tokens: tuple[tuple[str, tuple[int, ...]], ...]
    heads: int
    groups: int

    @classmethod
    def of(
        cls,
        model: Denoiser,
        sampling: Sampling,
        part: str,
        over: Sequence[str] | None = None,
        blocks: Sequence[str] | None = None,
        window: int | Sequence[range] | None = None,
        stride: int | None = None,
        groups: int = 1,
    ) -> ExchangeGrid:
        """The grid of one part.

        Args:
            over: axes; by default `block` and `window` (`window` alone for a part of no block), `block` and `pos`
                for a part of a text encoder.
            blocks: addresses, all that have the part if not given.
            window: steps exchanged together, half of the run's if not given; or the windows themselves.
            stride: from one window to the next; half a window if not given.
            groups: of channels, for the axis `group`.

        Raises:
            SiteError: a part or block that the model does not have, an axis that the part does not have.
            InterpError: a window longer than the run, no window at all, more groups than channels.
        """
        text = part in TEXT_PARTS
        if text:
            # The tokens of a second encoder are others: name its layers in `blocks`.
            having = [site for site in model.text if site.part == part and str(site.layer).split(".")[0] == "text"]
            if not having and blocks is None:
                raise SiteError(f"{model.name} has no {part!r} in its (first) text encoder.")
        else:
            having = list(model.sites(part))
        sites = having if blocks is None else [model.check(Site(part, address)) for address in blocks]
        if text and len({str(site.layer).split(".")[0] for site in sites}) > 1:
            raise SiteError(
                f"{list(map(str, sites))} belong to several text encoders, whose tokens differ; name one's."
            )
        lone = not text and part not in BLOCK_PARTS
        default = ("block", "pos") if text else ("window",) if lone else ("block", "window")
        heads = {model.heads_of(site) or 0 for site in sites}
        axes = tuple(over) if over is not None else default
        allowed = [axis for axis in default if axis != "block" or not lone]
        allowed += ["head"] if 0 not in heads else []
        allowed += ["group"] if 0 in heads else []
        for axis in axes:
            if axis not in allowed:
                raise SiteError(
                    f"A grid of {part!r} has no axis {axis!r}; it can have {', '.join(allowed)}." + nearest(axis, AXES)
                )
        if len(set(axes)) < len(axes) or not axes:
            raise SiteError(f"The grid's axes are {axes}; name each one once, and at least one.")
        narrowest = min(model.width_of(site) for site in sites)
        if "group" in axes and not 1 < groups <= narrowest:
            raise InterpError(f"{groups} groups of the {narrowest} channels of {part!r}; from 2 to {narrowest}.")
        windows = () if text else _windows(sampling.steps, window, stride)
        tokens = _tokens(model, sampling, sites[0]) if text else ()
        order = tuple(axis for axis in AXES if axis in axes)
        return cls(model, part, order, tuple(sites), windows, tokens, max(heads), groups)

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The entries of each axis, as they are labelled."""
        every = {
            "block": [_block_name(site) for site in self.sites],
            "window": [_window_name(steps) for steps in self.windows],
            "pos": list(range(len(self.tokens))),
            "head": list(range(self.heads)),
            "group": list(range(self.groups)),
        }
        return {axis: every[axis] for axis in self.axes}

    @property
    def labels(self) -> dict[str, list[str]]:
        """The entries of each axis, in words."""
        words = {"pos": [f"'{token}'" for token, _ in self.tokens]}
        for axis, entries in self.coords.items():
            before = {"head": "head ", "group": "channels ", "window": "steps "}.get(axis, "")
            words.setdefault(axis, [f"{before}{entry}" for entry in entries])
        return {axis: words[axis] for axis in self.axes}

    @property
    def steps(self) -> frozenset[int]:
        """Steps in which some cell acts."""
        return frozenset(step for steps in self.windows for step in steps)

    def cells(self, value: UnderPrompt | DenoisingRun) -> list[list[Edit]]:
        """The edits of every cell; none where a block has not as many heads as others."""
        indices = [range(len(entries)) for entries in self.coords.values()]
        branch = Branch.COND if isinstance(value, UnderPrompt) or self.tokens else None
        return [self._cell(dict(zip(self.axes, at, strict=True)), value, branch) for at in product(*indices)]

    def _cell(self, at: dict[str, int], value: UnderPrompt | DenoisingRun, branch: Branch | None) -> list[Edit]:
        # Without guidance a prompt is not seen: in one state such passes agree, on two trajectories both belong to it.
        sites = [self.sites[at["block"]]] if "block" in at else self.sites
        if self.tokens:
            when = When(branch=branch)
        elif "window" in at:
            when = When(steps=self.windows[at["window"]], branch=branch)
        else:
            when = None if branch is None else When(branch=branch)
        edits: list[Edit] = []
        for site in sites:
            if "head" in at and at["head"] >= (self.model.heads_of(site) or 0):
                continue
            units = None
            if "group" in at:
                units = np.array_split(np.arange(self.model.width_of(site)), self.groups)[at["group"]].tolist()
            positions = list(self.tokens[at["pos"]][1]) if "pos" in at else None
            named = Site(site.part, site.layer, at.get("head"))
            edits.append(Replace(named, value, positions=positions, units=units, when=when))
        return edits


@dataclass(frozen=True, slots=True, eq=False)
class Exchanged:
    """What an exchange gave.

    Attributes:
        grid: whose cells they are.
        values: of each metric, [axes…, row]; NaN where a block has no such head.
        base: of each metric, [row], of the base run; source: of the source run.
        base_images: in [0, 1], [row, 3, height, width]; source_images: likewise.
        plan: the sweep, which can draw the picture of a cell again.
    """

    grid: ExchangeGrid
    metrics: tuple[ImageMetric, ...]
    values: Mapping[str, Float[np.ndarray, "... row"]]
    base: Mapping[str, Float[np.ndarray, "row"]]
    source: Mapping[str, Float[np.ndarray, "row"]]
    base_images: Tensor
    source_images: Tensor
    plan: DenoisingSweep

    def strongest(
        self, rows: Sequence[int], cells: int = 3
    ) -> tuple[list[str], UInt8[np.ndarray, "shown drawn y x 3"]]:
        """Names of the cells with the largest mean effect on the first metric, and their pictures of some rows."""
        first = self.metrics[0].name
        mean = (self.values[first] - self.base[first]).mean(-1)
        # NaN, which sorts last, stands for a head that a block lacks: no cell to show
        order = np.argsort(-np.abs(mean), axis=None)[: min(cells, int(np.isfinite(mean).sum()))]
        places = [np.unravel_index(at, mean.shape) for at in order]
        entries = list(self.grid.labels.values())
        names = [", ".join(str(entry[i]) for entry, i in zip(entries, place, strict=True)) for place in places]
        return names, np.stack([as_bytes(self.plan.pictures(int(at), rows)) for at in order])


def exchange(
    grid: ExchangeGrid,
    base: Sampling,
    source: Sampling,
    matching: Matching,
    metrics: Callable[[Tensor, Tensor], Sequence[ImageMetric]],
    *,
    edits: Sequence[Edit] = (),
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> Exchanged:
    """Write each cell of a grid from the source run into the base run, and measure the pictures.

    Args:
        base: the rows that are edited; source: as many, with the same seeds and other prompts.
        matching: a text encoder's states do not depend on x_t, so there both mean the source run's.
        metrics: called with the pictures of the source and of the base run.
        edits: of the base run, shared by all cells (the noise of a causal trace).
        exact: as in `interp.sweep`; so are budget, progress and checkpoint.

    Raises:
        InterpError: another matching than the two.
        PairError: a text encoder's part under prompts of unequal token length.
    """
    if matching not in ("state", "trajectory"):
        raise InterpError(f"matching={matching!r}: allowed are 'state' or 'trajectory'.")
    text = bool(grid.tokens)
    if text:
        _check_lengths(grid, base, source)
    captured = text or matching == "trajectory"
    when = When(steps=grid.steps) if captured and not text and "window" in grid.axes else None
    source_run = denoise(grid.model, source, (), grid.sites if captured else (), when=when)
    # prompts are all texts or all class labels, which the annotation of a sampling does not say
    value = source_run if captured else UnderPrompt(tuple(source.prompts))  # pyright: ignore[reportArgumentType]
    cells = grid.cells(value)
    plan = plan_denoising_sweep(grid.model, base, cells, (), edits=edits, exact=exact, budget=budget)
    base_images, source_images = plan.base.images, source_run.images
    assert base_images is not None and source_images is not None
    chosen = tuple(metrics(source_images, base_images))
    swept = replace(plan, readout=ImageReadout(chosen)).run(progress=progress, checkpoint=checkpoint)
    shape = (*map(len, grid.coords.values()), len(base))
    everyone = torch.arange(len(base))
    absent = np.array([not edits_of for edits_of in cells]).reshape(shape[:-1])
    return Exchanged(
        grid,
        chosen,
        {name: np.where(absent[..., None], np.nan, _array(x).reshape(shape)) for name, x in swept.values.items()},
        {name: _array(x) for name, x in swept.base.items()},
        {metric.name: _array(metric.values(source_images, everyone)) for metric in chosen},
        base_images,
        source_images,
        plan,
    )


def _array(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def _windows(steps: int, window: int | Sequence[range] | None, stride: int | None) -> tuple[range, ...]:
    if isinstance(window, Sequence):
        window = [window] if isinstance(window, range) else window
        if not window or any(not steps_of or steps_of[0] < 0 or steps_of[-1] >= steps for steps_of in window):
            raise InterpError(
                f"Windows {list(window)} of a run of {steps} steps: at least one, within 0 to {steps - 1}."
            )
        return tuple(window)
    window = max(1, steps // 2) if window is None else window
    if not 1 <= window <= steps:
        raise InterpError(f"A window of {window} steps of a run of {steps}.")
    stride = max(1, window // 2) if stride is None else stride
    if stride < 1:
        raise InterpError(f"A stride of {stride} steps between windows: at least 1.")
    return tuple(range(start, start + window) for start in range(0, steps - window + 1, stride))


def _window_name(steps: range) -> str:
    return f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else str(steps[0])


def _block_name(site: Site) -> str:
    return site.part if site.layer is None else str(site.layer)


def _tokenizer(model: Denoiser, site: Site) -> Any:
    number = int(str(site.layer).split(".")[0].removeprefix("text") or 1) - 1
    return getattr(model.pipeline, model.family.encoders[number][1])


def _tokens(model: Denoiser, sampling: Sampling, site: Site) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Tokens of the longest prompt, `·` where prompts differ, and all padding behind it together."""
    tokenizer, (_, width) = _tokenizer(model, site), model.grid_of(site, sampling)
    texts = [
        [str(token).removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)]
        for prompt in dict.fromkeys(map(str, sampling.prompts))
    ]
    longest = max(map(len, texts))
    found = []
    for at in range(longest):
        seen = {text[at] if at < len(text) else "" for text in texts}
        found.append((seen.pop() if len(seen) == 1 else "·", (at,)))
    return (*found, *([("padding", tuple(range(longest, width)))] if longest < width else []))


def _check_lengths(grid: ExchangeGrid, base: Sampling, source: Sampling) -> None:
    tokenizer = _tokenizer(grid.model, grid.sites[0])
    for one, other in dict.fromkeys(zip(base.prompts, source.prompts, strict=True)):
        lengths = [len(tokenizer(str(prompt)).input_ids) for prompt in (one, other)]
        if lengths[0] != lengths[1]:
            raise PairError(
                f"{one!r} has {lengths[0]} tokens and {other!r} {lengths[1]}, so a position does not mean the same in "
                "both. Replace words by words of as many tokens."
            )
