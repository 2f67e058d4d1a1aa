"""Pairs of prompts for pictures: one factor differs, the judge reads the answers off renders."""

import pytest
import torch

from interp.errors import PairError
from interp.shapes.caption import check_prompt
from interp.shapes.render import render
from interp.shapes.scene import Object, Scene
from interp.tasks.swaps import SWAPPED, PicturePair, PictureTask, swap_metrics, swaps


@pytest.mark.parametrize("factor", SWAPPED)
def test_one_factor_differs(factor):
    task = swaps(12, factor, seed=3)
    assert len(task) == 12 and task.factor == factor and factor in repr(task)
    for pair in task:
        check_prompt(pair.clean)
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        assert len(clean) == len(corrupted)
        differing = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert " ".join(a for a, _ in differing) == pair.answer
        assert " ".join(b for _, b in differing) == pair.wrong_answer
        assert (pair.cell is None) == (factor in ("cell", "background"))
        assert pair.cell is None or pair.cell in pair.clean


def test_seeds():
    assert swaps(5, seed=2).pairs == swaps(8, seed=2).pairs[:5] != swaps(5, seed=3).pairs
    assert {pair.answer for pair in swaps(40)} == {pair.wrong_answer for pair in swaps(40)}


@pytest.mark.parametrize("factor", SWAPPED)
def test_the_judge_prefers_what_was_asked_for(factor):
    pairs = list(swaps(6, factor, seed=1))
    scenes = []
    for pair in pairs:
        words = pair.clean.split()
        _, size, colour, shape, _, vertical, side, *_, background, _ = words
        scenes.append(Scene(background, (Object(shape, colour, size, f"{vertical} {side}"),), 4))
    images = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 255
    difference, probability = (metric.values(images, torch.arange(6)) for metric in swap_metrics(pairs))
    assert (difference > 1).all() and (probability > 0.7).all()
    mirrored = [PicturePair(p.corrupted, p.clean, p.factor, p.wrong_answer, p.answer, p.cell) for p in pairs]
    torch.testing.assert_close(swap_metrics(mirrored)[0].values(images, torch.arange(6)), -difference)


def test_refusals():
    with pytest.raises(PairError, match="at least 1"):
        swaps(0)
    with pytest.raises(PairError, match="'colour'"):
        swaps(2, "colur")
    mixed = PictureTask("mixed", (*swaps(1, "colour").pairs, *swaps(1, "size").pairs), "two")
    with pytest.raises(PairError, match="swap"):
        _ = mixed.factor
