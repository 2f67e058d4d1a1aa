"""The nnsight runner gives what our hooks give: an oracle for both."""

from __future__ import annotations

import pytest
import torch
from models.described import described
from models.tiny import tiny

from interp.errors import InterpError
from interp.interventions.edits import Knockout, Replace
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.load import load
from interp.models.prompts import from_token_lists
from interp.models.site import PARTS, Site
from interp.tasks.metrics import LogitDifference

BASE = from_token_lists(None, [[5, 6, 7, 8, 9], [1, 2, 3]])
SOURCE = from_token_lists(None, [[5, 16, 7, 8, 9], [11, 2, 3]])


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "gpt_neox", "gemma2"])
def both(request):
    import nnsight

    return described(request.param), load(nnsight.NNsight(tiny(request.param)))


def test_captures_and_edits_agree(both) -> None:
    ours, theirs = both
    parts = [part for part in PARTS if part not in ours.untouchable]
    a, b = (run(model, BASE, (), parts) for model in both)
    torch.testing.assert_close(a.logits[BASE.mask], b.logits[BASE.mask], atol=1e-12, rtol=0)
    for site in a.activations:
        torch.testing.assert_close(a[site], b[site], atol=1e-12, rtol=0)
    source, plain = run(ours, SOURCE, (), parts), a.last_logits()
    for part in parts:
        edits = [Replace(ours.sites(part)[-1], source, positions=-1)]
        edited = run(ours, BASE, edits).last_logits()
        torch.testing.assert_close(edited, run(theirs, BASE, edits).last_logits(), atol=1e-12, rtol=0)
    cut = [Knockout(1, keys=0, positions=-1)]
    edited = run(theirs, BASE, cut).last_logits()
    torch.testing.assert_close(run(ours, BASE, cut).last_logits(), edited, atol=1e-12, rtol=0)
    assert (edited - plain).abs().max() > 1e-6


def test_a_sweep_through_nnsight(both) -> None:
    ours, _theirs = both
    source = run(ours, SOURCE, (), ["resid_pre"])
    variants = [[Replace(Site("resid_pre", layer), source, positions=p)] for layer in range(3) for p in (0, 1, 2)]
    metric = LogitDifference(torch.tensor([1, 2]), torch.tensor([3, 4]))
    a, b = (sweep(model, BASE, variants, metric).values["logit_difference"] for model in both)
    eager = ours.network.config.model_type == "gemma2"  # whose softmax is in float32
    torch.testing.assert_close(a, b, atol=1e-5 if eager else 1e-9, rtol=0)


def test_gradients_are_refused(both) -> None:
    with pytest.raises(InterpError, match="nnsight"):
        run(both[1], BASE, grad=True)
