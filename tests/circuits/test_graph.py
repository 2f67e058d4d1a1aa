"""Graphs: who may send to whom, counted by hand."""

from __future__ import annotations

import pytest
import torch
from circuits.exact import FAMILIES, exact
from models.described import described
from models.tiny import tiny
from torch import nn

from interp.circuits.graph import Graph
from interp.errors import InterpError, SiteError
from interp.models.denoiser import Denoiser
from interp.models.load import describe

GPT2_SMALL = Graph("gpt2", "", 12, 12, 12, 768, False)
SMOLLM2 = Graph("smollm2-135m", "", 30, 9, 3, 576, False)
GROUPED = Graph("tiny", "", 2, 4, 2, 24, False)


def test_known_edge_counts():
    assert GPT2_SMALL.n_edges == 32_491 and len(GPT2_SMALL.senders) == 157
    # Σ n_l = 30 + 10 · (0 + … + 29) = 4,380 senders before the layers; 9 queries + 2 · 3 shared inputs + the MLP read
    # them, the MLP also its layer's 9 heads; the logits read 301.
    assert SMOLLM2.n_edges == 4_380 * (9 + 6 + 1) + 30 * 9 + 301 == 70_651
    # With a key and a value input for every query head, as other tools count:
    assert Graph("", "", 30, 9, 9, 576, False).n_edges == 123_211


def test_edges_of_a_small_graph_by_hand():
    assert GROUPED.senders == (
        "input",
        "a0.h0",
        "a0.h1",
        "a0.h2",
        "a0.h3",
        "m0",
        "a1.h0",
        "a1.h1",
        "a1.h2",
        "a1.h3",
        "m1",
    )
    layer = [
        "a{}.h0<q>",
        "a{}.h1<q>",
        "a{}.h2<q>",
        "a{}.h3<q>",
        "a{}.kv0<k>",
        "a{}.kv1<k>",
        "a{}.kv0<v>",
        "a{}.kv1<v>",
        "m{}",
    ]
    assert list(GROUPED.receivers) == [name.format(x) for x in (0, 1) for name in layer] + ["logits"]
    earlier = [1] * 8 + [5] + [6] * 8 + [10] + [11]
    for column, n in enumerate(earlier):
        assert GROUPED.edges[:n, column].all() and not GROUPED.edges[n:, column].any()
    parallel = Graph("tiny", "", 2, 4, 4, 24, True)
    assert parallel.n_edges == 1 * 13 + 6 * 13 + 11
    assert parallel.receivers[4] == "a0.h0<k>"


def test_a_shared_key_feeds_its_group():
    feeds = {GROUPED.nodes[i] for i in GROUPED.feeds[GROUPED.receivers.index("a1.kv1<k>")].nonzero()[0]}
    assert feeds == {"a1.h2", "a1.h3"}
    assert GROUPED.feeds.sum() == 2 * (4 + 4 * 2 + 1) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_graph(family):
    model = exact(family)
    graph = Graph.of(model)
    per_layer = model.n_heads + 2 * model.n_kv_heads
    n = [1 + layer * 5 for layer in range(3)]
    assert graph.n_edges == sum(k * (per_layer + 1) + (0 if family == "gpt_neox" else 4) for k in n) + 16
    assert Graph(**graph.record()) == graph


def test_names_and_indices():
    assert GROUPED.index("a0.h1->m1") == (2, 17)
    assert GROUPED.index("input->logits") == (0, 18)
    with pytest.raises(SiteError, match=r"no sender 'a0.h9'.*Did you mean 'a0.h3'"):
        GROUPED.index("a0.h9->m1")
    with pytest.raises(SiteError, match="no receiver 'a1.h0<k>'"):
        GROUPED.index("a0.h1->a1.h0<k>")
    with pytest.raises(SiteError, match="m0 does not read what m0 writes"):
        GROUPED.index("m0->m0")


def test_networkx():
    import networkx

    graph = GROUPED.networkx()
    assert networkx.is_directed_acyclic_graph(graph) and set(graph) == set(GROUPED.nodes)
    assert graph.nodes["a1.h2"] == {"kind": "head", "layer": 1} and graph.nodes["logits"] == {
        "kind": "logits",
        "layer": None,
    }
    assert set(graph.edges["m0", "a1.h2"]["receivers"]) == {"a1.h2<q>", "a1.kv1<k>", "a1.kv1<v>"}
    scores = torch.arange(float(GROUPED.edges.size)).view(GROUPED.edges.shape).numpy()
    kept = GROUPED.edges & False
    kept[GROUPED.index("a0.h1->m1")] = True
    small = GROUPED.networkx(kept, scores)
    assert list(small.edges(data=True)) == [("a0.h1", "m1", {"receivers": {"m1": scores[2, 17]}})]


def test_refusals(monkeypatch):
    with pytest.raises(InterpError, match="Edges are defined for language models; got a Denoiser"):
        Graph.of(Denoiser.__new__(Denoiser))
    model = described("gpt2")
    from dataclasses import replace

    with pytest.raises(InterpError, match="not defined here: it runs elsewhere"):
        Graph.of(replace(model, not_replayable="it runs elsewhere"))
    with pytest.raises(InterpError, match=r"cannot serve 'z' \(fused\)"):
        Graph.of(replace(model, untouchable={"z": "fused"}))
    headless = tuple(replace(layer, norm2=None) for layer in model.layers)
    with pytest.raises(InterpError, match="layer 0 lacks an MLP behind a norm"):
        Graph.of(replace(model, layers=headless))


def test_a_norm_behind_attention_that_does_more_than_scale_is_refused():
    network = tiny("gemma2")
    network.model.layers[1].post_attention_layernorm = nn.LayerNorm(24).double()
    with pytest.raises(InterpError, match="layer 1 does more than scale"):
        Graph.of(describe(network, None, "shifted"))
    network = tiny("gemma2")
    network.model.layers[2].self_attn.o_proj.bias = nn.Parameter(torch.ones(24).double())
    with pytest.raises(InterpError, match="layer 2 has a bias inside the norm"):
        Graph.of(describe(network, None, "biased"))
