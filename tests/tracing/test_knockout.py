"""Attention knockout is a run with Knockout edits."""

from __future__ import annotations

import numpy as np
import pytest

from interp.errors import InterpError, PairError, SiteError
from interp.interventions.edits import Knockout
from interp.interventions.run import run
from interp.tracing.fact import Fact
from interp.tracing.knockout import GROUPS, KnockoutResult, knockout

PROMPT, SUBJECT, ANSWER = "The Golden Gate is in downtown", "Golden Gate", " Seattle"


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=1e-6, atol=1e-12, equal_nan=True)


def value(model, edits, answer):
    return float(run(model, PROMPT, edits).last_logits()[0].softmax(-1)[answer])


@pytest.mark.parametrize("window", [1, 2, 9])
def test_every_cell_is_a_run_with_its_edges_cut(speaking, window):
    result = knockout(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, window=window)
    (answer,) = speaking.tokenizer(ANSWER).input_ids
    x = result.data["probability"]
    assert x.dims == ("layer", "pos") and x.shape == (3, 6)
    keys = {"first token": [0], "subject": [1, 2], "before and after": [3, 4], "itself": [5]}

    def near(layer):
        return [n for n in range(layer - window // 2, layer - window // 2 + window) if 0 <= n < 3]

    for layer in range(3):
        for position in range(6):
            edits = [Knockout(n, keys=position, positions=-1) for n in near(layer)]
            close(x[layer, position], value(speaking, edits, answer))
        for name in GROUPS:
            edits = [Knockout(n, keys=keys[name], positions=5) for n in near(layer)]
            close(result.data["probability_group"].sel(layer=layer, group=name), value(speaking, edits, answer))
    clean = value(speaking, [], answer)
    close(result.data["probability_clean"], clean)
    assert np.abs(x.values / clean - 1).max() > 1e-2
    naive = knockout(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, window=window, exact="naive")
    close(x, naive.data["probability"].values)
    close(result.data["probability_group"], naive.data["probability_group"].values)


def test_the_first_token_is_apart_unless_it_is_asked_for(speaking):
    prompt, subject = "Mount Rainier stands near the city of", "Mount Rainier"
    (answer,) = speaking.tokenizer(" Seattle").input_ids
    inside = Fact.of(speaking, prompt, subject, " Seattle").subject
    assert inside[0] == 0 < inside[1]
    last = len(speaking.tokenizer(prompt).input_ids) - 1

    def cut(keys):
        edits = [Knockout(1, keys=keys, positions=last)]
        return float(run(speaking, prompt, edits).last_logits()[0].softmax(-1)[answer])

    apart, grouped = (
        knockout(speaking, prompt, subject=subject, answer=" Seattle", window=1, layers=[1], first_token=choice)
        for choice in ("apart", "grouped")
    )
    a, g = (result.data["probability_group"].sel(layer=1) for result in (apart, grouped))
    assert list(a["group"].values) == list(GROUPS) and list(g["group"].values) == list(GROUPS[1:])
    after = list(range(inside[1] + 1, last))
    close(a.sel(group="first token"), cut([0]))
    close(a.sel(group="subject"), cut(list(range(1, inside[1] + 1))))
    close(g.sel(group="subject"), cut(list(range(inside[1] + 1))))
    for result in (a, g):
        close(result.sel(group="before and after"), cut(after))
    assert abs(float(a.sel(group="subject") / g.sel(group="subject")) - 1) > 1e-3
    # Said wherever the number stands.
    assert "subject (but the first):" in apart.summary() and "subject (the first token too):" in grouped.summary()
    assert [line.name for line in apart.plot_groups().data] == [
        "first token", "subject (but the first)", "before and after", "itself"
    ]  # fmt: skip
    elsewhere = knockout(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, window=1, layers=[1])
    assert "before and after (but the first):" in elsewhere.summary() and "  subject:" in elsewhere.summary()


def test_metric_layers_and_a_subject_at_the_end(speaking):
    a, b = (
        knockout(speaking, PROMPT, subject="downtown", answer=ANSWER, layers=[1], window=1, metric=m)
        for m in ("probability", "log_probability")
    )
    close(np.exp(b.data["log_probability"]), a.data["probability"].values)
    assert a.data["probability"].shape == (1, 6)
    group = a.data["probability_group"].sel(layer=1)
    assert np.isnan(group.sel(group="subject")) and np.isfinite(group.sel(group="itself"))
    assert not any("subject" in line for line in a.summary().splitlines()[2:])
    assert "subject" not in [line.name for line in a.plot_groups().data]


def test_save_and_load(speaking, tmp_path):
    result = knockout(speaking, PROMPT, subject=SUBJECT, answer=ANSWER, window=1)
    result.save(tmp_path / "knockout.nc")
    back = KnockoutResult.load(tmp_path / "knockout.nc")
    assert back.data.identical(result.data) and back.provenance == result.provenance
    assert back.summary() == result.summary()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(subject="Eiffel"), PairError, "does not occur"),
        (dict(prompt="The Golden Gate is in the", answer="n"), PairError, "Did you mean ' n'"),
        (dict(layers=[5]), SiteError, "the nearest is 2"),
        (dict(window=0), InterpError, "window"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(speaking, arguments, error, message):
    with pytest.raises(error, match=message):
        knockout(speaking, **dict(prompt=PROMPT, subject=SUBJECT, answer=ANSWER) | arguments)


def test_one_token_has_nothing_to_cut(speaking):
    with pytest.raises(InterpError, match="one token"):
        knockout(speaking, "The", subject="The", answer=" Space")


def test_an_answer_of_several_tokens_is_read_behind_the_cut_query(speaking):
    """The edges are those of the prompt's last token; the answer is teacher-forced behind it."""
    answer = " San Francisco"
    ids = speaking.tokenizer(answer).input_ids
    result = knockout(speaking, PROMPT, subject=SUBJECT, answer=answer, window=1)
    prompts = speaking.prompts(PROMPT + speaking.tokenizer.decode(ids[:-1]))
    logits = run(speaking, prompts, [Knockout(1, keys=2, positions=5)]).logits[0, 5:].log_softmax(-1)
    close(result.data["probability"][1, 2], float(sum(logits[i, t] for i, t in enumerate(ids)).exp()))
