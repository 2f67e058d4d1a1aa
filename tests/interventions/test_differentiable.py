"""Gradients through the engine equal gradients through the network's own forward pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models.described import described
from models.tiny import tiny
from torch.utils.flop_counter import FlopCounterMode

from interp.errors import InterpError, SiteError
from interp.interventions.differentiable import differentiable
from interp.interventions.edits import Add, Replace, Swap
from interp.interventions.run import run
from interp.models.load import describe
from interp.models.prompts import from_token_lists
from interp.models.site import Site

BASE = from_token_lists(None, [[5, 6, 7, 8, 9], [1, 2, 3]])
SOURCE = from_token_lists(None, [[5, 16, 7, 8, 9], [11, 2, 3]])


def loss(last: torch.Tensor) -> torch.Tensor:
    return (last[:, 3] - last[:, 4]).sum()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "opt"])
@pytest.mark.parametrize(("part", "head"), [("resid_pre", None), ("z", 1), ("mlp_out", None)])
def test_a_rotation_gets_the_same_gradient(family: str, part: str, head: int | None) -> None:
    model = described(family)
    site = Site(part, 1, head)
    source = run(model, SOURCE, (), [site])
    width = model.width_of(part)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, 3, generator=generator, dtype=torch.float64)).Q.requires_grad_()
    edits = [Swap(site, source if head is None else source[site], basis, positions=-1 if head is None else None)]
    ours = differentiable(model, BASE, [site])(edits)[:, 0]
    theirs = run(model, BASE, edits, grad=True)
    plain = theirs.logits[torch.arange(2), BASE.lengths - 1]
    torch.testing.assert_close(ours, plain, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)
    (own,) = torch.autograd.grad(loss(ours), basis)
    (expected,) = torch.autograd.grad(loss(plain), basis)
    assert expected.abs().max() > 1e-3
    # Gemma 2's softmax is float32 inside a float64 model.
    torch.testing.assert_close(own, expected, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)


def test_gradient_flows_to_an_edit_that_changes_nothing_yet() -> None:
    # GPT-2's norms are float64 here; Llama's compute in float32 whatever the model's type.
    model, site = described("gpt2"), Site("resid_pre", 1)
    value = torch.zeros(model.d_model, dtype=torch.float64, requires_grad=True)
    logits = differentiable(model, BASE, [site])([Add(site, value, positions=-1)])
    (gradient,) = torch.autograd.grad(loss(logits[:, 0]), value)
    step = 1e-6 * gradient / gradient.norm()
    moved = differentiable(model, BASE, [site])([Add(site, step.detach(), positions=-1)])
    assert (loss(moved[:, 0]) - loss(logits[:, 0])).item() == pytest.approx(1e-6 * float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("way", ["packed", "whole passes"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_many_variants_in_one_pass(family: str, way: str) -> None:
    model = described(family)
    if way == "whole passes":
        model = dataclasses.replace(model, not_replayable="a test says so")
    values = torch.randn(4, 1, 1, model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values.requires_grad_()
    early, late, last = Site("resid_pre", 0), Site("mlp_out", 1), Site("resid_post", 2)
    variants = [
        [Replace(early, values[0], positions=1)],
        [Replace(early, values[1], positions=-1, rows=[1]), Add(late, 0.5, positions=-1)],
        [],
        [Replace(late, values[2], positions=0, rows=[0])],
        [Replace(last, values[3], positions=-1)],
    ]
    found = differentiable(model, BASE, [early, late, last]).rows(variants)
    pairs = list(zip(found.variant.tolist(), found.example.tolist(), strict=True))
    assert sorted(pairs) == [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (4, 0), (4, 1)]
    weight = torch.randn(61, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for row, (variant, example) in enumerate(pairs):
        plain = run(model, BASE, variants[variant], grad=True).logits[example, BASE.lengths[example] - 1]
        torch.testing.assert_close(found.logits[row, 0], plain, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)
        total = total + plain @ weight
    (own,) = torch.autograd.grad((found.logits[:, 0] @ weight).sum(), values)
    (expected,) = torch.autograd.grad(total, values)
    assert expected.flatten(1).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(own, expected, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)


def test_weights_get_no_gradient_and_cost_none() -> None:
    site, counted = Site("resid_pre", 1), []
    for frozen in (True, False):
        model = describe(tiny("llama").requires_grad_(not frozen), None, "tiny")
        value = torch.ones(1, 1, model.d_model, dtype=torch.float64, requires_grad=True)
        ready = differentiable(model, BASE, [site])
        with FlopCounterMode(display=False) as forward:
            logits = ready.rows([[Replace(site, value, positions=0)]]).logits
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(logits.sum(), value)
        counted.append((forward.get_total_flops(), backward.get_total_flops()))
        assert all(p.requires_grad is not frozen and p.grad is None for p in model.network.parameters())
    assert counted[0] == counted[1]
    forward, backward = counted[0]
    # A product's gradient by its input costs what the product does; attention's two factors both depend on the edit.
    assert 0 < backward < 1.2 * forward


def test_refusals() -> None:
    model = described("llama")
    with pytest.raises(InterpError, match="empty"):
        differentiable(model, BASE, [])
    ready = differentiable(model, BASE, ["resid_pre"])
    with pytest.raises(SiteError, match="sites"):
        ready([Add(Site("z", 1), 1.0)])
