"""Causal traces against ROME's loop, written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interp.errors import InterpError, PairError, SiteError
from interp.tasks.pairs import PromptPair, Task
from interp.tracing import causal
from interp.tracing.causal import ROLES, TraceResult, trace
from interp.tracing.fact import Fact

PROMPT, SUBJECT, ANSWER = "The Golden Gate is in downtown", "Golden Gate", " Seattle"
NOISES, SIGMA, SEED = 3, 2.0, 4


def close(found, expected, atol=1e-9):
    np.testing.assert_allclose(
        np.asarray(found, dtype=float), np.asarray(expected, dtype=float), rtol=0, atol=atol, equal_nan=True
    )


PATHS = {
    "resid_post": "model.layers.{}", "mlp_out": "model.layers.{}.mlp", "attn_out": "model.layers.{}.self_attn",
}  # fmt: skip


class Rome:
    """The protocol, by plain hooks: one forward pass per noise, layer and token."""

    def __init__(self, model, ids, first, last, draws=None, corrupted=None):
        self.network = model.network
        self.ids = torch.tensor([ids])
        self.base_ids = self.ids if corrupted is None else torch.tensor([corrupted])
        self.first, self.last, self.draws = first, last, draws
        self.clean = self.states(self.ids, None)
        self.held = {}

    @torch.no_grad()
    def forward(self, ids, noise, changes=(), keep=None):
        """Logits, with `noise` on the subject and changes (module, position, value); `keep` takes outputs."""
        handles = []

        def hook(path, function):
            def after(_module, _args, output):
                if isinstance(output, torch.Tensor):
                    return function(output)
                return (function(output[0]), *output[1:])

            handles.append(self.network.get_submodule(path).register_forward_hook(after))

        if noise is not None:

            def corrupt(x):
                x = x.clone()
                x[0, self.first : self.last + 1] += noise
                return x

            hook("model.embed_tokens", corrupt)
        for path, position, value in changes:

            def write(x, position=position, value=value):
                x = x.clone()
                x[0, position] = value
                return x

            hook(path, write)
        if keep is not None:
            for layer in range(3):
                for path in PATHS.values():
                    name = path.format(layer)
                    hook(name, lambda x, name=name: (keep.setdefault(name, x[0].clone()), x)[1])
        try:
            return self.network(ids, use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()

    def states(self, ids, noise):
        kept = {}
        kept["logits"] = self.forward(ids, noise, keep=kept)
        return kept

    def cell(self, draw, part, layer, position, window=1, severed=None):
        noise = None if self.draws is None else self.draws[draw]
        first = layer - window // 2
        near = [n for n in range(first, first + window) if 0 <= n < 3]
        changes = [(PATHS[part].format(n), position, self.clean[PATHS[part].format(n)][position]) for n in near]
        if severed:
            held = self.held.setdefault(draw, self.states(self.base_ids, noise))
            after = layer + (part == "resid_post")
            changes += [
                (PATHS[severed].format(n), position, held[PATHS[severed].format(n)][position]) for n in range(after, 3)
            ]
        return self.forward(self.base_ids, noise, changes)


def rome(model, prompt=PROMPT, subject=(1, 2), seed=SEED, sigma=SIGMA, extra=(), number=0):
    ids = [*model.prompts(prompt).ids[0].tolist(), *extra]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    shape = (NOISES, subject[1] - subject[0] + 1, model.d_model)
    return Rome(model, ids, *subject, (sigma * torch.randn(shape, generator=generator)).double())


def token(model, text):
    (number,) = model.tokenizer(text).input_ids
    return number


@pytest.mark.parametrize(
    ("part", "window", "severed"),
    [
        ("resid_post", 1, None),
        ("mlp_out", 2, None),
        ("attn_out", 3, None),
        ("resid_post", 1, "mlp_out"),
        ("resid_post", 1, "attn_out"),
    ],
)
def test_a_trace_is_the_hand_written_loop(speaking, part, window, severed):
    arguments = dict(
        subject=SUBJECT, answer=ANSWER, part=part, window=window, severed=severed, noise=SIGMA, noises=NOISES, seed=SEED
    )
    result = trace(speaking, PROMPT, **arguments)
    loop, answer = rome(speaking), token(speaking, ANSWER)
    x = result.data["probability"]
    assert x.dims == ("layer", "pos", "noise") and x.shape == (3, 6, NOISES)
    expected = np.empty((3, 6, NOISES))
    for layer, position, draw in np.ndindex(3, 6, NOISES):
        logits = loop.cell(draw, part, layer, position, window, severed)
        expected[layer, position, draw] = logits[-1].softmax(-1)[answer]
    close(x.values, expected)
    close(result.data["probability_mean"], expected.mean(-1))
    close(result.data["probability_clean"], loop.clean["logits"][-1].softmax(-1)[answer])
    corrupted = [loop.forward(loop.ids, loop.draws[d])[-1].softmax(-1)[answer] for d in range(NOISES)]
    close(result.data["probability_corrupted"], corrupted)
    assert [bool(b) for b in result.data["in_subject"]] == [False, True, True, False, False, False]
    assert list(result.data["token"].values) == ["The", " Golden", " Gate", " is", " in", " downtown"]
    assert expected.max() / expected.min() > 2
    naive = trace(speaking, PROMPT, exact="naive", **arguments)
    close(x.values, naive.data["probability"].values)
    assert result.provenance["rows_run"] <= naive.provenance["rows_run"]


def test_log_probability_layers_and_other_parts(speaking):
    arguments = dict(subject=SUBJECT, answer=ANSWER, noise=SIGMA, noises=NOISES, seed=SEED, metric="log_probability")
    post = trace(speaking, PROMPT, **arguments)
    pre = trace(speaking, PROMPT, part="resid_pre", layers=[1, 2], **arguments)
    close(pre.data["log_probability"].values, post.data["log_probability"].values[:2])
    assert list(pre.data["layer"].values) == [1, 2]
    probability = trace(speaking, PROMPT, **arguments | {"metric": "probability"})
    close(np.exp(post.data["log_probability"].values), probability.data["probability"].values)
    mid = trace(speaking, PROMPT, part="resid_mid", **arguments)
    naive = trace(speaking, PROMPT, part="resid_mid", exact="naive", **arguments)
    close(mid.data["log_probability"].values, naive.data["log_probability"].values)


def test_the_last_states_restore_the_clean_answer_and_the_default_noise_is_three_sigma(speaking):
    result = trace(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, noises=2)
    close(result.data["probability"].values[-1, -1], np.full(2, float(result.data["probability_clean"])))
    assert 1.4 < result.provenance["sigma"] < 1.6  # embeddings drawn from N(0, 0.5)
    other = trace(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, noises=2, seed=1)
    assert not np.allclose(other.data["probability_corrupted"], result.data["probability_corrupted"], rtol=1e-3, atol=0)


def test_an_answer_of_several_tokens(speaking):
    answer = " San Francisco Bay"
    ids = speaking.tokenizer(answer).input_ids
    assert len(ids) == 3
    result = trace(speaking, PROMPT, subject=SUBJECT, answer=answer, noise=SIGMA, noises=NOISES, seed=SEED)
    loop = rome(speaking, extra=ids[:-1])
    assert result.data["probability"].shape == (3, 6, NOISES)
    for layer, position, draw in np.ndindex(3, 6, NOISES):
        steps = loop.cell(draw, "resid_post", layer, position)[-3:].log_softmax(-1)
        expected = steps[torch.arange(3), torch.tensor(ids)].sum().exp()
        close(result.data["probability"][layer, position, draw], expected)


def test_alternative_answers_add_up(speaking):
    texts = [" Seattle", " Paris", " Rome"]
    ids = [token(speaking, text) for text in texts]
    for metric, function in (("probability", lambda p: p), ("log_probability", torch.log)):
        result = trace(
            speaking, PROMPT, subject=SUBJECT, answer=texts, noise=SIGMA, noises=NOISES, seed=SEED, metric=metric
        )
        loop = rome(speaking)
        for layer, position, draw in ((0, 2, 0), (2, 5, 1), (1, 0, 2)):
            expected = function(loop.cell(draw, "resid_post", layer, position)[-1].softmax(-1)[ids].sum())
            close(result.data[metric][layer, position, draw], expected)


def test_the_models_own_answer(speaking):
    fact = Fact.of(speaking, PROMPT, SUBJECT, None)
    with torch.no_grad():
        logits = speaking.network(speaking.prompts(PROMPT).ids).logits[0, -1]
    assert fact.answers == ((int(logits.argmax()),),)
    own = trace(speaking, PROMPT, subject=SUBJECT, noises=1)
    close(own.data["probability_clean"], logits.softmax(-1).max())


def test_replacement_by_a_pairs_corrupted_prompt(speaking):
    pair = PromptPair(PROMPT, "The Ocean River is in downtown", " Seattle", " Paris", subject=SUBJECT)
    clean, corrupted = (speaking.prompts(text).ids[0].tolist() for text in (pair.clean, pair.corrupted))
    for severed in (None, "mlp_out"):
        result = trace(speaking, pair, corruption="replacement", severed=severed)
        loop = Rome(speaking, clean, 1, 2, corrupted=corrupted)
        assert result.data["probability"].shape == (3, 6, 1)
        for layer, position in np.ndindex(3, 6):
            logits = loop.cell(0, "resid_post", layer, position, severed=severed)
            close(result.data["probability"][layer, position, 0], logits[-1].softmax(-1)[token(speaking, " Seattle")])
        naive = trace(speaking, pair, corruption="replacement", severed=severed, exact="naive")
        close(result.data["probability"].values, naive.data["probability"].values)
    assert result.provenance["noises"] == 1


FACTS = Task(
    "facts",
    (
        PromptPair(PROMPT, PROMPT, ANSWER, " Paris", subject=SUBJECT),
        PromptPair("Mount Rainier stands near the city of", "Mount Rainier stands near the city of", " Seattle", " Rome", subject="Mount Rainier"),
        PromptPair("In Rome", "In Rome", " the", " a", subject="Rome"),
    ),
    "this test",
)  # fmt: skip


def test_an_average_over_facts(speaking):
    result = trace(speaking, FACTS, noise=SIGMA, noises=NOISES, seed=SEED)
    x = result.data["probability"]
    assert x.dims == ("layer", "role", "example") and x.shape == (3, len(ROLES), 3)
    for number, pair in enumerate(FACTS.pairs):
        fact = Fact.of(speaking, pair.clean, pair.subject, pair.answer)
        loop = rome(speaking, pair.clean, fact.subject, number=number)
        n, (first, last) = fact.n_prompt, fact.subject
        grid = np.empty((3, n))
        for layer, position in np.ndindex(3, n):
            grid[layer, position] = np.mean(
                [
                    loop.cell(d, "resid_post", layer, position)[-1].softmax(-1)[fact.answers[0][0]].item()
                    for d in range(NOISES)
                ]
            )
        groups = {"last token": [n - 1]}
        groups["last subject"] = [last] if last < n - 1 else []
        groups["first subject"] = [first] if first < last else []
        groups["middle subject"] = list(range(first + 1, last))
        groups["first after"] = [last + 1] if last + 1 < n - 1 else []
        groups["further"] = [p for p in range(n - 1) if p < first or p > last + 1]
        for role, positions in groups.items():
            expected = grid[:, positions].mean(1) if positions else np.full(3, np.nan)
            close(x.sel(role=role, example=number).values, expected)
    close(result.data["probability_mean"].sel(role="last token"), x.sel(role="last token").mean("example"))
    assert int(result.data["scored"].sel(role="last token", layer=0)) == 3
    naive = trace(speaking, FACTS[:1], noise=SIGMA, noises=NOISES, seed=SEED, exact="naive")
    close(naive.data["probability"].values[..., 0], x.values[..., 0])


def test_recovered_is_the_share_of_the_gap(speaking):
    facts = apart(speaking, FACTS)
    one = trace(speaking, facts.pairs[0], noise=SIGMA, noises=NOISES, seed=SEED)
    x, clean, corrupted = (one.data[f"probability{name}"].values for name in ("", "_clean", "_corrupted"))
    share = one.recovered()
    assert share["recovered"].dims == ("layer", "pos") and share["token"].equals(one.data["token"])
    close(share["recovered"], (x.mean(-1) - corrupted.mean()) / (clean - corrupted.mean()))
    close(share["recovered"][-1, -1], 1.0)
    close(share["recovered"][:, 0], np.zeros(3))  # before the subject nothing was destroyed
    # The clean value is the same in every draw, but the gap is not: the interval is not that of the numerator alone.
    assert (share["low"][1] <= share["recovered"][1]).all() and (share["recovered"][1] <= share["high"][1]).all()
    assert float(share["high"][1, 2] - share["low"][1, 2]) > 0

    average = trace(speaking, facts, noise=SIGMA, noises=NOISES, seed=SEED)
    x, clean, corrupted = (average.data[f"probability{name}"].values for name in ("", "_clean", "_corrupted"))
    share = average.recovered()
    for layer, role in np.ndindex(3, len(ROLES)):
        has = np.isfinite(x[layer, role])
        gap = (clean - corrupted)[has]
        if has.all():
            close(share["recovered"][layer, role], (x[layer, role] - corrupted).mean() / gap.mean())
        elif not has.any():
            assert np.isnan(share["recovered"][layer, role])
    close(share["recovered"].sel(role="last token", layer=2), 1.0)
    assert share["recovered"].dims == ("layer", "role") and list(share["role"].values) == list(ROLES)


def apart(model, task):
    """The facts, each with the answer that noise takes most from."""
    pairs = []
    for number, pair in enumerate(task.pairs):
        fact = Fact.of(model, pair.clean, pair.subject, pair.answer)
        loop = rome(model, pair.clean, fact.subject, number=number)
        after = torch.stack([loop.forward(loop.ids, draw)[-1].softmax(-1) for draw in loop.draws]).mean(0)
        lost = loop.clean["logits"][-1].softmax(-1) - after
        best = next(i for i in lost.argsort(descending=True).tolist() if continues(model, pair.clean, i))
        pairs.append(dataclasses.replace(pair, answer=model.tokenizer.decode([best])))
    return Task("facts", tuple(pairs), "this test")


def continues(model, prompt, token):
    """Whether a token's text continues the prompt by that token alone."""
    ids = model.tokenizer(prompt).input_ids
    return model.tokenizer(prompt + model.tokenizer.decode([token])).input_ids == [*ids, token]


