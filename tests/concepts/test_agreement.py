"""Agreement: against plain loops, a planted unit that must be found, shuffled masks in which it must not."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from interp.concepts.agreement import SELDOM, agree, is_here


def blobs(rows, concepts, seed, side=32):
    """Masks of one square per row and concept, somewhere, in half of the rows."""
    random = np.random.default_rng(seed)
    masks = np.zeros((rows, concepts, side, side), bool)
    for row in range(rows):
        for concept in range(concepts):
            y, x = random.integers(0, side - 10, 2)
            if random.random() < 0.6:
                masks[row, concept, y : y + 10, x : x + 10] = True
    return torch.from_numpy(masks)


def noise(rows, units, seed, side=8):
    return torch.randn(rows, units, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def planted():
    """Unit 3 is concept 1 seen coarsely, unit 5 its negative; the others are noise."""
    masks, maps = blobs(40, 3, 0), noise(40, 8, 1)
    coarse = interpolate(masks[:, 1:2].float(), (8, 8), mode="area")[:, 0]
    maps[:, 3] = 5 + 2 * coarse + 0.01 * maps[:, 3]
    maps[:, 5] = -coarse + 0.01 * maps[:, 5]
    return maps, masks, agree(maps, masks, 20, 3, 0)


def iou(found):
    return found.intersection.sum(-1) / found.union.sum(-1)


def test_a_planted_unit_is_found_and_its_negative_below_a_threshold(planted):
    _, _, found = planted
    assert set(np.argsort(-iou(found)[:, 1])[:2]) == {3, 5} and iou(found)[[3, 5], 1].min() > 0.7
    assert not found.below[3, 1] and found.below[5, 1]
    assert (iou(found)[[3, 5], 1] > 2 * found.chance_max[1]).all()
    noise_units = [0, 1, 2, 4, 6, 7]
    assert iou(found)[noise_units].max() < 0.25


def test_in_shuffled_masks_it_is_not_found(planted):
    maps, masks, _ = planted
    order = torch.cat([torch.arange(20).roll(7), 20 + torch.arange(20).roll(7)])
    found = agree(maps, masks[order], 20, 3, 0)
    assert (iou(found)[[3, 5], 1] < 1.5 * found.chance_max[1]).all()


def test_counts_are_those_of_plain_loops(planted):
    """Thresholds by trying every cut, intersections pixel by pixel."""
    maps, masks, found = planted
    large = interpolate(maps, (32, 32), mode="bilinear").numpy()
    tails = np.geomspace(0.003, 0.7, 20)
    for unit, concept in ((3, 1), (5, 1), (0, 0), (6, 2)):
        first, mask = large[:20, unit], masks[:20, concept].numpy()
        best = (-1.0, None, None)
        for below in (False, True):
            for cut in np.quantile(maps[:20, unit].numpy(), np.sort(np.concatenate([tails, 1 - tails]))).astype(
                np.float32
            ):
                here = (first <= cut) if below else (first > cut)
                score = (here & mask).sum() / (here | mask).sum()
                if score > best[0] + 1e-7:
                    best = (score, below, cut)
        assert found.selection_iou[unit, concept] == pytest.approx(best[0], abs=1e-6)
        assert (bool(found.below[unit, concept]), found.threshold[unit, concept]) == best[1:]
        held = (large[20:, unit] <= best[2]) if best[1] else (large[20:, unit] > best[2])
        known = masks[20:, concept].numpy()
        np.testing.assert_array_equal(found.intersection[unit, concept], (held & known).sum((1, 2)))
        np.testing.assert_array_equal(found.union[unit, concept], (held | known).sum((1, 2)))
    np.testing.assert_allclose(found.mean, large[:20].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    for unit, concept in ((3, 1), (0, 2)):
        inside = large[:20, unit][masks[:20, concept].numpy()]
        np.testing.assert_allclose(found.mean_in[unit, concept], inside.mean(), rtol=1e-4, atol=1e-5)


def test_held_out_pictures_do_not_choose(planted):
    maps, masks, found = planted
    other = maps.clone()
    other[20:] = noise(20, 8, 9)
    again = agree(other, masks, 20, 3, 0)
    np.testing.assert_array_equal(again.threshold, found.threshold)
    np.testing.assert_array_equal(again.selection_iou, found.selection_iou)
    assert iou(again)[3, 1] < 0.3


def test_a_concept_that_hardly_a_picture_shows_is_not_scored():
    maps, masks = noise(20, 4, 0), blobs(20, 2, 1)
    masks[SELDOM - 1 : 10, 0] = False  # two pictures of the selection
    found = agree(maps, masks, 10, 2, 0)
    assert np.isnan(found.selection_iou[:, 0]).all() and np.isnan(found.chance[:, 0]).all()
    assert not np.isnan(found.selection_iou[:, 1]).any()


def test_noise_is_at_chance():
    """Over many units and concepts, IoU of noise is what shuffled masks give."""
    found = agree(noise(60, 40, 3), blobs(60, 4, 4), 30, 4, 0)
    assert abs(iou(found).mean() - found.chance.mean()) < 0.01
    assert (iou(found) > found.chance_max).mean() < 0.02


def test_here():
    maps = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]])
    here = is_here(maps, np.array([1.0, 1.0], np.float32), np.array([False, True]))
    assert here.tolist() == [[[False, True], [True, False]]]
