"""Paths equal path patches written out with plain hooks, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import exact, pairs, plain, tolerance
from circuits.test_patching import NAMES, ByHand

from interp.circuits.graph import Graph
from interp.circuits.patching import EdgePatching
from interp.circuits.paths import PathEffects, checked_mlps, path_patching, senders_into
from interp.circuits.score import exact_edges
from interp.errors import InterpError, SiteError
from interp.tasks.metrics import LogitDifference

PAIRS = pairs()


def values(logits):
    return (logits.gather(1, PAIRS.answer[:, None]) - logits.gather(1, PAIRS.wrong_answer[:, None]))[:, 0]


class HandPaths(ByHand):
    """One step of a path: how a node's term changes in the base run when one of its inputs does."""

    def replaced(self, sender):
        return self.term(PAIRS.corrupted, sender) - self.term(PAIRS.clean, sender)

    def through(self, node, moves):
        """`moves`: receivers, named as in the graph, with the change of what they read."""
        layers, _, _, _, mlp, out, _ = self.names
        layer = int(node[1:].split(".")[0])
        hooks = [hook for receiver, delta in moves for hook in self.moving(receiver, delta)]
        seen = []
        if node[0] == "m":
            self.logits(
                PAIRS.clean, [*hooks, (self.get(f"{layers}.{layer}.{mlp}"), False, lambda m, a, o: seen.append(o))]
            )
            return seen[0] - self.term(PAIRS.clean, node)
        module, width, head = self.get(f"{layers}.{layer}.{out}"), self.model.d_head, int(node.split("h")[1])
        looking = (module, True, lambda m, a, k: seen.append(a[0]))
        self.logits(PAIRS.clean, [looking])
        self.logits(PAIRS.clean, [*hooks, looking])
        mixed, own = seen[0].clone(), slice(head * width, (head + 1) * width)
        mixed[..., own] = seen[1][..., own]
        return self.head_term(node, mixed) - self.term(PAIRS.clean, node)

    def read_by(self, receiver, delta):
        return values(self.logits(PAIRS.clean, self.moving(receiver, delta)))


def paths_by_hand(hand, family):
    """(path or set, values) for paths of two and three steps."""
    kv = "kv" if exact(family).n_kv_heads < exact(family).n_heads else "h"
    group = exact(family).n_heads // exact(family).n_kv_heads
    value = f"a1.{kv}{1 // group}<v>"
    through_value = hand.through("a1.h1", [(value, hand.replaced("m0"))])
    through_query = hand.through("a1.h1", [("a1.h1<q>", hand.replaced("a0.h2"))])
    through_mlp = hand.through("m1", [("m1", hand.replaced("a0.h0"))])
    key = f"a2.{kv}{2 // group}<k>"
    yield "m0->a1.h1<v>->logits", hand.read_by("logits", through_value)
    yield "a0.h2->a1.h1<q>->m2", hand.read_by("m2", through_query)
    yield f"a0.h0->m1->{key}", hand.read_by(key, through_mlp)
    behind = hand.through("a2.h2", [(key, through_mlp)])
    yield "a0.h0->m1->a2.h2<k>->logits", hand.read_by("logits", behind)
    both = hand.read_by("logits", through_value + hand.replaced("m1"))
    yield ["m0->a1.h1<v>->logits", "m1->logits"], both
    together = hand.through("m2", [("m2", through_value + through_mlp)])
    yield ["m0->a1.h1<v>->m2->logits", "a0.h0->m1->m2->logits"], hand.read_by("logits", together)


@pytest.mark.parametrize("family", NAMES)
def test_paths_by_hand(family):
    model, hand = exact(family), HandPaths(family)
    clean = plain(model, PAIRS.clean, PAIRS)
    cases = list(paths_by_hand(hand, family))
    found = path_patching(model, PAIRS, [path for path, _ in cases])
    for effect, (path, expected) in zip(found.data["effect"].values, cases, strict=True):
        assert (expected - clean).abs().max() > 1e-5, path
        np.testing.assert_allclose(
            effect, (clean - expected).numpy(), rtol=0, atol=tolerance(family), err_msg=str(path)
        )


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_path_of_one_step_is_an_edge(direction):
    model = exact("llama")
    expected = exact_edges(model, PAIRS, direction=direction)
    names = ["input->a0.h1<q>", "m0->a1.kv1<v>", "a0.h3->m1", "a1.h0->logits", "m2->logits"]
    found = path_patching(model, PAIRS, names, direction=direction)
    for name, mean in zip(names, found.data["mean"].values, strict=True):
        assert mean == pytest.approx(expected.scores[expected.graph.index(name)], abs=1e-9)


