"""Core and exclusive neurons against plain runs; planted siblings are told from random ones."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.concepts.siblings import _parts, sibling_effects
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Add
from interp.models.site import Site

SITE = Site("mlp_act", 2)
WORDS = {"weekday": ["Monday", "Friday"], "weekend": ["Saturday", "Sunday"], "other": ["apple"]}
PROMPTS = ["We met on", "It was a long", "She said that he"]


def tokens_of(model, kind):
    return [model.tokenizer(f" {word}").input_ids[0] for word in WORDS[kind]]


def planted(model):
    """Of 40 neurons the three that write most towards both kinds of words, and three each for one against the other."""
    write = model.network.model.layers[2].mlp.down_proj.weight.detach()
    to = {kind: (model.network.lm_head.weight.detach() @ write)[tokens_of(model, kind)].mean(0) for kind in WORDS}
    both = (to["weekday"] + to["weekend"]) / 2
    core = both.abs().topk(3).indices
    siblings = {}
    for kind, other in (("weekday", "weekend"), ("weekend", "weekday")):
        apart = (to[kind] - to[other]).clone()
        apart[core] = 0
        own = apart.argsort(descending=True)[:3]
        siblings[kind] = torch.zeros(40, dtype=write.dtype)
        siblings[kind][core] = both[core].sign()
        siblings[kind][own] = 1.0
    return siblings


def test_effects_are_those_of_plain_runs(speaking):
    siblings = planted(speaking)
    found = sibling_effects(speaking, SITE, siblings, WORDS, PROMPTS, strength=0.5, draws=2, seed=3)
    parts = _parts(siblings, 40, SITE)
    plain = [interp.run(speaking, prompt, capture=[SITE]) for prompt in PROMPTS]
    length = 0.5 * torch.stack([one[SITE][0, -1].norm() for one in plain]).mean()
    generator = torch.Generator().manual_seed(3)
    for edit, part in parts.items():
        unit = (part / part.norm()).to(length.dtype) * length
        tried = [unit, *(unit[torch.randperm(40, generator=generator)] for _ in range(2))]
        for kind in WORDS:
            ids, change = tokens_of(speaking, kind), []
            for added in tried:
                told = []
                for prompt, base in zip(PROMPTS, plain, strict=True):
                    edited = interp.run(speaking, prompt, [Add(SITE, added, positions=-1)])
                    before, after = (x.logits[0, -1].float().log_softmax(-1)[ids].mean() for x in (base, edited))
                    told.append(after - before)
                change.append(float(torch.stack(told).mean()))
            one = found.data.sel(edit=edit, words=kind)
            # float32 log probabilities of about 11 nats
            assert float(one["effect"]) == pytest.approx(change[0], abs=2e-5)
            assert one["random"].values.tolist() == pytest.approx(change[1:], abs=2e-5)


def test_planted_siblings_are_told_from_random_ones(speaking):
    found = sibling_effects(speaking, SITE, planted(speaking), WORDS, PROMPTS, draws=39).data
    assert (found["effect"].sel(edit="core", words=["weekday", "weekend"]) > 0).all()
    for words in ("weekday", "weekend"):  # planted for the mean of both: of one alone a random set may come near
        assert float(found["rank"].sel(edit="core", words=words)) <= 0.1
    for kind, other in (("weekday", "weekend"), ("weekend", "weekday")):  # planted for the difference
        own, drawn = found["effect"].sel(edit=kind), found["random"].sel(edit=kind)
        apart = float(own.sel(words=kind) - own.sel(words=other))
        assert apart > 0
        assert float((drawn.sel(words=kind) - drawn.sel(words=other) >= apart).mean()) <= 0.1
    assert found["sizes"].values.tolist() == [3, 3, 3]
    ranks = []
    for seed in range(4):  # the control: neurons without meaning
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        shuffled = {name: one[order] for name, one in planted(speaking).items()}
        ranks.append(sibling_effects(speaking, SITE, shuffled, WORDS, PROMPTS, draws=39, seed=seed).data["rank"].values)
    assert 0.3 < sum(r.mean() for r in ranks) / 4 < 0.7


def test_parts_by_hand():
    one = torch.tensor([3.0, 0, 4, 0, 1])
    two = torch.tensor([-1.0, 0, 1, 1, 0])
    parts = _parts({"one": one, "two": two}, 5, SITE)
    # neuron 0 differs in sign
    assert parts["core"].tolist() == pytest.approx([0, 0, (4 * 26**-0.5 + 3**-0.5) / 2, 0, 0])
    assert parts["one"].tolist() == pytest.approx([0, 0, 0, 0, 26**-0.5])
    assert parts["two"].tolist() == pytest.approx([0, 0, 0, 3**-0.5, 0])


def test_refusals(speaking):
    good = planted(speaking)
    one = {"weekday": good["weekday"]}
    lone = {"a": torch.eye(40)[0], "b": torch.eye(40)[1]}
    within = {"a": torch.eye(40)[0], "b": torch.eye(40)[:2].sum(0)}
    for siblings, words, prompts, settings, error, message in (
        (one, WORDS, PROMPTS, {}, InterpError, "at least two"),
        (good, WORDS, [], {}, InterpError, "one prompt"),
        (good, WORDS, "We met on", {}, InterpError, "letter by letter"),
        (good, WORDS, PROMPTS, {"strength": 0.0}, InterpError, "above 0"),
        (lone, WORDS, PROMPTS, {}, InterpError, "no neuron in common"),
        (within, WORDS, PROMPTS, {}, InterpError, "a's alone"),
        ({**one, "core": good["weekend"]}, WORDS, PROMPTS, {}, InterpError, "call this one otherwise"),
        ({**one, "b": torch.ones(3)}, WORDS, PROMPTS, {}, ShapeError, "40 neurons"),
        (good, {"x": ["antidisestablishment"]}, PROMPTS, {}, PairError, "tokens after a space"),
        (good, {"x": []}, PROMPTS, {}, PairError, "at least one"),
        (good, {}, PROMPTS, {}, PairError, "No words"),
    ):
        with pytest.raises(error, match=message):
            sibling_effects(speaking, SITE, siblings, words, prompts, **settings)
