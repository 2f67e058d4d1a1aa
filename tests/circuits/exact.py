"""Tiny models whose arithmetic is float64 throughout, so that identities hold to 1e-9.

Norms of the Llama line compute in float32 whatever the model's type; here they are replaced by double ones. Gemma 2
cannot do without its explicit attention, whose softmax is float32.
"""

from __future__ import annotations

from functools import cache

import torch
from models.described import ragged
from models.tiny import tiny
from torch import nn

from interp.interventions.run import run
from interp.models.load import describe
from interp.tasks.pairs import EncodedTask, PromptPair, Task

FAMILIES = ("gpt2", "llama", "gemma2", "gemma3", "gpt_neox", "gpt_neox_sequential", "opt", "phi3", "qwen3", "mixtral")


def tolerance(family: str) -> float:
    # Whatever the model's type, Gemma 2 takes the softmax of its attention in float32, Mixtral that of its router.
    return 1e-5 if family in ("gemma2", "mixtral") else 1e-9


class DoubleNorm(nn.Module):
    def __init__(self, gain: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(gain.clone(), requires_grad=False), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


@cache
def exact(family: str):
    """A described tiny model in float64."""
    network = tiny(family).requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                gain = child.weight + 1 if type(child).__name__.startswith("Gemma") else child.weight
                eps = getattr(child, "variance_epsilon", None) or child.eps
                setattr(parent, name, DoubleNorm(gain, eps))
    return describe(network, None, family)


def plain(model, prompts, encoded):
    """Logit differences of a plain run."""
    logits = run(model, prompts).last_logits()
    return (logits.gather(1, encoded.answer[:, None]) - logits.gather(1, encoded.wrong_answer[:, None]))[:, 0]


@cache
def pairs(lengths=(7, 5, 6)) -> EncodedTask:
    """Three pairs of tokens, of different lengths; each pair differs in one token."""
    clean, corrupted = ragged(lengths)
    task = Task(
        "tokens", tuple(PromptPair(f"clean {i}", f"corrupted {i}", " a", " b") for i in range(len(lengths))), "made up"
    )
    ids = torch.arange(3, 3 + 2 * len(lengths))
    return EncodedTask(task, clean, corrupted, ids[: len(lengths)], ids[len(lengths) :])


def planted():
    """A Llama in which one head alone writes anything."""
    network = tiny("llama").requires_grad_(False)
    for number, layer in enumerate(network.model.layers):
        layer.mlp.down_proj.weight[:] = 0
        kept = slice(12, 18) if number == 1 else slice(0, 0)
        weight = layer.self_attn.o_proj.weight.clone()
        layer.self_attn.o_proj.weight[:] = 0
        layer.self_attn.o_proj.weight[:, kept] = weight[:, kept]
    return describe(network, None, "planted")


PLANTED = {"input->a1.kv1<k>", "input->a1.kv1<v>", "a1.h2->logits"}
"""Edges that matter there: the last token is the same in both prompts, so its query and its embedding carry nothing."""
