"""Which way an operation goes, and the trial of a kernel."""

from __future__ import annotations

import pytest
import torch

from interp.kernels import path
from interp.kernels.path import OPERATIONS, Path, choose, path_on

CUDA = torch.device("cuda", 0)
F32 = [torch.float32]


@pytest.fixture
def tried(monkeypatch):
    """Devices count as tried: no GPU is asked."""
    asked = []
    monkeypatch.setattr(path, "_tried", lambda op, device: (asked.append((op, device)), Path(True, "a trial"))[1])
    return asked


def test_the_cpu_takes_the_pytorch_calls(tried):
    for op in OPERATIONS:
        assert choose(op, torch.zeros(2, 3)) == Path(False, "the tensors are on the CPU")
        assert not path_on(op, torch.device("cpu"), F32).fused
    assert not tried


def test_a_gpu_takes_the_kernel_if_it_can(tried, monkeypatch):
    monkeypatch.setattr(path, "find_spec", lambda name: object())
    for op in OPERATIONS:
        assert path_on(op, CUDA, F32).fused
    assert tried == [(op, CUDA) for op in OPERATIONS]
    for found, why in (
        (path_on("apply_edits", CUDA, [torch.float32, torch.float64]), "no kernel for float64"),
        (path_on("swap_subspace", CUDA, F32, rank=129), "rank 129; the kernel takes up to 128"),
        (path_on("edit_latents", CUDA, F32, n_latents=65), "65 latents; the kernel takes up to 64"),
        (path_on("prefix_attention", CUDA, F32, d_head=512), "heads of 512; the kernel takes up to 256"),
        (path_on("apply_edits", torch.device("xpu"), F32), "no kernel for xpu"),
        (choose("apply_edits", torch.zeros(3, 2, device="meta").T), "not in one piece"),
        (choose("apply_edits", torch.zeros(3, 2, device="meta")), "no kernel for meta"),
        (choose("swap_subspace", torch.zeros(3, 2, device="meta"), others=[torch.zeros(3, 2).T]), "no kernel for meta"),
    ):
        assert not found.fused and why in found.why
    monkeypatch.setitem(path.FUSED_FROM, "apply_edits", 100)
    assert "99 numbers; the kernel pays from 100" in str(path_on("apply_edits", CUDA, F32, size=99))
    assert path_on("apply_edits", CUDA, F32, size=100).fused
    assert len(tried) == len(OPERATIONS) + 1
    monkeypatch.setattr(path, "find_spec", lambda name: None)
    assert str(path_on("apply_edits", CUDA, F32)) == "PyTorch calls (Triton is not installed)"


def test_a_kernel_that_disagrees_is_not_used(monkeypatch):
    pytest.importorskip("triton")
    from interp.kernels.fused import trial

    fresh = path._tried.__wrapped__
    x = torch.ones(3)
    monkeypatch.setitem(trial.TRIALS, "apply_edits", lambda *case: ([x], [x + 1e-6]))
    assert fresh("apply_edits", CUDA).fused
    for broken, why in (
        (lambda *case: ([x], [x * 1.01]), "differed from the PyTorch calls by 0.0099"),
        (lambda *case: ([x * torch.nan], [x]), "differed"),
        (lambda *case: _raise(), "does not run there .RuntimeError: no kernel image"),
    ):
        monkeypatch.setitem(trial.TRIALS, "apply_edits", broken)
        with pytest.warns(UserWarning, match=f"kernel of apply_edits is not used on cuda:0: .*{why}"):
            assert not fresh("apply_edits", CUDA).fused


def _raise():
    raise RuntimeError("no kernel image is available")
