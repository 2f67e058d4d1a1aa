"""Attention maps of words: from where in the picture is a word of the prompt looked at?

The map of a word is, at every cell, the share of the cell's attention that goes to the word's tokens: the mean over
heads, layers (each brought to the finest grid among them) and steps, in the conditional branch.

It says where a word is *looked at*, not what it does there, nor what it means: a token's state in the text encoder
holds its neighbours too, and much attention goes to tokens that are no word. Whether the word acts there is a question
for an edit: `Knockout(block, keys=…, positions=…, attention="cross")`. How well a map agrees with where something is
(`AttentionMaps.agreement`) means little without the same number for a model, or a word, that cannot know.

Source: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention" (2023), section 2.2. We take
means where they take sums, the sum over a word's tokens where they take their mean, and every grid where they leave the
finest out; and the conditional branch by its address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from interp.errors import InterpError, PairError, ShapeError, SiteError, nearest
from interp.interventions.denoise import Denoising, denoise, item_bytes
from interp.interventions.edits import Edit, When
from interp.interventions.memory import free_bytes
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.pipelines import word_in_denoiser
from interp.models.site import Site
from interp.results import Result, provenance
from interp.tasks.image_metrics import as_bytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import DataArray, Dataset

_WORDS = ("cross_pattern", "joint_pattern")
"""Parts in which cells attend to words."""


@dataclass(frozen=True, repr=False, eq=False)
class AttentionMaps(Result):
    """Maps of the words of a prompt.

    `.data` holds `attention` [example, word, y, x] and `block_attention` [example, word, block, y, x], shares of a
    cell's attention (0 to 1); `picture` [example, row, column, rgb] (uint8). Words are numbered as in the prompt, and
    `text` [word] spells them.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Attention to each word · {p['prompt']!r} · mean of {len(p['blocks'])} blocks · {p['model']}"

    def agreement(self, masks: Bool[np.ndarray, "word row column"]) -> DataArray:
        """How well each word's map finds a region of the picture: [example, word].

        The probability that a pixel inside has more attention than one outside (area under the ROC curve): 1 is
        perfect, 0.5 chance, and below it the word is looked at from elsewhere.

        Args:
            masks: where each word's thing is, in the order of `word`; on the picture's grid.

        Raises:
            ShapeError: masks of another number or size, or one that is empty or everywhere.
        """
        import xarray as xr
        from scipy.stats import rankdata

        data = self.data["attention"]
        wanted = (data.sizes["word"], self.data.sizes["row"], self.data.sizes["column"])
        if masks.shape != wanted:
            raise ShapeError(f"Masks have shape {list(masks.shape)}; these maps need {list(wanted)}.")
        inside = masks.reshape(len(masks), -1)
        n = inside.sum(-1)
        if not ((n > 0) & (n < inside.shape[-1])).all():
            raise ShapeError(f"Every mask must hold some pixels and leave some out; they hold {n.tolist()}.")
        maps = interpolate(torch.tensor(data.values), wanted[1:], mode="bilinear", align_corners=False)
        ranks = rankdata(maps.flatten(2).numpy(), axis=-1)
        smaller = (ranks * inside).sum(-1) - n * (n + 1) / 2
        return xr.DataArray(
            smaller / (n * (inside.shape[-1] - n)), data.isel(y=0, x=0, drop=True).coords, ("example", "word")
        )

    def plot(self, example: int = 0) -> Figure:
        """The words' maps over one picture."""
        from interp.plots import overlays

        return overlays(
            self.data["picture"].values[example], self.data["attention"].isel(example=example),
            names=[str(text) for text in self.data["text"].values], title=self.title, unit="of a cell's attention",
        )  # fmt: skip

    def summary(self) -> str:
        """The mean and the largest share of attention that each word gets."""
        data, p = self.data["attention"], self.provenance
        lines = [f"AttentionMaps: {self.title}"]
        for word, text in zip(data["word"].values, self.data["text"].values, strict=True):
            x = data.sel(word=word)
            lines.append(f"  {word:>3} {text:<12} mean {float(x.mean()):.4f}, largest {float(x.max()):.4f}")
        return "\n".join([*lines, f"  {p['n_scored']} pictures, {p['runs']} runs of {p['steps']} steps"])


