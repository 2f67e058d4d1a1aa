"""Edits that read the state they change, against loops."""

from __future__ import annotations

import math

import torch

from interp.kernels.apply_edits import apply_edits
from interp.kernels.edit_latents import edit_latents
from interp.kernels.kept import where_open, with_norm_of


def _case(seed, tokens=5, groups=3, width=4, edits=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, groups, width, dtype=torch.float64, generator=generator)
    place = torch.randperm(tokens * groups, generator=generator)[:edits]
    operand = torch.randn(edits, width, dtype=torch.float64, generator=generator)
    return x, place // groups, place % groups, operand, generator


def _latents(generator, n=3, width=4):
    read, write = (torch.randn(n, width, dtype=torch.float64, generator=generator) for _ in range(2))
    bias = torch.randn(n, dtype=torch.float64, generator=generator)
    return read, write, bias, torch.tensor([0.0, 0.5, -math.inf], dtype=torch.float64)


def test_it_is_a_loop_over_edits_and_latents():
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
    found = edit_latents(x, token, group, read, write, bias, threshold, gain, offset)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert torch.equal(x, before)
    nothing = edit_latents(
        x, token, group, read, write, bias, threshold, torch.ones_like(gain), torch.zeros_like(offset)
    )
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


def test_long_states_in_half_precision_keep_their_length():
    """Their squares exceed what the type holds."""
    x = torch.full((1, 1, 4096), 1100.0, dtype=torch.float16)
    zero = torch.zeros(1, dtype=torch.long)
    assert torch.equal(with_norm_of(x, x, zero, zero), x)
    assert torch.equal(with_norm_of(x, x / 2, zero, zero), x)
    read = torch.ones(4096, dtype=torch.float16)
    assert torch.equal(where_open(x, x / 2, zero, zero, read, 4_000_000.0), x / 2)
    assert torch.equal(where_open(x, x / 2, zero, zero, read, 5_000_000.0), x)


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
        new = with_norm_of(x, edit_latents(x, token, group, read, write, bias, threshold, gain, gain), token, group)
        return where_open(x, new, token, group, read[0], -0.2)

    inputs = [t.clone().requires_grad_() for t in (x, write, gain)]
    assert torch.autograd.gradcheck(whole, inputs)


def test_a_state_that_was_edited_to_zero_has_a_gradient():
    x = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    both = torch.arange(2)
    edited = x * torch.tensor([[[0.0]], [[2.0]]], dtype=torch.float64)
    out = with_norm_of(x, edited, both, torch.zeros(2, dtype=torch.long))
    (gradient,) = torch.autograd.grad((out * torch.tensor([1.0, 3.0])).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 0.0]], [[1.0, 3.0]]], dtype=torch.float64))
