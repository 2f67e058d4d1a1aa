"""Semi-NMF: planted factors are found, the update never goes up, a planted hierarchy comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from interp.dictionaries.semi_nmf import Factors, _multiplied, refine, semi_nmf
from interp.errors import InterpError, ShapeError

ROWS, NEURONS, RANK = 300, 40, 6


def planted(seed=0, sparse=4):
    """Y ≥ 0, mostly 0, and Z with 4 signed neurons per feature."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(ROWS, RANK, generator=generator) * (torch.rand(ROWS, RANK, generator=generator) < 0.3)
    neurons = torch.randn(NEURONS, RANK, generator=generator)
    neurons = neurons * (torch.rand(NEURONS, RANK, generator=generator).argsort(0) < sparse)
    return (codes @ neurons.T).double(), neurons.double(), codes.double()


def matched(found, truth):
    cosines = F.normalize(found, dim=0).T @ F.normalize(truth, dim=0)
    return float(cosines.max(0).values.mean())


@pytest.mark.parametrize("start", ["random", "k-means", "svd"])
def test_planted_features_are_found(start):
    x, neurons, _ = planted()
    found = semi_nmf(x, RANK, kept=0.1, start=start, updates=300, seed=1)
    # Each start ends in an optimum of its own; shuffled activations, below, are the measure of what is little.
    assert matched(found.neurons, neurons) > 0.85 and found.error < 0.1
    assert (found.codes >= 0).all()
    assert (found.neurons != 0).sum(0).tolist() == [4] * RANK
    torch.testing.assert_close(found.codes.norm(dim=0), torch.ones(RANK).double())
    assert found.error == pytest.approx(
        float((x - found.codes @ found.neurons.T).square().sum() / x.square().sum()), abs=1e-9
    )
    assert found.top_rows(2, 7) == found.codes[:, 2].argsort(descending=True)[:7].tolist()


def test_shuffled_activations_have_no_such_features():
    x, neurons, _ = planted()
    generator = torch.Generator().manual_seed(5)
    shuffled = torch.stack([column[torch.randperm(ROWS, generator=generator)] for column in x.T], 1)
    found = semi_nmf(shuffled, RANK, kept=0.1, updates=300, seed=1)
    assert matched(found.neurons, neurons) < 0.7 and found.error > 0.2


def test_an_update_of_the_codes_never_raises_the_error():
    x, neurons, _ = planted(1)
    codes, last = torch.rand(ROWS, RANK).double(), np.inf
    for _ in range(50):
        codes = _multiplied(codes, x @ neurons, neurons.T @ neurons)
        error = float((x - codes @ neurons.T).square().sum())
        assert error <= last * (1 + 1e-9)
        last = error


def test_codes_of_other_rows_with_the_features_held_fixed():
    x, _, _ = planted()
    found = semi_nmf(x[:200], RANK, kept=0.1, updates=300, seed=1)
    other = found.encode(x[200:], updates=500)
    assert float((x[200:] - other @ found.neurons.T).square().sum() / x[200:].square().sum()) < 0.05


def test_a_hierarchy_of_parts_comes_out():
    generator = torch.Generator().manual_seed(3)
    # Six features that come in two families of three: codes of a row are those of its family, in different amounts.
    family = torch.randint(0, 2, (ROWS,), generator=generator)
    amounts = (0.7 + 0.6 * torch.rand(ROWS, 6, generator=generator)) * (0.2 + torch.rand(ROWS, 1, generator=generator))
    codes = (amounts * (torch.arange(6) // 3 == family[:, None])).double()
    _, neurons, _ = planted()
    x = codes @ neurons.T
    length = codes.norm(dim=0)
    found = refine(x, Factors(neurons * length, codes / length, np.zeros(1)), [2], updates=300, steps=200)
    children = [sorted(found.children(1, parent)) for parent in range(2)]
    assert sorted(children) == [[0, 1, 2], [3, 4, 5]]
    assert found.level(1).shape == (NEURONS, 2) and (found.weights[0] >= 0).all() and (found.codes >= 0).all()
    product = found.codes @ found.weights[0].T @ found.neurons.T
    assert found.error == pytest.approx(float((x - product).square().sum() / x.square().sum()))


def test_directions_are_columns_through_the_output_matrix():
    x, _, _ = planted()
    found, output = semi_nmf(x, 2, updates=5), torch.randn(7, NEURONS).double()
    torch.testing.assert_close(found.directions(output)[1], output @ found.neurons[:, 1])


def test_refusals():
    x, _, _ = planted()
    for wrong, error, what in [
        (dict(x=x * torch.nan), ShapeError, "finite"),
        (dict(x=x * 0), ShapeError, "not all 0"),
        (dict(rank=0), ShapeError, "rank=0"),
        (dict(rank=ROWS + 1), ShapeError, "rank=301"),
        (dict(kept=0.0), InterpError, "kept=0"),
        (dict(updates=0), InterpError, "updates=0"),
        (dict(rank=50, start="svd"), ShapeError, "40 singular values"),
    ]:
        with pytest.raises(error, match=what):
            semi_nmf(**(dict(x=x, rank=RANK, updates=2) | wrong))
    found = semi_nmf(x, RANK, updates=2)
    for ranks in ([], [6], [3, 3], [0]):
        with pytest.raises(ShapeError, match="must fall"):
            refine(x, found, ranks)
    with pytest.raises(ShapeError, match="no feature 6"):
        found.top_rows(6)
    with pytest.raises(ShapeError, match="3 wide"):
        found.encode(x[:, :3])
    with pytest.raises(ShapeError, match="no feature 0 with children at level 0"):
        refine(x, found, [2], updates=1, steps=1).children(0, 0)
