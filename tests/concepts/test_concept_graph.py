"""Concept graphs of a network that we wrote: planted edges are found with both weights, and nothing else is."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from concepts.planted_concepts import CHILDREN, EDGES, PARENTS, level, levels, network, prompts

from interp.concepts import Clamping, ConceptGraph, ConceptLevel, concept_graph, frequency_tree, score_graph
from interp.concepts.levels import matryoshka_levels
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import Matryoshka, TopK
from interp.errors import InterpError, ShapeError
from interp.interventions.edits import Latents, Modulate
from interp.interventions.run import run
from interp.results import Result

CLAMPING = Clamping(examples=8, draws=30)
HOW = dict(clamping=CLAMPING, shuffles=30)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def graph(model):
    return concept_graph(model, prompts(), levels(), **HOW, first=0)


def edges_of(graph):
    table = graph.table()
    return {(int(p), int(c)) for p, c in zip(*np.nonzero(table["edge"].values), strict=True)}


def test_planted_edges_are_found_and_no_others(graph):
    assert edges_of(graph) == set(EDGES)
    found = graph.networkx()
    assert nx.is_directed_acyclic_graph(found) and len(found) == 8
    for parent, child in EDGES:
        edge = found.edges[f"parents/{parent}", f"children/{child}"]
        assert edge["predicted"] > 0.2 and edge["effect"] > 0.2 and edge["agreement"] > 0.6


def test_frequencies_alone_do_worse(graph):
    truth = nx.DiGraph([(f"parents/{p}", f"children/{c}") for p, c in EDGES])
    assert score_graph(graph.networkx(), truth).f1 == 1 > score_graph(frequency_tree(graph), truth).f1


def test_what_occurs_together_and_is_not_caused_is_no_edge(graph):
    """Child 3 is on with parent 1, and parent 3 with parent 2: one statistic is fooled, clamping is not."""
    table = graph.table()
    assert float(table["predicted"].sel(parent=1, child=3)) > 0.2
    assert float(table["predicted_quantile"].sel(parent=1, child=3)) > 0.99
    assert abs(float(table["effect"].sel(parent=1, child=3))) < 0.01
    assert float(table["agreement"].sel(parent=1, child=3)) < 0.1
    assert abs(float(table["predicted"].sel(parent=3, child=2))) < 0.1  # given parent 2, nothing is left of it


def test_a_network_without_edges_has_none():
    flat = concept_graph(network({}), prompts(), levels(), **HOW, first=0)
    assert edges_of(flat) == set() and np.isnan(flat.r2())
    assert np.isnan(flat.compare(flat).jaccard) and "0 edges" in flat.summary()


def test_an_effect_is_that_of_modulate(model):
    """Another way to the same number: the latent itself is clamped, at every place of every example at once.

    Attention does nothing here, so places do not mix.
    """
    tokens, (parents, children) = prompts()[:3], levels()
    units = Latents(parents.directions[:1], parents.directions[:1], threshold=torch.tensor([0.1]).double())
    how = Clamping(examples=3 * 8, draws=4)  # every place
    one = concept_graph(model, tokens, levels(), quantile=0.9, shuffles=4, clamping=how, first=0)
    codes = [
        children.codes(run(model, tokens, [Modulate(parents.site, units, 0.0, value)], [children.site])[children.site])
        for value in (float(one.data["typical"][0]), 0.0)
    ]
    expected = (codes[0] - codes[1]).mean((0, 1)).numpy() / one.data["typical"].values[4:]
    np.testing.assert_allclose(one.table()["effect"].sel(parent=0), expected, atol=1e-10)


def test_levels_are_quantified(graph):
    data = graph.data
    assert ((data["spread"] > 0) & (data["spread"] < 1)).all()
    breadth = data["breadth"].values
    assert 1.5 < breadth[0] <= 2.1 and breadth[1] < 1.1 and breadth[2] < 1.1 and np.isnan(breadth[4:]).all()
    decodable = data["decodable"].values
    assert (decodable[:4] == 0).all()  # parents from their own states, children from the parents' too: tokens decide


def test_pruning_keeps_what_is_needed(graph):
    assert edges_of(graph.pruned(0.01)) == set(EDGES)
    few = edges_of(graph.pruned(0.6))
    assert few < set(EDGES) and {c for _, c in few} == {c for _, c in EDGES}  # each child keeps one parent


def test_a_graph_is_saved_loaded_compared_and_drawn(graph, tmp_path):
    graph.save(tmp_path / "graph.nc")
    again = Result.load(tmp_path / "graph.nc")
    assert isinstance(again, ConceptGraph) and again.data.identical(graph.data)
    same = again.compare(graph)
    assert same.jaccard == 1 and same.effect == pytest.approx(1)
    less = graph.compare(graph.pruned(0.6))
    assert less.jaccard == len(edges_of(graph.pruned(0.6))) / len(EDGES)
    assert graph.plot().data and "4 edges" in graph.summary()
    graph.check(levels())


def test_a_graph_of_another_dictionary_is_refused(model, graph):
    parents, children = levels()
    other = level("parents", "L0.resid_post")
    with torch.no_grad():
        other.dictionary.bias.add_(0.01)
    with pytest.raises(InterpError, match="another dictionary than level 'parents': dictionary"):
        graph.check([other, children])
    with pytest.raises(InterpError, match="2 levels, and 1"):
        graph.check([parents])
    with pytest.raises(InterpError, match="latents of its level"):
        graph.check([ConceptLevel("parents", parents.dictionary, [0, 1, 2]), children])
    quick = dict(quantile=0.9, shuffles=4, clamping=Clamping(examples=2, draws=4), first=0)
    changed = concept_graph(model, prompts()[:3], [other, children], **quick)
    with pytest.raises(InterpError, match="different dictionaries"):
        graph.compare(changed)


def test_matryoshka_parts_are_levels():
    made = Matryoshka(Standardisation.identity(8, "up.1.0.block_out"), 12, 3, prefixes=[2, 5, 12])
    parts = matryoshka_levels(made, [1, 4, 9])
    assert [list(p.latents) for p in parts] == [[0, 1], [2, 3, 4], list(range(5, 12))]
    assert [p.step for p in parts] == [1, 4, 9]
    with pytest.raises(InterpError, match="2 steps for 3 prefixes"):
        matryoshka_levels(made, [1, 4])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: concept_graph(m, prompts(), levels()[::-1]), InterpError, "is not computed after 'children'"),
        (lambda m: concept_graph(m, prompts(), levels()[:1]), InterpError, "at least two"),
        (lambda m: concept_graph(m, prompts(), [levels()[0]] * 2), InterpError, "of different names"),
        (lambda m: concept_graph(m, prompts(), levels(), **HOW, quantile=0.9999), InterpError, "needs 10000"),
        (lambda m: concept_graph(m, prompts()[:1], levels(), **HOW), InterpError, "at least 2"),
        (
            lambda m: concept_graph(m, prompts(), levels(), shuffles=30, clamping=replace(CLAMPING, cells=9)),
            InterpError,
            "7 places or more",
        ),
        (lambda m: concept_graph(m, prompts(), levels(), **HOW, first=8), InterpError, "position 8"),
        (
            lambda m: concept_graph(m, prompts(), [replace(levels()[0], step=1), levels()[1]]),
            InterpError,
            "others none",
        ),
        (
            lambda m: concept_graph(
                m,
                prompts(),
                [ConceptLevel("a", TopK(Standardisation.identity(8, "L0.resid_post"), 4, 2), [0]), levels()[1]],
            ),
            ShapeError,
            "has 32 channels",
        ),
        (lambda m: concept_graph(m, prompts(), [level("a", "L0.z"), levels()[1]]), InterpError, "not of heads"),
        (lambda m: ConceptLevel("a", levels()[0].dictionary, []), ShapeError, "has no latent"),
        (lambda m: ConceptLevel("a", levels()[0].dictionary, [4]), ShapeError, "no latent 4"),
        (lambda m: ConceptLevel("a", TopK(Standardisation.identity(8), 4, 2), [0]), InterpError, "unnamed"),
    ],
)
def test_what_is_refused(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_bad_questions_to_a_graph(graph):
    with pytest.raises(InterpError, match="tolerance=1"):
        graph.pruned(1)
    with pytest.raises(InterpError, match="no pair 1"):
        graph.plot(1)


assert len(PARENTS) == len(CHILDREN)
