"""Attention behind a shared prefix by PyTorch calls; what they compute is tested with the kernel."""

from __future__ import annotations

import pytest
import torch
from models.described import described, ragged

from interp.interventions import packed
from interp.interventions.edits import Scale
from interp.interventions.sweep import sweep
from interp.kernels import prefix_attention as module
from interp.kernels.path import Path
from interp.kernels.prefix_attention import PackedRows, prefix_attention
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.site import Site
from interp.tasks.metrics import FunctionMetric


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_softmax_has_the_type_that_is_asked_for(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4, 8), (6, 2, 8), (6, 2, 8), (1, 30, 2, 8), (1, 30, 2, 8))
    tensors = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
    segments = [Segment(slice(0, 6), 2, 20, 3, 0)]
    rows = PackedRows.of(segments, torch.device("cpu"))
    exact = prefix_attention(*tensors, rows, scaling=1.0, softmax_dtype=torch.float32)
    assert torch.equal(exact, segment_attention(*tensors, segments, scaling=1.0, softmax_dtype=torch.float32))
    coarse = prefix_attention(*tensors, rows, scaling=1.0, softcap=1e6)  # explicit, in the queries' type
    assert not torch.equal(exact, coarse)


def test_a_sweep_whose_kernel_is_refused_keeps_the_softmax_of_its_model(monkeypatch):
    """Rows are laid out for the kernel, and one call of it goes by the PyTorch calls after all."""
    model, (_, corrupted) = described("gemma2", torch.bfloat16), ragged()
    metric = FunctionMetric(lambda logits, example: logits.float() @ torch.linspace(-1, 1, logits.shape[-1]))
    asked = []

    def watched(*args, **options):
        asked.append(options["softmax_dtype"])
        return segment_attention(*args, **options)

    monkeypatch.setattr(packed, "choose", lambda *args, **options: Path(True, "a test"))
    monkeypatch.setattr(module, "segment_attention", watched)
    sweep(model, corrupted, [[Scale(Site("resid_pre", 1), 2.0, positions=2)]], metric)
    assert asked and set(asked) == {torch.float32}
