"""What heads attend to, token by token in plain loops, and what they copy, by hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import exact, pairs

from interp.circuits.heads import ROLES, HeadBehaviour, head_behaviour
from interp.errors import InterpError, SiteError
from interp.interventions.run import run
from interp.tasks.copying import induction_by_hand

PAIRS = pairs()
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox"]


def by_hand(pattern, ids, answer, wrong):
    """Roles of one example and head: pattern [query][key]."""
    n = len(ids)
    last, stands = n - 1, lambda token: [s for s in range(n) if ids[s] == token]

    def mean(query_keys):
        found = [sum(pattern[t][s] for s in keys) for t, keys in query_keys if keys]
        return sum(found) / len(found) if found else float("nan")

    wrongs = stands(wrong)
    return {
        "answer": mean([(last, stands(answer))]),
        "wrong answer": mean([(last, wrongs[:1])]),
        "wrong answer again": mean([(last, wrongs[1:])]),
        "previous token": mean([(t, [t - 1]) for t in range(1, n)]),
        "same token": mean([(t, [s for s in range(t) if ids[s] == ids[t]]) for t in range(n)]),
        "after same token": mean([(t, [s + 1 for s in range(t) if ids[s] == ids[t]]) for t in range(n)]),
        "first token": mean([(t, [0]) for t in range(1, n)]),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_by_role_is_the_loops(family):
    model = exact(family)
    # An answer that stands in some prompts: the first word of the first.
    answer = PAIRS.clean.ids[:1, 0].expand(len(PAIRS)).clone()
    wrong = PAIRS.clean.ids[:, 1].clone()
    task = type(PAIRS)(PAIRS.task, PAIRS.clean, PAIRS.corrupted, answer, wrong)
    found = head_behaviour(model, task, budget=1)
    patterns = run(model, PAIRS.clean, (), model.sites("attn_pattern"), logits=False).activations
    for site, pattern in patterns.items():
        for example, length in enumerate(PAIRS.clean.lengths.tolist()):
            ids = PAIRS.clean.ids[example, :length].tolist()
            for head in range(model.n_heads):
                expected = by_hand(
                    pattern[example, head, :length, :length].tolist(), ids, int(answer[example]), int(wrong[example])
                )
                one = found.data["attention"].isel(layer=site.layer, head=head, example=example)
                np.testing.assert_allclose(one.values, [expected[role] for role in ROLES], atol=1e-9)
    assert np.isnan(found.data["copying"]).any() and not np.isnan(found.data["copying"]).all()
    whole = head_behaviour(model, task)
    for name in ("attention", "copying", "suppressing"):
        np.testing.assert_allclose(whole.data[name], found.data[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_copying_is_the_head_that_attends_to_the_answer_alone(family):
    model = exact(family)
    answer = PAIRS.clean.ids[:, 2].clone()
    task = type(PAIRS)(PAIRS.task, PAIRS.clean, PAIRS.corrupted, answer, PAIRS.wrong_answer)
    found = head_behaviour(model, task, top=8)
    seen = 0
    for layer in range(model.n_layers):
        states = run(model, PAIRS.clean, (), [f"L{min(layer, 1)}.resid_pre"])
        block = model.layers[layer]
        for example in range(len(PAIRS)):
            ids = PAIRS.clean.ids[example, : int(PAIRS.clean.lengths[example])].tolist()
            x = states[f"L{min(layer, 1)}.resid_pre"][example, ids.index(int(answer[example]))]
            # The network's own value projection, on a prompt of one token that is this state.
            values: list[torch.Tensor] = []
            hook = block.block.register_forward_pre_hook(
                lambda _m, args, kwargs, x=x: ((x[None, None].expand_as(args[0]).clone(), *args[1:]), kwargs),
                with_kwargs=True,
            )
            with hook:
                values.append(run(model, PAIRS.clean.select([example]), (), [f"L{layer}.v"])[f"L{layer}.v"][0, 0])
            for head in range(model.n_heads):
                z = values[0][head * model.n_kv_heads // model.n_heads]
                out = z @ model.head_projection(layer)[head]
                out = out if block.post_attn_norm is None else block.post_attn_norm(out)
                assert model.final_norm is not None
                logits = model.unembed(model.final_norm(out))
                order = logits.argsort(descending=True).tolist()
                rank = order.index(int(answer[example]))
                one = found.data.isel(layer=layer, head=head, example=example)
                assert bool(one["copying"]) == (rank < 8)
                assert bool(one["suppressing"]) == (rank >= len(order) - 8)
                seen += rank < 8
    assert seen


def test_the_heads_of_an_induction_circuit_are_named_by_what_they_do():
    truth = induction_by_hand(n=24)
    found = head_behaviour(truth.model, truth.task, top=2)
    table = found.of(["a0.h0", "a1.h0", "a0.h1", "a1.h1"])
    assert table.loc["a0.h0", "previous token"] > 0.9
    assert table.loc["a1.h0", "after same token"] > 0.9 and table.loc["a1.h0", "answer"] > 0.9
    assert table.loc["a1.h0", "copying"] == 1 and table.loc["a0.h0", "copying"] < 0.5
    # The idle heads, whose weights are random, do neither.
    idle = table.loc[["a0.h1", "a1.h1"]]
    assert (idle[["previous token", "after same token", "answer", "copying"]] < 0.6).all(axis=None)
    assert "after same token: a1.h0" in repr(found) and "previous token: a0.h0" in repr(found)


def test_results_are_kept_and_drawn(tmp_path):
    model = exact("llama")
    found = head_behaviour(model, PAIRS)
    found.save(tmp_path / "heads.nc")
    assert HeadBehaviour.load(tmp_path / "heads.nc").data.identical(found.data)
    drawn = str(found.plot(["previous token", "first token"]).to_json())
    assert drawn.count('"type":"heatmap"') >= 2 and "role first token" in drawn


def test_what_is_refused():
    model = exact("llama")
    with pytest.raises(InterpError, match="top=0: between 1 and half"):
        head_behaviour(model, PAIRS, top=0)
    with pytest.raises(SiteError, match="no head 'a9.h0'"):
        head_behaviour(model, PAIRS).of(["a9.h0"])
    found = head_behaviour(model, PAIRS)
    with pytest.raises(InterpError, match="no role 'anser'"):
        found.plot(["anser"])
    with pytest.raises(InterpError, match="No prompt of this task has 'wrong answer again'"):
        found.plot(["wrong answer again"])
