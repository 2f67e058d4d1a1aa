"""Circuits planted in networks of random weights: haystacks with a needle.

A few heads and MLPs pass a signal on, each in a direction of the residual stream of its own; the answers' logits read
the last of these. All other heads and MLPs have random weights: they read everything, the signal too, and differ
between clean and corrupted prompts, but they write where nobody of the circuit looks. So most edges of the network
carry a difference, and few of them matter. A random rotation hides the directions.

Heads of the circuit attend evenly, so that the circuit has no edges into queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.models.load import describe
from interp.tasks.pairs import PromptPair, Task, check_count
from interp.tasks.truth import GroundTruth

FILLERS = tuple("abcdefgh")
LONGEST = 7
"""Words of the longest prompt."""

_VOCABULARY = ("bos", "+", "-", *FILLERS, "yes", "no")
_GAIN = 4.0
"""Of a head of the circuit, which takes the mean over up to eight tokens."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A component: the `index`-th head of a layer, or its MLP (`index` −1)."""

    layer: int
    index: int

    @property
    def name(self) -> str:
        return f"m{self.layer}" if self.index < 0 else f"a{self.layer}.h{self.index}"

    @property
    def receiver(self) -> str:
        return self.name if self.index < 0 else f"{self.name}<v>"

    @property
    def stage(self) -> int:
        return 2 * self.layer + (self.index < 0)


def planted(
    n: int = 32, seed: int = 0, *, model_seed: int = 0, n_layers: int = 4, n_heads: int = 4, n_nodes: int = 6
) -> GroundTruth:
    """A network of random weights with a planted circuit, and pairs.

    A prompt is `+` or `-` among filler words; the clean one has `+` and is answered by `yes`.

    Args:
        n: number of pairs.
        seed: same seed, same pairs.
        model_seed: of the circuit, the random weights and the rotation.
        n_layers: of the network.
        n_heads: of each layer.
        n_nodes: heads and MLPs in the circuit.

    Raises:
        PairError: `n` below 1.
        InterpError: more nodes than the network has, or none.
    """
    from interp.models.normless import word_tokenizer

    check_count(n)
    there = n_layers * (n_heads + 1)
    if not 1 <= n_nodes <= there:
        raise InterpError(f"A circuit of {n_nodes} nodes cannot be planted: give between 1 and {there}.")
    random = Random(seed)
    pairs = [_pair(random) for _ in range(n)]
    nodes, feeds = _draw_circuit(Random(model_seed), n_layers, n_heads, n_nodes)
    edges = frozenset(f"{sender}->{receiver}" for receiver, senders in feeds.items() for sender in senders)
    network = _network(nodes, feeds, n_layers, n_heads, torch.Generator().manual_seed(model_seed))
    name = f"planted-{model_seed}"
    return GroundTruth(
        name,
        f"is there a + ? ({n_nodes} nodes among {there})",
        describe(network, word_tokenizer(_VOCABULARY), name),
        Task(name, tuple(pairs), "by hand", seed),
        circuits={"resample": edges, "zero": edges},
    )


def _pair(random: Random) -> PromptPair:
    words = [random.choice(FILLERS) for _ in range(random.randrange(2, LONGEST + 1))]
    at = random.randrange(len(words))
    clean, corrupted = (" ".join([*words[:at], sign, *words[at + 1 :]]) for sign in "+-")
    return PromptPair(clean, corrupted, " yes", " no")


def _draw_circuit(
    random: Random, n_layers: int, n_heads: int, n_nodes: int
) -> tuple[tuple[_Node, ...], dict[str, tuple[str, ...]]]:
    """Nodes in the order of a forward pass, and by receiver, its senders."""
    everything = [_Node(layer, index) for layer in range(n_layers) for index in range(-1, n_heads)]
    nodes = tuple(sorted(random.sample(everything, n_nodes), key=lambda node: (node.stage, node.index)))
    feeds: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        earlier = ["input", *(other.name for other in nodes if other.stage < node.stage)]
        feeds[node.receiver] = tuple(random.sample(earlier, min(len(earlier), random.choice((1, 2)))))
    heard = {sender for senders in feeds.values() for sender in senders}
    feeds["logits"] = tuple(node.name for node in nodes if node.name not in heard)
    return nodes, feeds


def _network(
    nodes: tuple[_Node, ...], feeds: dict[str, tuple[str, ...]], n_layers: int, n_heads: int, generator: torch.Generator
) -> torch.nn.Module:
    from interp.models.normless import normless_gpt2

    n_inner = 16
    d_head = max(8, -(-2 * (len(nodes) + 1) // n_heads))  # at least half of the stream is not the circuit's
    width = n_heads * d_head
    channel = {name: i for i, name in enumerate(["input", *(node.name for node in nodes)])}
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.double)).Q

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double) / width**0.5

    def outside(weight: Tensor) -> Tensor:
        """Writes nothing into the circuit's channels."""
        weight[:, : len(channel)] = 0
        return weight

    def heard(receiver: str) -> Tensor:
        """[width]: the sum of the channels that a receiver of the circuit reads."""
        weight = torch.zeros(width, dtype=torch.double)
        weight[[channel[sender] for sender in feeds[receiver]]] = 1
        return weight

    token = width**0.5 * outside(random(len(_VOCABULARY), width))
    token[[1, 2], 0] = torch.tensor([2.0, -2.0], dtype=torch.double)
    weights = {
        "transformer.wte.weight": token @ turn,
        "transformer.wpe.weight": width**0.5 * outside(random(LONGEST + 1, width)) @ turn,
    }
    for layer in range(n_layers):
        into, out = random(width, 3, n_heads, d_head), outside(random(width, width)).view(n_heads, d_head, width)
        up, down = random(width, n_inner), outside(random(n_inner, width))
        for node in nodes:
            if node.layer != layer:
                continue
            if node.index >= 0:
                into[:, :, node.index], out[node.index] = 0, 0
                into[:, 2, node.index, 0] = heard(node.receiver)
                out[node.index, 0, channel[node.name]] = _GAIN
            else:
                # gelu(x) − 0.7 gelu(−x) rises everywhere and bends at 0: a signal keeps its sign, and no method may
                # take the circuit for a linear one.
                up[:], down[:] = 0, 0
                up[:, 0], up[:, 1] = heard(node.receiver), -heard(node.receiver)
                down[0, channel[node.name]], down[1, channel[node.name]] = 1, -0.7
        block = f"transformer.h.{layer}"
        weights[f"{block}.attn.c_attn.weight"] = turn.T @ into.reshape(width, 3 * width)
        weights[f"{block}.attn.c_proj.weight"] = out.reshape(width, width) @ turn
        weights[f"{block}.mlp.c_fc.weight"] = turn.T @ up
        weights[f"{block}.mlp.c_proj.weight"] = down @ turn
    unembed = torch.zeros(len(_VOCABULARY), width, dtype=torch.double)
    unembed[_VOCABULARY.index("yes")], unembed[_VOCABULARY.index("no")] = heard("logits"), -heard("logits")
    weights["lm_head.weight"] = unembed @ turn
    shape = dict(
        n_layer=n_layers, n_head=n_heads, n_embd=width, n_inner=n_inner, n_positions=LONGEST + 1,
        vocab_size=len(_VOCABULARY),
    )  # fmt: skip
    return normless_gpt2(shape, {name: weight.float() for name, weight in weights.items()}, activation="gelu_new")
