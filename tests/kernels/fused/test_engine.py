"""Sweeps whose edits, swaps and attention run through the kernels, against the same sweeps by PyTorch calls."""

from __future__ import annotations

import pytest
import torch
from kernels.closeness import counted
from models.described import captured, described, ragged

from interp.interventions import packed
from interp.interventions.edits import Add, Knockout, Latents, Modulate, Replace, Scale, Swap
from interp.interventions.sweep import sweep
from interp.kernels import apply_edits, edit_latents, prefix_attention, swap_subspace
from interp.kernels.path import Path
from interp.models.site import Site
from interp.tasks.metrics import FunctionMetric

pytest.importorskip("triton")
from interp.kernels.fused import apply_edits as fused_edits
from interp.kernels.fused import edit_latents as fused_latents
from interp.kernels.fused import prefix_attention as fused_attention
from interp.kernels.fused import swap_subspace as fused_swap

F32 = torch.float32
METRIC = FunctionMetric(lambda logits, example: logits @ torch.linspace(-1, 1, logits.shape[-1]))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_sweep_through_the_kernels_has_the_same_values(family, monkeypatch):
    model, (_, corrupted), source = described(family, F32), ragged(), captured(family, F32)
    pre, z, scores = Site("resid_pre", 1), Site("z", 1, 1), Site("attn_scores", 1)
    basis = torch.linalg.qr(torch.randn(24, 3, generator=torch.Generator().manual_seed(0))).Q
    read, write = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    units = Latents(read, write, torch.full((5,), 0.2), torch.tensor([-torch.inf, 0.0, 0.0, 0.5, 1.0]))
    variants = [
        [Replace(pre, source, positions=2)],
        [Scale(pre, 0.5), Add(pre, 0.3, positions=[1, 3])],
        [Swap(pre, source, basis, positions=-1)],
        [Modulate(pre, units, 0.5, 0.3, positions=[2, 3])],
        [Replace(z, source, positions=-1), Scale(Site("resid_mid", 1), 1.5, positions=3)],
        [Knockout(1, keys=1, positions=-1), Knockout(1, keys=2, positions=-1, head=2), Scale(Site("mlp_out", 0), 0.0)],
        [Add(scores, torch.linspace(0, 2, 7).expand(4, 7), positions=-1)],
        [Scale(scores, 0.7, positions=-1)],  # no addition: not for the attention kernel
    ]
    expected = sweep(model, corrupted, variants, METRIC).values[METRIC.name]
    edits = counted(monkeypatch, fused_edits, "edit_places")
    swaps = counted(monkeypatch, fused_swap, "swap_tile")
    latents = counted(monkeypatch, fused_latents, "latent_tile")
    attention = counted(monkeypatch, fused_attention, "attend_tile")
    for module in (apply_edits, swap_subspace, edit_latents, prefix_attention, packed):
        monkeypatch.setattr(module, "choose", lambda *args, **options: Path(True, "a test"))
    tolerance = {"rtol": 0, "atol": 2e-5 * float(expected.abs().max())}
    found = sweep(model, corrupted, variants[:-1], METRIC).values[METRIC.name]
    torch.testing.assert_close(found, expected[:-1], **tolerance)
    launched = attention["attend_tile"]
    # All rows join at layer 1 or above; plain edits of one site are one launch.
    assert edits["edit_places"] == 4 and swaps == {"swap_tile": 1}
    assert latents == {"latent_tile": 1} and launched == model.n_layers - 1
    found = sweep(model, corrupted, variants[-1:], METRIC).values[METRIC.name]
    torch.testing.assert_close(found, expected[-1:], **tolerance)
    assert attention["attend_tile"] == launched + model.n_layers - 2  # nor does layer 1 attend by the kernel
    plain = sweep(model, corrupted, [[]], METRIC).values[METRIC.name]
    assert ((expected - plain).abs().amax(1) > 100 * tolerance["atol"]).all()