def test_open_ends_of_one_layer_are_edges_patched_at_once():
    model, graph = exact("llama"), Graph.of(exact("llama"))
    names = ["a0.h1->a1.h0<q>", "m0->a1.kv0<k>", "m0->a1.h0<q>", "input->a1.kv1<v>"]
    patch = torch.zeros(graph.edges.shape, dtype=torch.float64)
    for name in names:
        patch[graph.index(name)] = 1
    metric = LogitDifference(PAIRS.answer, PAIRS.wrong_answer)
    expected = EdgePatching(model, PAIRS.clean, PAIRS.corrupted, metric)(patch)
    effect = path_patching(model, PAIRS, [names]).data["effect"].values[0]
    np.testing.assert_allclose(effect, (plain(model, PAIRS.clean, PAIRS) - expected).numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_recomputed_mlps_are_the_published_algorithm(family):
    """All attention frozen, one head from the other run, MLPs live; then the receiver reads what it finds there."""
    model, hand = exact(family), ByHand(family)
    layers, norm1, _, final, _, out, _ = hand.names

    def mixed(prompts, layer):
        seen = []
        hand.logits(prompts, [(hand.get(f"{layers}.{layer}.{out}"), True, lambda m, a, k: seen.append(a[0]))])
        return seen[0]

    frozen, d = [], model.d_head
    for layer in range(model.n_layers):
        z = mixed(PAIRS.clean, layer).clone()
        if layer == 0:
            z[..., 2 * d : 3 * d] = mixed(PAIRS.corrupted, layer)[..., 2 * d : 3 * d]
        frozen.append((hand.get(f"{layers}.{layer}.{out}"), True, lambda m, a, k, z=z: ((z, *a[1:]), k)))
    clean = plain(model, PAIRS.clean, PAIRS)
    for receiver, place in (("a2.h1<q>", f"{layers}.2.{norm1}"), ("logits", final)):
        seen = []
        looking = (hand.get(place), True, lambda m, a, k, seen=seen: seen.append(a[0]))
        hand.logits(PAIRS.clean, [looking])
        hand.logits(PAIRS.clean, [*frozen, looking])
        expected = clean - values(hand.logits(PAIRS.clean, hand.moving(receiver, seen[1] - seen[0])))
        path = f"a0.h2->{receiver}"
        direct = path_patching(model, PAIRS, [path]).data["effect"].values[0]
        effect = path_patching(model, PAIRS, [path], mlps="recomputed").data["effect"].values[0]
        np.testing.assert_allclose(effect, expected.numpy(), rtol=0, atol=1e-9)
        assert np.abs(effect - direct).max() > 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_recomputed_mlps_up_to_an_mlp(family):
    """By edges: from a head in layer 0 to the last MLP there are the direct way and those through MLPs between."""
    model = exact(family)
    direct, through = (
        path_patching(model, PAIRS, ["a1.h1->m2"], mlps=mlps).data["effect"].values for mlps in ("frozen", "recomputed")
    )
    if model.family.parallel:  # the MLP beside a head does not read it
        np.testing.assert_allclose(through, direct, rtol=0, atol=1e-9)
    else:
        both = path_patching(model, PAIRS, [["a1.h1->m2", "a1.h1->m1->m2"]]).data["effect"].values
        assert np.abs(through - direct).max() > 1e-6
        np.testing.assert_allclose(through, both, rtol=0, atol=1e-9)
    last = path_patching(model, PAIRS, ["m0->m2"], mlps="recomputed").data["effect"].values
    both = path_patching(model, PAIRS, [["m0->m2", "m0->m1->m2"]]).data["effect"].values
    np.testing.assert_allclose(last, both, rtol=0, atol=1e-9)


def test_who_writes_into_these_inputs():
    model = exact("llama")
    graph = Graph.of(model)
    column = graph.receivers.index("a1.kv1<v>")
    one = senders_into(model, PAIRS, ["a1.kv1<v>"])
    expected = exact_edges(model, PAIRS)
    np.testing.assert_allclose(one.scores, expected.scores[:, column], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        one.data["error"].values[:3], expected.data["error"].values[:3, column], rtol=0, atol=1e-9
    )
    assert np.isnan(one.scores[graph.senders.index("a1.h0")]) and "paths into a1.kv1<v>" in repr(one)
    onward = senders_into(model, PAIRS, ["a2.h1<q>", "a1.kv1<v>"], onward=["logits", "m2"])
    for sender in ("m0", "a1.h3"):
        paths = [f"{sender}->a2.h1<q>->{on}" for on in ("logits", "m2")]
        if sender == "m0":
            paths += [f"m0->a1.h{head}<v>->{on}" for head in (2, 3) for on in ("logits", "m2")]
        mean = path_patching(model, PAIRS, [paths]).data["mean"].values[0]
        assert abs(mean) > 1e-5
        assert onward.scores[graph.senders.index(sender)] == pytest.approx(mean, abs=1e-9)
    assert onward.plot().layout.title.text


def test_it_shows_and_keeps_itself(tmp_path):
    found = path_patching(exact("gpt2"), PAIRS, ["m0->m1", ["m0->m2", "m1->m2"]], checkpoint=tmp_path / "run")
    assert "m0->m2 + m1->m2" in repr(found) and found.plot().layout.title.text
    found.save(tmp_path / "paths.nc")
    np.testing.assert_array_equal(PathEffects.load(tmp_path / "paths.nc").data["effect"], found.data["effect"])


def test_refusals():
    model = exact("llama")

    def patched(*paths):
        return path_patching(model, PAIRS, paths)

    for path, message in (
        ("m0", "'m0' is no path; paths look like"),
        ("a0.h9->m1", "no sender 'a0.h9'"),
        ("m1->a1.h0<q>", "does not read what m1 writes"),
        ("m0->a1.h0<k>", "no receiver 'a1.h0<k>'"),
        ("m0->a1.kv0<k>->logits", r"a1.kv0<k> is read by a1.h0, a1.h1; say which, as in 'a1.h0<k>'"),
        ("m0->logits->m1", "nothing comes after the logits"),
    ):
        with pytest.raises(SiteError, match=message):
            patched(path)
    with pytest.raises(InterpError, match="One path begins at m1 where another goes through it"):
        patched(["m0->m1->logits", "m1->logits"])
    with pytest.raises(InterpError, match="at least one path"):
        patched()
    with pytest.raises(InterpError, match="'frozen' or 'recomputed'; got 'live'"):
        checked_mlps("live")
    with pytest.raises(InterpError, match="Name the receivers"):
        senders_into(model, PAIRS, [])
    with pytest.raises(SiteError, match="no receiver 'a1.h0<k>'"):
        senders_into(model, PAIRS, ["a1.h0<k>"])
