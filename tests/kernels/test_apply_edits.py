"""The edit kernels against loops."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.kernels.apply_edits import apply_edits, swap_subspace


def _case(seed, tokens=5, groups=3, width=4, edits=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, groups, width, dtype=torch.float64, generator=generator)
    place = torch.randperm(tokens * groups, generator=generator)[:edits]
    operand = torch.randn(edits, width, dtype=torch.float64, generator=generator)
    return x, place // groups, place % groups, operand, generator


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), edits=st.integers(0, 15))
def test_apply_edits_is_a_loop_over_edits(seed, edits):
    x, token, group, operand, generator = _case(seed, edits=edits)
    keep = torch.tensor([0.0, 1.0, -2.5])[torch.randint(0, 3, (edits,), generator=generator)].double()
    before, expected = x.clone(), x.clone()
    for t, g, k, o in zip(token.tolist(), group.tolist(), keep.tolist(), operand, strict=True):
        for i in range(x.shape[-1]):
            expected[t, g, i] = k * x[t, g, i] + o[i]
    torch.testing.assert_close(apply_edits(x, token, group, keep, operand), expected, rtol=0, atol=1e-15)
    assert torch.equal(x, before)


def test_replacing_does_not_multiply_what_was_there():
    x = torch.full((1, 1, 3), math.inf)
    x[0, 0, 1] = math.nan
    zero = torch.zeros(1, dtype=torch.long)
    new = apply_edits(x, zero, zero, torch.zeros(1), torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.equal(new, torch.tensor([[[1.0, 2.0, 3.0]]]))


def test_swap_subspace_is_a_loop_over_edits():
    x, token, group, source, generator = _case(3)
    basis = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64, generator=generator)).Q
    before, expected = x.clone(), x.clone()
    for t, g, s in zip(token.tolist(), group.tolist(), source, strict=True):
        expected[t, g] = x[t, g] + basis @ (basis.T @ (s - x[t, g]))
    new = swap_subspace(x, token, group, source, basis)
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-14)
    assert torch.equal(x, before)
    full = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    replaced = apply_edits(x, token, group, torch.zeros(len(source), dtype=torch.float64), source)
    torch.testing.assert_close(swap_subspace(x, token, group, source, full), replaced, rtol=0, atol=1e-14)


def test_gradients_flow_to_states_operands_and_bases():
    x, token, group, operand, generator = _case(5, tokens=2, groups=2, width=3, edits=3)
    keep = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64, generator=generator)).Q
    inputs = [t.clone().requires_grad_() for t in (x, operand)]
    assert torch.autograd.gradcheck(lambda x, o: apply_edits(x, token, group, keep, o), inputs)
    inputs = [t.clone().requires_grad_() for t in (x, operand, basis)]
    assert torch.autograd.gradcheck(lambda x, s, b: swap_subspace(x, token, group, s, b), inputs)
