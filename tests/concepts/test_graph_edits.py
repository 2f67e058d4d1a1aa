"""Steering through a graph against forward hooks that are written by hand, on a network whose edges we planted."""

import numpy as np
import pytest
import torch
from concepts.planted_concepts import CHILDREN, PARENTS, THRESHOLD, level, levels, network, prompts
from models.denoisers import described

import interp
from interp.concepts import (
    Clamping,
    ConceptLevel,
    GraphResponse,
    concept_graph,
    graph_edits,
    graph_edits_on,
    graph_response,
)
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Add, When
from interp.interventions.run import run
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.results import Result

CLOSE = dict(rtol=0, atol=1e-10)
FEW = 20
FULL = dict(clamping=Clamping(examples=FEW * 8, draws=4), shuffles=10, quantile=0.9, first=0)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def graph(model):
    """Every place of every example was clamped."""
    return concept_graph(model, prompts()[:FEW], levels(), **FULL)


def hooked(model, tokens, *hooks):
    """Both layers' outputs and the logits, with hooks (layer, function of the output) on the network itself."""
    seen, handles = {}, []
    for number, layer in enumerate(model.network.model.layers):
        for at, change in hooks:
            if at == number:
                handles.append(layer.register_forward_hook(lambda _m, _i, out, change=change: change(out)))
        handles.append(layer.register_forward_hook(lambda _m, _i, out, number=number: seen.update({number: out})))
    try:
        with torch.no_grad():
            logits = model.network(tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], seen[1], logits


def on_above(x):
    return torch.where(x > THRESHOLD, x, 0)


def to(channel, value, spare=()):
    """The channel's code becomes a value, written along the channel."""

    def change(x):
        x = x.clone()
        keep = x[:, list(spare), channel].clone()
        x[..., channel] += value - on_above(x[..., channel])
        x[:, list(spare), channel] = keep
        return x

    return change


def test_a_parent_set_is_what_a_hook_by_hand_does(model, graph):
    typical = float(graph.data["typical"][0])
    edits = graph_edits(graph, levels(), {"parents/0": 1.5})
    ran = run(model, prompts(), edits, ["L0.resid_post", "L1.resid_post"])
    expected = hooked(model, prompts(), (0, to(PARENTS[0], 1.5 * typical)))
    for found, wanted in zip((ran["L0.resid_post"], ran["L1.resid_post"], ran.logits), expected, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)
    # and the children of that parent moved, by the model itself
    plain = run(model, prompts(), (), ["L1.resid_post"])["L1.resid_post"]
    moved = (ran["L1.resid_post"] - plain).abs().amax((0, 1))[list(CHILDREN)]
    assert (moved[:2] > 2).all() and (moved[2:] < 0.2).all()  # the norm divides by a little more than before


def test_both_forms_are_one(model, graph):
    values = {"parents/0": 2.0, "parents/2": 0.0, "children/3": 1.0}
    live, known = (
        run(model, prompts(), edits).logits
        for edits in (
            graph_edits(graph, levels(), values),
            graph_edits_on(model, prompts(), graph, levels(), values, first=0),
        )
    )
    torch.testing.assert_close(live, known, **CLOSE)


def test_a_child_alone_leaves_its_parents_be(model, graph):
    edits = graph_edits_on(model, prompts(), graph, levels(), {"children/1": 0.0})
    ran = run(model, prompts(), edits, ["L0.resid_post", "L1.resid_post"])
    expected = hooked(model, prompts(), (1, to(CHILDREN[1], 0.0, spare=[0])))  # the first token is left out
    torch.testing.assert_close(ran["L1.resid_post"], expected[1], **CLOSE)
    plain = run(model, prompts(), (), ["L0.resid_post"])["L0.resid_post"]
    assert torch.equal(ran["L0.resid_post"], plain)


def test_a_child_that_is_held_keeps_its_unedited_code_at_every_place(model, graph):
    """While its parent is set; the other child of that parent follows."""
    typical = float(graph.data["typical"][0])
    edits = graph_edits_on(model, prompts(), graph, levels(), {"parents/0": 2.0}, ["children/1"], first=0)
    ran = run(model, prompts(), edits, ["L1.resid_post"])
    unedited = on_above(hooked(model, prompts())[1][..., CHILDREN[1]])

    def back(x):
        x = x.clone()
        x[..., CHILDREN[1]] += unedited - on_above(x[..., CHILDREN[1]])
        return x

    expected = hooked(model, prompts(), (0, to(PARENTS[0], 2 * typical)), (1, back))
    torch.testing.assert_close(ran["L1.resid_post"], expected[1], **CLOSE)
    torch.testing.assert_close(on_above(ran["L1.resid_post"][..., CHILDREN[1]]), unedited, **CLOSE)
    free = run(model, prompts(), graph_edits(graph, levels(), {"parents/0": 2.0}), ["L1.resid_post"])
    other = [on_above(one["L1.resid_post"][..., CHILDREN[0]]) for one in (ran, free)]
    torch.testing.assert_close(*other, **CLOSE)
    assert (on_above(free["L1.resid_post"][..., CHILDREN[1]]) - unedited).max() > 0.2


