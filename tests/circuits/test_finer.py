"""Neurons and tokens: equal to hooks written by hand, adding up to their nodes, and zero where nothing can matter."""

from __future__ import annotations

import numpy as np
import pytest
from circuits.exact import exact, pairs, planted

from interp.circuits.finer import PartScores, neuron_scores, position_scores
from interp.circuits.score import attribution_patching
from interp.errors import PairError, SiteError
from interp.patching import patch
from interp.tasks import compiled
from interp.tasks.pairs import EncodedTask

PAIRS = pairs()
DIRECTIONS = pytest.mark.parametrize("direction", ["noising", "denoising"])
READS_NEURONS = {"gpt2": "transformer.h.{}.mlp.c_proj", "llama": "model.layers.{}.mlp.down_proj"}


def by_hand(family, direction):
    """[pair, layer, pos, neuron], a pair at a time: a plain hook on what the output projection reads."""
    model = exact(family)
    every = []
    for row, length in enumerate(PAIRS.clean.lengths.tolist()):
        seen, gradients = {}, []
        for which, prompts in (("clean", PAIRS.clean), ("corrupted", PAIRS.corrupted)):
            leaves, handles = [], []

            def keep(module, args, leaves=leaves):
                leaves.append(args[0].detach().requires_grad_() if not leaves else args[0])
                leaves[-1].requires_grad_() if leaves[-1].is_leaf else leaves[-1].retain_grad()
                return (leaves[-1],)

            for layer in range(model.n_layers):
                module = model.network.get_submodule(READS_NEURONS[family].format(layer))
                handles.append(module.register_forward_pre_hook(keep))
            logits = model.network(input_ids=prompts.ids[row : row + 1, :length], use_cache=False).logits[0, -1]
            (logits[PAIRS.answer[row]] - logits[PAIRS.wrong_answer[row]]).backward()
            seen[which] = [x.detach()[0] for x in leaves]
            if which == {"noising": "clean", "denoising": "corrupted"}[direction]:
                gradients = [x.grad[0] for x in leaves]
            for handle in handles:
                handle.remove()
        parts = zip(seen["clean"], seen["corrupted"], gradients, strict=True)
        every.append([((a - b) * g).numpy() for a, b, g in parts])
    return every


@DIRECTIONS
@pytest.mark.parametrize("family", READS_NEURONS)
def test_neurons_by_hand(family, direction):
    found = neuron_scores(exact(family), PAIRS, direction=direction)
    expected = np.array([[layer.sum(0) for layer in pair] for pair in by_hand(family, direction)])
    np.testing.assert_allclose(found.data["score"], expected.mean(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.data["error"], expected.std(0, ddof=1) / 3**0.5, rtol=0, atol=1e-9)
    assert np.abs(expected).max() > 1e-3
    alone = neuron_scores(exact(family), PAIRS, direction=direction, budget=1)
    np.testing.assert_allclose(alone.data["score"], found.data["score"], rtol=0, atol=1e-9)


@DIRECTIONS
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "phi3"])
def test_parts_add_up_to_their_nodes(family, direction):
    model = exact(family)
    nodes = attribution_patching(model, PAIRS, direction=direction)
    at = position_scores(model, PAIRS, direction=direction)
    # means over the pairs that reach a position; sums over pairs add up
    reach = (PAIRS.clean.lengths.numpy()[:, None] > np.arange(7)).sum(0)
    np.testing.assert_allclose(np.nansum(at.data["score"] * reach, 1) / 3, nodes.scores, rtol=0, atol=1e-9)
    mlps = [i for i, name in enumerate(nodes.graph.senders) if name[0] == "m"]
    neurons = neuron_scores(model, PAIRS, direction=direction).data["score"].values
    np.testing.assert_allclose(neurons.sum(1), nodes.scores[mlps], rtol=0, atol=1e-9)
    assert np.abs(nodes.scores).max() > 1e-2


def test_positions_before_the_first_difference_carry_nothing():
    at = position_scores(exact("llama"), PAIRS)
    differ = (PAIRS.clean.ids != PAIRS.corrupted.ids) & PAIRS.clean.mask
    first = int(differ.int().argmax(1).min())
    assert first > 0 and (at.data["score"].values[:, :first] == 0).all()
    embedding = at.data["score"].sel(node="input").values
    assert (embedding[~differ.any(0).numpy()] == 0).all() and np.abs(embedding).max() > 1e-3


def test_where_heads_alone_write_no_neuron_scores():
    assert np.abs(neuron_scores(planted(), PAIRS).data["score"].values).max() < 1e-12


def test_estimates_are_exact_where_the_network_is_linear_from_there():
    """The last MLP of a network without norms: patching a neuron is what its score says."""
    truth = compiled("trigram", n=8)
    last = truth.model.n_layers - 1
    scores = neuron_scores(truth.model, truth.task).data["score"].sel(layer=last)
    exactly = patch(
        truth.model, truth.task, "mlp_act", over=("unit",), layers=[last], direction="noising",
        units=list(range(scores.sizes["neuron"])),
    ).data["logit_difference_effect"]  # fmt: skip
    assert np.abs(scores.values).max() > 1
    np.testing.assert_allclose(-exactly.values.ravel(), scores.values, rtol=0, atol=1e-3)


def test_they_show_and_keep_themselves(tmp_path):
    truth = compiled("induction", n=4)
    pair = truth.task.select(
        [i for i, p in enumerate(truth.task.pairs) if len(p.clean) == len(truth.task.pairs[0].clean)]
    )
    for found in (neuron_scores(truth.model, pair), position_scores(truth.model, pair)):
        assert "strongest" in repr(found) and "Attribution patching" in repr(found)
        strongest = found.table(3)
        assert len(strongest) == 3 and strongest["score"].abs().is_monotonic_decreasing
        dims = found.data["score"].dims
        cell = {dim: strongest[dim].iloc[0] for dim in dims}
        assert float(found.data["score"].sel(cell)) == strongest["score"].iloc[0]
        assert float(np.nanmax(np.abs(found.data["score"]))) == strongest["score"].abs().iloc[0]
        assert found.plot().layout.title.text
        found.save(tmp_path / "parts.nc")
        assert repr(PartScores.load(tmp_path / "parts.nc")) == repr(found)
    assert str(found.data["token"].values[0]) == "0 bos"


def test_refusals():
    with pytest.raises(SiteError, match="mlp_act"):
        neuron_scores(exact("mixtral"), PAIRS)
    same = EncodedTask(PAIRS.task, PAIRS.clean, PAIRS.clean, PAIRS.answer, PAIRS.wrong_answer)
    for function in (neuron_scores, position_scores):
        with pytest.raises(PairError, match="nothing to explain"):
            function(exact("gpt2"), same)
