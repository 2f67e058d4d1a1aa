"""What a child does when its parent is clamped: the interventional basis of an edge.

At sampled places (a place x, or a patch around it), a parent with direction w and code c is set *off*, x − c w, and
*on*, x + (t − c) w, where t is its typical code: the mean over places where it is on. The effect on a child, read
further on in the model, is its code after *on* minus that after *off*. Everything else in x, the part that the
dictionary does not explain included, stays as it was.

The two differ by t w. The null is what a difference of the same length in a direction of chance does, from the same
*off*: directions are normal with the covariance of the site's states, so that they lie where states differ, and each
serves all places of a parent, as w does. (Directions without that covariance would mostly point where the model does
not look, and any latent would seem to matter.)

The edit is an `Add` of a vector known beforehand; for latents without competition it is the `Modulate` that clamps
them (gain 0, offset t or 0), and it is right for every kind of dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.concepts.levels import ConceptLevel, Observed
from interp.interventions.edits import Add
from interp.interventions.run import run
from interp.models.denoiser import Denoiser
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.progress import Progress

_ROWS = 64
"""Examples that run at once."""


@dataclass(frozen=True, slots=True)
class Clamping:
    """How parents are clamped.

    Attributes:
        examples: places of a parent are clamped in so many rows; half of them where it is on, as far as there are such.
        cells: positions that are clamped, and read, in a row: a place and those nearest to it.
        draws: directions of chance for each parent.
        seed: of places and directions.
        branch: of guidance, of a denoiser.
    """

    examples: int = 24
    cells: int = 1
    draws: int = 25
    seed: int = 0
    branch: Branch = Branch.COND


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """Of clamping parents, in units of the children's codes.

    Attributes:
        effect: on minus off, by example.
        null: mean effect of each direction of chance.
        length: of the difference between on and off, in the units of the state.
    """

    effect: Float[np.ndarray, "parent child example"]
    null: Float[np.ndarray, "parent child draw"]
    length: Float[np.ndarray, "parent"]


@torch.no_grad()
def clamp(
    model: LanguageModel | Denoiser,
    seen: Observed,
    levels: Sequence[ConceptLevel],
    number: int,
    typical: Float[np.ndarray, "parent"],
    how: Clamping,
    progress: Progress,
) -> Effects:
    """Effects of every latent of level `number` on those of the next one.

    Args:
        typical: code of each parent where it is on; of one that never is, NaN: its effects are NaN.
    """
    parent, child = levels[number], levels[number + 1]
    directions, states = parent.directions, seen.states[number]
    generator = torch.Generator().manual_seed(how.seed + number)
    shape = (len(parent.latents), len(child.latents))
    effect, null = np.full((*shape, how.examples), np.nan), np.full((*shape, how.draws), np.nan)
    centred = states - states.mean(0)
    for p in progress(list(range(len(parent.latents))), f"clamping {parent.name}"):
        if np.isnan(typical[p]):
            continue
        example, places = _places(seen, seen.codes[number][:, p], how, generator)
        w, t = directions[p].to(states), float(typical[p])
        chance = torch.randn(how.draws, len(centred), generator=generator).to(centred) @ centred
        chance = t * w.norm() * chance / chance.norm(dim=1, keepdim=True)
        off = -seen.codes[number][places, p].to(states)[..., None] * w
        changes = torch.stack([off, off + t * w, *(off + r for r in chance)], 1)  # [row, variant, cell, width]
        codes = _read(model, seen, (parent, child), example, seen.position[places], changes, how.branch)
        away = (codes[:, 1:] - codes[:, :1]).mean(2).double().cpu().numpy()  # [row, variant, child]
        effect[p, :, : len(away)] = away[:, 0].T
        null[p] = away[:, 1:].mean(0).T
    return Effects(effect, null, typical * directions.norm(dim=1).double().cpu().numpy())


def _places(
    seen: Observed, code: Tensor, how: Clamping, generator: torch.Generator
) -> tuple[Int[Tensor, "row"], Int[Tensor, "row cell"]]:
    """Examples, and in each a place with its neighbours; half of the rows begin with one where the latent is on."""
    order = torch.randperm(len(code), generator=generator)
    on = order[(code[order] > 0).cpu()][: how.examples // 2]
    others = order[~torch.isin(order, on)]
    starts = torch.cat([on, others[: how.examples - len(on)]])
    rows = []
    for start in starts.tolist():
        (own,) = (seen.example == seen.example[start]).nonzero(as_tuple=True)
        down, right = (
            (of(seen.position[own]) - of(seen.position[start])).square()
            for of in (lambda p: p // seen.columns, lambda p: p % seen.columns)
        )
        rows.append(own[(down + right).argsort(stable=True)[: how.cells]])  # its own distance is 0
    return seen.example[starts], torch.stack(rows)


def _read(
    model: Any,
    seen: Observed,
    levels: tuple[ConceptLevel, ConceptLevel],
    example: Tensor,
    positions: Int[Tensor, "row cell"],
    changes: Float[Tensor, "row variant cell width"],
    branch: Branch,
) -> Float[Tensor, "row variant cell child"]:
    """Codes of the child after each change of the parent's site, at the places that were changed."""
    parent, child = levels
    rows, variants = changes.shape[:2]
    index = example.repeat_interleave(variants)
    at = positions.repeat_interleave(variants, 0)
    flat = changes.flatten(0, 1)
    out = []
    for start in range(0, len(flat), _ROWS):
        part = slice(start, start + _ROWS)
        edit = Add(parent.site, flat[part], positions=at[part], when=parent.when(branch))
        inputs: Any = seen.inputs.select(index[part].tolist())
        if isinstance(model, Denoiser):
            ran = run(model, inputs, [edit], [child.site], positions=at[part], when=child.when(branch))
            states = ran.at(child.site, child.step, branch)
        else:
            states = run(model, inputs, [edit], [child.site], positions=at[part], logits=False)[child.site]
        out.append(child.codes(states))
    return torch.cat(out).view(rows, variants, *out[0].shape[1:])
