"""Levels of concepts in a model: latents of a dictionary, at a place of the computation.

A level is a dictionary at its site, and of a denoiser also a step. Levels are named in the order in which the model
computes them: by depth (layers of a language model), by noise (steps of denoising, the noisiest first), or inside one
Matryoshka dictionary by noise as well (`matryoshka_levels`: the first prefix at the noisiest step). So a parent is
always computed before its children, and clamping it can move them. Which of them is the *higher* level is another
question: in a denoiser what comes first is the more abstract, in a language model rather the less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries.codes import checked_latents
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.topk import Matryoshka
from interp.errors import InterpError, ShapeError
from interp.interventions.checkpoint import fingerprint
from interp.interventions.edits import When
from interp.interventions.run import forward_order, run
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class ConceptLevel:
    """Some latents of a dictionary.

    Attributes:
        name: of the level, for titles and tables.
        dictionary: of one site, which it reads and writes.
        latents: which of its latents are the concepts.
        step: of a denoising run, at which they are read and clamped; `None` for a language model.

    Raises:
        InterpError: a dictionary of several sites, of an unnamed one, or one that writes another site than it reads.
        ShapeError: no latent, or one that is not there.
    """

    name: str
    dictionary: Dictionary
    latents: Sequence[int]
    step: int | None = None

    def __post_init__(self) -> None:
        d = self.dictionary
        if len(d.read.sites) != 1 or not d.read.sites[0] or not d.autoencodes:
            sites = ", ".join(site or "an unnamed one" for site in d.read.sites)
            raise InterpError(
                f"The dictionary of level {self.name!r} reads {sites}{'' if d.autoencodes else ' and writes another'}: "
                "a level needs one named site, which is read and written."
            )
        if not len(self.latents):
            raise ShapeError(f"Level {self.name!r} has no latent; name at least one.")
        checked_latents(self.latents, d.n_latents)

    @property
    def site(self) -> Site:
        """Where its dictionary reads and writes."""
        return Site.parse(self.dictionary.read.sites[0])

    @property
    def mark(self) -> str:
        """A digest that no other dictionary has."""
        d = self.dictionary
        return fingerprint([d.kind, d.settings(), d.state_dict()])

    def when(self, branch: Branch) -> When | None:
        """The pass of a denoising run that the level belongs to."""
        return None if self.step is None else When(steps=[self.step], branch=branch)

    @property
    def directions(self) -> Float[Tensor, "latent width"]:
        """What one unit of each latent adds to the state."""
        return self.dictionary.directions(self.latents, self._bin)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row latent"]:
        """How strongly each latent is on, as the dictionary encodes it."""
        rows = x.reshape(-1, x.shape[-1]).to(self.dictionary.atoms)
        bins = torch.full((len(rows),), self._bin, device=rows.device) if self.dictionary.read.n_bins > 1 else None
        return self.dictionary.encode(rows, bins).of(self.latents).reshape(*x.shape[:-1], len(self.latents))

    @property
    def _bin(self) -> int:
        return 0 if self.step is None else self.dictionary.read.bin_of(self.step)


def matryoshka_levels(dictionary: Matryoshka, steps: Sequence[int]) -> list[ConceptLevel]:
    """The parts of a Matryoshka dictionary as levels: what its first prefix holds, what the second adds, and so on.

    All are at one site, so they are put at different steps of denoising, ascending: the coarse ones at the noisier.

    Raises:
        InterpError: another number of steps than of prefixes.
    """
    if len(steps) != len(dictionary.prefixes):
        raise InterpError(f"{len(steps)} steps for {len(dictionary.prefixes)} prefixes; give one for each.")
    starts = (0, *dictionary.prefixes[:-1])
    return [
        ConceptLevel(f"latents {start} to {stop - 1}", dictionary, range(start, stop), step)
        for start, stop, step in zip(starts, dictionary.prefixes, steps, strict=True)
    ]


def check_order(model: LanguageModel | Denoiser, levels: Sequence[ConceptLevel]) -> None:
    """Refuse levels that the model does not have, or does not compute one after the other.

    Raises:
        InterpError: fewer than two levels, two of one name; a step where there is none or none where one is needed; a
            site with heads, or of a text encoder; a level that is not computed after the one before it.
        SiteError: a site that the model does not have.
        ShapeError: a dictionary of another width than its site.
    """
    if len(levels) < 2 or len({level.name for level in levels}) < len(levels):
        raise InterpError(f"Levels {[level.name for level in levels]}: give at least two, of different names.")
    for level in levels:
        site = model.check(level.site)
        if (level.step is None) == isinstance(model, Denoiser):
            raise InterpError(f"Level {level.name!r} has step={level.step}: a denoiser's levels have one, others none.")
        if str(site.layer).startswith("text") or model.heads_of(site) is not None:
            raise InterpError(
                f"Level {level.name!r} is at {site}: levels are of streams, not of heads or text encoders."
            )
        if (width := model.width_of(site)) != level.dictionary.read.width:
            raise ShapeError(f"{site} has {width} channels, and the dictionary of {level.name!r} reads another number.")
    for before, after in pairwise(levels):
        if not _order(model, before) < _order(model, after):
            raise InterpError(
                f"Level {after.name!r} ({_place(after)}) is not computed after {before.name!r} ({_place(before)}), so "
                "clamping the one cannot move the other. Name levels in the order of computation."
            )


def _order(model: Any, level: ConceptLevel) -> tuple[int, int]:
    if isinstance(model, Denoiser):
        return level.step or 0, model.stage_of(level.site)
    return forward_order(level.site, model.n_layers)


def _place(level: ConceptLevel) -> str:
    return str(level.site) if level.step is None else f"{level.site} at step {level.step}"


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """All levels in an unedited run, place by place; a place is a position of an example.

    Attributes:
        inputs: prompts, or a sampling.
        example: of each place, and `position` in it.
        columns: positions in a row of the grid; of texts, which are one row, all.
        states: of each level, and `codes` of its latents.
    """

    inputs: Prompts | Sampling
    example: Int[Tensor, "place"]
    position: Int[Tensor, "place"]
    columns: int
    states: tuple[Float[Tensor, "place _"], ...]
    codes: tuple[Float[Tensor, "place _"], ...]


def observe(
    model: LanguageModel | Denoiser,
    inputs: Any,
    levels: Sequence[ConceptLevel],
    branch: Branch,
    first: int,
) -> Observed:
    """Run once and read every level.

    Args:
        inputs: `Prompts` of a language model, a `Sampling` of a denoiser.
        branch: of guidance, that is read.
        first: position of a prompt from which on places count.

    Raises:
        InterpError: levels whose grids have different sizes; no place at all.
    """
    states = []
    if isinstance(model, Denoiser):
        when = When(steps=sorted({level.step or 0 for level in levels}), branch=branch)
        ran = run(model, inputs, capture=[level.site for level in levels], when=when)
        states = [ran.at(level.site, level.step, branch) for level in levels]
        columns = model.grid_of(levels[0].site, inputs)[1]
        keep = torch.ones(states[0].shape[:2], dtype=torch.bool)
    else:
        ran = run(model, inputs, capture=[level.site for level in levels], logits=False)
        states = [ran[level.site].flatten(2) for level in levels]
        keep = inputs.mask.clone().cpu()
        keep[:, :first] = False
        columns = keep.shape[1]
    sizes = {level.name: x.shape[1] for level, x in zip(levels, states, strict=True)}
    if len(set(sizes.values())) > 1:
        raise InterpError(f"Levels have different numbers of positions, {sizes}: choose sites of one resolution.")
    if not keep.any():
        raise InterpError(f"No example has a position {first} or behind; there is nothing to observe.")
    example, position = keep.nonzero(as_tuple=True)
    kept = [x[example, position] for x in states]
    codes = [level.codes(x) for level, x in zip(levels, kept, strict=True)]
    return Observed(inputs, example, position, columns, tuple(kept), tuple(codes))