def test_latents_that_compete_are_set_where_they_won(model):
    """Of four parents the largest is on: what is set depends on the others, and is known on given inputs only."""
    made = TopK(Standardisation.identity(32, "L0.resid_post", torch.float64), 4, 1).double()
    with torch.no_grad():
        made.atoms.copy_(torch.eye(32)[list(PARENTS)])
        made.encoder.copy_(torch.eye(32)[list(PARENTS)])
    pair = [ConceptLevel("parents", made, range(4)), levels()[1]]
    graph = concept_graph(
        model, prompts(), pair, quantile=0.9, shuffles=4, clamping=Clamping(examples=4, draws=4), first=0
    )
    ran = run(
        model, prompts(), graph_edits_on(model, prompts(), graph, pair, {"parents/0": 1.0}, first=0), ["L1.resid_post"]
    )

    def change(x):
        own = x[..., list(PARENTS)]
        code = torch.where(own[..., 0] >= own.amax(-1), own[..., 0].relu(), 0)
        x = x.clone()
        x[..., PARENTS[0]] += float(graph.data["typical"][0]) - code
        return x

    torch.testing.assert_close(ran["L1.resid_post"], hooked(model, prompts(), (0, change))[1], **CLOSE)
    with pytest.raises(InterpError, match="is of kind topk, whose latents compete.*graph_edits_on"):
        graph_edits(graph, pair, {"parents/0": 1.0})


def test_what_follows_is_what_the_graph_measured(model, graph):
    """On minus off, at the same places, is the graph's effect."""
    on, off = (
        graph_response(model, prompts()[:FEW], graph, levels(), {"parents/0": value}, first=0).data
        for value in (1.0, 0.0)
    )
    away = (on["measured"] - off["measured"]).sel(node=[f"children/{c}" for c in range(4)])
    np.testing.assert_allclose(away, graph.table()["effect"].sel(parent=0), atol=1e-10)
    edge = graph.table()["edge"].sel(parent=0).values
    foretold = (on["predicted"] - off["predicted"]).sel(node=away["node"]).values
    np.testing.assert_allclose(foretold, np.where(edge, graph.table()["effect"].sel(parent=0), 0), atol=1e-10)


def test_children_follow_as_foretold_and_a_parent_without_edges_moves_none(model, graph, tmp_path):
    others = torch.randint(0, 240, (20, 8), generator=torch.Generator().manual_seed(8))  # not the graph's inputs
    found = graph_response(model, others, graph.pruned(), levels(), {"parents/0": 1.0, "parents/1": 0.0})
    assert found.r2() > 0.95
    assert found.data["part"].values.tolist() == ["set"] * 2 + ["earlier"] * 2 + ["follows"] * 4
    children = found.data.isel(node=[4, 5])
    assert (abs(children["measured"]) > 0.1).all()
    assert (
        (children["measured_low"] < children["measured"]) & (children["measured"] < children["measured_high"])
    ).all()
    alone = graph_response(model, others, graph, levels(), {"parents/3": 1.0}).data  # parent 3 has no edge
    assert (alone["predicted"][4:] == 0).all() and (abs(alone["measured"][4:]) < 0.02).all()
    # what lies below the threshold is no part of the code that is set, and stays
    assert float(alone["measured"][3]) == pytest.approx(1 - float(alone["before"][3]), abs=0.02)
    held = graph_response(model, others, graph, levels(), {"parents/0": 1.0}, ["children/1"])
    assert abs(float(held.data["measured"][5])) < 1e-10 and float(held.data["predicted"][5]) == 0
    assert "parents/0 = 1, children/1 held" in repr(held) and "children/1 (held)" in repr(held)
    found.save(tmp_path / "response.nc")
    again = Result.load(tmp_path / "response.nc")
    assert isinstance(again, GraphResponse) and repr(again) == repr(found)
    bars = found.plot().data
    assert [bar.name for bar in bars] == ["predicted by the graph", "measured"] and len(bars[1].x) == 6


