"""What flows along edges: every sender's term of the residual stream, and what every receiver makes of the stream.

A head's term is its z times its rows of the output projection. Where a norm follows attention (Gemma's sandwich)
the term is the head's share of the normed sum: the norm multiplies each token by one number, so that its output is
the sum of the heads' results times that number and the gain. The number is that of the run whose terms are taken.
So the terms add up to what the block adds to the stream, in every family, in every run. A z times that number is
*scaled*: from it the term is linear, so that means of scaled z are means of terms.

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
    """What senders write, kept as small as it can be: z instead of the heads' results.

    Attributes:
        activations: of `resid_pre 0`, and of every layer's `z` and `mlp_out`.
        scaled: the z are scaled already, as those of `zeros` and `mean` are: they belong to no run whose norms could
            say by how much.
    """

    model: LanguageModel
    activations: Mapping[Site, Tensor]
    scaled: bool = False

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
        """The heads' mixed values, scaled."""
        z = self.activations[Site("z", layer)]
        return z if self.scaled else scaled(self.model, layer, z)

    def mlp(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The MLP's term."""
        return self.activations[Site("mlp_out", layer)]

    def zeros(self) -> Terms:
        """Nothing, for each prompt and position (a bias of an attention's output is no head's, and stays)."""
        return Terms(self.model, {site: x.new_zeros(1).expand_as(x) for site, x in self.activations.items()}, True)

    def select(self, rows: Tensor, width: int) -> Terms:
        """Those of some prompts, at the first positions."""
        return Terms(self.model, {site: x[rows, :width] for site, x in self.activations.items()}, self.scaled)

    def mean(self, prompts: Prompts, n: int) -> Terms:
        """The mean over prompts at each position, the same for n prompts.

        Args:
            prompts: those whose terms these are; a position is averaged over the prompts that reach it.
        """
        mask = prompts.mask
        found = {}
        for site, x in self.activations.items():
            x = self.z(site.layer) if site.part == "z" and site.layer is not None else x
            here = mask.view(*mask.shape, *(1,) * (x.ndim - 2))
            mean = torch.where(here, x, 0).sum(0, keepdim=True) / here.sum(0, keepdim=True)
            found[site] = mean.expand(n, *x.shape[1:])
        return Terms(self.model, found, True)

    @torch.no_grad()
    def minus(self, other: Terms, graph: Graph, first: int = 0) -> Float[Tensor, "batch sender pos d_model"]:
        """Differences of all senders' terms, from position `first` on."""
        start = self.embedding[:, first:]
        out = start.new_empty(len(start), len(graph.senders), *start.shape[1:])
        out[:, 0] = start - other.embedding[:, first:]
        for layer in range(graph.n_layers):
            own, others = self.z(layer)[:, first:], other.z(layer)[:, first:]
            out[:, graph.heads(layer)] = head_terms(self.model, layer, own - others).transpose(0, 1)
            out[:, graph.mlp_sender(layer)] = self.mlp(layer)[:, first:] - other.mlp(layer)[:, first:]
        return out


def scaled(
    model: LanguageModel, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    """The z times the number by which a norm behind attention multiplies its token; themselves where there is none."""
    norm = model.layers[layer].post_attn_norm
    if norm is None:
        return z
    total = torch.einsum("bphe,hed->bpd", z, model.head_projection(layer))
    gained = total * post_norm_gain(norm, model)
    square = gained.square().sum(-1, keepdim=True)
    scale = (norm(total) * gained).sum(-1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return z * scale[..., None]


def head_terms(
    model: LanguageModel, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head adds to the stream with these scaled z. It is linear: differences of z give differences."""
    terms = torch.einsum("bphe,hed->hbpd", z, model.head_projection(layer))
    norm = model.layers[layer].post_attn_norm
    return terms if norm is None else terms * post_norm_gain(norm, model)


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
