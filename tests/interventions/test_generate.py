"""Generation with cached states equals running the whole text with the edits at their tokens."""

from __future__ import annotations

import pytest
import torch
from models.described import described

from interp.errors import InterpError, SiteError
from interp.interventions.edits import Add, Knockout, Scale, When
from interp.interventions.generate import generate
from interp.interventions.run import run
from interp.models.prompts import from_token_lists
from interp.models.site import Site

PROMPTS = from_token_lists(None, [[5, 6, 7, 8, 9], [1, 2, 3]])
STEPS = 5


def whole_text(generation, step):
    """The prompts with the tokens that had been read by a step."""
    rows = [
        ids[:length] + new[:step]
        for ids, length, new in zip(
            PROMPTS.ids.tolist(), PROMPTS.lengths.tolist(), generation.tokens.tolist(), strict=True
        )
    ]
    return from_token_lists(None, rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3", "mixtral"])
def test_equals_recomputing_the_whole_text(family: str) -> None:
    model = described(family)
    push = 3 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    site, halved = Site("resid_post", 1), Scale(Site("mlp_out", 0), 0.5, positions=1)
    found = generate(model, PROMPTS, [Add(site, push, when=When({1, 2})), halved], [site], max_new_tokens=STEPS)
    for step in range(STEPS):
        edits = [halved]
        if step:
            new = PROMPTS.lengths[:, None] + torch.arange(min(step, 2))[None]
            edits.append(Add(site, push, positions=new))
        expected = run(model, whole_text(found, step), edits, [site])
        torch.testing.assert_close(found.logits[:, step], expected.last_logits(), atol=1e-9, rtol=0)
        last = expected[site][torch.arange(2), PROMPTS.lengths - 1 + step]
        torch.testing.assert_close(found.activations[site][:, step], last, atol=1e-9, rtol=0)
    assert torch.equal(found.tokens, found.logits.argmax(-1))


def test_an_edit_changes_what_follows_and_nothing_else() -> None:
    model = described("llama")
    plain = generate(model, PROMPTS, max_new_tokens=STEPS)
    push = torch.full((model.d_model,), 20.0, dtype=torch.float64)
    steered = generate(model, PROMPTS, [Add(Site("resid_post", 0), push, when=When({2}))], max_new_tokens=STEPS)
    assert torch.equal(plain.logits[:, :2], steered.logits[:, :2])
    assert (plain.logits[:, 2] - steered.logits[:, 2]).abs().max() > 1e-3


def test_sampling_repeats_by_seed() -> None:
    model = described("gpt2")
    draws = [generate(model, PROMPTS, max_new_tokens=8, temperature=2.0, seed=seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (Scale(Site("mlp_out", 0), 0.0, when=When({9})), InterpError, "there are 0 to 4"),
        (Scale(Site("mlp_out", 0), 0.0, positions=1, when=When({2})), InterpError, "step 0 only"),
        (Knockout(0, keys=0, positions=-1), SiteError, "not served while generating"),
    ],
)
def test_refusals(edit, error, message: str) -> None:
    with pytest.raises(error, match=message):
        generate(described("llama"), PROMPTS, [edit], max_new_tokens=STEPS)
