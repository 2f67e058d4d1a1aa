"""Alignment maps: identities that hold for all, and what each is compared with."""

from __future__ import annotations

import pytest
import torch

from interp.alignment.maps import Affine, AlignmentMap, LowRank, Subspace, checked_basis
from interp.alignment.masks import Boundless, UnitMask
from interp.alignment.revnet import RevNet
from interp.errors import InterpError, ShapeError

WIDTH = 12
KINDS = {
    "random": lambda ranks, cells, seed: Subspace.random(WIDTH, ranks, cells=cells, seed=seed),
    "low rank": lambda ranks, cells, seed: LowRank(WIDTH, ranks, cells=cells, seed=seed),
    "affine": lambda ranks, cells, seed: Affine(WIDTH, ranks, cells=cells, seed=seed),
    "revnet": lambda ranks, cells, seed: RevNet(WIDTH, ranks, blocks=3, hidden=7, cells=cells, seed=seed),
    "boundless": lambda ranks, cells, seed: Boundless(WIDTH, len(ranks), cells=cells, seed=seed),
    "units": lambda ranks, cells, seed: UnitMask(WIDTH, len(ranks), cells=cells),
    "directions": lambda ranks, cells, seed: UnitMask(WIDTH, len(ranks), cells=cells, axes=random_basis(9, seed)),
}
BLOCKED = ("random", "low rank", "affine", "revnet")


