"""Hooks come off whatever happens, and what did not fire is an error."""

from __future__ import annotations

import pytest
import torch
from models.described import described, hooks_on, parts_of, ragged
from models.tiny import tiny

from interp.errors import InterpError, UnfiredError
from interp.interventions.edits import Ablate, Add, Knockout, Scale
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.hooks import original_attention, routed, stopping_at, tapped
from interp.models.load import describe
from interp.models.site import Site
from interp.tasks.metrics import LogProbability

EDITS = [Knockout(1, keys=0, positions=-1), Scale(Site("z", 0), 0.5), Ablate(Site("mlp_act", 2))]


def _configs(network):
    return [getattr(module, "config", None) for module in network.modules()]


def _untouched(network, configs):
    assert hooks_on(network) == 0
    assert all(a is b for a, b in zip(_configs(network), configs, strict=True))


@pytest.fixture
def fresh():
    return describe(tiny("llama"), None, "llama")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_and_configs_are_restored_after(fresh, error, monkeypatch):
    prompts, configs = ragged()[0], _configs(fresh.network)
    expected = run(fresh, prompts).logits
    original = fresh.layers[2].mlp.forward

    passes = []

    def fail(x):
        passes.append(hooks_on(fresh.network))
        if passes[-1]:  # the naive sweep's base run has none
            raise error("now")
        return original(x)

    metric = LogProbability(torch.tensor([1, 2, 3]))
    captures = parts_of(fresh)
    for action in (
        lambda: run(fresh, prompts, EDITS, captures),
        lambda: sweep(fresh, prompts, [EDITS], metric),
        lambda: sweep(fresh, prompts, [EDITS], metric, exact="naive"),
    ):
        monkeypatch.setattr(fresh.layers[2].mlp, "forward", fail)
        with pytest.raises(error, match="now"):
            action()
        assert passes.pop() > 0
        _untouched(fresh.network, configs)
        monkeypatch.setattr(fresh.layers[2].mlp, "forward", original)
        assert torch.equal(run(fresh, prompts).logits, expected)
        action()
        _untouched(fresh.network, configs)


def test_an_interrupt_inside_a_watcher(fresh):
    tap = fresh.tap(Site("resid_pre", 1))

    def interrupt(_x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tapped([("here", tap, interrupt)], 1):
        fresh.network(torch.tensor([[1, 2]]))
    _untouched(fresh.network, _configs(fresh.network))


def test_an_interrupt_between_chunks(fresh):
    prompts, configs = ragged()[0], _configs(fresh.network)

    def interrupted(items, _):
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(fresh, prompts, [EDITS], LogProbability(torch.tensor([1, 2, 3])), progress=interrupted)
    _untouched(fresh.network, configs)


@pytest.mark.parametrize("site", [Site("mlp_act", 1), Site("mlp_pre", 1)])
def test_a_bypassed_module_is_an_error(fresh, site, monkeypatch):
    mlp, prompts = fresh.layers[1].mlp, ragged()[0]
    fused = lambda x: x @ torch.eye(24, dtype=x.dtype)  # noqa: E731
    monkeypatch.setattr(mlp, "forward", fused)
    run(fresh, prompts, [], ["mlp_out"])  # still there
    for edits, capture in (([Add(site, 1.0)], []), ([], [site])):
        with pytest.raises(UnfiredError, match=f"never reached {site}"):
            run(fresh, prompts, edits, capture)
        assert hooks_on(fresh.network) == 0
    metric = LogProbability(torch.tensor([1, 2, 3]))
    for exact in ("naive",):
        with pytest.raises(UnfiredError, match=str(site)):
            sweep(fresh, prompts, [[Add(site, 1.0)]], metric, exact=exact)


def test_a_skipped_layer_is_an_error(fresh, monkeypatch):
    monkeypatch.setattr(fresh.layers[1].block, "forward", lambda x, **_: x)
    with pytest.raises(UnfiredError, match="L1.z"):
        run(fresh, ragged()[0], [], [Site("z", 1)])
    with pytest.raises((UnfiredError, InterpError, KeyError)):
        run(fresh, ragged()[0], [], [Site("attn_pattern", 1)])


def test_watchers_at_one_tap_act_in_their_order():
    model = described("llama")
    tap, ids = model.tap(Site("resid_pre", 1)), ragged()[0].select([0]).ids
    seen = []
    with tapped([("a", tap, lambda x: x + 1), ("b", tap, lambda x: seen.append(x.clone()))], 1), torch.no_grad():
        model.network(ids)
    before = run(model, ids, [], [Site("resid_pre", 1)])["resid_pre", 1]
    assert torch.equal(seen[0], before + 1)


def test_routing_to_the_own_attention_changes_nothing():
    for family in ("llama", "gpt2", "gemma2"):
        model, ids = described(family), ragged()[0].select([0]).ids
        configs = _configs(model.network)
        modules = [layer.attn for layer in model.layers]
        with torch.no_grad():
            expected = model.network(ids).logits
            with routed({module: original_attention(module) for module in modules}) as seen:
                assert torch.equal(model.network(ids).logits, expected)
            assert set(seen) == set(modules)
        _untouched(model.network, configs)


def test_stopping_ends_the_pass_where_a_module_begins():
    model, ids = described("llama"), ragged()[0].select([0]).ids
    with torch.no_grad(), stopping_at(model.layers[1].block) as inputs:
        model.network(ids)
    assert torch.equal(inputs[0], run(model, ids, [], [Site("resid_pre", 1)])["resid_pre", 1])
    assert len(inputs) == 1 and hooks_on(model.network) == 0
    with pytest.raises(ValueError, match="mine"), stopping_at(model.layers[1].block):
        raise ValueError("mine")
    assert hooks_on(model.network) == 0
