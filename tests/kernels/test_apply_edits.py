"""The edit kernels against loops."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.kernels.apply_edits import apply_edits, modulate, swap_subspace, where_open, with_norm_of


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


def _latents(generator, n=3, width=4):
    read, write = (torch.randn(n, width, dtype=torch.float64, generator=generator) for _ in range(2))
    bias = torch.randn(n, dtype=torch.float64, generator=generator)
    return read, write, bias, torch.tensor([0.0, 0.5, -math.inf], dtype=torch.float64)


def test_modulate_is_a_loop_over_edits_and_latents():
    x, token, group, _, generator = _case(7)
    read, write, bias, threshold = _latents(generator)
    gain, offset = (torch.randn(len(token), 3, dtype=torch.float64, generator=generator) for _ in range(2))
    before, expected, active = x.clone(), x.clone(), 0
    for e, (t, g) in enumerate(zip(token.tolist(), group.tolist(), strict=True)):
        for i in range(3):
            z = sum(float(x[t, g, k] * read[i, k]) for k in range(4)) + float(bias[i])
            a = z if z > threshold[i] else 0.0
            active += a != 0
            for k in range(4):
                expected[t, g, k] += (gain[e, i] * a + offset[e, i] - a) * write[i, k]
    assert 0 < active < 3 * len(token)  # thresholds decide something
    found = modulate(x, token, group, read, write, bias, threshold, gain, offset)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert torch.equal(x, before)
    nothing = modulate(x, token, group, read, write, bias, threshold, torch.ones_like(gain), torch.zeros_like(offset))
    assert torch.equal(nothing, x)


def test_the_norm_is_kept_and_the_direction_is_the_edited_one():
    x, token, group, operand, _ = _case(9)
    edited = apply_edits(x, token, group, torch.ones(len(token), dtype=torch.float64), operand)
    new = with_norm_of(x, edited, token, group)
    for t, g in zip(token.tolist(), group.tolist(), strict=True):
        assert abs(float(new[t, g].norm() - x[t, g].norm())) < 1e-14
        assert abs(float(torch.cosine_similarity(new[t, g], edited[t, g], dim=0)) - 1) < 1e-14
    assert torch.equal(with_norm_of(x, x, token, group), x)
    untouched = torch.ones(x.shape[:2], dtype=torch.bool)
    untouched[token, group] = False
    assert torch.equal(new[untouched], x[untouched])
    zero = torch.zeros_like(x)
    assert torch.equal(with_norm_of(x, zero, token, group)[token, group], zero[token, group])


def test_a_gate_opens_by_the_state_that_was_there():
    x, token, group, operand, generator = _case(11)
    read = torch.randn(4, dtype=torch.float64, generator=generator)
    edited = apply_edits(x, token, group, torch.zeros(len(token), dtype=torch.float64), operand)
    expected, opened = x.clone(), 0
    for t, g, o in zip(token.tolist(), group.tolist(), operand, strict=True):
        if sum(float(x[t, g, k] * read[k]) for k in range(4)) > 0.3:
            expected[t, g], opened = o, opened + 1
    assert 0 < opened < len(token)
    assert torch.equal(where_open(x, edited, token, group, read, 0.3), expected)
    assert torch.equal(where_open(x, edited, token, group, read, math.inf), x)
    assert torch.equal(where_open(x, edited, token, group, read, -math.inf), edited)


def test_gradients_flow_through_modulation_gates_and_kept_norms():
    x, token, group, _, generator = _case(5, tokens=2, groups=2, width=3, edits=3)
    read, write, bias = _latents(generator, 2, 3)[:3]
    threshold = torch.tensor([0.0, -0.5], dtype=torch.float64)
    gain = torch.full((3, 2), 2.0, dtype=torch.float64)

    def whole(x, write, gain):
        new = with_norm_of(x, modulate(x, token, group, read, write, bias, threshold, gain, gain), token, group)
        return where_open(x, new, token, group, read[0], -0.2)

    inputs = [t.clone().requires_grad_() for t in (x, write, gain)]
    assert torch.autograd.gradcheck(whole, inputs)
