"""Selection by hand on small graphs, and what pruning must not change."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr
from circuits.exact import exact, pairs

from interp.circuits.graph import Graph
from interp.circuits.patching import EdgePatching
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.score import random_scores
from interp.circuits.select import circuit, greedy, nested, prune, random_like, threshold, top_n
from interp.errors import InterpError
from interp.results import provenance
from interp.tasks.metrics import LogitDifference

GRAPH = Graph("tiny", "", 2, 2, 1, 8, False)


def scored(named, graph=GRAPH):
    scores = np.where(graph.edges, 0.0, np.nan)
    for name, value in named.items():
        scores[graph.index(name)] = value
    coords = {"sender": list(graph.senders), "receiver": list(graph.receivers)}
    data = xr.Dataset({"score": (("sender", "receiver"), scores, {"unit": ""})}, coords)
    return EdgeScores(data, provenance(graph=graph.record(), method="hand", model="tiny", unit=""))


SCORES = scored(
    {
        "input->logits": 0.1,
        "a1.h0->logits": 1.0,
        "m0->a1.h0<q>": -3.0,
        "input->m0": 0.5,
        "a0.h1->m1": 9.0,
        "input->a1.kv0<k>": 0.4,
    }
)


def test_top_n():
    assert top_n(SCORES, 2).names == ["a0.h1->m1", "m0->a1.h0<q>"]
    assert top_n(SCORES, 2, absolute=False).names == ["a0.h1->m1", "a1.h0->logits"]
    assert top_n(SCORES, GRAPH.n_edges).edges.sum() == GRAPH.n_edges
    found = top_n(SCORES, 3)
    assert isinstance(found, Circuit) and found.provenance["selection"] == "the 3 highest |score|"
    assert top_n(found, 2).names == top_n(SCORES, 2).names  # a circuit keeps the scores it came from


def test_threshold():
    assert threshold(SCORES, 0.5).names == ["input->m0", "a0.h1->m1", "m0->a1.h0<q>", "a1.h0->logits"]
    assert threshold(SCORES, 1.0, absolute=False).names == ["a0.h1->m1", "a1.h0->logits"]
    with pytest.raises(InterpError, match="empty; the highest is 9"):
        threshold(SCORES, 10.0)


def test_greedy_grows_from_the_logits():
    # m0->a1.h0<q> opens only with a1.h0, input->m0 only with m0; a0.h1->m1 scores most and is never reached in time.
    assert greedy(SCORES, 3).names == ["input->m0", "m0->a1.h0<q>", "a1.h0->logits"]
    assert greedy(SCORES, 5).names == [
        "input->m0", "input->a1.kv0<k>", "input->logits", "m0->a1.h0<q>", "a1.h0->logits",
    ]  # fmt: skip
    assert greedy(SCORES, 2, absolute=False).names == ["input->a1.kv0<k>", "a1.h0->logits"]
    assert greedy(SCORES, GRAPH.n_edges).edges.sum() == GRAPH.n_edges


def test_pruning_by_hand():
    found = threshold(SCORES, 0.1)
    assert prune(found).names == [name for name in found.names if name != "a0.h1->m1"]
    chosen = GRAPH.edges & False
    for name in ("input->a0.h0<q>", "a0.h0->m1", "m0->logits", "a0.h1->a1.kv0<v>", "a1.h1->logits"):
        chosen[GRAPH.index(name)] = True
    with pytest.raises(InterpError, match="pruned, it is empty"):
        prune(circuit(SCORES, chosen, "by hand"))
    chosen[GRAPH.index("input->a0.kv0<k>")] = True  # reaches a0.h1 too, whose value input reaches a1.h1
    chosen[GRAPH.index("m1->logits")] = True
    assert set(prune(circuit(SCORES, chosen, "by hand")).names) == {
        "input->a0.h0<q>", "input->a0.kv0<k>", "a0.h0->m1", "m1->logits", "a0.h1->a1.kv0<v>", "a1.h1->logits",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("seed", range(3))
def test_pruning_changes_no_behaviour(family, seed):
    model, task = exact(family), pairs()
    found = top_n(random_scores(model, task, seed=seed), 70)
    pruned = prune(found)
    assert 0 < pruned.edges.sum() < 70 and not (pruned.edges & ~found.edges).any()
    cut = EdgePatching(model, task.clean, task.corrupted, LogitDifference(task.answer, task.wrong_answer))
    values = [cut(torch.from_numpy(~one.edges).double()) for one in (found, pruned)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)
    corrupted = cut(torch.ones(found.edges.shape).double())
    assert (values[0] - corrupted).abs().max() > 1e-3


def test_nested_circuits_hold_one_another():
    for grow in (False, True):
        found = nested(SCORES, (0.01, 0.1, 0.5, 1.0), grow=grow)
        sizes = [int(one.edges.sum()) for one in found]
        assert sizes == [1, int(0.1 * GRAPH.n_edges), int(0.5 * GRAPH.n_edges), GRAPH.n_edges]
        assert all(not (a.edges & ~b.edges).any() for a, b in pairwise(found))


def test_random_circuits_have_the_same_types_of_edges():
    found = greedy(SCORES, 12)
    drawn = [random_like(found, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert not (drawn[0] & ~GRAPH.edges).any()

    def types(edges):
        return sorted((GRAPH.senders[i][0], GRAPH.receivers[j].split(".")[-1][-2:]) for i, j in np.argwhere(edges))

    kinds = [
        [(a, b if b.endswith(">") else b[-1] == "s") for a, b in types(edges)] for edges in (drawn[0], found.edges)
    ]
    assert sorted(map(str, kinds[0])) == sorted(map(str, kinds[1]))


def test_a_circuit_describes_itself(tmp_path):
    found = greedy(SCORES, 3)
    assert found.nodes == ["input", "m0", "a1.h0", "logits"]
    assert f"Circuit of 3 of {GRAPH.n_edges} edges by hand" in repr(found) and "not evaluated" in repr(found)
    assert set(found.networkx().edges) == {("input", "m0"), ("m0", "a1.h0"), ("a1.h0", "logits")}
    edges = [trace for trace in found.plot().data if trace.mode == "lines+markers"]
    assert len(edges) == 3 and "m0 → a1.h0, query" in edges[-1].hovertext
    two = found.plot(most=2)
    assert sum(trace.mode == "lines+markers" for trace in two.data) == 2
    assert "the 2 strongest" in two.layout.title.text.replace("<br>", " ")
    found.save(tmp_path / "circuit.nc")
    assert Circuit.load(tmp_path / "circuit.nc").names == found.names


def test_refusals():
    for pick in (top_n, greedy):
        for n in (0, GRAPH.n_edges + 1):
            with pytest.raises(InterpError, match=f"A circuit of {n} edges"):
                pick(SCORES, n)
        with pytest.raises(InterpError, match="1 edges have scores that are not finite"):
            pick(scored({"input->m0": np.nan}), 2)
    for sizes in ((), (0.0, 0.5), (0.5, 0.2), (0.5, 1.5)):
        with pytest.raises(InterpError, match="growing shares"):
            nested(SCORES, sizes)
    with pytest.raises(InterpError, match="no edges is the corrupted run"):
        circuit(SCORES, GRAPH.edges & False, "nothing")
    with pytest.raises(InterpError, match="not edges of the scores' graph"):
        circuit(SCORES, ~GRAPH.edges, "backwards")
