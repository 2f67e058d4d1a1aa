"""The graph of a model: who writes to the residual stream, who reads it, and which edges that makes.

*Nodes* are the embedding (`input`: what enters the first block), every attention head (`a3.h5`), every MLP (`m3`)
and `logits`. All but `logits` are *senders*: each adds its own term to the stream. *Receivers* are the places
that read the stream: the query, key and value input of every head (`a3.h5<q>`), the MLPs' inputs (`m3`) and the
final norm (`logits`). Under grouped-query attention a key or value head is one receiver (`a3.kv1<k>`) behind which
the queries of its group stand. An *edge* joins a sender to a receiver that comes later in the forward pass: the
receiver reads the stream, which is the sum of all earlier senders' terms (and of biases, which never differ).

Numbers of edges, for n_l = 1 + l · (heads + 1) senders before layer l: Σ_l [n_l · (heads + 2 · kv_heads) + n_l +
heads] + n_L; a parallel block's MLP has n_l edges instead of n_l + heads. GPT-2 small has 32,491.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import InterpError, SiteError, nearest
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel

if TYPE_CHECKING:
    from networkx import DiGraph

_NEEDED = ("q", "k", "v", "z", "attn_out", "mlp_out", "head_result", "final_norm")


@dataclass(frozen=True)
class Graph:
    """Senders, receivers and edges of one model's shape.

    Attributes:
        model: its name.
        weights: hash of its weights.
        parallel: attention and MLP of a block read the same stream.
    """

    model: str
    weights: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    parallel: bool

    @classmethod
    def of(cls, model: LanguageModel | Denoiser) -> Graph:
        """The graph of a loaded model.

        Raises:
            InterpError: a model whose stream is no sum of terms that edges could carry (the message says why).
        """
        if not isinstance(model, LanguageModel):
            raise InterpError(f"Edges are defined for language models; got a {type(model).__name__}.")
        if reason := _undefined(model):
            raise InterpError(f"The edges of {model.name} are not defined here: {reason}.")
        shape = (model.n_layers, model.n_heads, model.n_kv_heads, model.d_model)
        return cls(model.name, model.weights_hash, *shape, model.family.parallel)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names, in forward order."""
        layers = range(self.n_layers)
        return ("input", *(name for x in layers for name in (*(f"a{x}.h{h}" for h in range(self.n_heads)), f"m{x}")))

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names, in forward order; of a layer the queries, keys, values, then the MLP."""
        kv = "h" if self.n_kv_heads == self.n_heads else "kv"
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<q>" for head in range(self.n_heads)]
            names += [f"a{layer}.{kv}{head}<{letter}>" for letter in "kv" for head in range(self.n_kv_heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Senders, then `logits`."""
        return (*self.senders, "logits")

    @cached_property
    def edges(self) -> np.ndarray:
        """Bool [sender, receiver]: which edges there are."""
        earlier = np.empty(len(self.receivers), dtype=int)
        for layer in range(self.n_layers):
            earlier[self.attention(layer)] = self.before_attention(layer)
            earlier[self.mlp(layer)] = self.before_mlp(layer)
        earlier[-1] = len(self.senders)
        return np.arange(len(self.senders))[:, None] < earlier

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    @cached_property
    def feeds(self) -> np.ndarray:
        """Bool [receiver, node]: the nodes whose output a receiver helps to compute (several, for a shared key)."""
        feeds = np.zeros((len(self.receivers), len(self.nodes)), dtype=bool)
        group = self.n_heads // self.n_kv_heads
        for layer in range(self.n_layers):
            first, heads = self.attention(layer).start, self.heads(layer).start
            for head in range(self.n_heads):
                for slot in (0, self.n_heads, self.n_heads + self.n_kv_heads):
                    feeds[first + slot + (head if slot == 0 else head // group), heads + head] = True
            feeds[self.mlp(layer), self.mlp_sender(layer)] = True
        feeds[-1, -1] = True
        return feeds

    # -- where things are in the arrays ---------------------------------------------------------------

    def before_attention(self, layer: int) -> int:
        """Number of senders before a layer."""
        return 1 + layer * (self.n_heads + 1)

    def before_mlp(self, layer: int) -> int:
        """Number of senders that a layer's MLP reads."""
        return self.before_attention(layer) + (0 if self.parallel else self.n_heads)

    def heads(self, layer: int) -> slice:
        """A layer's heads among the senders."""
        return slice(self.before_attention(layer), self.before_attention(layer) + self.n_heads)

    def mlp_sender(self, layer: int) -> int:
        """A layer's MLP among the senders."""
        return self.before_attention(layer) + self.n_heads

    def attention(self, layer: int) -> slice:
        """A layer's query, key and value inputs among the receivers."""
        width = self.n_heads + 2 * self.n_kv_heads
        return slice(layer * (width + 1), layer * (width + 1) + width)

    def mlp(self, layer: int) -> int:
        """A layer's MLP among the receivers."""
        return self.attention(layer).stop

    def index(self, edge: str) -> tuple[int, int]:
        """(sender, receiver) of an edge's name, `"a0.h1->m3"`.

        Raises:
            SiteError: no such sender or receiver, or a receiver that does not come after the sender.
        """
        sender, _, receiver = edge.partition("->")
        for kind, name, names in (("sender", sender, self.senders), ("receiver", receiver, self.receivers)):
            if name not in names:
                close = nearest(name, names).partition(" Allowed")[0]
                raise SiteError(f"{edge!r}: {self.model} has no {kind} {name!r}.{close} Edges look like 'a0.h1->m3'.")
        at = self.senders.index(sender), self.receivers.index(receiver)
        if not self.edges[at]:
            raise SiteError(f"{edge!r}: {receiver} does not read what {sender} writes; senders come before receivers.")
        return at

    def networkx(self, edges: np.ndarray | None = None, scores: np.ndarray | None = None) -> DiGraph:
        """As a networkx graph: nodes with `kind` and `layer`; edges between nodes, keyed by what they reach.

        One arrow joins two nodes however many inputs it reaches: its attribute `receivers` maps the receivers' names
        to their scores (None without). A shared key input reaches every head of its group.

        Args:
            edges: bool [sender, receiver], the edges to keep; all if not given.
            scores: [sender, receiver].
        """
        from networkx import DiGraph

        graph = DiGraph(model=self.model)
        for node in self.nodes:
            layer = int(node[1:].split(".")[0]) if node[0] in "am" else None
            kind = {"a": "head", "m": "mlp", "i": "input", "l": "logits"}[node[0]]
            graph.add_node(node, kind=kind, layer=layer)
        for i, j in np.argwhere(self.edges if edges is None else self.edges & edges):
            score = None if scores is None else float(scores[i, j])
            for target in np.flatnonzero(self.feeds[j]):
                ends = self.senders[i], self.nodes[target]
                if not graph.has_edge(*ends):
                    graph.add_edge(*ends, receivers={})
                graph.edges[ends]["receivers"][self.receivers[j]] = score
        return graph

    def record(self) -> dict[str, Any]:
        """What a result's provenance keeps of the graph."""
        return {
            "model": self.model, "weights": self.weights, "n_layers": self.n_layers, "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads, "d_model": self.d_model, "parallel": self.parallel,
        }  # fmt: skip


def _undefined(model: LanguageModel) -> str | None:
    """Why a model has no edges in our sense, or None."""
    if model.not_replayable:
        return model.not_replayable
    for part in _NEEDED:
        # A norm behind attention acts on the heads' sum: its scale is shared out, so their results need not be served.
        if part == "head_result" and model.layers[0].post_attn_norm is not None:
            continue
        if part in model.untouchable:
            return f"it cannot serve {part!r} ({model.untouchable[part]})"
    for number, layer in enumerate(model.layers):
        if layer.norm2 is None or layer.mlp is None or layer.o is None:
            return f"layer {number} lacks an MLP behind a norm, or an output projection"
        if layer.post_attn_norm is not None:
            if getattr(layer.o, "bias", None) is not None:
                return f"layer {number} has a bias inside the norm behind attention, which no head's share could carry"
            if not _scales_only(layer.post_attn_norm, model):
                return (
                    f"the norm behind attention of layer {number} does more than scale, so heads have no shares of it"
                )
    return None


@torch.no_grad()
def _scales_only(norm: torch.nn.Module, model: LanguageModel) -> bool:
    """Whether a norm only multiplies each token by a number and each coordinate by a constant gain."""
    x = torch.linspace(-1, 2, 3 * model.d_model, device=model.device, dtype=model.dtype).view(3, -1)
    out, gained = norm(x), x * post_norm_gain(norm, model)
    scale = (out * gained).sum(-1, keepdim=True) / gained.square().sum(-1, keepdim=True)
    return bool(torch.allclose(out, gained * scale, rtol=1e-2 if model.dtype.itemsize == 2 else 1e-4, atol=1e-5))


def post_norm_gain(norm: torch.nn.Module, model: LanguageModel) -> torch.Tensor:
    """The gain per coordinate, up to a common factor: what the norm makes of equal coordinates."""
    return norm(torch.ones(model.d_model, device=model.device, dtype=model.dtype))
