"""What flows along edges: every sender's term of the residual stream, and what every receiver makes of the stream.

A head's term is its z times its rows of the output projection. Where a norm follows attention (Gemma's sandwich)
the term is the head's share of the normed sum: the norm multiplies each token by one number, so that its output is
the sum of the heads' results times that number and the gain. The number is that of the run whose terms are taken.
So the terms add up to what the block adds to the stream, in every family, in every run.

A receiver applies the block's norm to its own copy of the stream, then its own rows of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.graph import Graph, post_norm_gain
from interp.interventions.run import run
from interp.models.language_model import LanguageModel, weight_of
from interp.models.prompts import Prompts
from interp.models.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a run's senders wrote, kept as small as it can be: z instead of the heads' results."""

    model: LanguageModel
    activations: Mapping[Site, Tensor]

    @classmethod
    def of(cls, model: LanguageModel, prompts: Prompts) -> Terms:
        """The terms of a plain run."""
        sites = [Site("resid_pre", 0), *model.sites("z"), *model.sites("mlp_out")]
        return cls(model, run(model, prompts, (), sites, logits=False).activations)

    @property
    def embedding(self) -> Float[Tensor, "batch pos d_model"]:
        """What enters the first block."""
        return self.activations[Site("resid_pre", 0)]

    def z(self, layer: int) -> Float[Tensor, "batch pos head d_head"]:
        """The heads' mixed values."""
        return self.activations[Site("z", layer)]

    def mlp(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The MLP's term."""
        return self.activations[Site("mlp_out", layer)]

    @torch.no_grad()
    def minus(self, other: Terms, graph: Graph, first: int = 0) -> Float[Tensor, "batch sender pos d_model"]:
        """Differences of all senders' terms, from position `first` on."""
        start = self.embedding[:, first:]
        out = start.new_empty(len(start), len(graph.senders), *start.shape[1:])
        out[:, 0] = start - other.embedding[:, first:]
        for layer in range(graph.n_layers):
            own, others = self.z(layer)[:, first:], other.z(layer)[:, first:]
            out[:, graph.heads(layer)] = head_differences(self.model, layer, own, others).transpose(0, 1)
            out[:, graph.mlp_sender(layer)] = self.mlp(layer)[:, first:] - other.mlp(layer)[:, first:]
        return out


def head_differences(
    model: LanguageModel,
    layer: int,
    z: Float[Tensor, "batch pos head d_head"],
    other: Float[Tensor, "batch pos head d_head"],
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head adds to the stream with these z, less what it adds with the others (zero where they agree)."""
    if model.layers[layer].post_attn_norm is None:
        return torch.einsum("bphe,hed->hbpd", z - other, model.head_projection(layer))
    return _shares(model, layer, z) - _shares(model, layer, other)


def _shares(model: LanguageModel, layer: int, z: Tensor) -> Tensor:
    """The heads' terms where a norm follows attention."""
    norm = model.layers[layer].post_attn_norm
    assert norm is not None
    gain = post_norm_gain(norm, model)
    results = torch.einsum("bphe,hed->hbpd", z, model.head_projection(layer))
    total = results.sum(0)
    gained = total * gain
    square = gained.square().sum(-1, keepdim=True)
    scale = (norm(total) * gained).sum(-1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return results * (scale * gain)


def projections(
    model: LanguageModel, layer: int
) -> tuple[Float[Tensor, "receiver d_model d_head"], Float[Tensor, "receiver d_head"] | None]:
    """Rows of the query, key and value projections, and their biases, in the order of the layer's receivers."""
    weights, biases = [], []
    for part in "qkv":
        tap = model.tap(Site(part, layer))
        # GPT-2's Conv1D stores [in, out]; everything else is a Linear, [out, in].
        conv = type(tap.module).__name__ == "Conv1D"
        weights.append(tap.read(weight_of(tap.module) if conv else weight_of(tap.module).T).transpose(0, 1))
        bias = getattr(tap.module, "bias", None)
        if bias is not None:
            biases.append(tap.read(bias))
    return torch.cat(weights), torch.cat(biases) if biases else None


def normed(norm: torch.nn.Module | None, x: Tensor) -> Tensor:
    """`x` behind a block's norm, if it has one."""
    return x if norm is None else norm(x)


def project(
    model: LanguageModel, layer: int, x: Float[Tensor, "copy batch pos d_model"], which: Tensor | slice
) -> Float[Tensor, "receiver batch pos d_head"]:
    """What some of a layer's receivers project, each from its own copy of the stream, or all from one."""
    weight, bias = projections(model, layer)
    out = torch.einsum("rbpd,rde->rbpe", normed(model.layers[layer].norm1, x), weight[which])
    return out if bias is None else out + bias[which][:, None, None]
