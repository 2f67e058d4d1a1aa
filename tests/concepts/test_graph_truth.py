"""Scores of graphs, worked out by hand, and the tree that frequencies alone give."""

import math

import numpy as np
import pytest
import xarray as xr
from networkx import DiGraph

from interp.concepts.graph_result import ConceptGraph
from interp.concepts.graph_truth import frequency_tree, score_graph

TRUTH = DiGraph([("scene", "round"), ("round", "circle"), ("round", "ring"), ("scene", "angular")])


def test_the_truth_scores_one_and_its_reverse_nothing():
    for graph, value in ((TRUTH, 1.0), (TRUTH.reverse(), 0.0)):
        score = score_graph(graph, TRUTH)
        assert score.precision == score.recall == score.f1 == score.ancestor_f1 == value


def test_a_skipped_level_costs_edges_but_not_ancestors():
    found = DiGraph([("scene", "round"), ("round", "circle"), ("scene", "ring"), ("scene", "angular")])
    score = score_graph(found, TRUTH)
    assert score.precision == score.recall == score.f1 == 3 / 4
    # true ancestors: 4 edges, scene over circle and ring; found: 4 edges and scene over circle; common: 5
    assert score.ancestor_f1 == pytest.approx(2 * 5 / (6 + 5))


def test_nothing_found_has_no_precision():
    score = score_graph(DiGraph(), TRUTH)
    assert math.isnan(score.precision) and score.recall == score.f1 == score.ancestor_f1 == 0


def graph(frequencies: list[list[float]]) -> ConceptGraph:
    level = [f"l{n}" for n, own in enumerate(frequencies) for _ in own]
    latent = [i for own in frequencies for i in range(len(own))]
    data = xr.Dataset(
        {"frequency": ("node", np.concatenate(frequencies))}, {"level": ("node", level), "latent": ("node", latent)}
    )
    return ConceptGraph(data, {"model": "none", "levels": [{"name": f"l{n}"} for n in range(len(frequencies))]})


def test_frequencies_alone():
    tree = frequency_tree(graph([[0.5, 0.2, 0.0], [0.3, 0.1, 0.6, 0.0], [0.05]]))
    assert set(tree.edges) == {("l0/0", "l1/0"), ("l0/1", "l1/1"), ("l0/0", "l1/2"), ("l1/1", "l2/0")}
    assert set(tree.nodes) == {"l0/0", "l0/1", "l0/2", "l1/0", "l1/1", "l1/2", "l1/3", "l2/0"}
