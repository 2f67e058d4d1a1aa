"""The kernel that applies edits, under Triton's interpreter, against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import DTYPES, assert_close, counted

from interp.errors import InterpError, ShapeError
from interp.kernels.apply_edits import vectorised

pytest.importorskip("triton")
from interp.kernels.fused import apply_edits as module

fused = module.apply_edits
SIZES = [  # tokens, groups, width, edits
    (1, 1, 1, 1),
    (5, 3, 7, 15),
    (13, 1, module.TILE + 453, 9),  # two blocks of columns
    (31, 2, 64, 100),  # two blocks of places
    (37, 97, 1, 3000),
]


def _case(tokens, groups, width, edits, dtype=torch.float32, distinct=False, seed=0):
    """x, token, group, keep, operand, row, wave: mixed operations; unless `distinct`, several at a place."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high, n=edits):
        return torch.randint(0, high, (n,), generator=generator)

    x = torch.randn(tokens, groups, width, generator=generator).to(dtype)
    if distinct:
        place = torch.randperm(tokens * groups, generator=generator)[:edits]
    else:
        place = integers(max(1, tokens * groups // 3))
    n_operands = max(1, edits // 2)
    operand = torch.randn(n_operands, width, generator=generator).to(dtype)
    keep = torch.tensor([0.0, 1.0, -2.5, 0.75])[integers(4, len(place))]
    seen: dict[int, int] = {}
    wave = torch.zeros(len(place), dtype=torch.long)
    for i, p in enumerate(place.tolist()):
        wave[i] = seen[p] = seen.get(p, -1) + 1
    return (
        x,
        place // groups,
        place % groups,
        keep,
        operand,
        integers(n_operands, len(place)),
        None if distinct else wave,
    )


def _looped(x, token, group, keep, operand, row, wave):
    """One edit after the other, in list order."""
    out = x.clone()
    for t, g, k, r in zip(token.tolist(), group.tolist(), keep.tolist(), row.tolist(), strict=True):
        out[t, g] = operand[r] if k == 0 else k * out[t, g] + operand[r]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_a_loop_over_edits(size, distinct, dtype, monkeypatch):
    launches = counted(monkeypatch, module, "edit_places")
    case = _case(*size, dtype, distinct)
    x, operand = case[0], case[4]
    before = x.clone()
    expected = _looped(x.float(), *case[1:4], operand.float(), *case[5:])
    found = fused(*case)
    assert_close(found, expected)
    assert_close(vectorised(*case), expected)
    assert torch.equal(x, before) and launches == {"edit_places": 1}
    assert fused(*case, owned=True).data_ptr() == x.data_ptr()
    assert torch.equal(x, found)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 6), groups=st.integers(1, 4), width=st.integers(1, 9), edits=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_fuzzed(tokens, groups, width, edits, dtype, seed):
    case = _case(tokens, groups, width, edits, dtype, seed=seed)
    assert_close(fused(*case), _looped(case[0].float(), *case[1:4], case[4].float(), *case[5:]))


@pytest.mark.parametrize("size", [(5, 3, 7, 15), (4, 1, module.TILE + 3, 6)])
def test_gradients_are_the_reference_s(size, monkeypatch):
    launches = counted(monkeypatch, module, "edit_places_backward")
    x, token, group, keep, operand, row, wave = _case(*size)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for way in (fused, vectorised):
        own = [t.clone().requires_grad_() for t in (x, operand)]
        out = way(own[0], token, group, keep, own[1], row, wave)
        gradients.append(torch.autograd.grad((out * weight).sum(), own))
    for found, expected in zip(*gradients, strict=True):
        assert expected.any()
        assert_close(found, expected)
    assert launches == {"edit_places_backward": 1}


def test_a_second_derivative_is_refused_rather_than_wrong():
    x = torch.ones(1, 1, 2, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.long)
    out = fused(x, zero, zero, torch.full((1,), 3.0), torch.zeros(1, 2)).square().sum()
    (first,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_strides_that_are_not_those_of_a_fresh_tensor():
    x, *rest = _case(5, 3, 7, 15)
    strided = torch.randn(9, 5, 11).transpose(0, 1)[:, ::4, 2:9]
    strided.copy_(x)
    assert not strided.is_contiguous()
    operand = torch.zeros(len(rest[3]), 20)[:, 4:11].copy_(rest[3])
    own = strided.clone().requires_grad_()
    out = fused(strided, *rest[:3], operand, *rest[4:])
    assert torch.equal(out, fused(x, *rest))
    grad = torch.randn(3, 5, 7).transpose(0, 1)
    found = torch.autograd.grad(fused(own, *rest[:3], operand, *rest[4:]), own, grad)[0]
    expected = torch.autograd.grad(vectorised(own, *rest[:3], operand, *rest[4:]), own, grad)[0]
    assert_close(found, expected)
    before = strided.clone()
    fused(strided, *rest[:3], operand, *rest[4:], owned=True)
    assert torch.equal(strided, out) and not torch.equal(strided, before)


def test_what_is_replaced_is_never_read():
    x = torch.full((2, 1, 3), math.nan)
    zero = torch.zeros(1, dtype=torch.long)
    new = fused(x, zero, zero, torch.zeros(1), torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.equal(new[0, 0], torch.tensor([1.0, 2.0, 3.0])) and new[1].isnan().all()


def test_nothing_to_do():
    x = torch.randn(2, 3, 4)
    none = torch.zeros(0, dtype=torch.long)
    for shape in ((2, 3, 4), (2, 3, 0), (0, 3, 4)):
        part = x[: shape[0], :, : shape[2]]
        assert torch.equal(fused(part, none, none, torch.zeros(0), torch.zeros(0, shape[2])), part)
    waves = fused(x, none, none, torch.zeros(0), torch.zeros(0, 4), None, none)
    assert torch.equal(waves, x) and torch.equal(
        vectorised(x, none, none, torch.zeros(0), torch.zeros(0, 4), None, none), x
    )


ONE = torch.zeros(1, dtype=torch.long)
TWO = torch.zeros(2, dtype=torch.long)
HUGE = torch.zeros(1, 1, 1).expand(2**31, 1, 1)
REFUSED = [
    (lambda x: fused(x.double(), ONE, ONE, ONE.float(), x[0]), InterpError, "float64; the kernel takes float32"),
    (lambda x: fused(x, ONE, ONE, ONE.float(), x[0].double()), InterpError, "operand is float64"),
    (lambda x: fused(x.transpose(1, 2), ONE, ONE, ONE.float(), torch.zeros(1, 3)), ShapeError, "must be contiguous"),
    (lambda x: fused(x, ONE + 2, ONE, ONE.float(), x[0]), ShapeError, "tokens 2 to 2 of 2"),
    (lambda x: fused(x, ONE, ONE - 1, ONE.float(), x[0]), ShapeError, "groups -1 to -1 of 3"),
    (lambda x: fused(x, ONE, ONE, ONE.float(), x[0], ONE + 3), ShapeError, "rows of the operand 3"),
    (lambda x: fused(x, TWO, TWO, TWO.float(), x[0]), ShapeError, "two edits at one place"),
    (lambda x: fused(x, ONE, ONE, ONE.float(), x[0, :, :2].contiguous()), ShapeError, "operands of 2 numbers, for rows of 4"),
    (lambda x: fused(x, ONE, ONE, TWO.float(), x[0]), ShapeError, "1 of token, 1 of group, 2 of keep"),
    (lambda x: fused(HUGE, ONE, ONE, ONE.float(), x[0, :, :1]), ShapeError, "2147483648 places"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_before_the_launch(case, monkeypatch, unchecked):
    launches = counted(monkeypatch, module, "edit_places")
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4))
    assert launches == {"edit_places": 0}


def test_a_cpu_is_refused_without_the_interpreter(monkeypatch):
    from interp.kernels.fused import launch

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(InterpError, match="on cpu; the kernel runs on a GPU"):
        fused(torch.zeros(1, 1, 4), ONE, ONE, ONE.float(), torch.zeros(1, 4))