def random_basis(rank: int, seed: int = 0) -> torch.Tensor:
    return Subspace.random(WIDTH, rank, seed=seed).basis[0]


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def disturbed(made: AlignmentMap) -> AlignmentMap:
    """As in the middle of training: no parameter where it started."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_swap_with_itself_is_the_identity(name: str, training: bool) -> None:
    made = disturbed(KINDS[name]((3, 2), 1, 0)).train(training)
    base = states(5)
    swapped = made.swap(base, [base, base])
    if name == "revnet":
        torch.testing.assert_close(swapped, base, atol=1e-5, rtol=0)
    else:
        assert torch.equal(swapped, base)


@pytest.mark.parametrize("name", BLOCKED)
def test_full_rank_is_full_replacement(name: str) -> None:
    base, source = states(5), states(5, seed=1)
    made = disturbed(KINDS[name]((WIDTH,), 1, 0))
    torch.testing.assert_close(made.swap(base, [source]), source, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", BLOCKED)
def test_rank_0_changes_nothing(name: str) -> None:
    base, source = states(5), states(5, seed=1)
    made = disturbed(KINDS[name]((0,), 1, 0))
    swapped = made.swap(base, [source])
    torch.testing.assert_close(swapped, base, atol=1e-5 if name == "revnet" else 0, rtol=0)


@pytest.mark.parametrize("name", BLOCKED)
def test_after_a_swap_each_variable_is_its_sources_and_the_rest_is_the_bases(name: str) -> None:
    """The definition, read off φ itself."""
    made = disturbed(KINDS[name]((3, 2), 1, 0))
    base, first, second = (states(5, seed=seed) for seed in range(3))
    swapped = made.swap(base, [first, second])
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(made.coordinates(swapped)[0], made.coordinates(first)[0], **close)
    torch.testing.assert_close(made.coordinates(swapped)[1], made.coordinates(second)[1], **close)
    if isinstance(made, RevNet):
        torch.testing.assert_close(made(swapped)[:, 5:], made(base)[:, 5:], **close)
    elif not isinstance(made, Affine):
        rest = torch.eye(WIDTH) - made.basis[0] @ made.basis[0].mT
        torch.testing.assert_close(swapped @ rest, base @ rest, **close)
    assert not torch.allclose(swapped, base, atol=0.1)


def test_an_affine_swap_is_that_of_the_whole_invertible_map() -> None:
    """Against φ(h) = h A + c, square, inverted as a whole."""
    generator = torch.Generator().manual_seed(0)
    square, offset = torch.randn(WIDTH, WIDTH, generator=generator).double(), torch.randn(WIDTH, generator=generator)
    base, source = states(5).double(), states(5, seed=1).double()
    coordinates = torch.where(torch.arange(WIDTH) < 4, source @ square + offset, base @ square + offset)
    expected = (coordinates - offset) @ square.inverse()
    made = Affine(WIDTH, 4).double()
    with torch.no_grad():
        made.read.copy_(square[:, :4])
        made.write.copy_(square.inverse()[:4].mT)
    torch.testing.assert_close(made.swap(base, [source]), expected)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_cells_are_maps_of_their_own(name: str, training: bool) -> None:
    made = disturbed(KINDS[name]((3, 2), 4, 0)).train(training)
    base, first, second = (states(4, 2, 3, seed=seed) for seed in range(3))
    swapped = made.swap(base, [first, second])
    assert swapped.shape == base.shape
    assert all(tensor.shape[0] == 4 for tensor in made.state_dict().values())
    for cell in range(4):
        alone = made.select([cell])
        assert alone.cells == 1 and alone.capacity == made.capacity
        found = alone.swap(base[cell], [first[cell], second[cell]])
        torch.testing.assert_close(found, swapped[cell], atol=1e-6, rtol=1e-5)
        for block, whole in zip(alone.coordinates(first[cell]), made.coordinates(first), strict=True):
            torch.testing.assert_close(block, whole[cell], atol=1e-6, rtol=1e-5)
    assert made.penalty().shape == (4,)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "random"])
def test_gradients_are_right(name: str) -> None:
    made = disturbed(KINDS[name]((3, 2), 2, 0)).double()
    base, first, second = (states(2, 3, seed=seed).double() for seed in range(3))
    names, values = zip(*made.named_parameters(), strict=True)

    def swapped(*parameters: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(
            Swapping(made), {f"made.{k}": v for k, v in given.items()}, (base, [first, second])
        )

    torch.autograd.gradcheck(swapped, tuple(value.detach().requires_grad_() for value in values))


class Swapping(torch.nn.Module):
    def __init__(self, made: AlignmentMap) -> None:
        super().__init__()
        self.made = made

    def forward(self, base: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
        return self.made.swap(base, sources)


@pytest.mark.parametrize(("width", "rank"), [(16, 16), (576, 1), (576, 64)])
def test_columns_stay_orthonormal_over_200_steps_of_adam(width: int, rank: int) -> None:
    made = LowRank(width, rank, cells=2)
    base, source, wanted = torch.randn(3, 2, 32, width, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(made.groups(0.05))
    for _ in range(200):
        optimizer.zero_grad()
        (made.swap(base, [source]) - wanted).square().sum().backward()
        optimizer.step()
    assert (made.columns.mT @ made.columns - torch.eye(rank)).abs().max() > 0.1  # what is trained is not
    assert (made.basis.mT @ made.basis - torch.eye(rank)).abs().max() < 1e-6


def test_the_columns_follow_what_is_trained_without_a_jump() -> None:
    """Gram and Schmidt's: each column points along the trained one, so a small step never flips a coordinate's sign."""
    made = disturbed(LowRank(WIDTH, 5))
    triangle = made.basis[0].mT @ made.columns[0]
    assert (triangle.diagonal() > 0).all()
    assert triangle.tril(-1).abs().max() < 1e-6


def test_training_finds_a_planted_subspace_and_only_it() -> None:
    """What a swap should do is known: exchange the planted plane. Several starts, in one batch."""
    planted = random_basis(2, seed=5)
    base, source = states(200), states(200, seed=1)
    wanted = base + (source - base) @ planted @ planted.mT
    made = LowRank(WIDTH, 2, cells=3)
    optimizer = torch.optim.Adam(made.groups(0.03))
    for _ in range(300):
        optimizer.zero_grad()
        (made.swap(base.expand(3, -1, -1), [source.expand(3, -1, -1)]) - wanted).square().mean().backward()
        optimizer.step()
    cosines = torch.linalg.svdvals(planted.mT @ made.basis)
    assert cosines.min() > 0.9999
    assert torch.linalg.svdvals(planted.mT @ random_basis(2, seed=0)).min() < 0.9


def test_a_low_rank_map_starts_where_the_random_control_is() -> None:
    trained, control = LowRank(WIDTH, (2, 3), cells=2, seed=4), Subspace.random(WIDTH, (2, 3), cells=2, seed=4)
    torch.testing.assert_close(trained.basis, control.basis, atol=1e-6, rtol=0)


def test_a_frozen_low_rank_map_is_the_same_subspace() -> None:
    made = disturbed(LowRank(WIDTH, (2, 3), cells=2))
    base, first, second = (states(2, 4, seed=seed) for seed in range(3))
    frozen = made.frozen()
    assert frozen.ranks == (2, 3) and frozen.capacity == 0
    torch.testing.assert_close(frozen.swap(base, [first, second]), made.swap(base, [first, second]))


def test_half_precision_states_are_swapped_in_the_maps_own() -> None:
    base, source = states(5).bfloat16(), states(5, seed=1).bfloat16()
    made = LowRank(WIDTH, 3)
    swapped = made.swap(base, [source])
    assert swapped.dtype == torch.bfloat16
    assert torch.equal(swapped, made.swap(base.float(), [source.float()]).bfloat16())


def test_the_inverse_of_a_revnet_is_exact() -> None:
    made = disturbed(RevNet(WIDTH, 6, blocks=16, hidden=32, cells=2))
    x = states(2, 50)
    torch.testing.assert_close(made.inverse(made(x)), x, atol=1e-5, rtol=0)
    double = made.double()
    torch.testing.assert_close(double.inverse(double(x.double())), x.double(), atol=1e-13, rtol=0)
    assert not torch.allclose(double(x.double()), x.double(), atol=0.1)


def test_a_revnet_is_that_of_the_formula() -> None:
    """Against torch's own layers, one block after another."""
    made = RevNet(WIDTH, 6, blocks=2, hidden=7, cells=3)
    x = states(3, 4)
    for cell in range(3):
        left, right = x[cell].chunk(2, -1)
        for block in range(2):
            f, g = (mlp(made, cell, block, which) for which in (0, 1))
            left = left + f(right)
            right = right + g(left)
        torch.testing.assert_close(made(x)[cell], torch.cat([left, right], -1))


