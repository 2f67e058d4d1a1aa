"""The kernels of subspace exchange, under Triton's interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import DTYPES, assert_close, counted

from interp.errors import InterpError, ShapeError
from interp.kernels.swap_subspace import vectorised

pytest.importorskip("triton")
from interp.kernels.fused import swap_subspace as module

fused = module.swap_subspace
SIZES = [  # tokens, groups, width, rank, edits, rotations
    (1, 1, 1, 1, 1, 1),
    (7, 3, 13, 5, 19, 1),
    (41, 1, 67, 17, 37, 3),  # several tiles and blocks of columns; the ends of both are cut off
    (5, 2, 130, 128, 6, 2),  # the largest rank
]


def _case(tokens, groups, width, rank, edits, rotations, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, groups, width, generator=generator).to(dtype)
    place = torch.randperm(tokens * groups, generator=generator)[:edits]
    source = torch.randn(max(1, edits // 2), width, generator=generator).to(dtype)
    basis = torch.linalg.qr(torch.randn(rotations, width, rank, generator=generator)).Q.to(dtype)  # column by column
    row = torch.randint(0, len(source), (len(place),), generator=generator)
    rotation = torch.randint(0, rotations, (len(place),), generator=generator)
    return x, place // groups, place % groups, source, basis, row, rotation


def _exact(x, token, group, source, basis, *rest):
    """The reference in float64 from the same numbers."""
    return vectorised(x.double(), token, group, source.double(), basis.double(), *rest).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_is_the_reference(size, dtype, monkeypatch):
    launches = counted(monkeypatch, module, "swap_tile")
    case = _case(*size, dtype)
    before, expected = case[0].clone(), _exact(*case)
    found = fused(*case)
    assert_close(found, expected)
    assert_close(vectorised(*case), expected)
    assert torch.equal(case[0], before) and launches == {"swap_tile": 1}
    assert fused(*case, owned=True).data_ptr() == case[0].data_ptr()
    assert torch.equal(case[0], found)


def test_many_edits_go_by_larger_tiles(monkeypatch):
    monkeypatch.setattr(module, "MANY", 1)
    case = _case(41, 3, 67, 17, 100, 2, torch.bfloat16)
    assert module.tile(17, 100, split=True)["EDITS"] == 64 > module.tile(17, 100, split=False)["EDITS"]
    expected, rotations = _exact(*case), case[-1].bincount()
    assert rotations.max() > 32 and (rotations % 16 > 0).any()
    assert_close(fused(*case), expected)


def test_states_in_half_precision_with_a_basis_in_full():
    x, token, group, source, _, row, _ = _case(7, 3, 64, 5, 19, 1, torch.bfloat16)
    basis = torch.linalg.qr(torch.randn(64, 5)).Q
    found = fused(x, token, group, source, basis, row)
    assert_close(found, _exact(x, token, group, source, basis, row))


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 6), groups=st.integers(1, 3), width=st.integers(1, 40), rank=st.integers(1, 6),
    edits=st.integers(0, 18), rotations=st.integers(1, 3), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_fuzzed(tokens, groups, width, rank, edits, rotations, dtype, seed):
    case = _case(tokens, groups, width, min(rank, width), edits, rotations, dtype, seed)
    assert_close(fused(*case), _exact(*case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_are_the_reference_s(size, dtype, monkeypatch):
    launches = counted(monkeypatch, module, "swap_tile_backward", "swap_basis_backward")
    x, token, group, source, basis, *rest = _case(*size, dtype)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = []
    for way, to in ((fused, dtype), (vectorised, torch.float64)):
        own = [t.to(to).requires_grad_() for t in (x, source, basis)]
        out = way(own[0], token, group, own[1], own[2], *rest)
        gradients.append(torch.autograd.grad((out * weight.to(to)).sum(), own))
    for found, expected in zip(*gradients, strict=True):
        assert expected.any()
        assert_close(found, expected.float())
    assert launches == {"swap_tile_backward": 1, "swap_basis_backward": 1}


def test_a_basis_that_is_not_trained_costs_no_gradient(monkeypatch):
    launches = counted(monkeypatch, module, "swap_tile_backward", "swap_basis_backward")
    x, *rest = _case(*SIZES[1])
    fused(x.requires_grad_(), *rest).sum().backward()
    assert x.grad.any() and launches == {"swap_tile_backward": 1, "swap_basis_backward": 0}


def test_strides_that_are_not_those_of_a_fresh_tensor():
    x, token, group, source, basis, *rest = _case(5, 3, 7, 2, 9, 2)
    strided = torch.randn(9, 5, 11).transpose(0, 1)[:, ::4, 2:9]
    strided.copy_(x)
    wide = torch.zeros(len(source), 20)[:, 4:11].copy_(source)
    columns = torch.zeros(2, 7, 9)[..., 3:5].copy_(basis)
    assert basis.stride(1) == 1 and columns.stride(2) == 1
    assert not (strided.is_contiguous() or wide.is_contiguous() or columns.is_contiguous())
    assert torch.equal(fused(strided, token, group, wide, columns, *rest), fused(x, token, group, source, basis, *rest))
    own = [t.clone().requires_grad_() for t in (strided, wide, columns)]
    grad = torch.randn(3, 5, 7).transpose(0, 1)
    found, expected = (
        torch.autograd.grad(way(own[0], token, group, own[1], own[2], *rest), own, grad) for way in (fused, vectorised)
    )
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e)


def test_nothing_to_do():
    x, basis = torch.randn(2, 3, 4), torch.linalg.qr(torch.randn(4, 2)).Q
    none = torch.zeros(0, dtype=torch.long)
    assert torch.equal(fused(x, none, none, x[0, :0], basis), x)
    assert torch.equal(fused(x[:0], none, none, x[0, :0], basis), x[:0])


ONE = torch.zeros(1, dtype=torch.long)
TWO = torch.zeros(2, dtype=torch.long)
REFUSED = [
    (lambda x, b: fused(x.double(), ONE, ONE, x[0].double(), b.double()), InterpError, "float64; the kernel takes"),
    (lambda x, b: fused(x.mT.contiguous().mT, ONE, ONE, x[0], b), ShapeError, "x has.*must be contiguous"),
    (lambda x, b: fused(x, ONE + 2, ONE, x[0], b), ShapeError, "tokens 2 to 2 of 2"),
    (lambda x, b: fused(x, ONE, ONE, x[0], b, ONE + 3), ShapeError, "rows of the source 3"),
    (lambda x, b: fused(x, ONE, ONE, x[0], b, ONE, ONE + 1), ShapeError, "rotations 1 to 1 of 1"),
    (lambda x, b: fused(x, TWO, TWO, x[0], b), ShapeError, "two edits at one place"),
    (lambda x, b: fused(x, ONE, ONE, x[0, :, :3].contiguous(), b), ShapeError, "states of 4 numbers, sources of 3"),
    (lambda x, b: fused(x, ONE, ONE, x[0], b[:2]), ShapeError, "bases of 2"),
    (lambda x, b: fused(x, ONE, ONE, x[0], b, TWO), ShapeError, "1 of token, 1 of group, 2 of row"),
    (lambda x, b: fused(x, ONE, ONE, x[0], torch.zeros(4, 129)), ShapeError, "rank of 129; the kernel takes up to 128"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_before_the_launch(case, monkeypatch, unchecked):
    launches = counted(monkeypatch, module, "swap_tile")
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4), torch.eye(4)[:, :2])
    assert launches == {"swap_tile": 0}
