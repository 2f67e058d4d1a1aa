"""Concepts are found one by one where edges cost something and are few, and are not otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.concepts.hierarchies import Sizes, latent_hierarchy
from interp.concepts.identifiability import IdentifiabilityResult, edge_f1, identifiability, match_concepts
from interp.concepts.minimality import Learning, _Starts, learn_level, learn_levels
from interp.errors import InterpError, ShapeError
from interp.results import Result


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL, QUICK = Sizes(24, 6, 2), Learning(steps=300, starts=2)


@pytest.fixture(scope="module")
def found():
    return identifiability(lambda seed: latent_hierarchy(2000, sizes=SMALL, seed=seed), QUICK, seeds=[0])


def test_minimality_finds_concepts_one_by_one_and_reconstruction_alone_does_not(found):
    low = found.data.isel(seed=0).sel(level="low")
    assert float(low["correlation"].sel(learner="minimal")) > 0.95
    assert found.gain("low") > 0.1
    assert float(low["edge_f1"].sel(learner="minimal")) > 0.9 > float(low["edge_f1"].sel(learner="unconstrained"))
    # Both know as much about the concepts, taken together: it is the mixture that only one resolves.
    assert float(low["r2_all"].min()) > 0.9


def test_where_nothing_is_left_nothing_is_found():
    result = identifiability(
        lambda seed: latent_hierarchy(2000, sizes=SMALL, seed=seed), replace(QUICK, steps=100), seeds=[0], shuffled=True
    )
    assert float(result.data["correlation"].max()) < 0.6
    assert float(result.data["edge_f1"].sel(level="low").max()) < 0.7


def test_dense_edges_leave_a_mixture():
    result = identifiability(
        lambda seed: latent_hierarchy(2000, dense=True, sizes=SMALL, seed=seed), replace(QUICK, steps=200), seeds=[0]
    )
    assert float(result.data["correlation"].sel(level="low").max()) < 0.9


def starts_of(children, concepts, seeds):
    return _Starts(children, concepts, 2, [torch.Generator().manual_seed(seed) for seed in seeds]).double()


def test_strength_is_no_less_than_any_slope_of_the_decoder():
    """The price is paid on a bound of the slopes; so an edge without strength is none."""
    starts = starts_of(5, 3, [0])
    codes = torch.randn(2, 40, 3, dtype=torch.float64, requires_grad=True)

    def out(c):
        hidden = torch.nn.functional.leaky_relu(torch.baddbmm(starts.reads_bias, c, starts.reads), 0.1)
        return (hidden.view(2, 40, 5, -1) * starts.writes[:, None]).sum(3)

    slopes = torch.stack([torch.autograd.grad(out(codes)[..., i].sum(), codes)[0] for i in range(5)], 2)
    assert (slopes.abs() <= starts.strength()[:, None] + 1e-12).all()
    nothing = torch.zeros(2, 40, 5).double()
    torch.testing.assert_close(starts.unexplained(nothing, codes), out(codes).square().mean((1, 2)))


def test_starts_do_not_see_each_other():
    starts = starts_of(6, 2, [1, 2])
    x = torch.randn(4, 50, 6, dtype=torch.float64)
    loss = starts.unexplained(x, starts.codes(x)) + starts.strength().sum((1, 2))
    gradients = torch.autograd.grad(loss[1], list(starts.parameters()))
    assert all((g[[0, 2, 3]] == 0).all() for g in gradients)
    assert any((g[1] != 0).any() for g in gradients)


def test_a_problem_is_learned_as_if_it_were_alone():
    x, other = (torch.randn(200, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    how = Learning(steps=20, starts=2)
    both = learn_levels([other, x], (3, 2), [replace(how, seed=7), replace(how, price=0.3)])[1]
    (alone,) = learn_levels([x], (3, 2), [replace(how, price=0.3)])
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a.codes, b.codes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.strength, b.strength, rtol=0, atol=1e-3)
    one = learn_level(x, 3, replace(how, price=0.3))
    torch.testing.assert_close(one.codes, alone[0].codes, rtol=0, atol=1e-3)


def test_a_match_is_the_best_assignment():
    truth = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    learned = torch.stack([truth[:, 2].exp(), torch.randn(2000), -truth[:, 0], truth[:, 1] + truth[:, 0]], 1)
    match = match_concepts(learned, truth)
    assert match.assigned.tolist() == [2, 3, 0]
    np.testing.assert_allclose(match.correlation[0], 1, atol=1e-6)
    assert match.correlation[2] < 0.9 < match.r2[2]  # bent, and yet the same concept
    assert match.r2[1] < 0.6 < 0.99 < match.r2_all[1]  # a mixture alone does not tell it; with the other it does


def test_edge_f1_by_hand():
    truth = torch.tensor([[True, False], [True, True]])
    assert edge_f1(truth, truth) == 1
    assert edge_f1(torch.tensor([[True, True], [False, False]]), truth) == pytest.approx(2 / 5)
    assert np.isnan(edge_f1(truth & False, truth & False))


def test_a_result_is_saved_loaded_and_drawn(found, tmp_path):
    found.save(tmp_path / "found.nc")
    again = Result.load(tmp_path / "found.nc")
    assert isinstance(again, IdentifiabilityResult) and again.data.identical(found.data)
    assert "unconstrained" in found.summary() and len(found.plot().data) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: learn_level(x, 0), ShapeError, "0 concepts above 6"),
        (lambda x: learn_level(x, 6), ShapeError, "6 concepts above 6"),
        (lambda x: learn_level(x[:100], 2), ShapeError, "fewer than a batch"),
        (lambda x: learn_level(x * torch.tensor([1, 1, 0, 1, 1, 1]), 2), ShapeError, "Variable 2 is constant"),
        (lambda x: learn_level(x / 0, 2), ShapeError, "not finite"),
        (lambda x: learn_levels([x], [], [QUICK]), ShapeError, "No level"),
        (lambda x: learn_levels([x, x[1:]], [2], [QUICK] * 2), ShapeError, "of one shape"),
        (lambda x: learn_levels([x, x], [2], [QUICK]), InterpError, "1 learnings of 2"),
        (lambda x: learn_levels([x, x], [2], [QUICK, Learning(steps=7)]), InterpError, "alike but for"),
        (lambda x: Learning(price=-1), InterpError, "price is not negative"),
        (lambda x: Learning(starts=0), InterpError, "the others are positive"),
        (lambda x: match_concepts(x[:, :1], x), ShapeError, "at least as many learned"),
        (lambda x: identifiability(lambda s: latent_hierarchy(9), QUICK, seeds=[]), InterpError, "at least one seed"),
        (lambda x: identifiability(lambda s: latent_hierarchy(9), Learning(price=0)), InterpError, "price above 0"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)))
