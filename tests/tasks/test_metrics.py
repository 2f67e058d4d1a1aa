"""Metrics by name; that sweeps compute them rightly is tested with the sweeps."""

from __future__ import annotations

import pytest
import torch

from interp.errors import InterpError
from interp.tasks.metrics import DIFFERENTIABLE, METRICS, Readout, log_probabilities, named_metric

ANSWER, WRONG = torch.tensor([0, 2]), torch.tensor([1, 0])
LOGITS = torch.tensor([[[2.0, 1.0, 0.0]], [[0.0, 3.0, 1.0]]], dtype=torch.float64)
P = LOGITS[:, 0].softmax(-1)
REFERENCE = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
BY_HAND = {
    "logit_difference": torch.tensor([1.0, 1.0]),
    "probability": torch.stack([P[0, 0], P[1, 2]]),
    "log_probability": torch.stack([P[0, 0], P[1, 2]]).log(),
    "negative_kl": -(REFERENCE * (REFERENCE.log() - P.log())).sum(-1),
    "negative_rank": torch.tensor([0.0, -1.0]),
    "accuracy": torch.tensor([1.0, 0.0]),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_by_its_name(name):
    calls = []

    def reference():
        calls.append(name)
        return REFERENCE.log()

    metric = named_metric(name, ANSWER, WRONG, reference)
    rows = torch.arange(2)
    logits = LOGITS if metric.columns is None else LOGITS.gather(-1, metric.columns[:, None])
    logits.requires_grad_(True)
    values = metric(logits, rows)
    torch.testing.assert_close(values, BY_HAND[name].to(values))
    assert metric.name == name
    assert calls == (["negative_kl"] if name == "negative_kl" else [])
    assert values.requires_grad == (name in DIFFERENTIABLE)
    LOGITS.requires_grad_(False)


def test_an_unknown_metric_is_refused():
    with pytest.raises(InterpError, match=r"no metric 'logit_diff'. Did you mean 'logit_difference'"):
        named_metric("logit_diff", ANSWER, WRONG, REFERENCE.log)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_of_half_precision_logits_are_computed_in_float32(dtype):
    """As in float64 from the same logits; computed in their own type they would be off by whole percents."""
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(2, 1, 3000, generator=generator)).to(dtype)
    reference = log_probabilities((5 * torch.randn(2, 3000, generator=generator)).to(dtype))
    assert reference.dtype == torch.float32
    metrics = [named_metric(name, ANSWER, WRONG, lambda: reference) for name in METRICS]
    rows = torch.arange(2)
    values = Readout.of(metrics, torch.ones(2, dtype=torch.long)).values(logits, rows)
    assert values.dtype == torch.float32
    exact, coarse = (
        [m(x if m.columns is None else x.gather(-1, m.columns[:, None]), rows) for m in metrics]
        for x in (logits.double(), logits)
    )
    for name, found, true, own in zip(METRICS, values, exact, coarse, strict=True):
        torch.testing.assert_close(found.double(), true.double(), rtol=2e-5, atol=1e-7)
        if name == "log_probability":
            assert (own.double() - true).abs().max() > 100 * (found.double() - true).abs().max()
