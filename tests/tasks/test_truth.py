"""Known circuits are known: by brute force, edge by edge, and as wholes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tasks import edge_oracle

from interp.errors import InterpError, PairError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.site import Site
from interp.tasks import compiled, gate, induction_by_hand, planted
from interp.tasks.metrics import LogitDifference
from interp.tasks.programs import PROGRAMS
from interp.tasks.truth import every_edge

MAKERS = {name: (lambda name=name: compiled(name)) for name in PROGRAMS} | {
    "and": lambda: gate("and", 8),
    "or": lambda: gate("or", 8),
    "induction by hand": lambda: induction_by_hand(24),
    "planted": lambda: planted(16, n_layers=2, n_heads=2, n_nodes=4),
    "planted, another": lambda: planted(16, model_seed=1, n_layers=3, n_heads=2, n_nodes=4),
}


@cache
def made(name):
    return MAKERS[name]()


@pytest.fixture(params=MAKERS)
def truth(request):
    return made(request.param)


def test_the_oracle_is_the_network(truth) -> None:
    encoded = truth.task.encode(truth.model)
    own = truth.model.forward(encoded.clean)[encoded.clean.mask]
    by_hand = edge_oracle.forward(truth.model.network, encoded.clean.ids)[0][encoded.clean.mask]
    assert (own - by_hand).abs().max() <= 1e-4


def test_the_model_answers_every_pair_on_both_sides(truth) -> None:
    encoded = truth.task.encode(truth.model)
    for prompts, answers in ((encoded.clean, encoded.answer), (encoded.corrupted, encoded.wrong_answer)):
        logits = truth.model.forward(prompts)[torch.arange(len(prompts)), prompts.lengths - 1]
        assert torch.equal(logits.argmax(-1), answers)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_circuit_alone_does_all_the_work(truth, ablation) -> None:
    everything = edge_oracle.differences(truth, circuit=set(truth.all_edges))
    alone = edge_oracle.differences(truth, circuit=truth.edges(ablation), ablation=ablation)
    assert (alone - everything).abs().max() <= 1e-3


def test_without_the_circuit_nothing_is_left(truth) -> None:
    """The complement, under resample ablation, is the corrupted run: to the metric, all that changed is in the circuit."""
    rest = set(truth.all_edges) - truth.edges()
    corrupted = edge_oracle.differences(truth, circuit=set(truth.all_edges), direction="denoising")
    assert (edge_oracle.differences(truth, circuit=rest) - corrupted).abs().max() <= 1e-3


@pytest.mark.parametrize(
    ("ablation", "direction"), [("resample", "noising"), ("resample", "denoising"), ("zero", "noising")]
)
def test_each_true_edge_has_an_effect_and_no_other_has_one(truth, ablation, direction) -> None:
    silent = edge_oracle.without_effect(truth, ablation=ablation, direction=direction)
    true = truth.edges(ablation)
    assert silent - true == set(truth.all_edges) - true
    assert silent & true == truth.unseen.get("zero" if ablation == "zero" else direction, frozenset())


def test_a_gate_hides_its_branches_from_one_direction() -> None:
    branches = {"input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0"}
    assert made("or").unseen["noising"] == branches == made("and").unseen["denoising"]
    assert "denoising" not in made("or").unseen and "noising" not in made("and").unseen


def test_two_edges_together_show_what_the_or_gate_hides() -> None:
    truth = made("or")
    both = edge_oracle.differences(truth, circuit=set(truth.all_edges) - {"a0.h0->m0", "a0.h1->m0"})
    assert torch.allclose(both, torch.full_like(both, -10.0))


@pytest.mark.parametrize(("kind", "blind"), [("or", "clean"), ("and", "corrupted")])
def test_gradients_see_a_gate_s_branches_at_one_end_only(kind, blind) -> None:
    truth = made(kind)
    encoded = truth.task.encode(truth.model)
    for end in ("clean", "corrupted"):
        prompts, heads = getattr(encoded, end), []

        def watched(edge, value, heads=heads):
            if edge in ("a0.h0->m0", "a0.h1->m0"):
                heads.append(value.detach().requires_grad_())
                return heads[-1]
            return value

        logits = edge_oracle.forward(truth.model.network, prompts.ids, watched)[0]
        rows = torch.arange(len(prompts))
        last = logits[rows, prompts.lengths - 1]
        (last[rows, encoded.answer] - last[rows, encoded.wrong_answer]).sum().backward()
        assert all((head.grad.abs().sum() == 0) == (end == blind) for head in heads)


@pytest.mark.parametrize("kind", ["and", "or"])
def test_gates_compute_their_function(kind) -> None:
    model = made(kind).model
    for a in (0, 1):
        for b in (0, 1):
            logits = run(model, f"{a} {b} 1 0").logits[0, -1]
            expected = (a and b) if kind == "and" else (a or b)
            assert model.tokenizer.decode(int(logits.argmax())) == ("yes" if expected else "no")


@pytest.mark.parametrize("model_seed", range(4))
def test_planted_circuits_hold_in_larger_networks(model_seed) -> None:
    truth = planted(8, model_seed=model_seed)
    everything = edge_oracle.differences(truth, circuit=set(truth.all_edges))
    corrupted = edge_oracle.differences(truth, circuit=set(truth.all_edges), direction="denoising")
    assert (everything > 1e-3).all() and (corrupted < -1e-3).all()
    assert (edge_oracle.differences(truth, circuit=truth.edges()) - everything).abs().max() <= 1e-3


def test_a_planted_circuit_is_hidden_among_edges_that_carry_differences() -> None:
    """Otherwise looking for what differs would find it."""
    truth = made("planted")
    encoded = truth.task.encode(truth.model)
    clean, corrupted = (edge_oracle.forward(truth.model.network, p.ids)[1] for p in (encoded.clean, encoded.corrupted))
    assert all((clean[sender] - corrupted[sender]).abs().max() > 1e-2 for sender in clean)


def test_planted_circuits_differ_by_seed() -> None:
    assert planted(1, model_seed=0).edges() != planted(1, model_seed=1).edges()


def test_the_engine_takes_these_models_with_every_saving(truth) -> None:
    """A head's result patched in a sweep is all edges out of that head patched by hand."""
    model, encoded = truth.model, truth.task.encode(truth.model)
    assert model.not_replayable is None and not model.untouchable
    sites = [Site("z", layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    source = run(model, encoded.corrupted, capture=sites)
    variants = [[Replace(site, source[site])] for site in sites]
    values = sweep(model, encoded.clean, variants, LogitDifference(encoded.answer, encoded.wrong_answer))
    for value, site in zip(values.values["logit_difference"], sites, strict=True):
        kept = {edge for edge in truth.all_edges if not edge.startswith(f"a{site.layer}.h{site.head}->")}
        assert torch.allclose(value, edge_oracle.differences(truth, circuit=kept), atol=1e-3)


def test_edges_are_those_of_the_graph_in_order() -> None:
    assert every_edge(1, 1) == (
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->m0", "a0.h0->m0",
        "input->logits", "a0.h0->logits", "m0->logits",
    )  # fmt: skip
    # SmolLM2's shape, were its 9 heads to have keys and values of their own
    assert len(every_edge(30, 9)) == len(set(every_edge(30, 9)))


def test_true_edges_are_edges_of_the_graph(truth) -> None:
    for ablation in ("resample", "zero"):
        assert truth.edges(ablation) <= set(truth.all_edges)
        assert sum(truth.labels(ablation).values()) == len(truth.edges(ablation)) > 0


@pytest.mark.parametrize(
    "make", [lambda n, s: compiled("previous", n, s), lambda n, s: gate("or", n, s), induction_by_hand, planted]
)
def test_pairs_are_drawn_by_seed_and_the_first_of_them_do_not_depend_on_how_many(make) -> None:
    assert make(6, 0).task.pairs[:3] == make(3, 0).task.pairs
    assert make(6, 0).task.pairs != make(6, 1).task.pairs


def test_refusals() -> None:
    with pytest.raises(InterpError, match="no circuit is known under ablation 'mean'.*'resample', 'zero'"):
        made("or").edges("mean")
    with pytest.raises(PairError, match="no gate 'nor'"):
        gate("nor")
    with pytest.raises(InterpError, match="give between 1 and 20"):
        planted(1, n_nodes=21)
    for make in (lambda n: gate("or", n), induction_by_hand, planted, lambda n: compiled("previous", n)):
        with pytest.raises(PairError, match="at least 1"):
            make(0)
    with pytest.raises(PairError, match="'2' is no word of this model. Allowed: 0, 1, no, yes"):
        run(made("or").model, "1 2")
