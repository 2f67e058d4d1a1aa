"""What edges outside carry: all on is the model, all off is what the ablation says, written out with plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import exact, pairs, plain, tolerance
from circuits.test_patching import NAMES, ByHand

from interp.circuits.ablation import ABLATIONS, Ablated, Ablation, Cut
from interp.circuits.patching import EdgePatching
from interp.circuits.problem import Problem
from interp.circuits.stream import Terms
from interp.errors import InterpError, PairError, ShapeError
from interp.tasks.pairs import PromptPair, Task

LENGTHS = (7, 5, 6, 7, 6, 5)
PAIRS = pairs(LENGTHS)


def problem(family):
    return Problem.of(exact(family), PAIRS, "logit_difference")


def of_pairs(logits, task=PAIRS):
    rows = torch.arange(len(logits))
    return (logits[rows, task.answer] - logits[rows, task.wrong_answer]).numpy()


def averaged(x, prompts):
    """Mean at each position over the prompts that reach it, by a loop."""
    out = torch.zeros_like(x)
    for position in range(x.shape[1]):
        out[:, position] = torch.stack(
            [row[position] for row, n in zip(x, prompts.lengths, strict=True) if position < n]
        ).mean(0)
    return out


class Constant(ByHand):
    """Terms of the "source" are zeros or means of the corrupted run's terms."""

    def __init__(self, family, kind):
        super().__init__(family)
        self.kind = kind

    def term(self, prompts, sender):
        own = super().term(PAIRS.corrupted if prompts is None else prompts, sender)
        if prompts is not None:
            return own
        return averaged(own, PAIRS.corrupted) if self.kind == "mean" else torch.zeros_like(own)

    def constant_run(self):
        """Logits where every sender writes its constant, on the clean prompts."""
        layers, _, _, _, mlp, out, _ = self.names
        start = self.term(None, "input")
        hooks = [(self.get(f"{layers}.0"), True, lambda m, a, k: ((start, *a[1:]), k))]
        for layer in range(self.model.n_layers):
            heads = sum(self.term(None, f"a{layer}.h{head}") for head in range(self.model.n_heads))
            mixed = self.term(None, f"m{layer}")
            attention = self.get(f"{layers}.{layer}.{out}")
            bias = 0 if attention.bias is None else attention.bias
            added = attention if self.family != "gemma2" else self.get(f"{layers}.{layer}.post_attention_layernorm")
            hooks.append((added, False, lambda m, a, o, x=heads + bias: x))
            hooks.append((self.get(f"{layers}.{layer}.{mlp}"), False, lambda m, a, o, x=mixed: x))
        return self.logits(PAIRS.clean, hooks)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("family", NAMES)
def test_zeros_and_means_by_hand(family, kind):
    hand = Constant(family, kind)
    cut = Cut(problem(family), Ablation(kind))
    nothing, everything = np.zeros(cut.problem.graph.edges.shape, dtype=bool), cut.problem.graph.edges
    clean = plain(exact(family), PAIRS.clean, PAIRS).numpy()
    np.testing.assert_allclose(cut.kept(everything), clean, rtol=0, atol=1e-12)
    none = of_pairs(hand.constant_run())
    np.testing.assert_allclose(cut.kept(nothing), none, rtol=0, atol=tolerance(family))
    assert np.abs(none - clean).min() > 1e-3
    kv = "kv" if exact(family).n_kv_heads < exact(family).n_heads else "h"
    for name in (
        "input->a1.h1<q>",
        f"a0.h1->a2.{kv}0<k>",
        f"m0->a1.{kv}1<v>",
        "a1.h2->m2",
        "a0.h3->logits",
        "m1->logits",
    ):
        one = nothing.copy()
        one[cut.problem.graph.index(name)] = True
        expected = of_pairs(hand.path_patched(PAIRS.clean, None, *name.split("->")))
        assert np.abs(expected - clean).max() > 1e-6, name
        np.testing.assert_allclose(cut.without(one), expected, rtol=0, atol=tolerance(family), err_msg=name)


