"""The model as a function of its edges equals path patching written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits.exact import FAMILIES, exact, pairs, plain, tolerance
from models.described import hooks_on, ragged

from interp.circuits.patching import EdgePatching
from interp.errors import PairError, ShapeError
from interp.models.prompts import from_token_lists
from interp.tasks.metrics import LogitDifference

PAIRS = pairs()
METRIC = LogitDifference(PAIRS.answer, PAIRS.wrong_answer)


def patching(family, **options):
    return EdgePatching(exact(family), PAIRS.clean, PAIRS.corrupted, METRIC, **options)


def weights(found, value=0.0):
    return torch.full(found.graph.edges.shape, value, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_edge_is_the_base_run_and_all_edges_are_the_source_run(family):
    found, model = patching(family), exact(family)
    base, source = plain(model, PAIRS.clean, PAIRS), plain(model, PAIRS.corrupted, PAIRS)
    assert (base - source).abs().min() > 1e-3
    torch.testing.assert_close(found(weights(found)), base, rtol=0, atol=1e-12)
    torch.testing.assert_close(found(weights(found, 1.0)), source, rtol=0, atol=tolerance(family))
    assert hooks_on(model.network) == 0


# family: (layers, norm1, norm2, final norm, MLP output, attention output as it is added, q/k/v modules)
NAMES = {
    "gpt2": ("transformer.h", "ln_1", "ln_2", "transformer.ln_f", "mlp", "attn.c_proj", ["attn.c_attn"] * 3),
    "llama": ("model.layers", "input_layernorm", "post_attention_layernorm", "model.norm", "mlp", "self_attn.o_proj",
              ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    "gemma2": ("model.layers", "input_layernorm", "pre_feedforward_layernorm", "model.norm", "post_feedforward_layernorm",
               "self_attn.o_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    "gpt_neox": ("gpt_neox.layers", "input_layernorm", "post_attention_layernorm", "gpt_neox.final_layer_norm", "mlp",
                 "attention.dense", ["attention.query_key_value"] * 3),
}  # fmt: skip


class ByHand:
    """One network, plain torch hooks, module names written out: nothing of interp.circuits."""

    def __init__(self, family):
        self.family, self.model = family, exact(family)
        self.network = self.model.network
        self.names = NAMES[family]

    def get(self, path):
        return self.network.get_submodule(path)

    def logits(self, prompts, hooks=()):
        handles = [
            module.register_forward_pre_hook(f, with_kwargs=True) if pre else module.register_forward_hook(f)
            for module, pre, f in hooks
        ]
        mask = (torch.arange(prompts.ids.shape[1]) < prompts.lengths[:, None]).long()
        try:
            with torch.no_grad():
                out = self.network(input_ids=prompts.ids, attention_mask=mask, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return out[torch.arange(len(prompts)), prompts.lengths - 1]

    def term(self, prompts, sender):
        """What a sender adds to the stream in a plain run."""
        layers, _, _, _, mlp, out, _ = self.names
        seen = []
        if sender == "input":
            first = self.get(f"{layers}.0")
            self.logits(prompts, [(first, True, lambda m, a, k: seen.append(a[0] if a else k["hidden_states"]))])
            return seen[0]
        layer = int(sender[1:].split(".")[0])
        if sender[0] == "m":
            self.logits(prompts, [(self.get(f"{layers}.{layer}.{mlp}"), False, lambda m, a, o: seen.append(o))])
            return seen[0]
        module = self.get(f"{layers}.{layer}.{out}")
        self.logits(prompts, [(module, True, lambda m, a, k: seen.append(a[0]))])
        return self.head_term(sender, seen[0])

    def head_term(self, sender, mixed):
        """What a head adds to the stream when the output projection reads `mixed` [batch, pos, head · d_head]."""
        layers, _, _, _, _, out, _ = self.names
        layer = int(sender[1:].split(".")[0])
        head, width, module = int(sender.split("h")[1]), self.model.d_head, self.get(f"{layers}.{layer}.{out}")
        alone = torch.zeros_like(mixed)
        alone[..., head * width : (head + 1) * width] = mixed[..., head * width : (head + 1) * width]
        bias = 0 if module.bias is None else module.bias
        term = module(alone) - bias
        if self.family == "gemma2":  # the head's share of the normed sum
            norm = self.get(f"{layers}.{layer}.post_attention_layernorm")
            total = module(mixed)
            term = term * torch.rsqrt(total.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
        return term

    def path_patched(self, base, source, sender, receiver):
        """Logits of the base run where `receiver` alone reads the source's term of `sender`."""
        return self.logits(base, self.moving(receiver, self.term(source, sender) - self.term(base, sender)))

    def moving(self, receiver, delta):
        """Hooks under which `receiver` reads the stream plus `delta`."""
        layers, norm1, norm2, final, _, _, projections = self.names
        moved = lambda m, a, k: ((a[0] + delta, *a[1:]), k)  # noqa: E731
        if receiver == "logits":
            return [(self.get(final), True, moved)]
        layer = int(receiver[1:].split(".")[0])
        if receiver[0] == "m":
            return [(self.get(f"{layers}.{layer}.{norm2}"), True, moved)]
        letter, head = receiver[-2], int(receiver[:-3].split(".")[1].lstrip("hkv"))
        norm, module = (
            self.get(f"{layers}.{layer}.{norm1}"),
            self.get(f"{layers}.{layer}.{projections['qkv'.index(letter)]}"),
        )
        stream, busy = [], []
        d, n = self.model.d_head, self.model.n_heads
        start = head * d
        if self.family == "gpt2":
            start += "qkv".index(letter) * n * d
        if self.family == "gpt_neox":
            start = head * 3 * d + "qkv".index(letter) * d

        def replace(m, a, out):
            if busy:
                return None
            busy.append(1)
            other = module(norm(stream[0] + delta))
            new = out.clone()
            new[..., start : start + d] = other[..., start : start + d]
            return new

        return [(norm, True, lambda m, a, k: stream.append(a[0])), (module, False, replace)]


