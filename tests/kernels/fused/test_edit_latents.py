"""The kernel that edits latents, under Triton's interpreter, against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import DTYPES, assert_close, counted

from interp.errors import InterpError, ShapeError
from interp.kernels.edit_latents import vectorised

pytest.importorskip("triton")
from interp.kernels.fused import edit_latents as module

fused = module.edit_latents
SIZES = [  # tokens, groups, width, latents, edits
    (1, 1, 1, 1, 1),
    (7, 3, 13, 5, 19),
    (41, 1, 67, 37, 37),  # several tiles and blocks of columns; the ends of both are cut off
    (5, 2, 130, 64, 6),  # the most latents
]


def _case(tokens, groups, width, n, edits, dtype=torch.float32, seed=0):
    """x, token, group, read, write, bias, threshold, gain, offset: directions, ReLU and JumpReLU units.

    What is read is a sum of multiples of 1/16, exact in float32, and no threshold is one: no order of adding decides
    which latents are on.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def coarse(*shape):
        return (4 * normal(*shape)).round() / 4

    place = torch.randperm(tokens * groups, generator=generator)[:edits]
    threshold = torch.where(torch.arange(n) % 4 == 3, -math.inf, ((4 * normal(n)).round() + 0.5) / 32)
    numbers = (coarse(n, width), normal(n, width), coarse(n), threshold, normal(len(place), n), normal(len(place), n))
    return coarse(tokens, groups, width).to(dtype), place // groups, place % groups, *(t.to(dtype) for t in numbers)


def _exact(x, token, group, *numbers):
    """The reference in float64 from the same numbers."""
    return vectorised(x.double(), token, group, *(t.double() for t in numbers)).float()


def _share_on(x, token, group, read, write, bias, threshold, *rest):
    z = x[token, group].double() @ read.double().T + bias.double()
    return float((z > threshold).double().mean())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_the_reference(size, dtype, monkeypatch):
    launches = counted(monkeypatch, module, "latent_tile")
    case = _case(*size, dtype)
    assert size[3] == 1 or 0.2 < _share_on(*case) < 0.95  # thresholds decide something
    before, expected = case[0].clone(), _exact(*case)
    found = fused(*case)
    assert_close(found, expected)
    assert_close(vectorised(*case), expected)
    assert torch.equal(case[0], before) and launches == {"latent_tile": 1}
    assert fused(*case, owned=True).data_ptr() == case[0].data_ptr()
    assert torch.equal(case[0], found)


def test_many_edits_go_by_larger_tiles(monkeypatch):
    monkeypatch.setattr(module, "MANY", 1)
    case = _case(41, 3, 67, 17, 100, torch.bfloat16)
    assert module.tile(17, 100, split=True)["EDITS"] == 64 > module.tile(17, 100, split=False)["EDITS"]
    assert_close(fused(*case), _exact(*case))


def test_states_in_half_precision_with_latents_in_full():
    x, token, group, *numbers = _case(7, 3, 64, 5, 19, torch.bfloat16)
    numbers = [t.float() + (0 if t.isinf().any() else 1e-4) for t in numbers]
    assert_close(fused(x, token, group, *numbers), _exact(x, token, group, *numbers))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_latent_at_its_threshold_is_off_and_one_above_is_on(dtype):
    """z = 3.25 is read in 13 columns; the thresholds are that, the number below it, and the one above."""
    x, one = torch.full((1, 1, 13), 0.5, dtype=dtype), torch.zeros(1, dtype=torch.long)
    read, write = torch.full((3, 13), 0.5, dtype=dtype), torch.eye(13, dtype=dtype)[:3]
    z = torch.tensor(3.25, dtype=dtype)
    threshold = torch.stack([z, z.nextafter(z - 1), z.nextafter(z + 1)])
    offset, gain = torch.zeros(1, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype)
    found = fused(x, one, one, read, write, torch.zeros(3, dtype=dtype), threshold, gain, offset)
    expected = x.clone()
    expected[0, 0, 1] -= 3.25
    assert torch.equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 6), groups=st.integers(1, 3), width=st.integers(1, 40), n=st.integers(0, 20),
    edits=st.integers(0, 18), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_fuzzed(tokens, groups, width, n, edits, dtype, seed):
    case = _case(tokens, groups, width, n, edits, dtype, seed)
    assert_close(fused(*case), _exact(*case))


TRAINED = ("x", "read", "write", "bias", "gain", "offset")


def _gradients(way, case, to, weight, trained=TRAINED):
    x, token, group, read, write, bias, threshold, gain, offset = case
    own = {"x": x, "read": read, "write": write, "bias": bias, "gain": gain, "offset": offset}
    own = {name: t.to(to).requires_grad_(name in trained) for name, t in own.items()}
    out = way(
        own["x"], token, group, own["read"], own["write"], own["bias"], threshold.to(to), own["gain"], own["offset"]
    )
    return torch.autograd.grad((out * weight.to(to)).sum(), [own[name] for name in trained])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_are_the_reference_s(size, dtype, monkeypatch):
    launches = counted(monkeypatch, module, "latent_tile_backward")
    case = _case(*size, dtype)
    weight = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = _gradients(fused, case, dtype, weight)
    expected = _gradients(vectorised, case, torch.float64, weight)
    for name, f, e in zip(TRAINED, found, expected, strict=True):
        assert e.any(), name
        assert_close(f, e.float())
    assert launches == {"latent_tile_backward": 1}


