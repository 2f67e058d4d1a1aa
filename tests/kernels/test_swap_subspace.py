"""The exchange of subspaces against loops."""

from __future__ import annotations

import torch

from interp.kernels.swap_subspace import swap_subspace


def _case(seed, tokens=5, groups=3, width=4, edits=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, groups, width, dtype=torch.float64, generator=generator)
    place = torch.randperm(tokens * groups, generator=generator)[:edits]
    source = torch.randn(edits, width, dtype=torch.float64, generator=generator)
    return x, place // groups, place % groups, source, generator


def _basis(*shape, generator):
    return torch.linalg.qr(torch.randn(shape, dtype=torch.float64, generator=generator)).Q


def test_swap_subspace_is_a_loop_over_edits():
    x, token, group, source, generator = _case(3)
    basis = _basis(4, 2, generator=generator)
    before, expected = x.clone(), x.clone()
    for t, g, s in zip(token.tolist(), group.tolist(), source, strict=True):
        expected[t, g] = x[t, g] + basis @ (basis.T @ (s - x[t, g]))
    new = swap_subspace(x, token, group, source, basis)
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-14)
    assert torch.equal(x, before)
    full = _basis(4, 4, generator=generator)
    replaced = x.index_put((token, group), source)
    torch.testing.assert_close(swap_subspace(x, token, group, source, full), replaced, rtol=0, atol=1e-14)


def test_every_edit_has_its_own_subspace_and_source():
    x, token, group, source, generator = _case(4)
    bases, rotation = _basis(3, 4, 2, generator=generator), torch.tensor([2, 0, 2, 0, 0, 2, 2])
    row = torch.tensor([1, 1, 0, 6, 5, 4, 4])
    expected = x.clone()
    for t, g, r, i in zip(token.tolist(), group.tolist(), row.tolist(), rotation.tolist(), strict=True):
        expected[t, g] = x[t, g] + bases[i] @ (bases[i].T @ (source[r] - x[t, g]))
    found = swap_subspace(x, token, group, source, bases, row, rotation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    with torch.no_grad():
        assert swap_subspace(x, token, group, source, bases, row, rotation, owned=True).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-14)


def test_gradients_flow_to_states_sources_and_bases():
    x, token, group, source, generator = _case(5, tokens=2, groups=2, width=3, edits=3)
    inputs = [t.clone().requires_grad_() for t in (x, source, _basis(3, 2, generator=generator))]
    assert torch.autograd.gradcheck(lambda x, s, b: swap_subspace(x, token, group, s, b), inputs)
    rotation, row = torch.tensor([1, 0, 1]), torch.tensor([0, 0, 2])
    inputs[2] = _basis(2, 3, 2, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s, b: swap_subspace(x, token, group, s, b, row, rotation), inputs)


def test_a_full_swap_in_half_precision_is_the_source():
    generator = torch.Generator().manual_seed(0)
    x, source = (torch.randn(4, 1, 24, generator=generator).bfloat16() for _ in range(2))
    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q
    at, zero = torch.arange(4), torch.zeros(4, dtype=torch.long)
    assert torch.equal(swap_subspace(x, at, zero, source[:, 0], basis), source)
