"""The trials that a kernel has to pass on a device, under Triton's interpreter, with right and with broken kernels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from interp.kernels.fused import trial
from interp.kernels.path import OPERATIONS

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_kernels_pass(op):
    assert trial.disagreement(op, CPU) is None
    fused, reference = trial.TRIALS[op](CPU)
    assert len(fused) == len(reference) > 1
    assert all(
        0 < float((f - r).abs().max() / r.abs().max() + 1e-30) < trial.TOLERANCE / 20
        for f, r in zip(fused, reference, strict=True)
    )


@pytest.mark.parametrize(
    ("op", "module"),
    [
        ("apply_edits", trial.fused_edits),
        ("swap_subspace", trial.fused_swap),
        ("prefix_attention", trial.fused_attention),
    ],
)
def test_a_broken_kernel_is_noticed(op, module, monkeypatch):
    right = getattr(module, op)
    monkeypatch.setattr(module, op, lambda *args, **options: right(*args, **options) * 1.001)
    assert "differed from the PyTorch calls" in trial.disagreement(op, CPU)


def test_a_kernel_that_cannot_be_compiled_is_noticed(monkeypatch):
    def fails(device):
        raise trial.TritonError("no such target\nand more")

    monkeypatch.setitem(trial.TRIALS, "apply_edits", fails)
    assert trial.disagreement("apply_edits", CPU) == "it does not run there (TritonError: no such target)"