def test_another_pairs_run():
    cut = Cut(problem("llama"), Ablation("resample-other", seed=3))
    model, graph = exact("llama"), cut.problem.graph
    everything = plain(model, PAIRS.corrupted, PAIRS)  # to have another run to differ from
    found = cut.without(graph.edges)
    others = []
    for row, value in enumerate(found):
        candidates = [
            other for other in range(len(PAIRS))
            if abs(float(plain(model, PAIRS.corrupted.select([other]), PAIRS.select([row]))[0]) - value) < 1e-9
        ]  # fmt: skip
        others += candidates
        assert len(candidates) == 1 and candidates[0] != row and LENGTHS[candidates[0]] == LENGTHS[row]
    assert sorted(others) == list(range(len(PAIRS)))
    assert np.abs(found - everything.numpy()).min() > 1e-6
    clean = plain(model, PAIRS.clean, PAIRS).numpy()
    np.testing.assert_allclose(cut.kept(graph.edges), clean, rtol=0, atol=1e-12)
    resampled = Cut(problem("llama"), Ablation()).kept(graph.edges & False)
    np.testing.assert_allclose(resampled, everything, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_learned_constants_do_better_than_means(family):
    """On the pairs that they are learned on; without a step they are the means."""
    model = exact(family)
    of = Problem.of(model, PAIRS, "negative_kl")
    graph = of.graph
    half = graph.edges & (np.random.default_rng(0).random(graph.edges.shape) < 0.5)
    mean = Cut(of, Ablation("mean")).kept(half)
    start = Cut(of, Ablation("optimal", PAIRS, steps=0)).kept(half)
    np.testing.assert_allclose(start, mean, rtol=0, atol=tolerance(family))
    learned = [Cut(of, Ablation("optimal", PAIRS, steps=steps)).kept(half).mean() for steps in (10, 40)]
    assert mean.mean() < learned[0] < learned[1] < 0
    np.testing.assert_allclose(Cut(of, Ablation("optimal", PAIRS)).kept(graph.edges), 0, atol=1e-12)
    assert not any(p.requires_grad for p in model.network.parameters())


def test_small_groups_learn_the_same():
    of = Problem.of(exact("llama"), PAIRS, "negative_kl")
    half = of.graph.edges & (np.random.default_rng(0).random(of.graph.edges.shape) < 0.5)
    whole, alone = (Cut(of, Ablation("optimal", PAIRS, steps=3), budget).kept(half) for budget in (2**28, 1))
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-9)


def test_refusals(speaking):
    with pytest.raises(InterpError, match="no ablation 'means'. Did you mean 'mean'"):
        Ablation("means")
    with pytest.raises(InterpError, match="give the pairs to learn on"):
        Ablation("optimal")
    alone = Problem.of(exact("gpt2"), pairs(), "logit_difference")
    with pytest.raises(
        PairError, match="Pair 1 of 'tokens' is the only one of 5 tokens|Pair . of 'tokens' is the only"
    ):
        Cut(alone, Ablation("resample-other"))
    short = Task("short", (PromptPair("The key", "The keys", " is", " are"),), "made up")
    long = Task("long", (PromptPair("The key to the door", "The keys to the door", " is", " are"),), "made up")
    with pytest.raises(PairError, match="mean ablation: the prompts of 'short' have up to"):
        Cut(Problem.of(speaking, long, "logit_difference"), Ablation("mean", over=short))
    with pytest.raises(InterpError, match="Optimal constants are learned for a circuit.*score under 'mean'"):
        Ablated(alone, Ablation("optimal", PAIRS))
    with pytest.raises(InterpError, match="zero terms are of no prompts; take direction='noising'"):
        Ablated(alone, "zero", "denoising")
    assert Ablation("mean", over=short).record()["ablated_over"] == "short, 1 pairs, seed None"
    assert set(ABLATIONS) == {"resample", "resample-other", "mean", "zero", "optimal"}
    model = exact("gpt2")
    terms = Terms.of(model, PAIRS.corrupted)
    with pytest.raises(ShapeError, match="terms are of 6 prompts and 7 positions; 3 prompts"):
        EdgePatching(model, pairs().clean, terms, alone.metric)