def test_in_a_network_without_edges_nothing_follows(graph):
    flat = network({})
    how = FULL | dict(shuffles=30, quantile=0.99, clamping=Clamping(examples=8, draws=30))
    empty = concept_graph(flat, prompts(), levels(), **how)
    found = graph_response(flat, prompts(), empty, levels(), {f"parents/{p}": 2.0 for p in range(4)}).data
    assert (abs(found["measured"][4:]) < 0.02).all() and (found["predicted"][4:] == 0).all()


def test_prompts_of_different_length_and_the_first_token(model, graph):
    """What is set begins at `first`; of a shorter prompt nothing behind its end is read or written."""
    ragged = model.prompts(prompts()[:2]).select([0]).joined(model.prompts(prompts()[1:2, :5]))
    edits = graph_edits_on(model, ragged, graph, levels(), {"parents/0": 1.0})
    ran = run(model, ragged, edits, ["L0.resid_post"])["L0.resid_post"]
    for row, length in ((0, 8), (1, 5)):
        alone = prompts()[row : row + 1, :length]
        expected = hooked(model, alone, (0, to(PARENTS[0], float(graph.data["typical"][0]), spare=[0])))[0]
        torch.testing.assert_close(ran[row : row + 1, :length], expected, **CLOSE)


def test_steer_takes_the_edits(model, graph):
    edits = graph_edits(graph, levels(), {"parents/0": 3.0})
    told = interp.steer(model, edits).generate(prompts()[:2], max_new_tokens=3)
    ids = prompts()[:2]
    for step in range(3):
        logits = hooked(model, ids, (0, to(PARENTS[0], 3 * float(graph.data["typical"][0]))))[2][:, -1]
        torch.testing.assert_close(told.logits[:, step], logits, **CLOSE)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)


def test_steps_of_a_denoiser():
    """An early node is set in its step and branch, a late one is held; against changes that are computed here."""
    model = described("sd")
    given = model.sampling(["a red circle", "a blue square"], seeds=[0, 1], steps=2, guidance=3.0, height=16, width=16)
    site, both = Site("block_out", "up.2.1"), When(branch=Branch.COND)
    states = denoise(model, given, capture=[site], when=both)[site][:, 0]  # [step, row, cell, width]
    read = Standardisation.from_moments(Moments.of(states.reshape(-1, 8)), (str(site),), dtype=torch.float64)
    made = JumpReLU(read, 6).double()
    early, late = (ConceptLevel(name, made, (0, 1, 2), step) for step, name in enumerate(("early", "late")))
    graph = concept_graph(model, given, [early, late], quantile=0.9, shuffles=4, clamping=Clamping(examples=2, draws=4))
    typical = graph.data["typical"].values
    value = 2.0 * float(typical[1])
    ran = [
        denoise(model, given, edits, [site], when=both)[site][:, 0]
        for edits in (
            graph_edits(graph, [early, late], {"early/1": 2.0}),
            graph_edits_on(model, given, graph, [early, late], {"early/1": 2.0}, ["late/2"]),
        )
    ]
    change = (value - early.codes(states[0])[..., 1:2]) * early.directions[1]
    torch.testing.assert_close(ran[0][0], states[0] + change, rtol=0, atol=1e-9)
    set_by_hand = Add(site, change, when=When(steps=[0], branch=Branch.COND))
    after = denoise(model, given, [set_by_hand], [site], when=both)[site][:, 0]
    torch.testing.assert_close(ran[0], after, rtol=0, atol=1e-8)
    back = (late.codes(states[1]) - late.codes(after[1]))[..., 2:] * late.directions[2]
    torch.testing.assert_close(ran[1][1], after[1] + back, rtol=0, atol=1e-8)
    assert back.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("values", "held", "message"),
    [
        ({}, [], "No node is set"),
        ({"parent/0": 1.0}, [], "no node 'parent/0'. Did you mean 'parents/0'"),
        ({"parents/0": float("nan")}, [], "give a number"),
        ({"parents/0": 1.0}, ["children/9"], "no node 'children/9'"),
        ({"parents/0": 1.0}, "children/1", "letter by letter"),
        ({"parents/0": 1.0, "children/1": 0.0}, ["children/1"], "cannot be set and held"),
        ({"parents/0": 1.0}, ["parents/1"], "nothing that is set can move it"),
    ],
)
def test_what_is_refused(model, graph, values, held, message):
    with pytest.raises(InterpError, match=message):
        graph_response(model, prompts(), graph, levels(), values, held)


def test_a_graph_of_another_dictionary_is_refused(graph):
    other = level("parents", "L0.resid_post")
    with torch.no_grad():
        other.dictionary.bias.add_(0.01)
    with pytest.raises(InterpError, match="another dictionary"):
        graph_edits(graph, [other, levels()[1]], {"parents/0": 1.0})
