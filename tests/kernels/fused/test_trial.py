"""The trials that a kernel has to pass on a device, under Triton's interpreter, with right and with broken kernels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from interp.kernels.fused import trial
from interp.kernels.path import OPERATIONS

CPU = torch.device("cpu")
BROKEN = [
    ("apply_edits", trial.fused_edits),
    ("swap_subspace", trial.fused_swap),
    ("edit_latents", trial.fused_latents),
    ("prefix_attention", trial.fused_attention),
]


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_kernels_pass(op, monkeypatch):
    right, tried = trial.TRIALS[op], []

    def watched(device, dtype, widest):
        fused, reference = right(device, dtype, widest)
        tried.append((dtype, widest, fused, reference))
        return fused, reference

    monkeypatch.setitem(trial.TRIALS, op, watched)
    assert trial.disagreement(op, CPU) is None
    assert {(dtype, widest) for dtype, widest, *_ in tried} == set(trial.CASES)
    for dtype, _, fused, reference in tried:
        assert len(fused) == len(reference) > 1
        for f, r in zip(fused, reference, strict=True):
            assert f.dtype == dtype and r.dtype == torch.float32
            error = float((f.float() - r).abs().max() / r.abs().max() + 1e-30)
            assert 0 < error < trial.TOLERANCE[dtype] / (20 if dtype == torch.float32 else 1)


@pytest.mark.parametrize(
    ("op", "module", "broken"),
    [
        *((*op, lambda x: x.dtype == torch.bfloat16) for op in BROKEN),
        ("apply_edits", trial.fused_edits, lambda x: x.shape[-1] > 70),  # in the widest tile
        ("edit_latents", trial.fused_latents, lambda x: x.shape[-1] > 70),
    ],
)
def test_a_kernel_that_is_broken_in_one_case_is_noticed(op, module, broken, monkeypatch):
    right = getattr(module, op)
    monkeypatch.setattr(module, op, lambda x, *args, **options: right(x, *args, **options) * (1 + 0.1 * broken(x)))
    assert trial.disagreement(op, CPU).endswith("in bfloat16")


@pytest.mark.parametrize(("op", "module"), BROKEN)
def test_a_broken_kernel_is_noticed(op, module, monkeypatch):
    right = getattr(module, op)
    monkeypatch.setattr(module, op, lambda *args, **options: right(*args, **options) * 1.001)
    assert "differed from the PyTorch calls" in trial.disagreement(op, CPU)


def test_a_kernel_that_cannot_be_compiled_is_noticed(monkeypatch):
    def fails(*case):
        raise trial.TritonError("no such target\nand more")

    monkeypatch.setitem(trial.TRIALS, "apply_edits", fails)
    assert trial.disagreement("apply_edits", CPU) == "it does not run there (TritonError: no such target)"