@pytest.mark.parametrize("family", NAMES)
def test_a_single_edge_is_a_path_patch_written_by_hand(family):
    found, hand = patching(family), ByHand(family)
    graph, base = found.graph, plain(exact(family), PAIRS.clean, PAIRS)
    kv = "h" if graph.n_kv_heads == graph.n_heads else "kv"
    edges = [
        "input->a0.h0<q>", f"input->a1.{kv}1<k>", "a0.h1->a1.h3<q>", f"a0.h2->a2.{kv}0<v>", f"a1.h0->a2.{kv}1<k>",
        "m0->a1.h2<q>", f"m0->a2.{kv}1<v>", "a1.h3->m2", "m1->m2", "input->m0", "a2.h1->logits", "m2->logits",
        "a1.h2->logits",
    ] + ([] if graph.parallel else ["a1.h3->m1"])  # fmt: skip
    for name in edges:
        patch = weights(found)
        patch[graph.index(name)] = 1
        logits = hand.path_patched(PAIRS.clean, PAIRS.corrupted, *name.split("->"))
        expected = (logits.gather(1, PAIRS.answer[:, None]) - logits.gather(1, PAIRS.wrong_answer[:, None]))[:, 0]
        assert (expected - base).abs().max() > 1e-6, name
        torch.testing.assert_close(found(patch), expected, rtol=0, atol=tolerance(family), msg=name)


def test_weights_off_the_graph_mean_nothing():
    found = patching("llama")
    patch = torch.from_numpy(~found.graph.edges).double()
    assert torch.equal(found(patch), found(weights(found)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_groups_of_pairs_change_nothing_with_and_without_gradient(family):
    whole, alone = patching(family), patching(family, budget=1)
    assert (whole.step, alone.step) == (len(whole.base), 1) or whole.step > 1
    generator = torch.Generator().manual_seed(0)
    patch = torch.rand(whole.graph.edges.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(whole(patch), alone(patch), rtol=0, atol=1e-9)
    gradients = []
    for found in (whole, alone):
        leaf = patch.clone().requires_grad_()
        gradients.append(torch.autograd.grad(found(leaf).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
    assert gradients[0][~torch.from_numpy(whole.graph.edges)].abs().max() == 0
    # … and are what differences of values say
    step, generator = 1e-6, np.random.default_rng(0)
    for i, j in generator.permutation(np.argwhere(whole.graph.edges))[:8]:
        moved = [patch.clone(), patch.clone()]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        difference = (whole(moved[0]) - whole(moved[1])).sum() / (2 * step)
        assert float(difference) == pytest.approx(float(gradients[0][i, j]), abs=1e-6)
    assert gradients[0].abs().max() > 1e-2


def test_refusals():
    found = patching("gpt2")
    with pytest.raises(ShapeError, match=r"`patch` has shape \[2, 3\]; the edges of gpt2 are"):
        found(torch.zeros(2, 3))
    shorter = from_token_lists(None, [[1, 2], [3], [4]])
    with pytest.raises(PairError, match="equally long"):
        EdgePatching(exact("gpt2"), ragged()[0], shorter, METRIC)
