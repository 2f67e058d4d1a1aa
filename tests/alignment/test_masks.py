"""Masks that are learned: their formulas, what is evaluated, and whether training finds what was planted."""

from __future__ import annotations

import pytest
import torch

from interp.alignment.maps import AlignmentMap, Subspace
from interp.alignment.masks import Boundless, UnitMask
from interp.errors import InterpError, ShapeError

WIDTH = 12


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def train(made: AlignmentMap, base: torch.Tensor, source: torch.Tensor, wanted: torch.Tensor, rate: float) -> None:
    """Towards a swap that is known."""
    optimizer, steps = torch.optim.Adam(made.groups(rate)), 400
    base, source = (x.expand(made.cells, -1, -1) for x in (base, source))
    for step in range(steps):
        made.anneal(step / steps)
        optimizer.zero_grad()
        ((made.swap(base, [source]) - wanted).square().mean((1, 2)) + made.penalty()).sum().backward()
        optimizer.step()
    made.eval()


def test_boundless_masks_are_the_papers_formula() -> None:
    made = Boundless(WIDTH, 2)
    with torch.no_grad():
        made.share.copy_(torch.tensor([[0.25, 0.4]]))
    made.temperature.fill_(3.0)
    for i, (start, end) in enumerate([(0, 3.0), (3.0, 7.8)]):
        for j in range(WIDTH):
            expected = 1 / (1 + 2.718281828 ** (-(j - start) / 3)) / (1 + 2.718281828 ** (-(end - j) / 3))
            assert made.masks[0, i, j].item() == pytest.approx(expected, abs=1e-6)


def test_boundless_masks_harden_to_those_of_evaluation() -> None:
    made = Boundless(WIDTH, 2, temperatures=(50.0, 1e-3))
    with torch.no_grad():
        made.share.copy_(torch.tensor([[0.3, 0.36]]))  # ends at 3.6 and 7.92
    made.anneal(1.0)
    soft = made.masks.detach()
    made.eval()
    assert made.masks[0].tolist() == [[1.0] * 4 + [0.0] * 8, [0.0] * 4 + [1.0] * 4 + [0.0] * 4]
    apart = torch.ones(WIDTH, dtype=torch.bool)
    apart[0] = False  # at the boundary itself the sigmoid is a half for ever
    torch.testing.assert_close(soft[..., apart], made.masks[..., apart])


def test_boundless_starts_at_half_the_width_and_keeps_its_boundaries_inside() -> None:
    assert Boundless(WIDTH).boundaries.tolist() == [[6.0]]
    torch.testing.assert_close(Boundless(WIDTH, 3).boundaries, torch.tensor([[2.0, 4.0, 6.0]]))
    made = Boundless(WIDTH, 2)
    with torch.no_grad():
        made.share.copy_(torch.tensor([[-3.0, 5.0]]))
    assert made.boundaries[0].tolist() == pytest.approx([0.001 * WIDTH, WIDTH])
    made.eval()
    assert made.masks[0, 0].tolist() == [1.0] + [0.0] * (WIDTH - 1)  # a first variable keeps one


def test_boundless_temperature_falls_linearly_and_boundaries_learn_faster() -> None:
    made = Boundless(WIDTH, cells=2)
    made.anneal(0.5)
    assert made.temperature.tolist() == pytest.approx([25.05] * 2)
    rotation, boundaries = made.groups(1e-3)
    assert rotation["params"] == [made.columns] and rotation["lr"] == 1e-3
    assert boundaries["params"] == [made.share] and boundaries["lr"] == pytest.approx(1e-2)
    assert made.penalty().tolist() == [0.5, 0.5]


def test_boundless_finds_a_planted_subspace_and_its_size() -> None:
    """And where nothing was planted, no coordinate but the one it must keep."""
    planted = Subspace.random(WIDTH, 3, seed=5).basis[0]
    base, source = states(300), states(300, seed=1)
    wanted = base + (source - base) @ planted @ planted.mT
    made = Boundless(WIDTH, cells=2, weight=0.02, temperatures=(10.0, 0.1))
    train(made, base, source, torch.stack([wanted, base]), 0.01)
    sizes = made.masks.sum(-1)[:, 0].tolist()
    assert sizes == [3.0, 1.0]
    assert torch.linalg.svdvals(planted.mT @ made.basis[0, :, :3]).min() > 0.99
    swapped = made.swap(torch.stack([base] * 2), [torch.stack([source] * 2)])
    assert (swapped[0] - wanted).square().mean() < 0.01 * (base - wanted).square().mean()


def test_a_unit_mask_is_a_sigmoid_for_one_variable_and_exclusive_for_several() -> None:
    made = UnitMask(WIDTH)
    with torch.no_grad():
        made.score.copy_(torch.linspace(-2, 2, WIDTH).expand_as(made.score))
    made.temperature.fill_(0.7)
    torch.testing.assert_close(made.masks[0, 0], torch.sigmoid(torch.linspace(-2, 2, WIDTH) / 0.7))
    several = UnitMask(WIDTH, 3)
    with torch.no_grad():
        several.score.copy_(torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(0)))
    assert (several.masks.sum(1) < 1).all()
    several.eval()
    assert (several.masks.sum(1) <= 1).all() and several.masks.sum() > 3
    assert torch.equal(several.masks, several.chosen.float())


def test_a_unit_mask_that_was_not_trained_exchanges_nothing() -> None:
    made = UnitMask(WIDTH, 2).eval()
    assert not made.chosen.any()
    base = states(4)
    assert torch.equal(made.swap(base, [states(4, seed=1), states(4, seed=2)]), base)


def test_a_unit_mask_anneals_geometrically_and_pays_by_share() -> None:
    made = UnitMask(WIDTH, weight=0.2, temperatures=(1.0, 0.01), cells=2)
    made.anneal(0.5)
    assert made.temperature.tolist() == pytest.approx([0.1] * 2)
    assert made.penalty().tolist() == pytest.approx([0.1] * 2)


@pytest.mark.parametrize("directions", [False, True])
def test_a_unit_mask_finds_the_planted_axes(directions: bool) -> None:
    axes = Subspace.random(WIDTH, 8, seed=3).basis[0] if directions else torch.eye(WIDTH)
    planted = axes[:, [1, 4, 6]]
    base, source = states(300), states(300, seed=1)
    wanted = base + (source - base) @ planted @ planted.mT
    made = UnitMask(WIDTH, axes=axes if directions else None, cells=2, weight=0.01)
    train(made, base, source, torch.stack([wanted, base]), 0.05)
    assert made.chosen[0, 0].nonzero()[:, 0].tolist() == [1, 4, 6]
    assert not made.chosen[1].any()
    swapped = made.swap(torch.stack([base] * 2), [torch.stack([source] * 2)])
    torch.testing.assert_close(swapped[0], wanted, atol=1e-5, rtol=0)


def test_refusals() -> None:
    with pytest.raises(InterpError, match="temperatures must be above 0"):
        Boundless(WIDTH, temperatures=(1.0, 0.0))
    with pytest.raises(InterpError, match="weight at least 0"):
        UnitMask(WIDTH, weight=-1.0)
    with pytest.raises(ShapeError, match="not orthonormal"):
        UnitMask(WIDTH, axes=torch.ones(WIDTH, 2))
    with pytest.raises(ShapeError, match="1 × 12 cells × width, the map is 1 × 10"):
        UnitMask(10, axes=torch.eye(WIDTH))
    with pytest.raises(ShapeError, match="2 × 12 cells × width, the map is 3 × 12"):
        UnitMask(WIDTH, axes=torch.eye(WIDTH).expand(2, -1, -1), cells=3)
