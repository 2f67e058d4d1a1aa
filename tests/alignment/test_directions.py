"""Closed-form directions: each finds what was planted, and with shuffled labels does not; LEACE's guarantee."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from interp.alignment.directions import (
    METHODS,
    closed_form,
    difference_of_means,
    kmeans,
    lda,
    pca,
    pls,
    probe,
)
from interp.alignment.erasure import leace
from interp.alignment.maps import Subspace
from interp.errors import InterpError, ShapeError

WIDTH, N = 32, 600
LABELLED = {
    "difference of means": difference_of_means,
    "probe": partial(probe, penalty=0.1),
    "lda": lda,
    "kmeans": kmeans,
}


def noise(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def planted(
    n_labels: int, seed: int = 0, size: float = 4.0, n: int = N
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States whose labels shift them along random directions; (states, labels, basis of the shifts' differences)."""
    directions = Subspace.random(WIDTH, n_labels, seed=100).basis[0]
    labels = torch.arange(n) % n_labels
    states = noise(n, seed) + size * directions[:, labels].mT + 3
    apart = directions - directions.mean(1, keepdim=True)
    return states, labels, torch.linalg.svd(apart)[0][:, : n_labels - 1]


def cosine(basis: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the largest principal angle."""
    return torch.linalg.svdvals(truth.mT @ basis).min().item()


def shuffled(labels: torch.Tensor) -> torch.Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("n_labels", [2, 3])
def test_a_planted_direction_is_found_and_with_shuffled_labels_is_not(name: str, n_labels: int) -> None:
    states, labels, truth = planted(n_labels, size=4.0 if name == "kmeans" else 2.0)
    found = LABELLED[name](states, labels)
    assert found.shape == (WIDTH, n_labels - 1)
    assert found.dtype == states.dtype
    Subspace(found)  # orthonormal
    assert cosine(found, truth) > 0.9
    if name != "kmeans":  # which does not look at labels
        assert cosine(LABELLED[name](states, shuffled(labels)), truth) < 0.6


def test_k_means_finds_nothing_where_labels_are_no_clusters() -> None:
    states, labels, truth = planted(2, size=0.5)
    assert cosine(kmeans(states, labels), truth) < 0.6
    assert cosine(difference_of_means(states, labels), truth) > 0.8  # which is there


@pytest.mark.parametrize("name", LABELLED)
def test_a_direction_points_to_the_larger_label(name: str) -> None:
    states, labels, _ = planted(2)
    for sign in (1, -1):
        found = LABELLED[name](states, 5 + sign * labels)
        along = (states @ found)[:, 0]
        assert along[labels == 1].mean() * sign > along[labels == 0].mean() * sign


def test_the_difference_of_means_is_the_difference_of_means() -> None:
    states, labels, _ = planted(2)
    by_hand = states[labels == 1].double().mean(0) - states[labels == 0].double().mean(0)
    torch.testing.assert_close(difference_of_means(states, labels)[:, 0], (by_hand / by_hand.norm()).float())


def test_pca_finds_what_varies_most_whatever_the_labels() -> None:
    states, _, truth = planted(2, size=6.0)
    assert cosine(pca(states), truth) > 0.98
    loud = torch.nn.functional.one_hot(torch.tensor(3), WIDTH).float()[:, None]
    drowned = states + 20 * noise(seed=4)[:, :1] * loud.mT
    assert cosine(pca(drowned), loud) > 0.99
    assert cosine(pca(drowned), truth) < 0.5  # and the variable is missed
    basis = pca(drowned, rank=2)
    assert cosine(basis, truth) > 0.9 and basis.shape == (WIDTH, 2)


def test_a_probe_and_lda_turn_away_from_noise_and_the_means_do_not() -> None:
    """A unit that carries only noise correlated with the informative unit's: reading uses it, writing must not."""
    shared = 3 * noise(seed=2)[:, 0]
    states, labels = 0.3 * noise(seed=1), torch.arange(N) % 2
    states[:, 0] += 2 * labels + shared
    states[:, 1] += shared
    reads = torch.zeros(WIDTH, 1)
    reads[0], reads[1] = 0.5**0.5, -(0.5**0.5)
    assert cosine(lda(states, labels), reads) > 0.95
    assert cosine(probe(states, labels, penalty=0.1), reads) > 0.9
    assert abs(difference_of_means(states, labels)[1, 0]) < 0.3


def test_pls_finds_the_direction_of_a_number_and_its_sign() -> None:
    truth = Subspace.random(WIDTH, 1, seed=7).basis[0]
    values = torch.linspace(1900, 2000, N)
    states = noise() + 0.1 * (values[:, None] - 1950) * truth.mT
    assert (pls(states, values)[:, 0] @ truth[:, 0]) > 0.99
    assert (pls(states, -values)[:, 0] @ truth[:, 0]) < -0.99
    assert abs(pls(states, shuffled(values))[:, 0] @ truth[:, 0]) < 0.6
    Subspace(pls(states, values, rank=3))


def test_pls_is_the_covariance_with_the_number() -> None:
    """Its first component, by definition."""
    values = noise(seed=5)[:, 0] + noise(seed=6)[:, 1]
    states = noise(seed=5)
    by_hand = (states - states.mean(0)).mT @ (values - values.mean())
    torch.testing.assert_close(pls(states, values)[:, 0], by_hand / by_hand.norm(), atol=1e-5, rtol=0)


def accuracy(states: torch.Tensor, labels: torch.Tensor, test: slice | None = None) -> float:
    """Of a logistic regression nearly without a penalty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = states.double().numpy(), labels.numpy()
        return LogisticRegression(C=1e4, max_iter=5000).fit(x, y).score(x, y)


@pytest.mark.parametrize("n_labels", [2, 3])
def test_after_leace_no_linear_classifier_beats_a_constant(n_labels: int) -> None:
    states, labels, _ = planted(n_labels, size=2.0)
    states = states.double() @ torch.randn(WIDTH, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    erased = leace(states, labels)(states)
    assert accuracy(states, labels) > 0.9
    assert accuracy(erased, labels) <= 1 / n_labels + 0.005
    means = torch.stack([erased[labels == label].mean(0) for label in range(n_labels)])
    torch.testing.assert_close(means, means[:1].expand_as(means), atol=1e-9, rtol=0)  # why
    assert (erased - states).square().mean() < 0.5 * (states - states.mean(0)).square().mean()


def test_leace_moves_states_less_than_any_projection_that_erases() -> None:
    """Against the orthogonal projection of the means' difference, which erases as well, under correlated noise."""
    states, labels, _ = planted(2, size=2.0)
    states = states.double() @ torch.randn(WIDTH, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    direction = difference_of_means(states, labels)
    plain = states - (states - states.mean(0)) @ direction @ direction.mT
    assert accuracy(plain, labels) < 0.51
    erased = leace(states, labels)(states)
    assert (erased - states).square().sum() < (plain - states).square().sum()


def test_leace_is_the_formula() -> None:
    states, labels, _ = planted(3)
    x = states.double() - states.double().mean(0)
    z = torch.nn.functional.one_hot(labels).double()
    variance, axes = torch.linalg.eigh(x.mT @ x / N)
    whiten = axes @ torch.diag(variance.rsqrt()) @ axes.mT
    columns = whiten @ (x.mT @ (z - z.mean(0)) / N)
    projection = columns @ torch.linalg.pinv(columns, rtol=1e-9)
    expected = states.double() - x @ (torch.linalg.inv(whiten) @ projection @ whiten).mT
    torch.testing.assert_close(leace(states.double(), labels)(states.double()), expected)


def test_leace_of_shuffled_labels_leaves_the_variable() -> None:
    states, labels, _ = planted(2)
    assert accuracy(leace(states, shuffled(labels))(states), labels) > 0.95


def test_leace_leaves_what_never_varied_and_its_map_exchanges_what_it_erases() -> None:
    states, labels, _ = planted(2)
    states[:, 5] = 7.0
    erasure = leace(states, labels)
    assert torch.equal(erasure(states)[:, 5], states[:, 5])
    base, source = states[labels == 0][:200], states[labels == 1][:200]
    swapped = erasure.map.swap(base, [source])
    torch.testing.assert_close(erasure(swapped), erasure(base), atol=1e-4, rtol=0)
    torch.testing.assert_close(swapped - erasure(swapped), source - erasure(source), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_closed_form_gives_a_map_of_as_many_cells_as_there_are_states(name: str) -> None:
    states, labels, _ = planted(3)
    other = noise(seed=9)
    made = closed_form(name, torch.stack([states, other]), labels)
    assert made.cells == 2 and made.ranks == (2,)
    torch.testing.assert_close(made.basis[1], closed_form(name, other, labels).basis[0])


def test_refusals() -> None:
    states, labels, _ = planted(2)
    with pytest.raises(InterpError, match="Did you mean 'difference of means'"):
        closed_form("difference of the means", states, labels)
    with pytest.raises(InterpError, match="Every label is 1"):
        difference_of_means(states, torch.ones(N, dtype=torch.long))
    with pytest.raises(InterpError, match="the labels' means span only 1 dimensions"):
        difference_of_means(
            torch.cat([states[:2], states[:2], states[:1], states[:1]]), torch.tensor([0, 1, 0, 1, 2, 2])
        )
    with pytest.raises(InterpError, match="means"):
        difference_of_means(states * 0, labels)
    with pytest.raises(InterpError, match="penalty of 0"):
        probe(states, labels, penalty=0.0)
    with pytest.raises(ShapeError, match="not finite"):
        leace(states * torch.nan, labels)
    with pytest.raises(ShapeError, match="one for each"):
        lda(states, labels[:5])
    with pytest.raises(ShapeError, match="at least two"):
        pca(states[:1])
    with pytest.raises(ShapeError, match="33 principal components"):
        pca(states, rank=33)
    with pytest.raises(ShapeError, match="33 components"):
        pls(states, labels.float(), rank=33)
    with pytest.raises(ShapeError, match="a finite number for each"):
        pls(states, labels[:5].float())
    with pytest.raises(InterpError, match="same for every state"):
        pls(states, torch.ones(N))
    with pytest.raises(InterpError, match="nothing is left to explain before component 2"):
        pls(torch.cat([labels[:, None].float(), torch.zeros(N, 3)], 1), labels.float(), rank=2)
