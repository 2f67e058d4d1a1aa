"""Standardised rows, and the ways back."""

from __future__ import annotations

import pytest
import torch

from interp.dictionaries.standardise import Moments, Standardisation
from interp.errors import ShapeError


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 7, generator=generator) * torch.tensor([1, 1, 1, 1, 20, 20, 20.0]) + 100
    bins = torch.randint(0, 2, (300,), generator=generator)
    x[bins == 1] *= 3
    return x, bins


def test_each_site_of_each_bin_has_mean_0_and_mean_variance_1(rows):
    x, bins = rows
    moments = Moments.of(x[:100], bins[:100], 2) + Moments.of(x[100:], bins[100:], 2)
    standard = Standardisation.from_moments(moments, ("a", "b"), (4, 3), steps=[[0, 1], [2]])
    out = standard.apply_to(x, bins)
    for number in range(2):
        for channels in (slice(0, 4), slice(4, 7)):
            part = out[bins == number, channels].double()
            torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]).double(), atol=1e-5, rtol=0)
            assert float(part.var(0, correction=0).mean()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(standard.undo(out, bins), x, rtol=1e-5, atol=1e-3)
    assert standard.bin_of(1) == 0 and standard.bin_of(2) == 1


def test_one_scale_per_site_keeps_angles(rows):
    x, _ = rows
    standard = Standardisation.from_moments(Moments.of(x))
    centred = x - x.mean(0)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(standard.apply_to(x)[0], standard.apply_to(x)[1], dim=0),
                               cosine(centred[0], centred[1], dim=0), atol=1e-5, rtol=0)  # fmt: skip


def test_refusals(rows):
    x, bins = rows
    standard = Standardisation.from_moments(Moments.of(x, bins, 2), steps=[[0], [1]])
    with pytest.raises(ShapeError, match="name the step bin"):
        standard.apply_to(x)
    with pytest.raises(ShapeError, match="needed are rows of 7"):
        standard.apply_to(x[:, :6], bins)
    with pytest.raises(ShapeError, match="Step 5 is in no bin"):
        standard.bin_of(5)
    with pytest.raises(ShapeError, match="constant"):
        Standardisation.from_moments(Moments.of(torch.ones(5, 3)))
    with pytest.raises(ShapeError, match="fewer than 2 rows"):
        Standardisation.from_moments(Moments.of(x[:1]))
    with pytest.raises(ShapeError, match="do not make"):
        Standardisation(torch.zeros(1, 3), torch.ones(1, 1), ("a", "b"), (1, 2))
