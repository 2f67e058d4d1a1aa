"""Generation with cached states equals running the whole text with the edits at their tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.described import described, hooks_on

from interp.errors import InterpError, ShapeError
from interp.interventions.edits import Ablate, Add, Knockout, Replace, Scale, When
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


# --- attention ----------------------------------------------------------------------------------------------------

ATTENTION_FAMILIES = [
    "llama", "mistral", "gpt2", "gpt_neox", "gemma2", "gemma3", "qwen3", "phi3", "opt"
]  # fmt: skip
WIDTH = 5 + STEPS - 1
"""Keys that the last step of the longest prompt sees."""


def new_queries(*steps):
    """[batch, step] positions of the tokens that these later steps read."""
    return PROMPTS.lengths[:, None] + torch.tensor(steps)[None] - 1


def rows_of_weights(*shape):
    """Non-negative numbers whose later keys are cut off at every query; they need not sum to one."""
    return torch.rand(*shape, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cases():
    """(name, edits of `generate`, the same as edits of `run` on the whole text)."""
    scores, pattern = Site("attn_scores", 1), Site("attn_pattern", 2)
    weights, shift = rows_of_weights(4), rows_of_weights(2, 1)
    prompt_keys = torch.tensor([[1, 4], [0, 2]])  # the second column counts from the end in `generate`
    every = range(1, STEPS)
    yield (
        "knockout of prompt keys, every query of later steps",
        [Knockout(1, keys=torch.tensor([[1, -1], [0, -1]]), when=When(every))],
        [Knockout(1, keys=prompt_keys, positions=new_queries(*every))],
    )
    yield (
        "knockout of new tokens as keys, one head, two steps",
        [Knockout(0, keys=PROMPTS.lengths[:, None] + torch.tensor([[0, 1]]), head=2, when=When([2, 4]))],
        [Knockout(0, keys=PROMPTS.lengths[:, None] + torch.tensor([[0, 1]]), head=2, positions=new_queries(2, 4))],
    )
    yield (
        "knockout of a key for the prompt's last query",
        [Knockout(1, keys=0, positions=-1)],
        [Knockout(1, keys=0, positions=PROMPTS.lengths[:, None] - 1)],
    )
    yield (
        "knockout of one key in one row for every query",
        [Knockout(0, keys=1, rows=[1])],
        [Knockout(0, keys=1, rows=[1])],
    )
    yield (
        "knockout of the same key twice, with another edit between",
        [Knockout(1, keys=1), Scale(scores, 0.5), Add(Site("attn_scores", 1, 3), shift[..., :WIDTH], when=When([2]))],
        [
            Knockout(1, keys=1), Scale(scores, 0.5),
            Add(Site("attn_scores", 1, 3), shift[..., :WIDTH], positions=new_queries(2)),
        ],
    )  # fmt: skip
    yield (
        "weights replaced at every step, then one head silenced",
        [Replace(pattern, weights), Ablate(Site("attn_pattern", 2, 1), when=When([0, 3]), positions=None)],
        [
            Replace(pattern, weights), Ablate(Site("attn_pattern", 2, 1), positions=new_queries(3)),
            *(Ablate(Site("attn_pattern", 2, 1), rows=[b], positions=list(range(n))) for b, n in enumerate([5, 3])),
        ],
    )  # fmt: skip
    yield (
        "together with edits of other parts",
        [Scale(Site("z", 1, 0), 2.0), Scale(Site("attn_scores", 1, 0), 0.3), Scale(Site("v", 1, 1), -1.0, positions=1)],
        [Scale(Site("z", 1, 0), 2.0), Scale(Site("attn_scores", 1, 0), 0.3), Scale(Site("v", 1, 1), -1.0, positions=1)],
    )


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_attention_equals_recomputing_the_whole_text(family: str) -> None:
    # Gemma 2's own softmax is in float32, where the float64 mask of a padding token leaves it nothing to see.
    model = described(family, torch.float32 if family == "gemma2" else torch.float64)
    tolerance = dict(atol=3e-5 if family == "gemma2" else 1e-9, rtol=0, check_dtype=False)
    capture = [Site("attn_scores", 0), Site("attn_pattern", 1), Site("attn_pattern", 2, 3), Site("resid_post", 2)]
    plain = generate(model, PROMPTS, max_new_tokens=STEPS)
    for name, edits, equivalent in cases():
        found = generate(model, PROMPTS, edits, capture, max_new_tokens=STEPS)
        whole = run(model, whole_text(found, STEPS - 1), equivalent, capture)
        row, at = torch.arange(2)[:, None], PROMPTS.lengths[:, None] - 1 + torch.arange(STEPS)[None]
        say = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(found.logits, whole.logits[row, at], msg=say, **tolerance)
        torch.testing.assert_close(found.activations[capture[3]], whole[capture[3]][row, at], msg=say, **tolerance)
        for site in capture[:3]:
            expected = whole[site].movedim(-2, 1)[row, at]
            # What an edit wrote for later keys stands in a capture of `run`, though no query sees it.
            later = torch.arange(WIDTH) > at.view(*at.shape, *(1,) * (expected.ndim - 2))
            expected = expected.masked_fill(later, -torch.inf if site.part == "attn_scores" else 0.0)
            assert found.activations[site].shape[-1] == WIDTH
            torch.testing.assert_close(found.activations[site], expected, msg=say, **tolerance)
        assert (found.logits - plain.logits).abs().max() > 1e-4, name


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_knocked_out_key_has_no_weight_at_all(family: str) -> None:
    model, pattern, scores = described(family), Site("attn_pattern", 1), Site("attn_scores", 1)
    cut = Knockout(1, keys=2, when=When([1, 3]))
    plain, found = (generate(model, PROMPTS, e, [pattern, scores], max_new_tokens=STEPS) for e in ([], [cut]))
    before, after = plain.activations[pattern], found.activations[pattern]
    assert (after[:, [1, 3], :, 2] == 0).all() and (found.activations[scores][:, [1, 3], :, 2] == -torch.inf).all()
    assert torch.equal(before[:, 0], after[:, 0]) and (before[1, [1, 3], :, 2] > 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(2, STEPS, 4, dtype=torch.float64))
    # Nothing beyond the token that a step reads; a sliding window of four keys hides the older ones too.
    last = PROMPTS.lengths[:, None] - 1 + torch.arange(STEPS)
    key = torch.arange(WIDTH)
    hidden = key > last[..., None]
    if family == "mistral":
        hidden |= key <= last[..., None] - 4
    hidden = hidden[:, :, None].expand_as(after)
    assert (before[hidden] == 0).all() and (plain.activations[scores][hidden] == -torch.inf).all()
    assert (before[~hidden] > 0).all()


def test_a_run_of_the_prompts_serves_the_step_that_reads_them() -> None:
    model, site = described("llama"), Site("attn_pattern", 1)
    other = run(model, from_token_lists(None, [[9, 8, 7, 6, 5], [3, 2, 1]]), (), [site])
    found = generate(model, PROMPTS, [Replace(site, other, when=When([0]))], max_new_tokens=STEPS)
    whole = whole_text(found, STEPS - 1)
    edits = [
        Replace(site, other[site][b : b + 1, :, :n, :n].transpose(1, 2), rows=[b], positions=list(range(n)))
        for b, n in enumerate([5, 3])
    ]
    edits = [replace(e, value=torch.nn.functional.pad(e.value, (0, WIDTH - e.value.shape[-1]))) for e in edits]
    at = PROMPTS.lengths[:, None] - 1 + torch.arange(STEPS)
    expected = run(model, whole, edits).logits[torch.arange(2)[:, None], at]
    torch.testing.assert_close(found.logits, expected, atol=1e-9, rtol=0)
    with pytest.raises(ShapeError, match="differ in length at prompt 0"):
        generate(model, PROMPTS, [Replace(site, other)], max_new_tokens=2)


def test_no_edits_are_no_edits_bit_for_bit() -> None:
    model = described("llama")
    plain = generate(model, PROMPTS, max_new_tokens=STEPS)
    looked = generate(model, PROMPTS, [], ["resid_post"], max_new_tokens=STEPS)
    assert torch.equal(plain.logits, looked.logits) and torch.equal(plain.tokens, looked.tokens)
    idle = [Knockout(1, keys=PROMPTS.lengths[:, None] + STEPS - 2, when=When([1]))]  # a token that is not there yet
    silent = generate(model, PROMPTS, [Scale(Site("attn_scores", 1), 1.0)], max_new_tokens=STEPS)
    torch.testing.assert_close(silent.logits, plain.logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        generate(model, PROMPTS, idle, max_new_tokens=STEPS).logits, plain.logits, atol=1e-12, rtol=0
    )
    assert hooks_on(model.network) == 0


def test_logits_that_are_no_numbers_are_an_error_and_no_token() -> None:
    blind = Replace(Site("attn_scores", 1), -torch.inf, rows=[1], when=When([2]))
    with pytest.raises(InterpError, match=r"step 2 are not numbers for prompts \[1\]"):
        generate(described("llama"), PROMPTS, [blind], max_new_tokens=STEPS)


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
        (Knockout(0, keys=0), InterpError, "query 0 would see no key at all"),
        (Knockout(0, keys=[0, 1, 2, 3, 4, 5], when=When({1}), rows=[0]), InterpError, "query 5 would see no key"),
        (
            Knockout(0, keys=7, when=When({1})),
            InterpError,
            "position 7 is outside prompt 1, .* 3 tokens and 4 new ones",
        ),
        (Knockout(0, keys=-4, when=When({1})), InterpError, "position -4 is outside prompt 1"),
        (Replace(Site("attn_pattern", 0), torch.ones(4, 5)), ShapeError, r"row=2, position=5, 4, 9\]"),
    ],
    ids=str,
)
def test_refusals(edit, error, message: str) -> None:
    with pytest.raises(error, match=message):
        generate(described("llama"), PROMPTS, [edit], max_new_tokens=STEPS)


def test_scores_of_another_run_and_a_knockout_share_a_query():
    """Operands of two widths: the prompt's keys, and those of new tokens too."""
    model = described("llama")
    source = run(model, PROMPTS, [Scale(Site("resid_pre", 0), 2.0)], [Site("attn_scores", 1)])
    edits = [Replace(Site("attn_scores", 1), source, positions=-1), Knockout(1, keys=0, positions=-1)]
    made = generate(model, PROMPTS, edits, max_new_tokens=2)
    expected = run(model, PROMPTS, edits).last_logits()
    torch.testing.assert_close(made.logits[:, 0], expected, rtol=0, atol=1e-9)
    assert (expected - run(model, PROMPTS).last_logits()).abs().max() > 1e-3
