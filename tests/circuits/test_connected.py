"""Random circuits without dead ends: each as likely as any other, and the p that follows is exact."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from circuits.test_hypotheses import true_circuit
from circuits.test_select import GRAPH, SCORES

from interp.circuits.connected import _Chain, connected_like
from interp.circuits.evaluate import evaluate
from interp.circuits.graph import Graph
from interp.circuits.hypotheses import Trials, random_circuits
from interp.circuits.select import circuit, edge_types, live_edges, prune
from interp.tasks import compiled, planted

NAMED = {
    "four": "input->a0.h0<q> a0.h0->m1 m1->logits input->logits",
    "shared keys": "input->a0.h0<q> input->a1.kv0<k> a0.h0->a1.h0<q> a0.h0->logits a1.h0->logits",
    "eight": "input->a0.h0<q> input->a0.kv0<v> a0.h0->m0 a0.h0->a1.h1<q> m0->a1.h1<q> m0->logits a1.h1->logits",
}


def chosen(names, graph=GRAPH):
    edges = np.zeros(graph.edges.shape, dtype=bool)
    for name in names.split():
        edges[graph.index(name)] = True
    return edges


def every(edges):
    """All circuits of GRAPH with as many edges of every type and no dead ends, by trying all sets of edges."""
    choices = [combinations(np.flatnonzero(some), int((some & edges).sum())) for some in edge_types(GRAPH)]
    found = set()
    for parts in product(*choices):
        one = np.zeros(edges.shape, dtype=bool)
        one.flat[[at for part in parts for at in part]] = True
        if (live_edges(GRAPH, one) == one).all():
            found.add(frozenset(np.flatnonzero(one).tolist()))
    return found


@pytest.mark.parametrize("name", NAMED)
def test_the_chain_is_at_each_circuit_equally_often(name):
    edges = chosen(NAMED[name])
    circuits, generator = every(edges), np.random.default_rng(0)
    assert len(circuits) in (6, 24, 32)
    chain, seen = _Chain(GRAPH, edges, True, generator), Counter()
    for _ in range(20 * len(circuits)):
        chain.visit(300)
        seen[frozenset(np.flatnonzero(chain.edges()).tolist())] += 1
    assert set(seen) == circuits
    chi = sum((seen[one] - 20) ** 2 / 20 for one in circuits)
    free = len(circuits) - 1
    assert chi < free + 4 * (2 * free) ** 0.5  # χ² has mean `free` and variance 2 · `free`


def test_what_the_chain_counts_is_what_is_there():
    """Dead ends counted step by step, against the ones found by looking at the whole set; also across dead ends."""
    generator = np.random.default_rng(1)
    chain = _Chain(GRAPH, chosen(NAMED["eight"]), False, generator)
    seen = set()
    for _ in range(3000):
        slot = int(generator.integers(len(chain.inside)))
        others = chain.outside[0]
        at = int(generator.integers(len(others)))
        old, new = chain.inside[slot], others[at]
        chain.dead += chain._remove(old) + chain._add(new)
        chain.inside[slot], others[at] = new, old
        before = chain.dead
        chain._rename(chain.sender[chain.inside[0]], float(generator.random()))
        edges = chain.edges()
        used = edges.any(1)
        reached = edges.any(0) @ GRAPH.feeds
        dead = int((used & ~reached[:-1])[1:].sum())
        dead += int((edges.any(0) & ~(GRAPH.feeds @ np.append(used, True))).sum())
        assert before == chain.dead == dead and edges.sum() == 7 and not (edges & ~GRAPH.edges).any()
        assert (dead == 0) == bool((live_edges(GRAPH, edges) == edges).all())
        assert sorted(chain.inside + chain.outside[0]) == list(range(GRAPH.n_edges))
        seen.add(dead)
    assert len(seen) > 4


def test_random_circuits_have_no_dead_ends_and_the_same_types():
    graph = Graph("wide", "", 6, 4, 2, 8, False)
    generator = np.random.default_rng(0)
    some = chosen("input->a0.h1<q> input->a0.kv0<k> a0.h1->m2 m2->a4.h0<q> a4.h0->logits m2->logits", graph)
    with_dead_ends = some | chosen("a1.h0->m4 input->m5 a3.h3->a4.kv1<v>", graph)
    scores = SCORES.data.reindex(sender=list(graph.senders), receiver=list(graph.receivers))
    found = circuit(type(SCORES)(scores, {**SCORES.provenance, "graph": graph.record()}), with_dead_ends, "by hand")
    drawn, like = random_circuits(found, 19, generator)
    assert like == "as many edges of every type, without dead ends" and len(drawn) == 19
    types = edge_types(graph)
    for one in drawn:
        assert (live_edges(graph, one) == one).all()
        assert [(one & kind).sum() for kind in types] == [(some & kind).sum() for kind in types]
    assert len({one.tobytes() for one in drawn}) == 19 and not any((one & some).sum() > 3 for one in drawn)
    assert random_circuits(found, 19, np.random.default_rng(0))[0][3].tobytes() == drawn[3].tobytes()
    loose, like = random_circuits(found, 19, generator, connected=False)
    assert like == "as many edges of every type" and all(one.sum() == 9 for one in loose)
    assert np.mean([(live_edges(graph, one) == one).all() for one in loose]) < 0.1


def test_too_few_circuits_and_circuits_of_dead_ends():
    generator = np.random.default_rng(0)
    four = circuit(SCORES, chosen(NAMED["four"]), "by hand")  # six of these types
    assert connected_like(four, 19, generator) is None
    drawn, like = random_circuits(four, 19, generator)
    assert like == "as many edges, without dead ends" and all(one.sum() == 4 for one in drawn)
    one = circuit(SCORES, chosen("input->logits"), "by hand")
    assert random_circuits(one, 19, generator) == ([], "")
    dead = circuit(SCORES, chosen("a0.h1->m1 a0.h0->m0 input->a1.h0<q>"), "by hand")
    assert connected_like(dead, 19, generator) is None
    drawn, like = random_circuits(dead, 19, generator)
    assert len(drawn) == 19 and like == "as many edges of every type"


def test_p_is_uniform_for_a_circuit_that_was_drawn_like_the_others():
    """However short the chain. The statistic is one on which neighbours agree, which a wrong hub would show."""
    edges, n, generator = chosen(NAMED["eight"]), 9, np.random.default_rng(0)
    circuits = [np.array(sorted(one)) for one in every(edges)]
    worth = generator.random(GRAPH.edges.size)
    p = []
    for _ in range(500):
        one = np.zeros(edges.shape, dtype=bool)
        one.flat[circuits[generator.integers(len(circuits))]] = True
        chain = _Chain(GRAPH, one, True, generator)
        chain.visit(20)
        hub, drawn = chain.state(), []
        for _ in range(n):
            chain.enter(hub)
            chain.visit(20)
            drawn.append(worth[chain.edges().ravel()].sum())
        own = worth[one.ravel()].sum()
        ties = np.isclose(drawn, own, atol=1e-12)
        p.append(1 + (np.array(drawn) > own)[~ties].sum() + generator.integers(ties.sum() + 1))  # ties by lot
    seen = np.bincount(p, minlength=n + 2)[1:]
    assert ((seen - 50) ** 2 / 50).sum() < 9 + 4 * 18**0.5


@pytest.mark.parametrize("name", ["trigram", "planted"])
def test_the_true_circuit_beats_them_and_one_of_them_does_not(name):
    truth = planted(16, n_layers=3, n_heads=3) if name == "planted" else compiled(name, 16)
    found = true_circuit(truth)
    trials = Trials(n_random=19, n_edges=0, n_inflated=0, n_subsets=0)
    result = evaluate(truth.model, truth.task, found, trials=trials)
    assert "without dead ends" in repr(result) and float(result.data["p"][0]) <= 0.05
    for seed in range(2):
        other = connected_like(found, 1, np.random.default_rng(seed), typed=False)
        assert other is not None
        chance = evaluate(truth.model, truth.task, prune(circuit(found, other[0], "random")), trials=trials)
        assert float(chance.data["p"][0]) > 0.05 and chance.verdict["passed"] is False
