"""What `explain` says of the kernels, against what every call would choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.described import captured, described, ragged

from interp.interventions.base_states import base_states
from interp.interventions.edits import Add, Knockout, Latents, Modulate, Replace, Scale, Swap
from interp.interventions.packed import needed_sites
from interp.interventions.plan import compile_variants
from interp.interventions.ways import ways
from interp.kernels import path
from interp.kernels.path import Path
from interp.models.site import Site

F32 = torch.float32
ON_CPU = "PyTorch calls (the tensors are on the CPU)."
FUSED = "a Triton kernel (a trial)."


@pytest.fixture
def said(monkeypatch):
    """`ways` of variants, on a CPU or as if on a GPU where every kernel passed its trial."""
    monkeypatch.setattr(path, "_tried", lambda op, device: Path(True, "a trial"))
    monkeypatch.setattr(path, "find_spec", lambda name: object())
    model, (_, corrupted) = described("llama", F32), ragged()

    def of(variants, gpu=True, keys=None):
        plan = compile_variants(model, corrupted, variants)
        base = base_states(model, plan, needed_sites(plan.sites, model.n_layers))
        base = base if keys is None else replace(base, keys=tuple(keys(k) for k in base.keys))
        return ways(torch.device("cuda", 0) if gpu else model.device, F32, base, (plan,))

    return of


def _latents(n, dtype=F32):
    generator = torch.Generator().manual_seed(n)
    return Latents(*(torch.randn(n, 24, generator=generator, dtype=dtype) for _ in range(2)))


def test_only_what_the_plan_takes_is_named(said):
    pre = Site("resid_pre", 1)
    assert said([[Scale(pre, 0.5)]]) == [f"apply_edits: {FUSED}", f"prefix_attention: {FUSED}"]
    both = [[Scale(pre, 0.5)], [Modulate(pre, _latents(2), 0.0)]]
    assert said(both, gpu=False) == [f"{op}: {ON_CPU}" for op in ("apply_edits", "edit_latents", "prefix_attention")]


def test_a_kernel_that_the_call_would_refuse_is_not_promised(said):
    pre, mid, source = Site("resid_pre", 1), Site("resid_mid", 1), captured("llama", F32)
    basis = torch.linalg.qr(torch.randn(24, 3)).Q
    lines = said([
        [Swap(pre, source, basis)],
        [Replace(pre, torch.randn(24, 5, dtype=F32).T[:1, :])],
        [Modulate(pre, _latents(65), 0.0)],
        [Modulate(mid, _latents(3), 0.0)],
        [Modulate(mid, _latents(2, torch.float64), 0.0)],
    ])  # fmt: skip
    assert lines == [
        "apply_edits: PyTorch calls (an axis that the kernel reads in one piece is not in one piece).",
        "edit_latents at L1.resid_pre: PyTorch calls (65 latents; the kernel takes up to 64).",
        f"edit_latents at L1.resid_mid: {FUSED}",
        "edit_latents at L1.resid_mid: PyTorch calls (no kernel for float64).",
        f"prefix_attention: {FUSED}",
        f"swap_subspace: {FUSED}",
    ]


def test_a_swap_of_too_many_directions_is_not_promised(said, monkeypatch):
    monkeypatch.setattr(path, "MOST_RANK", 2)
    basis = torch.linalg.qr(torch.randn(24, 3)).Q
    lines = said([[Swap(Site("resid_pre", 1), captured("llama", F32), basis)]])
    assert lines[-1] == "swap_subspace: PyTorch calls (rank 3; the kernel takes up to 2)."


def test_attention_goes_by_the_kernel_where_it_can(said):
    scores, pre = Site("attn_scores", 1), Site("resid_pre", 1)
    added = [[Knockout(1, keys=1, positions=-1)], [Add(scores, torch.ones(4, 7), positions=-1)]]
    assert said(added) == [f"prefix_attention: {FUSED}"]
    lines = said([[Scale(scores, 0.7, positions=-1)], [Scale(pre, 2.0)]])
    assert any("prefix_attention at L1.attn_scores: PyTorch calls (attention weights" in x for x in lines)
    assert f"prefix_attention at the other layers: {FUSED}" in lines
    apart = said([[Scale(pre, 2.0)]], keys=lambda k: k.repeat_interleave(2, -1)[..., ::2])
    assert "prefix_attention: PyTorch calls (an axis that the kernel reads in one piece is not in one piece)." in apart
