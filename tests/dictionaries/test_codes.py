"""Codes against the dense matrix that they stand for."""

from __future__ import annotations

import pytest
import torch

from interp.dictionaries.codes import Codes
from interp.errors import ShapeError


@pytest.fixture
def dense():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(7, 11, dtype=torch.float64, generator=generator)
    return x * (torch.rand(7, 11, generator=generator) < 0.3) * (torch.arange(7) != 3)[:, None]


def test_dense_there_and_back(dense):
    codes = Codes.from_dense(dense)
    assert torch.equal(codes.dense(), dense)
    assert codes.l0().tolist() == (dense > 0).sum(1).tolist()
    assert codes.fired().tolist() == (dense > 0).sum(0).tolist()
    assert torch.equal(codes.of([10, 2]), dense[:, [10, 2]])
    assert torch.equal(codes.select([6, 3, 6, 0]).dense(), dense[[6, 3, 6, 0]])


def test_rows_are_padded_with_zeros_strongest_first(dense):
    values, latents = Codes.from_dense(dense).per_row()
    assert torch.equal(values, dense.sort(dim=1, descending=True).values[:, : values.shape[1]])
    assert torch.equal(dense.gather(1, latents)[values > 0], values[values > 0])


def test_from_rows_keeps_zeros_out_of_the_counts():
    codes = Codes.from_rows(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[4, 1], [0, 2]]), 5)
    assert codes.l0().tolist() == [1, 2]
    assert codes.fired().tolist() == [1, 0, 1, 0, 1]
    assert codes.dense().tolist() == [[0, 0, 0, 0, 1], [2, 0, 3, 0, 0]]


def test_gradients_flow_through_dense(dense):
    values = dense.clone().requires_grad_()
    Codes.from_dense(values).dense().square().sum().backward()
    assert torch.equal(values.grad, 2 * dense)


@pytest.mark.parametrize("latents", [[11], [-1], [2, 2]])
def test_latents_that_are_not_there_or_come_twice(dense, latents):
    with pytest.raises(ShapeError, match="latent"):
        Codes.from_dense(dense).of(latents)