def mlp(made: RevNet, cell: int, block: int, which: int) -> torch.nn.Module:
    first, second = torch.nn.Linear(6, 7), torch.nn.Linear(7, 6)
    with torch.no_grad():
        first.weight.copy_(made.weight_in[cell, block, which].mT)
        first.bias.copy_(made.bias_in[cell, block, which, 0])
        second.weight.copy_(made.weight_out[cell, block, which].mT)
        second.bias.copy_(made.bias_out[cell, block, which, 0])
    return torch.nn.Sequential(first, torch.nn.ReLU(), second)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="A rank of 13 is above the width of the states, 12"):
        LowRank(WIDTH, 13)
    with pytest.raises(ShapeError, match="7 \\+ 6 are together above the width"):
        Affine(WIDTH, (7, 6))
    with pytest.raises(ShapeError, match="0 coordinates or more"):
        LowRank(WIDTH, (3, -1))
    with pytest.raises(ShapeError, match="0 coordinates or more"):
        LowRank(WIDTH, ())
    with pytest.raises(ShapeError, match="each is at least 1"):
        LowRank(WIDTH, 2, cells=0)
    with pytest.raises(ShapeError, match="width is 11; use LowRank"):
        RevNet(11, 2)
    with pytest.raises(ShapeError, match="each is at least 1"):
        RevNet(WIDTH, 2, blocks=0)
    with pytest.raises(ShapeError, match="torch.linalg.qr"):
        Subspace(2 * random_basis(2))
    with pytest.raises(ShapeError, match="not orthonormal"):
        Subspace(torch.full((WIDTH, 1), torch.nan))
    with pytest.raises(ShapeError, match="is it transposed"):
        Subspace(random_basis(2).mT)
    with pytest.raises(ShapeError, match="must add up"):
        Subspace(random_basis(3), (1, 1))
    with pytest.raises(ShapeError, match="\\[width, rank\\] or"):
        checked_basis(torch.ones(WIDTH))


def test_refusals_of_a_swap() -> None:
    made = LowRank(WIDTH, (2, 1), cells=2)
    base = states(2, 3)
    with pytest.raises(ShapeError, match="1 sources for 2 variables"):
        made.swap(base, [base])
    with pytest.raises(ShapeError, match="those of a source"):
        made.swap(base, [base, base[:, :2]])
    with pytest.raises(ShapeError, match="States are 11 wide"):
        made.swap(base[..., :-1], [base[..., :-1]] * 2)
    with pytest.raises(ShapeError, match="first axis of a map of 2 cells"):
        made.coordinates(states(3, 3))


def test_an_affine_map_that_degenerated_says_so() -> None:
    made = Affine(WIDTH, 2)
    with torch.no_grad():
        made.write.zero_()
    with pytest.raises(InterpError, match="no longer invertible"):
        made.swap(states(2), [states(2, seed=1)])


def test_repr_says_what_it_is() -> None:
    assert repr(LowRank(WIDTH, (2, 1), cells=3)) == "LowRank(width 12, rank 2 + 1, 3 cells, 36 trained numbers each)"
    assert "3 blocks of 7 hidden units" in repr(RevNet(WIDTH, 2, blocks=3, hidden=7))
    assert "0 trained numbers" in repr(Subspace.random(WIDTH, 2))
    assert "2 variables among 12 units" in repr(UnitMask(WIDTH, 2))
    assert "learned boundaries" in repr(Boundless(WIDTH))
