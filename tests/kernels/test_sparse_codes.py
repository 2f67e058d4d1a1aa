"""Sparse products and their gradients against dense matrices that are mostly zero."""

from __future__ import annotations

import pytest
import torch

from interp.kernels.sparse_codes import rows_of, sparse_decode, sparse_encode

ROWS, LATENTS, WIDTH = 9, 13, 5


def entries(seed: int, counts: list[int]):
    """Entries with these numbers per row, distinct latents in a row, in random order."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.cat([torch.randperm(LATENTS, generator=generator)[:n] for n in counts])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return latents, offsets, generator


COUNTS = [[3] * ROWS, [0, 4, 13, 1, 0, 2, 7, 5, 0], [0] * ROWS]


def dense(values, latents, offsets):
    out = values.new_zeros(ROWS, LATENTS)
    for row in range(ROWS):
        for e in range(int(offsets[row]), int(offsets[row + 1])):
            out[row, latents[e]] = out[row, latents[e]] + values[e]
    return out


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_decode_and_its_gradients_are_the_dense_ones(counts, dtype, tolerance):
    latents, offsets, generator = entries(1, counts)
    values = torch.randn(len(latents), dtype=dtype, generator=generator, requires_grad=True)
    atoms = torch.randn(LATENTS, WIDTH, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(ROWS, WIDTH, dtype=dtype, generator=generator)
    out = sparse_decode(values, latents, offsets, atoms)
    expected = dense(values, latents, offsets) @ atoms
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    found = torch.autograd.grad((out * weight).sum(), (values, atoms))
    wanted = torch.autograd.grad((expected * weight).sum(), (values, atoms), allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("centred", [True, False])
def test_encode_has_the_gradients_of_the_dense_product(counts, centred):
    latents, offsets, generator = entries(2, counts)
    x, weight, bias, centre = leaves = [
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((ROWS, WIDTH), (LATENTS, WIDTH), (LATENTS,), (WIDTH,))
    ]
    if not centred:
        leaves, centre = leaves[:3], None
    expected = ((x if centre is None else x - centre) @ weight.T + bias)[rows_of(offsets), latents]
    out = sparse_encode(expected.detach(), latents, offsets, x, weight, bias, centre)
    assert torch.equal(out, expected)
    direction = torch.randn(len(latents), dtype=torch.float64, generator=generator)
    found = torch.autograd.grad((out * direction).sum(), leaves)
    wanted = torch.autograd.grad((expected * direction).sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_an_expanded_gradient_is_read_row_by_row():
    latents, offsets, generator = entries(3, COUNTS[0])
    values = torch.randn(len(latents), dtype=torch.float64, generator=generator, requires_grad=True)
    atoms = torch.randn(LATENTS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    found = torch.autograd.grad(sparse_decode(values, latents, offsets, atoms).sum(), (values, atoms))
    wanted = torch.autograd.grad((dense(values, latents, offsets) @ atoms).sum(), (values, atoms))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_rows_of_entries():
    assert rows_of(torch.tensor([0, 2, 2, 5])).tolist() == [0, 0, 2, 2, 2]
