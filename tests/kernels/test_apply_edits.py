"""The edit kernels against loops."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.kernels.apply_edits import apply_edits


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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), edits=st.integers(0, 20))
def test_edits_at_one_place_act_in_list_order(seed, edits):
    x, *_, generator = _case(seed)
    place, rows = (torch.randint(0, n, (edits,), generator=generator) for n in (6, 7))
    keep = torch.tensor([0.0, 1.0, -2.5])[torch.randint(0, 3, (edits,), generator=generator)].double()
    operand = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    wave = torch.tensor([(place[:i] == p).sum() for i, p in enumerate(place)], dtype=torch.long)
    expected = x.clone()
    for p, k, r in zip(place.tolist(), keep.tolist(), rows.tolist(), strict=True):
        expected[p // 3, p % 3] = k * expected[p // 3, p % 3] + operand[r]
    found = apply_edits(x, place // 3, place % 3, keep, operand, rows, wave)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_what_the_caller_owns_is_written_into_unless_gradients_are_recorded():
    x, token, group, operand, _ = _case(3)
    keep = torch.ones(len(token), dtype=torch.float64)
    new = apply_edits(x, token, group, keep, operand)
    assert apply_edits(x, token, group, keep, operand, owned=True).data_ptr() != x.data_ptr()
    with torch.no_grad():
        assert apply_edits(x, token, group, keep, operand, owned=True).data_ptr() == x.data_ptr()
    assert torch.equal(x, new)


def test_half_precision_is_rounded_once():
    x = torch.tensor([[[1.0]]], dtype=torch.bfloat16)
    zero = torch.zeros(2, dtype=torch.long)
    small = torch.tensor([[2.0**-8]])  # half a unit in the last place of 1: lost, if rounded twice
    new = apply_edits(x, zero, zero, torch.ones(2), small, zero, torch.tensor([0, 1]))
    assert float(new) == 1 + 2.0**-7


def test_gradients_flow_to_states_and_operands():
    x, token, group, operand, _ = _case(5, tokens=2, groups=2, width=3, edits=3)
    keep = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, operand)]
    assert torch.autograd.gradcheck(lambda x, o: apply_edits(x, token, group, keep, o), inputs)
    again, rows, wave = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1]), torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda x, o: apply_edits(x, again, again, keep, o, rows, wave), inputs)