@settings(max_examples=10, deadline=None)
@given(
    width=st.integers(1, 20), n=st.integers(0, 18), edits=st.integers(0, 17), dtype=st.sampled_from(DTYPES),
    trained=st.sets(st.sampled_from(TRAINED), min_size=1), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_fuzzed_gradients_of_any_part(width, n, edits, dtype, trained, seed):
    case, trained = _case(9, 2, width, n, edits, dtype, seed), tuple(sorted(trained))
    weight = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = _gradients(vectorised, case, torch.float64, weight, trained)
    for f, e in zip(_gradients(fused, case, dtype, weight, trained), expected, strict=True):
        assert_close(f, e.float())


def test_a_second_derivative_is_refused_rather_than_wrong():
    case = _case(*SIZES[1])
    x = case[0].requires_grad_()
    (first,) = torch.autograd.grad(fused(*case).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_strides_that_are_not_those_of_a_fresh_tensor():
    x, token, group, read, write, bias, threshold, gain, offset = _case(5, 3, 7, 2, 9)
    strided = torch.randn(9, 5, 11).transpose(0, 1)[:, ::4, 2:9]
    strided.copy_(x)
    both = torch.cat([gain, offset], 1)  # as a plan hands them over
    apart = torch.stack([bias, threshold], 1)
    parts = (read.T.contiguous().T, write.T.contiguous().T, apart[:, 0], apart[:, 1])
    assert not any(t.is_contiguous() for t in (strided, *parts))
    laid = (strided, token, group, *parts, both[:, :2], both[:, 2:])
    plain = (x, token, group, read, write, bias, threshold, gain, offset)
    assert torch.equal(fused(*laid), fused(*plain))
    grad = torch.randn(3, 5, 7).transpose(0, 1)
    own = [t.detach().requires_grad_() for t in (strided, parts[0])]
    found, expected = (
        torch.autograd.grad(way(own[0], token, group, own[1], *laid[4:]), own, grad) for way in (fused, vectorised)
    )
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # 0 · ∞, where one latent changes
def test_a_latent_that_stays_costs_no_second_look():
    """Where no latent of a tile changes, nothing is written: not even a zero that would turn an infinity into NaN."""
    x, token, group, read, write, *rest = _case(*SIZES[1])
    bias, threshold, gain, offset = rest
    write[0, 0] = math.inf
    same = fused(x, token, group, read, write, bias, threshold, torch.ones_like(gain), torch.zeros_like(offset))
    assert torch.equal(same, x)
    assert fused(x, token, group, read, write, bias, threshold, gain, offset).isfinite().logical_not().any()


def test_nothing_to_do():
    none, x, zeros = torch.zeros(0, dtype=torch.long), torch.randn(2, 3, 4), torch.zeros
    two = (zeros(2, 4), zeros(2, 4), zeros(2), zeros(2), zeros(0, 2), zeros(0, 2))
    assert torch.equal(fused(x, none, none, *two), x)
    assert torch.equal(fused(x[:0], none, none, *two), x[:0])
    no_latent = (zeros(0, 4), zeros(0, 4), zeros(0), zeros(0), zeros(1, 0), zeros(1, 0))
    assert torch.equal(fused(x, ONE, ONE, *no_latent), x)


ONE = torch.zeros(1, dtype=torch.long)
TWO = torch.zeros(2, dtype=torch.long)


def _call(x, token=ONE, group=ONE, n=2, edits=None, width=4, **changed):
    edits = len(token) if edits is None else edits
    parts = {"read": torch.zeros(n, width), "write": torch.zeros(n, width), "bias": torch.zeros(n)}
    parts |= {"threshold": torch.zeros(n), "gain": torch.zeros(edits, n), "offset": torch.zeros(edits, n)}
    return fused(x, token, group, **{**parts, **changed})


REFUSED = [
    (lambda x: _call(x.double()), InterpError, "x is float64; the kernel takes float32"),
    (lambda x: _call(x, write=torch.zeros(2, 4).double()), InterpError, "write is float64"),
    (lambda x: _call(x.mT.contiguous().mT), ShapeError, "x has.*must be contiguous"),
    (lambda x: _call(x, TWO, torch.arange(2), gain=torch.zeros(2, 2).T), ShapeError, "gain has.*must be contiguous"),
    (lambda x: _call(x, ONE + 2), ShapeError, "tokens 2 to 2 of 2"),
    (lambda x: _call(x, ONE, ONE - 1), ShapeError, "groups -1 to -1 of 3"),
    (lambda x: _call(x, TWO, TWO), ShapeError, "two edits at one place"),
    (lambda x: _call(x, TWO, ONE), ShapeError, "2 of token, 1 of group"),
    (lambda x: _call(x, width=3), ShapeError, "read has shape .2, 3.; for 2 latents, 1 edits and states of 4 numbers"),
    (lambda x: _call(x, threshold=torch.zeros(3)), ShapeError, "threshold has shape .3.*it must be .2."),
    (lambda x: _call(x, edits=2), ShapeError, "gain has shape .2, 2..*it must be .1, 2."),
    (lambda x: _call(x, n=65), ShapeError, "65 latents; the kernel takes up to 64"),
    (lambda x: _call(torch.zeros(1, 1, 4).expand(2**31, 1, 4)), ShapeError, "2147483648 places"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_before_the_launch(case, monkeypatch, unchecked):
    launches = counted(monkeypatch, module, "latent_tile")
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4))
    assert launches == {"latent_tile": 0}
