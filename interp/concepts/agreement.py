"""How well maps of units agree with masks of concepts: intersection over union, thresholds chosen on other pictures.

A unit's map, brought to the size of the picture, says "here" where it lies above a threshold (or not above one:
channels of a stream have no preferred sign). Of all pictures together,

    IoU(u, c) = Σ |here(u) and mask(c)| / Σ |here(u) or mask(c)|.

Threshold and side are chosen per unit and concept on the *selection* pictures, as those with the largest IoU among the
unit's quantiles; IoU is then counted on the *held-out* ones. Chance is what the same procedure finds when the masks
have changed places among the pictures: that keeps how large and where concepts are, and destroys which picture has
which.

Source: Bau et al., "GAN Dissection" (ICLR 2019), who choose thresholds by information quality ratio, one side only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

_TAILS = np.geomspace(0.003, 0.7, 20)
"""Shares of cells that a threshold leaves over it: from the smallest concept to most of the picture."""
SELDOM = 3
"""A concept that fewer pictures of either half show is not scored."""


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Of every unit with every concept.

    Attributes:
        threshold: of the unit's map.
        below: whether "here" is what is not above it.
        selection_iou: on the pictures on which both were chosen.
        intersection: pixels on the held-out pictures, and `union`.
        chance: IoU on held-out pictures with shuffled masks, mean over shuffles.
        chance_max: the largest of these over units and shuffles.
        mean: of the unit's map over all pixels of the selection pictures, and `mean_in` over the concept's.
    """

    threshold: Float[np.ndarray, "unit concept"]
    below: Bool[np.ndarray, "unit concept"]
    selection_iou: Float[np.ndarray, "unit concept"]
    intersection: Float[np.ndarray, "unit concept example"]
    union: Float[np.ndarray, "unit concept example"]
    chance: Float[np.ndarray, "unit concept"]
    chance_max: Float[np.ndarray, "concept"]
    mean: Float[np.ndarray, "unit"]
    mean_in: Float[np.ndarray, "unit concept"]


def agree(
    maps: Float[Tensor, "row unit y x"],
    masks: Bool[Tensor, "row concept height width"],
    selected: int,
    shuffles: int,
    seed: int,
) -> Agreement:
    """Agreement of maps with masks; the first `selected` rows choose thresholds, the others are held out."""
    concepts = masks.shape[1]
    generator = torch.Generator().manual_seed(seed)
    halves = (slice(0, selected), slice(selected, None))
    orders = [[_derangement(len(masks[half]), generator) for half in halves] for _ in range(shuffles)]
    flat = masks.flatten(2)
    first, held = (torch.cat([flat[h], *(flat[h][order[i]] for order in orders)], 1) for i, h in enumerate(halves))
    large = [interpolate(maps[h].float(), masks.shape[-2:], mode="bilinear").flatten(2) for h in halves]
    levels = np.sort(np.concatenate([_TAILS, 1 - _TAILS]))
    cells = maps[halves[0]].transpose(0, 1).flatten(1).float().numpy()
    cuts = torch.from_numpy(np.quantile(cells, levels, axis=1).T.copy()).float()
    shape = (len(cuts), first.shape[1])
    best, threshold = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    covered, covered_held = _covered(first), _covered(held)
    below, held_rows = np.zeros(shape, bool), len(masks) - selected
    intersection, union = (np.zeros((*shape, held_rows)) for _ in range(2))
    for unit, own in enumerate(cuts):
        common, joint = _sides(large[0][:, unit], covered, own)
        iou = (common.sum(1) / joint.sum(1).clamp(min=1)).numpy()  # [cut, concept]
        at = iou.argmax(0)
        best[unit], below[unit], threshold[unit] = iou.max(0), at >= len(own), own.numpy()[at % len(own)]
        common, joint = _sides(large[1][:, unit], covered_held, own)
        chosen = torch.from_numpy(at), slice(None), torch.arange(len(at))
        intersection[unit], union[unit] = (counts[chosen].numpy() for counts in (common, joint))
    total = union.sum(-1)
    iou = np.where(total > 0, intersection.sum(-1) / np.maximum(total, 1), np.nan)
    shuffled = iou[:, concepts:].reshape(len(iou), shuffles, concepts)
    own = flat[halves[0]].float()
    inside = own.sum((0, 2))
    mean_in = torch.einsum("rup,rcp->uc", large[0], own) / inside
    seldom = np.array([min(int(flat[h][:, c].any(1).sum()) for h in halves) < SELDOM for c in range(concepts)])
    for scores in (best[:, :concepts], shuffled):
        scores[..., seldom] = np.nan
    return Agreement(
        threshold[:, :concepts], below[:, :concepts], best[:, :concepts],
        intersection[:, :concepts], union[:, :concepts],
        shuffled.mean(1), shuffled.max((0, 1), initial=-1), large[0].mean((0, 2)).numpy(), mean_in.numpy(),
    )  # fmt: skip


def _derangement(n: int, generator: torch.Generator) -> Tensor:
    """An order in which nobody keeps its place: one long cycle."""
    order = torch.randperm(n, generator=generator)
    out = torch.empty_like(order)
    out[order] = order.roll(1)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Covered:
    """Masks as the list of (pixel, concept) that are true; the last concept is every pixel."""

    pixel: Tensor
    row: Tensor
    concept: Tensor
    rows: int
    concepts: int


def _covered(masks: Bool[Tensor, "row concept pixel"]) -> _Covered:
    rows, concepts, pixels = masks.shape
    row, concept, pixel = torch.cat([masks, masks.new_ones(rows, 1, pixels)], 1).nonzero(as_tuple=True)
    return _Covered(row * pixels + pixel, row, concept, rows, concepts + 1)


def _sides(
    large: Float[Tensor, "row pixel"], masks: _Covered, cuts: Float[Tensor, "cut"]
) -> tuple[Float[Tensor, "side row concept"], Float[Tensor, "side row concept"]]:
    """(intersection, union) in pixels of what is above each cut of one unit's maps, then of what is not above it.

    One histogram of the pixels between cuts, by row and concept, answers all of them.
    """
    between = torch.bucketize(large.flatten(), cuts)[masks.pixel]
    shape = (masks.rows, len(cuts) + 1, masks.concepts)
    place = (masks.row * shape[1] + between) * shape[2] + masks.concept
    under = torch.bincount(place, minlength=shape[0] * shape[1] * shape[2]).view(shape).cumsum(1).float()
    total, under = under[:, -1:], under[:, :-1]
    sides = torch.cat([total - under, under], 1).transpose(0, 1)
    common = sides[..., :-1]
    return common, sides[..., -1:] + total[:, 0, :-1] - common


def is_here(
    maps: Float[Tensor, "row unit pixel"], threshold: Float[np.ndarray, "unit"], below: Bool[np.ndarray, "unit"]
) -> Bool[Tensor, "row unit pixel"]:
    """Where maps lie above their thresholds, or, `below`, not above them."""
    return (maps > torch.from_numpy(threshold)[:, None]) ^ torch.from_numpy(below)[:, None]
