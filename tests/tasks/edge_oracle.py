"""The slow, obvious edge-patched forward pass of a GPT-2 without norms: every receiver adds up its senders by hand."""

from __future__ import annotations

import math

import torch


def forward(network, ids, carries=lambda edge, value: value):
    """Logits [batch, pos, d_vocab] and every sender's output, if each edge carries `carries(edge, sender's output)`."""
    config, transformer = network.config, network.transformer
    width, heads = config.n_embd, config.n_head
    d_head = width // heads
    senders = {"input": transformer.wte.weight[ids] + transformer.wpe.weight[: ids.shape[1]]}
    constant = torch.zeros(width, dtype=senders["input"].dtype)
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()

    def received(receiver):
        return sum(carries(f"{sender}->{receiver}", value) for sender, value in senders.items()) + constant

    for layer, block in enumerate(transformer.h):
        results = {}
        for head in range(heads):
            name, own = f"a{layer}.h{head}", slice(head * d_head, (head + 1) * d_head)
            q, k, v = (
                received(f"{name}<{part}>") @ block.attn.c_attn.weight[:, place * width :][:, own]
                + block.attn.c_attn.bias[place * width :][own]
                for place, part in enumerate("qkv")
            )
            scores = (q @ k.transpose(-1, -2) / math.sqrt(d_head)).masked_fill(~causal, -math.inf)
            results[name] = scores.softmax(-1) @ v @ block.attn.c_proj.weight[own]
        senders |= results
        constant = constant + block.attn.c_proj.bias
        hidden = block.mlp.act(received(f"m{layer}") @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
        senders[f"m{layer}"] = hidden @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return received("logits") @ network.lm_head.weight.T, senders


def differences(truth, *, circuit=None, cut=None, ablation="resample", direction="noising"):
    """Logit difference of each pair, at its prompt's last token.

    With `circuit`, edges outside it are ablated; with `cut`, that edge is patched and all others are live. Ablated
    edges of a clean run carry what they carried in the corrupted run, or nothing; `"denoising"` swaps the two runs.
    """
    task, network = truth.task.encode(truth.model), truth.model.network
    base, source = (task.clean, task.corrupted)[:: 1 if direction == "noising" else -1]
    other = forward(network, source.ids)[1]

    def carries(edge, value):
        ablated = edge == cut if circuit is None else edge not in circuit
        if not ablated:
            return value
        return torch.zeros_like(value) if ablation == "zero" else other[edge.split("->")[0]]

    rows = torch.arange(len(base))
    # Shorter prompts end in padding, which no token before it sees.
    logits = forward(network, base.ids, carries)[0][rows, base.lengths - 1]
    return logits[rows, task.answer] - logits[rows, task.wrong_answer]


def without_effect(truth, *, ablation="resample", direction="noising", tolerance=1e-3):
    """The edges whose ablation alone changes no pair's logit difference by more than the tolerance."""
    options = dict(ablation=ablation, direction=direction)
    untouched = differences(truth, circuit=set(truth.all_edges), **options)
    return {
        edge
        for edge in truth.all_edges
        if (differences(truth, cut=edge, **options) - untouched).abs().max() <= tolerance
    }
