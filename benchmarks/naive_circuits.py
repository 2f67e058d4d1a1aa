"""Edge scores by hand, in plain PyTorch, for SmolLM2's architecture: nothing of interp. No benchmark by itself.

`split_inputs` is EAP-IG as the peers compute it: every head's query, key and value reads a copy of the stream of its
own, so that autograd gives each copy's gradient, and every sender's output is kept. `PathPatch` is one forward pass of
the network, with hooks, for one edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Weights:
    """A Llama network's sizes, and its rotary tables."""

    def __init__(self, network: nn.Module) -> None:
        self.network, config = network, network.config
        self.layers, self.norm = network.model.layers, network.model.norm
        self.heads, self.kv_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size,
        )
        self.d_head, self.group = self.width // self.heads, self.heads // self.kv_heads

    def rope(self, length: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 1, pos, d_head] cosines and sines."""
        return tuple(table[:, None] for table in self.network.model.rotary_emb(x, torch.arange(length)[None]))

    def receivers(self) -> list[str]:
        """Names, each query head with a key and a value input of its own."""
        names = []
        for layer in range(len(self.layers)):
            names += [f"a{layer}.h{head}<{letter}>" for letter in "qkv" for head in range(self.heads)] + [f"m{layer}"]
        return [*names, "logits"]


def split_inputs(network: nn.Module, clean: Tensor, corrupted: Tensor, lengths: Tensor, answers: Tensor, steps: int,
                 points: Callable[[int], float]) -> Tensor:  # fmt: skip
    """EAP-IG scores [sender, receiver], with a copy of the stream for every receiver; mean over prompts.

    Args:
        answers: [prompt, 2], answer and wrong answer.
        points: α of each step, from corrupted (0) to clean (1).
    """
    weights = Weights(network)
    embed = network.model.embed_tokens
    ends = embed(clean).detach(), embed(corrupted).detach()
    outputs = []
    with torch.no_grad():
        for end in ends:
            outputs.append(torch.stack(_forward(weights, end)[1], 2))
    difference = outputs[0] - outputs[1]  # [prompt, pos, sender, d_model]
    del outputs
    scores = torch.zeros(difference.shape[2], len(weights.receivers()))
    rows = torch.arange(len(clean))
    for step in range(steps):
        alpha = points(step)
        start = (ends[1] + alpha * (ends[0] - ends[1])).requires_grad_()
        final, _, copies = _forward(weights, start, keep=True)
        logits = network.lm_head(final[rows, lengths - 1])
        (logits.gather(1, answers[:, :1]) - logits.gather(1, answers[:, 1:])).sum().backward()
        column = 0
        for senders, copy in copies:
            scores[:senders, column : column + copy.shape[2]] += torch.einsum(
                "bpsd,bprd->sr", difference[:, :, :senders], copy.grad
            )
            column += copy.shape[2]
        del copies
    return scores / (steps * len(clean))


def _forward(weights: Weights, x: Tensor, keep: bool = False) -> tuple[Tensor, list[Tensor], list[tuple[int, Tensor]]]:
    """(normed last stream, every sender's output, (senders before it, the copy of the stream) of every reader)."""
    cos, sin = weights.rope(x.shape[1], x)
    outputs, copies = [x], []

    def read(x: Tensor, n: int, senders: int) -> Tensor:
        copy = x[:, :, None].expand(-1, -1, n, -1)
        if keep:
            copy = copy + 0  # a tensor of its own
            copy.retain_grad()
            copies.append((senders, copy))
        return copy

    def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    for layer in weights.layers:
        attn, parts = layer.self_attn, []
        for module in (attn.q_proj, attn.k_proj, attn.v_proj):
            copy = layer.input_layernorm(read(x, weights.heads, len(outputs)))
            weight = module.weight.unflatten(0, (-1, weights.d_head))
            weight = weight.repeat_interleave(weights.heads // len(weight), 0)
            parts.append(torch.einsum("bprd,red->brpe", copy, weight))
        q, k, v = parts
        z = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        out = attn.o_proj.weight.unflatten(1, (weights.heads, weights.d_head))
        results = torch.einsum("bhpe,dhe->bphd", z, out)
        outputs += results.unbind(2)
        x = x + results.sum(2)
        mlp = layer.mlp(layer.post_attention_layernorm(read(x, 1, len(outputs))))[:, :, 0]
        outputs.append(mlp)
        x = x + mlp
    return weights.norm(read(x, 1, len(outputs)))[:, :, 0], outputs, copies


class PathPatch:
    """Logit difference of the clean prompt when one receiver alone reads one sender's corrupted output."""

    def __init__(self, network: nn.Module, clean: Tensor, corrupted: Tensor, answers: tuple[int, int]) -> None:
        self.network, self.clean, self.answers, self.weights = network, clean, answers, Weights(network)
        with torch.no_grad():
            ends = (_forward(self.weights, network.model.embed_tokens(ids))[1] for ids in (clean, corrupted))
            self.change = [other - own for own, other in zip(*ends, strict=True)]

    @torch.no_grad()
    def value(self, sender: int = 0, receiver: str | None = None) -> float:
        """One forward pass. `receiver` as interp names it; without one, the clean run."""
        handles = [] if receiver is None else self._hooks(self.change[sender], receiver)
        try:
            logits = self.network(self.clean, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits[self.answers[0]] - logits[self.answers[1]])

    def _hooks(self, change: Tensor, receiver: str) -> list[Any]:
        if receiver == "logits":
            return [self.weights.norm.register_forward_pre_hook(lambda m, args: (args[0] + change,))]
        layer = self.weights.layers[int(receiver[1:].split(".")[0])]
        if receiver[0] == "m":
            return [layer.post_attention_layernorm.register_forward_pre_hook(lambda m, args: (args[0] + change,))]
        number = int(receiver[:-3].split(".")[1].lstrip("hkv"))
        module = getattr(layer.self_attn, f"{receiver[-2]}_proj")
        own = slice(number * self.weights.d_head, (number + 1) * self.weights.d_head)
        stream: list[Tensor] = []

        def replace(_: nn.Module, args: Any, out: Tensor) -> Tensor:
            moved = F.linear(layer.input_layernorm.forward(stream[0] + change), module.weight[own])
            return torch.cat([out[..., : own.start], moved, out[..., own.stop :]], -1)

        return [
            layer.input_layernorm.register_forward_pre_hook(lambda m, args: stream.append(args[0])),
            module.register_forward_hook(replace),
        ]
