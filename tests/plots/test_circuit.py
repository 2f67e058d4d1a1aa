"""A circuit's picture shows its edges, and nothing lies where it cannot be read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from interp.errors import ShapeError
from interp.plots import circuit_graph
from interp.plots.circuit import Edge
from interp.plots.circuit_drawing import NEGATIVE, POSITIVE, STEPS
from interp.plots.circuit_layout import box_name, lay_out
from interp.plots.style import without_controls

SMALL = [
    ("input", "a0.h0<q>", 0.5, 0.1),
    ("input", "a0.kv0<v>", 1.0, 0.2),
    ("input", "m0", -0.2),
    ("a0.h0", "m0", 0.1, 0.01),
    ("a0.h0", "a2.h3<q>", -2.0, 0.3),
    ("a0.h0", "a2.kv1<k>", 0.3, 0.1),
    ("m0", "logits", 0.05, 0.0),
    ("a2.h3", "logits", 1.5, 0.25),
]


def drawn(edges=SMALL, **more):
    return circuit_graph([Edge(*edge) for edge in edges], title="T <b>", unit="logits", group=2, **more)


def random_circuit(n, layers=30, heads=9, groups=3, seed=0):
    """Edges of a model as large as SmolLM2, drawn so that early and late nodes have many."""
    random, found = np.random.default_rng(seed), {}
    while len(found) < n:
        low, high = sorted(random.integers(-1, layers + 1, 2))
        if low == high:
            continue
        sender = "input" if low < 0 else random.choice([f"a{low}.h{random.integers(heads)}", f"m{low}"])
        ends = [f"a{high}.h{random.integers(heads)}<q>", f"a{high}.kv{random.integers(groups)}<v>", f"m{high}"]
        receiver = "logits" if high == layers else random.choice(ends)
        found[str(sender), str(receiver)] = float(random.standard_normal() ** 3)
    return sorted((Edge(*ends, score) for ends, score in found.items()), key=lambda edge: -abs(edge.score))


def lines(figure):
    """The traces of edges, strongest first."""
    edges = [trace for trace in figure.data if trace.mode == "lines+markers"]
    return sorted(edges, key=lambda trace: -trace.line.width)


def words(figure):
    return [text for trace in figure.data if trace.mode == "text" for text in trace.text]


def test_every_edge_with_its_sign_width_and_numbers():
    figure = drawn()
    edges = lines(figure)
    ranked = sorted(SMALL, key=lambda edge: -abs(edge[2]))
    assert len(edges) == len(SMALL)
    assert [trace.line.color for trace in edges] == [POSITIVE if edge[2] > 0 else NEGATIVE for edge in ranked]
    assert all(wide.line.width > narrow.line.width for wide, narrow in pairwise(edges))
    assert edges[0].hovertext == "a0.h0 → a2.h3, query<br><b>−2</b> ± 0.3 logits<br>1 of 8 by |score|"
    assert "a0.kv0, value<br><b>+1</b> ± 0.2" in edges[2].hovertext
    assert "input → m0<br><b>−0.2</b> logits" in next(t.hovertext for t in edges if "input → m0" in t.hovertext)
    # Drawn last, so on top.
    assert [trace for trace in figure.data if trace.mode == "lines+markers"][-1] is edges[0]
    assert figure.layout.title.text == "T &lt;b&gt;"
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["+1.5", "+0.15", "−2", "−0.2"]


def test_every_node_once_with_what_comes_and_goes():
    figure = drawn()
    assert sorted(words(figure)) == sorted(["input", "a0.h0", "kv0", "m0", "a2.h3", "kv1", "logits"])
    about = {
        text: hover
        for trace in figure.data
        if trace.mode == "text"
        for text, hover in zip(trace.text, trace.hovertext, strict=True)
    }
    assert "1 in, sum +0.5 logits" in about["a0.h0"] and "3 out, sum −1.6 logits" in about["a0.h0"]
    assert list(figure.layout.yaxis.ticktext) == ["0", "2"]  # layer 1 is empty


def test_shared_keys_lead_to_the_heads_of_their_group_that_are_there():
    layout = lay_out([Edge(*edge) for edge in SMALL], 2)
    assert [link[:2] for link in layout.links] == [("a0.kv0", "a0.h0"), ("a2.kv1", "a2.h3")]


@pytest.mark.parametrize("n", [5, 40, 300])
def test_edges_rise_from_box_to_box_and_boxes_do_not_overlap(n):
    layout = lay_out(random_circuit(n), 3)
    for edge, path in zip(layout.edges, layout.paths, strict=True):
        sender, receiver = layout.boxes[edge.sender], layout.boxes[box_name(edge.receiver)]
        assert (np.diff(path[:, 1]) > 0).all()
        for box, point, side in ((sender, path[0], 1), (receiver, path[-1], -1)):
            assert point[1] == pytest.approx(box.y + side * box.height / 2)
            assert abs(point[0] - box.x) < box.width / 2
    boxes = list(layout.boxes.values())
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            beside = abs(one.x - other.x) >= (one.width + other.width) / 2
            assert beside or abs(one.y - other.y) >= (one.height + other.height) / 2, (one, other)
    (left, right), (low, high) = layout.span
    for box in boxes:
        assert left <= box.x - box.width / 2 and box.x + box.width / 2 <= right
        assert low <= box.y - box.height / 2 and box.y + box.height / 2 <= high
    # Of one layer, upwards: shared keys and values, heads, MLP; and deeper layers are higher.
    order = sorted(
        (box.layer, {"group": 0, "head": 1, "mlp": 2}[box.kind], box.y) for box in boxes if box.layer is not None
    )
    assert all(a[2] < b[2] or a[:2] == b[:2] for a, b in pairwise(order))


def test_heads_stand_near_their_neighbours():
    """Two chains that start crosswise are untangled: h0 and h1 change places in one of the layers."""
    edges = [Edge("a0.h0", "a1.h1<q>", 1.0), Edge("a0.h1", "a1.h0<q>", 1.0)]
    boxes = lay_out(edges, 1).boxes
    assert (boxes["a0.h0"].x - boxes["a0.h1"].x) * (boxes["a1.h1"].x - boxes["a1.h0"].x) > 0


def test_the_slider_leaves_the_strongest_edges_and_their_ends():
    circuit = random_circuit(64)
    figure = drawn(circuit)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == [*(str(n) for n in STEPS if n < 64), "64"]
    for step in slider.steps:
        shown = step.args[0]["visible"]
        assert len(shown) == len(figure.data)
        count = int(step.label)
        left = [trace for trace, visible in zip(figure.data, shown, strict=True) if visible]
        assert sum(trace.mode == "lines+markers" for trace in left) == count
        names = [text for trace in left if trace.mode == "text" for text in trace.hovertext]
        nodes = {box_name(end) for edge in circuit[:count] for end in edge[:2]}
        assert {name.split("</b>")[0].removeprefix("<b>") for name in names} == nodes
    still = without_controls(figure)
    assert not still.layout.sliders and figure.layout.sliders
    room = figure.layout.height - still.layout.height
    assert room > 0 and room == figure.layout.margin.b - still.layout.margin.b
    few = drawn()
    assert not few.layout.sliders and without_controls(few) is few


def test_it_is_deterministic():
    assert drawn(random_circuit(60)).to_json() == drawn(random_circuit(60)).to_json()


def test_a_model_without_shared_keys():
    figure = circuit_graph([Edge("a0.h0", f"a1.h1<{port}>", 1.0) for port in "kv"], title="T", unit="u")
    ends = sorted(float(trace.x[-1]) for trace in lines(figure))
    assert ends[0] < ends[1] and sorted(words(figure)) == ["a0.h0", "a1.h1"]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([], "no edges"),
        ([("a0.h0<q>", "m1", 1.0)], "'a0.h0<q>' names no sender"),
        ([("a0.kv0", "m1", 1.0)], "'a0.kv0' names no sender"),
        ([("a0.h0", "a1.h0", 1.0)], "'a1.h0' names no receiver"),
        ([("a0.h0", "head 3", 1.0)], "'head 3' names no receiver"),
        ([("m1", "a1.h0<q>", 1.0)], "m1->a1.h0<q> does not lead upwards"),
        ([("logits", "m1", 1.0)], "does not lead upwards"),
        ([("m0", "m1", 1.0), ("m0", "m1", 2.0)], "twice"),
        ([("m0", "m1", float("nan"))], "score nan; it must be finite"),
    ],
)
def test_refusals(edges, message):
    with pytest.raises(ShapeError, match=message):
        drawn(edges)