def attention_maps(
    model: Denoiser,
    prompt: str,
    *,
    edits: Sequence[Edit] = (),
    words: Sequence[str | int] | None = None,
    blocks: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    when: When | None = None,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    guidance: float | None = None,
    budget: int | None = None,
    **options: Any,
) -> AttentionMaps:
    """The maps of a prompt's words in pictures drawn from it.

    Args:
        edits: of the runs that are looked at.
        words: of the prompt, by name or by number; all if not given.
        blocks: addresses; all that attend to words if not given.
        heads: of each block; all if not given.
        when: steps to average over; all if not given.
        seeds: seeds of the starting noise, or how many.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.
        budget: bytes that captured patterns may take; a quarter of the free memory if not given. Where they do not fit,
            the pipeline runs again for the next blocks.
        **options: further arguments of the pipeline's call (`height`, `max_sequence_length` …).

    Raises:
        PairError: a word that does not occur exactly once in the prompt, or a number beyond it.
        SiteError: a model that attends to no words; a block or a head that it does not have, or cannot show.
        InterpError: the unconditional branch, which sees no prompt; a budget below the patterns of one block.
    """
    numbers = _numbers(prompt, words)
    part = next((part for part in _WORDS if any(part in block.taps for block in model.blocks.values())), None)
    if part is None:
        raise SiteError(f"{model.name} attends to no words: it has no {' and no '.join(_WORDS)}.")
    if when is not None and when.branch is Branch.UNCOND:
        raise InterpError("Maps are of the conditional branch; the unconditional one sees no word of the prompt.")
    when = replace(when or When(), branch=Branch.COND)
    chosen = [site.layer for site in model.sites(part)] if blocks is None else list(blocks)
    sites = [model.check(Site(part, address)) for address in chosen]
    for site in sites:
        for head in heads or ():
            model.check(replace(site, head=head))
    each = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    sampling = model.sampling(prompt, seeds=each, steps=steps, guidance=guidance, **options)
    groups = _groups(model, sampling, sites, when, budget)
    tokens = [word_in_denoiser(model.pipeline, model.family, prompt, number) for number in numbers]
    found: dict[Site, Tensor] = {}
    pictures = None
    for group in groups:
        run = denoise(model, sampling, edits, group, when=when)
        pictures = run.images if pictures is None else pictures
        found |= {site: _words(model, run[site], site, sampling, tokens, heads) for site in group}
    assert pictures is not None
    finest = max(((x.shape[-2], x.shape[-1]) for x in found.values()), key=lambda size: size[0] * size[1])
    maps = torch.stack([_resized(found[site], finest) for site in sites], 2).double().cpu().numpy()
    record = provenance(
        experiment="attention maps of words", model=model.name, weights=model.weights_hash, prompt=prompt, part=part,
        blocks=[str(site.layer) for site in sites], heads=None if heads is None else list(heads), when=str(when),
        edits=[str(edit) for edit in edits],
        seeds=list(each), steps=sampling.steps, guidance=sampling.guidance, runs=len(groups),
        scheduler=type(model.pipeline.scheduler).__name__, n_attempted=len(each), n_scored=len(each),
    )  # fmt: skip
    return AttentionMaps(_dataset(maps, pictures, prompt, numbers, [str(site.layer) for site in sites]), record)


def _numbers(prompt: str, words: Sequence[str | int] | None) -> list[int]:
    """The words' places in the prompt."""
    said = prompt.split()
    if words is None:
        return list(range(len(said)))
    if isinstance(words, str):
        raise InterpError(f"`words` is a list; write [{words!r}].")
    out = []
    for word in words:
        if isinstance(word, int):
            if not 0 <= word < len(said):
                raise PairError(f"{prompt!r} has the words 0 to {len(said) - 1}; got {word}.")
            out.append(word)
            continue
        if said.count(word) != 1:
            raise PairError(
                f"{word!r} occurs {said.count(word)} times in {prompt!r}, not once; give its number."
                + nearest(word, said)
            )
        out.append(said.index(word))
    if not out or len(set(out)) < len(out):
        raise PairError(f"Words {list(words)!r}: give at least one, and each once.")
    return out


def _groups(
    model: Denoiser, sampling: Sampling, sites: Sequence[Site], when: When, budget: int | None
) -> list[list[Site]]:
    """Sites whose patterns fit into the budget together, in order."""
    budget = free_bytes(model.device) // 4 if budget is None else budget
    passes = len(sampling) * len(Denoising(model, sampling, [()]).passes(when))
    groups: list[list[Site]] = []
    left = 0
    for site in sites:
        size = passes * model.size_of(site, sampling) * item_bytes(model, site)
        if size > budget:
            raise InterpError(
                f"The patterns of {site} take {size / 2**20:.0f} MiB, and the budget is {budget / 2**20:.0f}: take "
                "fewer seeds, or fewer steps (`when`)."
            )
        if not groups or size > left:
            groups.append([])
            left = budget
        groups[-1].append(site)
        left -= size
    return groups


def _words(
    model: Denoiser,
    pattern: Float[Tensor, "step branch example head query key"],
    site: Site,
    sampling: Sampling,
    tokens: Sequence[Sequence[int]],
    heads: Sequence[int] | None,
) -> Float[Tensor, "example word y x"]:
    """What each word's tokens get at every cell, on average over steps and heads."""
    height, width = model.grid_of(Site("block_out", site.layer), sampling)
    cells = height * width
    first = cells if site.part.startswith("joint") else 0
    x = pattern if heads is None else pattern[:, :, :, list(heads)]
    x = x.mean((0, 1, 3))[:, :cells]  # the mean first: it is the largest step down
    each = [x[..., [first + token for token in of]].sum(-1) for of in tokens]
    return torch.stack(each, 1).unflatten(-1, (height, width))


def _resized(maps: Float[Tensor, "example word y x"], size: tuple[int, int]) -> Tensor:
    """Maps on another grid, never negative."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return interpolate(maps, size, mode="bicubic", align_corners=False).clamp(min=0)


def _dataset(maps: np.ndarray, pictures: Tensor, prompt: str, numbers: list[int], blocks: list[str]) -> Dataset:
    import xarray as xr

    unit = {"unit": "share of a cell's attention"}
    said = prompt.split()
    return xr.Dataset(
        {
            "attention": (("example", "word", "y", "x"), maps.mean(2), unit),
            "block_attention": (("example", "word", "block", "y", "x"), maps, unit),
            "picture": (("example", "row", "column", "rgb"), as_bytes(pictures), {"unit": "0 to 255"}),
        },
        {
            "example": list(range(len(maps))),
            "word": numbers,
            "text": ("word", [said[number] for number in numbers]),
            "block": blocks,
        },
    )