def test_recovered_refuses_where_nothing_was_destroyed(speaking):
    nothing = trace(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, noise=0.0, noises=2)
    with pytest.raises(PairError, match=r"probability of clean and corrupted differs by 0 on average.*n = 2"):
        nothing.recovered()


def test_groups_of_facts_change_no_value(speaking, monkeypatch):
    """However the facts are grouped by memory, each keeps its own noise."""
    expected = trace(speaking, FACTS, noise=SIGMA, noises=NOISES, seed=SEED)
    monkeypatch.setattr(causal, "groups", lambda *_: [range(1), range(1, 3)])
    split = trace(speaking, FACTS, noise=SIGMA, noises=NOISES, seed=SEED)
    close(split.data["probability"].values, expected.data["probability"].values)


def test_save_and_load(speaking, tmp_path):
    for what, arguments in ((PROMPT, dict(subject=SUBJECT, answer=ANSWER)), (FACTS, {})):
        result = trace(speaking, what, noises=2, **arguments)
        result.save(tmp_path / "trace.nc")
        back = TraceResult.load(tmp_path / "trace.nc")
        assert back.data.identical(result.data) and back.provenance == result.provenance
        assert back.summary() == result.summary() and back.title == result.title


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(subject="Eiffel"), PairError, "does not occur in .* exactly once"),
        (dict(subject="golden gate"), PairError, "does not occur"),
        (dict(subject="n"), PairError, r"occurs \d times"),
        (dict(subject=""), PairError, "does not occur"),
        (dict(subject=None), PairError, "Give `subject`"),
        (dict(answer=""), PairError, "does not continue"),
        (dict(answer=[" Seattle", " San Francisco"]), PairError, "must be one token each"),
        (dict(answer=[]), PairError, "must be one token each"),
        (dict(part="z"), InterpError, "Restoring 'z' is no causal trace"),
        (dict(part="mlp_out", severed="mlp_out"), InterpError, "contradicts itself"),
        (dict(noises=0), InterpError, "at least 1"),
        (dict(window=0), InterpError, "at least 1"),
        (dict(layers=[3]), SiteError, "the nearest is 2"),
        (dict(corruption="replacement"), PairError, "needs a prompt pair"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(speaking, arguments, error, message):
    with pytest.raises(error, match=message):
        trace(speaking, PROMPT, **dict(subject=SUBJECT, answer=ANSWER, noises=2) | arguments)


def test_an_answer_that_merges_with_the_prompt_is_refused_with_a_hint(speaking):
    with pytest.raises(PairError, match="'n' does not continue the prompt's tokens.*' then'.*Did you mean ' n'"):
        trace(speaking, "The Golden Gate is in the", subject=SUBJECT, answer="n")


def test_more_refusals(speaking):
    with pytest.raises(PairError, match="empty"):
        trace(speaking, "", subject="x")
    with pytest.raises(PairError, match="no pairs"):
        trace(speaking, Task("none", (), ""))
    with pytest.raises(PairError, match="differ in token length.*'The'"):
        trace(speaking, PromptPair(PROMPT, "The tower", ANSWER, " Paris", subject=SUBJECT), corruption="replacement")
