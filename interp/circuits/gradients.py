"""Gradients of a metric with respect to what each receiver reads, without giving receivers inputs of their own.

A forward pass in which every head's query, key and value had its own copy of the stream would cost as many norms
and projections as there are receivers. It is not needed: a receiver's copy reaches the metric only through its own
projection, so

    ∂metric/∂(copy of r) = (Jacobian of the norm at the stream)ᵀ · W_rᵀ · ∂metric/∂(projection of r)

and the last factor is what an ordinary backward pass finds at the projection's output (for an MLP or the logits: at
the norm's output). The chain's first two factors are applied layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.circuits.graph import Graph
from interp.circuits.patching import read
from interp.circuits.stream import projections
from interp.models.hooks import Watcher, stopping_at, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.models.tap import Tap
from interp.tasks.metrics import Readout


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where the backward pass ends: `value(x)` takes the place of a site's activation x."""

    site: Site
    value: Callable[[Tensor], Tensor] = lambda x: x


EMBEDDING = Start(Site("resid_pre", 0))


@torch.no_grad()
def receiver_gradients(
    model: LanguageModel,
    graph: Graph,
    prompts: Prompts,
    readout: Readout,
    rows: Int[Tensor, "batch"],
    start: Start = EMBEDDING,
    first: int = 0,
) -> Iterator[tuple[slice, Float[Tensor, "receiver batch pos d_model"]]]:
    """Gradients of the metric, summed over prompts, with respect to what each receiver reads, layer by layer.

    Args:
        prompts: what runs; they are examples `rows` of the readout.
        start: nothing before it gets a gradient, nor is yielded.
        first: positions before it are left out.

    Yields:
        Receivers, and their gradients from position `first` on.
    """
    assert start.site.layer is not None
    layers = range(start.site.layer, graph.n_layers)
    outputs: list[Tap] = []
    for layer in layers:
        modules = model.layers[layer]
        projecting = dict.fromkeys(model.tap(Site(part, layer)).module for part in "qkv")  # one, where they are fused
        outputs += [Tap(module, "output") for module in projecting] + [Tap(_found(modules.norm2), "output")]
    outputs.append(Tap(_found(model.final_norm), "output"))
    streams = [model.tap(Site("resid_pre", layer)) for layer in layers]
    streams += [Tap(_found(model.layers[layer].norm2), "input") for layer in layers]
    streams.append(Tap(_found(model.final_norm), "input"))
    found = backward(model, prompts, readout, rows, outputs, start, streams)
    gradient = {tap.module: g for tap, g in zip(outputs, found.gradients, strict=True)}
    seen = [x[:, first:] for x in found.seen]
    before_attention, before_mlp, last = seen[: len(layers)], seen[len(layers) : -1], seen[-1]
    for layer, x_attention, x_mlp in zip(layers, before_attention, before_mlp, strict=True):
        modules = model.layers[layer]
        if start.site.part == "resid_pre" or layer > start.site.layer:
            weight, _ = projections(model, layer)
            taps = [model.tap(Site(part, layer)) for part in "qkv"]
            projected = torch.cat([tap.read(gradient[tap.module])[:, first:] for tap in taps], 2)
            upstream = torch.einsum("bpre,rde->rbpd", projected, weight)
            yield graph.attention(layer), _through(modules.norm1, x_attention, upstream)
        if graph.mlp(layer) in _later(graph, start.site):
            at = graph.mlp(layer)
            upstream = gradient[_found(modules.norm2)][None, :, first:]
            yield slice(at, at + 1), _through(modules.norm2, x_mlp, upstream)
    at = len(graph.receivers) - 1
    final = gradient[_found(model.final_norm)][None, :, first:]
    yield slice(at, at + 1), _through(model.final_norm, last, final)


def _later(graph: Graph, site: Site) -> range:
    """Receivers of MLPs and logits that come after a site."""
    assert site.layer is not None
    own = site.part != "mlp_out" and not (graph.parallel and site.part == "attn_out")
    return range(graph.mlp(site.layer) + (0 if own else 1), len(graph.receivers))


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """What a backward pass found.

    Attributes:
        values: the metric of each prompt.
        gradients: of the metric, summed over prompts, at each of the taps asked for.
        seen: tensors at the taps that were only to be seen.
    """

    values: Float[Tensor, "batch"]
    gradients: list[Tensor]
    seen: list[Tensor]


def backward(
    model: LanguageModel,
    prompts: Prompts,
    readout: Readout,
    rows: Int[Tensor, "batch"],
    taps: Sequence[Tap],
    start: Start = EMBEDDING,
    see: Sequence[Tap] = (),
) -> Backward:
    """One forward and one backward pass, from the metric down to `start`."""
    kept: dict[int, Tensor] = {}
    shown: dict[int, Tensor] = {}
    final: list[Tensor] = []

    def keep(number: int) -> Watcher:
        def watch(x: Tensor) -> Tensor | None:
            # A node of its own, on this way to the metric only: an identity in a norm's place returns the very stream.
            kept[number] = x.view_as(x)
            return kept[number] if x.requires_grad else None

        return watch

    def show(number: int) -> Watcher:
        return lambda x: shown.__setitem__(number, x.detach())

    watchers: list[tuple[str, Tap, Watcher]] = [
        (str(start.site), model.tap(start.site), lambda x: start.value(x).detach().requires_grad_())
    ]
    watchers += [(f"gradient {number}", tap, keep(number)) for number, tap in enumerate(taps)]
    watchers += [(f"stream {number}", tap, show(number)) for number, tap in enumerate(see)]
    watchers.append(("final_norm", model.tap(Site("final_norm")), final.append))
    with torch.enable_grad(), ExitStack() as hooks:
        hooks.enter_context(tapped(watchers, len(prompts)))
        with stopping_at(model.unembed):
            model.forward(prompts)
        values = read(model, readout, final[0], rows)
        wanted = [kept[number] for number in range(len(taps))]
        reached = [x for x in wanted if x.requires_grad]
        found = iter(torch.autograd.grad(values.sum(), reached, allow_unused=True))
    gradients = [(next(found) if x.requires_grad else None) for x in wanted]
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]
    return Backward(values.detach(), filled, [shown[number] for number in range(len(see))])


def _through(norm: nn.Module | None, x: Tensor, upstream: Float[Tensor, "receiver batch pos d_model"]) -> Tensor:
    """The gradient before a norm, for receivers that all read the same stream x."""
    if norm is None:
        return upstream
    with torch.enable_grad():
        copies = x.expand_as(upstream).clone().requires_grad_()
        return torch.autograd.grad(norm(copies), copies, upstream)[0]


def _found(module: nn.Module | None) -> nn.Module:
    assert module is not None, "checked by Graph.of"
    return module
