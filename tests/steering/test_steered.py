"""A steered model: through its methods and as a block, once and never twice, and not at all where nothing ran."""

from __future__ import annotations

import pytest
import torch
from models.denoisers import changed as own_denoiser
from models.described import hooks_on

import interp
from interp.errors import InterpError, SiteError, UnfiredError
from interp.interventions.edits import Ablate, Add, Gate, Latents, Modulate, Replace, Scale, When, edits_of
from interp.interventions.generate import generate, stream
from interp.interventions.run import run
from interp.models.site import Site
from interp.steering import steer

SITE = Site("resid_post", 1)
PROMPTS = ["The cat sat", "A dog barks at the"]


def push(seed=0):
    return 2 * torch.randn(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edits():
    d = torch.nn.functional.normalize(push(1), dim=0)
    return [
        Add(SITE, push(), keep_norm=True),
        Modulate(Site("mlp_out", 0), Latents(d[None], d[None]), 0.0, 3.0, gate=Gate(d, -0.5)),
        Scale(Site("z", 2, 1), 0.5),
        Add(Site("head_result", 0, 2), 0.3 * push(2)),
    ]


def logits_of(model, text):
    with torch.no_grad():
        return model.network(model.prompts(text).ids).logits


def test_methods_are_the_waist_with_the_edits(speaking):
    steered = steer(speaking, edits()[0], edits()[1:])
    assert torch.equal(steered.run(PROMPTS).last_logits(), run(speaking, PROMPTS, steered.edits).last_logits())
    made, expected = steered.generate(PROMPTS), generate(speaking, PROMPTS, steered.edits)
    assert torch.equal(made.tokens, expected.tokens) and made.texts == expected.texts
    assert tuple(map("".join, zip(*steered.stream(PROMPTS), strict=True))) == made.texts
    assert not torch.equal(made.logits, generate(speaking, PROMPTS).logits)


def test_a_block_steers_whatever_calls_the_network(speaking):
    plain = [logits_of(speaking, text) for text in PROMPTS]
    expected = [run(speaking, text, edits()).logits for text in PROMPTS]
    tokens = generate(speaking, PROMPTS, edits()).tokens
    with steer(speaking, edits()) as steered:
        for text, logits in zip(PROMPTS, expected, strict=True):
            torch.testing.assert_close(logits_of(speaking, text), logits, rtol=0, atol=1e-9)
        batch = speaking.prompts([PROMPTS[0], PROMPTS[0]]).ids
        with torch.no_grad():
            both = speaking.network(batch).logits
        torch.testing.assert_close(both[1], expected[0][0], rtol=0, atol=1e-9)
        # and its own methods steer once, with the block's hooks out of the way
        assert torch.equal(steered.run(PROMPTS[0]).logits, expected[0])
        assert torch.equal(steered.generate(PROMPTS).tokens, tokens)
        torch.testing.assert_close(logits_of(speaking, PROMPTS[0]), expected[0], rtol=0, atol=1e-9)
    assert hooks_on(speaking.network) == 0
    for text, logits in zip(PROMPTS, plain, strict=True):
        assert torch.equal(logits_of(speaking, text), logits)


def test_edits_that_share_a_site_act_at_every_token(speaking):
    """Two additions are one call of the kernel, in waves: at all tokens, not at the first."""
    both = [Add(SITE, push()), Scale(SITE, 0.5), Add(SITE, push(3))]
    expected = run(speaking, PROMPTS[1], both).logits
    with steer(speaking, both):
        torch.testing.assert_close(logits_of(speaking, PROMPTS[1]), expected, rtol=0, atol=1e-9)


def test_huggingface_generate_is_steered_with_its_cache(speaking):
    ids = speaking.prompts(PROMPTS[1]).ids
    expected = generate(speaking, PROMPTS[1], edits(), max_new_tokens=5).tokens[0]
    with steer(speaking, edits()):
        made = speaking.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    assert torch.equal(made[0, ids.shape[1] :], expected)


def test_other_calls_in_a_block_are_refused_rather_than_steered_in_part(speaking):
    with steer(speaking, edits()) as steered:
        for call in (
            lambda: run(speaking, PROMPTS),
            lambda: interp.generate(speaking, PROMPTS),
            lambda: steer(speaking, edits()).__enter__(),
        ):
            with pytest.raises(InterpError, match="steered by a `with interp.steer"):
                call()
        steered.run(PROMPTS)
    run(speaking, PROMPTS)


def test_a_block_in_which_nothing_ran_is_an_error_and_hooks_go_on_any_way_out(speaking):
    with pytest.raises(UnfiredError, match="never reached"), steer(speaking, edits()):
        pass
    with pytest.raises(RuntimeError, match="out"), steer(speaking, edits()):
        raise RuntimeError("out")
    assert hooks_on(speaking.network) == 0
    run(speaking, PROMPTS)


def test_edits_of_some_places_are_for_methods_only(speaking):
    for edit in (Add(SITE, 1.0, positions=0), Add(SITE, 1.0, rows=[0]), Add(SITE, 1.0, when=When({0}))):
        steered = steer(speaking, edit)
        with pytest.raises(InterpError, match="acts at some places only"), steered:
            pass
        steered.generate(PROMPTS)
    assert hooks_on(speaking.network) == 0
    kept = run(speaking, PROMPTS[1], (), [SITE])
    for edit in (
        Ablate(SITE, "mean", over=kept, per_position=True),
        Replace(SITE, kept),
        Ablate(SITE, "resample", kept),
    ):
        with pytest.raises(InterpError, match="another value at each position"), steer(speaking, edit):
            pass
    mean = [Ablate(SITE, "mean", over=kept)]
    expected = run(speaking, PROMPTS[1], mean).logits
    with steer(speaking, mean):
        torch.testing.assert_close(logits_of(speaking, PROMPTS[1]), expected, rtol=0, atol=1e-9)
    with pytest.raises(InterpError, match="Nothing to steer by"):
        steer(speaking)
    with pytest.raises(SiteError, match="3 layers"):
        steer(speaking, Add(Site("resid_post", 9), 1.0))


def test_edits_are_taken_from_lists_of_any_depth_and_nothing_else_is():
    one, two = Add(SITE, 1.0), Scale(SITE, 0.5)
    assert edits_of(one, [two, [one]], (edit for edit in (two,))) == [one, two, one, two]
    for wrong, message in (
        (run, "call it"),
        ("add", "no edit but a str"),
        (0.3, "a float"),
        ([one, {"a": two}], "a dict"),
    ):
        with pytest.raises(InterpError, match=message):
            edits_of(wrong)


def test_a_stream_leaves_the_network_alone_between_pieces(speaking):
    plain = logits_of(speaking, PROMPTS[0])
    pieces = stream(speaking, PROMPTS, edits(), max_new_tokens=4)
    told = []
    for piece in pieces:
        assert hooks_on(speaking.network) == 0
        assert torch.equal(logits_of(speaking, PROMPTS[0]), plain)
        told.append(piece)
    assert len(told) == 4
    assert tuple(map("".join, zip(*told, strict=True))) == generate(speaking, PROMPTS, edits(), max_new_tokens=4).texts
    with pytest.raises(InterpError, match="at least 1"):
        stream(speaking, PROMPTS, max_new_tokens=0)
    halves = steer(speaking, edits()).stream(PROMPTS)
    next(halves)
    halves.close()
    assert hooks_on(speaking.network) == 0


def test_characters_of_several_tokens_are_told_whole(speaking, tokenizer):
    from interp.interventions.generate import _pieces

    text = "naïve café 😀 ok"
    ids = tokenizer(text).input_ids
    steps = ((torch.tensor([one]), torch.zeros(1, 1)) for one in ids)
    pieces = [piece[0] for piece in _pieces(tokenizer, steps, len(ids))]
    assert "".join(pieces) == tokenizer.decode(ids) and not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # some character took several tokens


# --- denoisers ----------------------------------------------------------------------------------------------------


def test_pictures_are_steered_through_what_steer_returned():
    model = own_denoiser()
    site = model.sites("block_out")[1]
    edit = Replace(site, 0.3, when=When(steps=[1]))
    settings = dict(steps=2, height=16, width=24, guidance=3.0, seeds=[3])
    expected = run(model, "a red circle", [edit], **settings).images
    steered = steer(model, edit)
    assert torch.equal(steered.run("a red circle", **settings).images, expected)
    with steered:
        assert torch.equal(steered.run("a red circle", **settings).images, expected)
        assert len(steered("a red circle", **settings)) == 1
        with pytest.raises(InterpError, match="not through what it returned"):
            model("a red circle", **settings)
        with pytest.raises(InterpError, match="steered by a `with interp.steer"):
            run(model, "a red circle", **settings)
    assert hooks_on(model.network) == 0
    assert not torch.equal(run(model, "a red circle", **settings).images, expected)
    with pytest.raises(UnfiredError), steer(model, edit):
        pass
