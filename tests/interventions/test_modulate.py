"""Latents, gates and kept norms in whole runs: against hooks by hand, and where they must do nothing."""

from __future__ import annotations

import pytest
import torch
from models.described import described, ragged

from interp.interventions.edits import Add, Gate, Latents, Modulate, Replace, Scale, Swap, When
from interp.interventions.generate import generate
from interp.interventions.run import run
from interp.models.prompts import from_token_lists
from interp.models.site import Site

SITE = Site("resid_post", 1)
PROMPTS = ragged()[1]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


READ, WRITE = drawn(3, 24), drawn(3, 24, seed=1)
LATENTS = Latents(READ, WRITE, drawn(3, seed=2), torch.zeros(3, dtype=torch.float64))
GATE = Gate(drawn(24, seed=3), 0.5)


def by_hand(change):
    """Last logits where the output of the second block is changed, token by token, by a hook of ten lines."""
    model = described("llama")

    def after(_module, _args, output):
        whole = output[0] if isinstance(output, tuple) else output
        new = torch.stack([torch.stack([change(state) for state in row]) for row in whole])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.network.model.layers[1].register_forward_hook(after)
    try:
        with torch.no_grad():
            logits = [
                model.network(ids[None, :n]).logits[0, -1] for ids, n in zip(PROMPTS.ids, PROMPTS.lengths, strict=True)
            ]
    finally:
        handle.remove()
    return torch.stack(logits)


def relu_codes(x):
    return torch.stack([torch.clamp(x @ READ[i] + LATENTS.bias[i], min=0) for i in range(3)])


def opened(old, new):
    return new if float(old @ GATE.read) > 0.5 else old


def scaled_back(old, new):
    return new * old.norm() / new.norm()


CASES = {
    "clamp": (Modulate(SITE, LATENTS, 0.0, 2.0), lambda x: x + (2 - relu_codes(x)) @ WRITE),
    "multiply": (Modulate(SITE, LATENTS, 3.0), lambda x: x + 2 * relu_codes(x) @ WRITE),
    "each its own": (
        Modulate(SITE, LATENTS, [1.0, 0.0, 2.0], [1.0, 0.5, 0.0]),
        lambda x: x + WRITE[0] + (0.5 - relu_codes(x)[1]) * WRITE[1] + relu_codes(x)[2] * WRITE[2],
    ),
    "linear": (Modulate(SITE, Latents(READ, WRITE), 0.0), lambda x: x - (READ @ x) @ WRITE),
    "gated": (
        Modulate(SITE, LATENTS, 0.0, 2.0, gate=GATE), lambda x: opened(x, x + (2 - relu_codes(x)) @ WRITE)
    ),
    "gated replacement": (Replace(SITE, WRITE[0], gate=GATE), lambda x: opened(x, WRITE[0])),
    "kept norm": (Add(SITE, WRITE[0], 2.0, keep_norm=True), lambda x: scaled_back(x, x + 2 * WRITE[0])),
    "gated and kept": (
        Modulate(SITE, LATENTS, 2.0, gate=GATE, keep_norm=True),
        lambda x: opened(x, scaled_back(x, x + relu_codes(x) @ WRITE)),
    ),
    "projection": (
        Swap(SITE, 0.0, torch.linalg.qr(READ.T).Q, keep_norm=True),
        lambda x: scaled_back(x, x - torch.linalg.qr(READ.T).Q @ (torch.linalg.qr(READ.T).Q.T @ x)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_a_hook_by_hand(name):
    edit, change = CASES[name]
    found, expected = run(described("llama"), PROMPTS, [edit]).last_logits(), by_hand(change)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (expected - run(described("llama"), PROMPTS).last_logits()).abs().max() > 1e-2


def test_what_changes_nothing_changes_no_bit():
    model = described("llama")
    plain = run(model, PROMPTS).logits
    shut = Gate(GATE.read, torch.inf)
    for edit in (
        Modulate(SITE, LATENTS), Modulate(SITE, LATENTS, 0.0, 9.0, gate=shut), Replace(SITE, 0.0, gate=shut),
        Add(SITE, 0.0, keep_norm=True), Add(SITE, WRITE[0], gate=shut, keep_norm=True),
    ):  # fmt: skip
        assert torch.equal(run(model, PROMPTS, [edit]).logits, plain)


def test_a_dictionary_unit_that_is_silent_is_not_multiplied():
    deaf = Latents(READ, WRITE, LATENTS.bias, torch.full((3,), torch.inf, dtype=torch.float64))
    model = described("llama")
    assert torch.equal(run(model, PROMPTS, [Modulate(SITE, deaf, 5.0)]).logits, run(model, PROMPTS).logits)


def test_clamping_a_direction_is_swapping_its_coordinate():
    model, d = described("llama"), READ[0] / READ[0].norm()
    clamped = run(model, PROMPTS, [Modulate(SITE, Latents(d[None], d[None]), 0.0, 1.5)], [SITE])
    swapped = run(model, PROMPTS, [Swap(SITE, 1.5 * d, d[:, None])], [SITE])
    mask = PROMPTS.mask
    torch.testing.assert_close(clamped[SITE][mask], swapped[SITE][mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(clamped[SITE][mask] @ d, torch.full((int(mask.sum()),), 1.5).double())


def test_a_gate_sees_the_state_after_the_edits_before_it():
    model, d = described("llama"), torch.zeros(24, dtype=torch.float64)
    d[0] = 1.0
    gate = Gate(d, 99.0)
    lifted = run(model, PROMPTS, [Add(SITE, d, 1e3), Scale(SITE, 1.0), Replace(SITE, 2.0, gate=gate)], [SITE])[SITE]
    low = run(model, PROMPTS, [Replace(SITE, 2.0, gate=gate), Add(SITE, d, 1e3)], [SITE])[SITE]
    assert (lifted[PROMPTS.mask] == 2).all() and not (low[PROMPTS.mask] == 2).any()


def test_every_token_of_a_generation_is_modulated():
    model = described("llama")
    prompts = from_token_lists(None, [[5, 6, 7, 8, 9], [1, 2, 3]])
    edit = Modulate(SITE, LATENTS, 0.0, 3.0, gate=GATE)
    found = generate(model, prompts, [edit], max_new_tokens=4)
    for row, n in enumerate(prompts.lengths.tolist()):
        whole = from_token_lists(None, [prompts.ids[row, :n].tolist() + found.tokens[row, :3].tolist()])
        expected = run(model, whole, [edit]).last_logits()
        torch.testing.assert_close(found.logits[row, 3], expected[0], rtol=0, atol=1e-9)
    late = generate(model, prompts, [Modulate(SITE, LATENTS, 0.0, 30.0, when=When({2}))], max_new_tokens=4)
    assert torch.equal(late.logits[:, :2], generate(model, prompts, max_new_tokens=4).logits[:, :2])


def test_no_latents_change_nothing():
    model, none = described("llama"), READ[:0]
    plain = run(model, PROMPTS).logits
    assert torch.equal(run(model, PROMPTS, [Modulate(SITE, Latents(none, none), 5.0, 3.0)]).logits, plain)
