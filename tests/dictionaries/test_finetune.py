"""Finetuning: the KL is that of plain runs, its gradient too, and it falls."""

from __future__ import annotations

import pytest
import torch

from interp.dictionaries.finetune import divergence_of, finetune
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.site import Site

TEXTS = [
    "The cat sat on the mat and looked at the old dog, which slept in front of the warm fire in the house.",
    "In the evening two men came down from the hill and asked the woman at the door for some bread and water.",
]
SITE = Site("resid_post", 1)


@pytest.fixture
def made(speaking):
    x = run(speaking, TEXTS, capture=[SITE], logits=False)[SITE]
    mask = speaking.prompts(TEXTS).mask
    return TopK(Standardisation.from_moments(Moments.of(x[mask]), (str(SITE),), dtype=torch.float64), 48, 4).double()


def test_the_divergence_is_that_of_a_run_with_the_reconstruction_in_place(speaking, made):
    ids = torch.tensor([speaking.tokenizer(text).input_ids[:9] for text in TEXTS])
    prompts = speaking.prompts(ids)
    kl, unexplained = divergence_of(made, speaking, prompts, SITE, 2)
    base = run(speaking, prompts, capture=[SITE])
    x = base[SITE][:, 2:]
    edit = Replace(SITE, made(x), positions=list(range(2, 9)))
    edited = run(speaking, prompts, [edit], grad=True).logits[:, 2:].log_softmax(-1)
    p = base.logits[:, 2:].log_softmax(-1)
    expected = (p.exp() * (p - edited)).sum(-1).mean()
    torch.testing.assert_close(kl, expected, rtol=0, atol=1e-9)
    rows = made.read.apply_to(x.flatten(0, 1))
    torch.testing.assert_close(unexplained, (rows - made.read.apply_to(made(x).flatten(0, 1))).square().mean())
    wanted = torch.autograd.grad(expected, list(made.parameters()))
    for a, b in zip(torch.autograd.grad(kl, list(made.parameters())), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_finetuning_lowers_the_divergence(speaking, made):
    result = finetune(made, speaking, TEXTS, steps=40, batch=4, context=8, learning_rate=3e-3)
    kl = result.data["kl"]
    assert float(kl[-5:].mean()) < 0.7 * float(kl[:5].mean())
    torch.testing.assert_close(made.atoms.norm(dim=1).detach(), torch.ones(48).double())
    pieces = sum(len(speaking.tokenizer(text).input_ids) // 8 for text in TEXTS)
    assert result.provenance["n_pieces"] == pieces and result.plot().data


def test_refusals(speaking, made):
    x = torch.randn(50, 24).double()
    two = Standardisation.from_moments(Moments.of(x), ("a", "b"), (20, 4))
    narrow = TopK(Standardisation.identity(9, str(SITE)), 10, 2)
    for d, error, what in [
        (TopK(two, 10, 2), InterpError, "one site"),
        (narrow, ShapeError, "24 wide, the dictionary 9"),
        (TopK(Standardisation.identity(24, "L7.resid_post"), 10, 2), SiteError, "3 layers"),
    ]:
        with pytest.raises(error, match=what):
            finetune(d, speaking, TEXTS, context=8)
    with pytest.raises(PairError, match="No text has 60 tokens"):
        finetune(made, speaking, TEXTS, context=60)
    with pytest.raises(InterpError, match="too small"):
        finetune(made, speaking, TEXTS, context=8, steps=0)
