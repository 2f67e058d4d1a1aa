"""The model as a function of its edges: the definition of every score, and of faithfulness.

The network runs on the *base* prompts. Along each edge it may receive, instead of what the sender writes in this
very run, what the sender wrote in the run on the *source* prompts (or another term: nothing, a mean):

    input of receiver r = stream + Σ_s patch[s, r] · (source term of s − term of s in this run)

With `patch` all 0 this is the base run, bit for bit; with all 1 it is the source run, for every receiver then
reads the source's stream (where terms come from no run: the sum of these terms and of the attention's biases); with
a single 1 it is a path patch: the direct effect of s on r, and all that follows from r. A circuit C is run on the
clean prompts with `patch` 1 outside of C and the corrupted prompts as source: what the circuit computes flows on,
everything else is the corrupted run's (MIB's definition).

Nothing is rewritten: it is one forward pass of the network's own modules, with hooks that hand receivers their own
inputs. Receivers without a patched edge keep the computation they have; so do all positions before the first token that
tells base from source, for there every term is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp.circuits.graph import Graph
from interp.circuits.stream import Terms, head_terms, project, scaled
from interp.errors import PairError, ShapeError
from interp.models.hooks import Watcher, stopping_at, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.models.tap import Tap
from interp.tasks.metrics import Metric, Readout

BUDGET = 2**28
"""Bytes of differences of terms that are held at once, if nothing else is said."""


class EdgePatching:
    """A base run, a source run and a metric; call it with weights of edges.

    Args:
        base: the prompts that are run.
        source: prompts of the same lengths, whose terms patched edges carry; or these terms.
        budget: bytes of the differences of terms; decides how many prompts run together.

    Raises:
        InterpError: a model whose edges are not defined.
        PairError: base and source differ in lengths.
        ShapeError: terms of another number of prompts, or of fewer positions.
    """

    def __init__(
        self, model: LanguageModel, base: Prompts, source: Prompts | Terms, metric: Metric, budget: int = BUDGET
    ) -> None:
        if isinstance(source, Terms):
            n, width = source.embedding.shape[:2]
            if n != len(base) or width < base.ids.shape[1]:
                raise ShapeError(
                    f"These terms are of {n} prompts and {width} positions; {len(base)} prompts of up to "
                    f"{base.ids.shape[1]} tokens run."
                )
        elif not torch.equal(base.lengths, source.lengths):
            raise PairError(
                f"Base and source prompts have {base.lengths.tolist()} and {source.lengths.tolist()} tokens; edges "
                "carry terms position by position, so each pair must be equally long."
            )
        self.model, self.base, self.metric, self.graph = model, base, metric, Graph.of(model)
        self.readout = Readout.of(metric, base.lengths)
        self.source = source if isinstance(source, Terms) else Terms.of(model, source)
        self.first = torch.zeros_like(base.lengths) if isinstance(source, Terms) else _first_difference(base, source)
        self.step = max(1, budget // pair_bytes(self.graph, model, base.ids.shape[1]))

    def __call__(
        self, patch: Float[Tensor, "sender receiver"], rows: Int[Tensor, "row"] | None = None
    ) -> Float[Tensor, "row"]:
        """The metric of each prompt, or of prompts `rows`.

        Gradients flow to `patch` and to the source's terms, if they want them.

        Raises:
            ShapeError: `patch` of another shape than the graph's.
        """
        shape = (len(self.graph.senders), len(self.graph.receivers))
        if patch.shape != shape:
            raise ShapeError(
                f"`patch` has shape {list(patch.shape)}; the edges of {self.model.name} are {list(shape)}."
            )
        edges = torch.from_numpy(self.graph.edges).to(patch.device)
        patch = torch.where(edges, patch, 0).to(self.model.device, self.model.dtype)
        wanted = patch.requires_grad or any(x.requires_grad for x in self.source.activations.values())
        grad = torch.is_grad_enabled() and wanted
        every = torch.arange(len(self.base), device=self.model.device)
        groups = (every if rows is None else rows).split(self.step)
        with torch.set_grad_enabled(grad):
            if grad and len(groups) > 1:  # so that only one group's states exist at a time, in the backward pass too
                return torch.cat([checkpoint(self._values, patch, rows, use_reentrant=False) for rows in groups])
            return torch.cat([self._values(patch, rows) for rows in groups])

    def _values(self, patch: Tensor, rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        base = self.base.select(rows)
        positions = slice(int(self.first[rows].min()), base.ids.shape[1])
        live = _Live(self.model, self.graph, self.source, rows, patch, positions)
        with ExitStack() as hooks:
            hooks.enter_context(tapped(live.watchers(), len(base)))
            hooks.enter_context(stopping_at(self.model.unembed))
            self.model.forward(base)
        return read(self.model, self.readout, live.final[-1], rows)


def _first_difference(base: Prompts, source: Prompts) -> Int[Tensor, "example"]:
    """Of each pair the first position at which its prompts differ; the last one, if they nowhere do."""
    differ = (base.ids != source.ids) & base.mask
    return torch.where(differ.any(1), differ.int().argmax(1), base.lengths - 1)


def pair_bytes(graph: Graph, model: LanguageModel, width: int) -> int:
    """Memory of the differences of one pair's terms, over this many positions."""
    return len(graph.senders) * width * model.d_model * model.dtype.itemsize


def read(
    model: LanguageModel, readout: Readout, final: Float[Tensor, "row pos d_model"], rows: Int[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """The (first) metric of examples `rows`, from the output of the final norm."""
    reads = readout.positions[rows]
    at = final[torch.arange(len(rows), device=final.device)[:, None], reads]
    columns = None if readout.columns is None else readout.columns[rows][:, None].expand(-1, reads.shape[1], -1)
    return readout.values(model.unembed_columns(at, columns), rows)[0]


class _Live:
    """One forward pass: hands receivers their inputs, and collects what senders write."""

    def __init__(
        self, model: LanguageModel, graph: Graph, source: Terms, rows: Tensor, patch: Tensor, positions: slice
    ) -> None:
        self.model, self.graph, self.source, self.rows, self.patch = model, graph, source, rows, patch
        self.positions, self.before = positions, slice(0, positions.start)
        self.terms: list[
            tuple[slice, Tensor]
        ] = []  # (senders, their source − live terms [sender, batch, pos, d_model])
        self.stream: Tensor | None = None
        self.inputs: tuple[Tensor, Tensor] | None = None  # receivers with a patched edge, and their projections
        self.final: list[Tensor] = []
        every = patch.requires_grad
        self.receiving = torch.ones_like(patch[0], dtype=torch.bool) if every else (patch != 0).any(0)
        self.sending = torch.ones_like(patch[:, 0], dtype=torch.bool) if every else (patch != 0).any(1)

    def watchers(self) -> list[tuple[str, Tap, Watcher]]:
        """Hooks in forward order."""
        model, graph = self.model, self.graph
        watchers: list[tuple[str, Tap, Watcher]] = []
        for layer in range(graph.n_layers):
            modules = model.layers[layer]
            assert modules.norm2 is not None
            watchers.append((f"resid_pre {layer}", model.tap(Site("resid_pre", layer)), self._enter(layer)))
            for part in "qkv":
                watchers.append((f"{part} {layer}", model.tap(Site(part, layer)), self._attention(layer, part)))
            watchers.append((f"z {layer}", model.tap(Site("z", layer)), self._heads(layer)))
            # The norm's input alone: the block keeps its own stream.
            watchers.append((f"mlp {layer}", Tap(modules.norm2, "input"), self._one(graph.mlp(layer))))
            watchers.append((f"mlp_out {layer}", model.tap(Site("mlp_out", layer)), self._mlp(layer)))
        assert model.final_norm is not None
        watchers.append(("logits", Tap(model.final_norm, "input"), self._one(len(graph.receivers) - 1)))
        watchers.append(("final_norm", model.tap(Site("final_norm")), self.final.append))
        return watchers

    def _enter(self, layer: int) -> Watcher:
        def watch(x: Tensor) -> None:
            if layer == 0:
                self._write(slice(0, 1), lambda: (self._source(self.source.embedding) - self._here(x))[None])
            self.stream = self._here(x)
            self.inputs = None

        return watch

    def _attention(self, layer: int, part: str) -> Watcher:
        heads, kv = self.graph.n_heads, self.graph.n_kv_heads
        first, count = {"q": (0, heads), "k": (heads, kv), "v": (heads + kv, kv)}[part]

        def watch(x: Tensor) -> Tensor | None:
            if self.inputs is None:
                self.inputs = self._projected(layer)
            which, projected = self.inputs
            mine = (which >= first) & (which < first + count)
            if not mine.any():
                return None
            new = projected[mine].permute(1, 2, 0, 3).to(x.dtype)
            return self._changed(x, self._here(x).index_copy(2, which[mine] - first, new))

        return watch

    def _projected(self, layer: int) -> tuple[Tensor, Tensor]:
        """The layer's receivers that a patched edge reaches, and what they project."""
        receivers = self.graph.attention(layer)
        which = torch.nonzero(self.receiving[receivers])[:, 0]
        assert self.stream is not None
        if not len(which):
            return which, self.stream
        return which, project(self.model, layer, self.stream + self._mixed(receivers.start + which), which)

    def _heads(self, layer: int) -> Watcher:
        def watch(z: Tensor) -> None:
            source = self._source(self.source.z(layer))
            self._write(
                self.graph.heads(layer),
                lambda: head_terms(self.model, layer, source - scaled(self.model, layer, self._here(z))),
            )

        return watch

    def _mlp(self, layer: int) -> Watcher:
        at = self.graph.mlp_sender(layer)
        return lambda x: self._write(
            slice(at, at + 1), lambda: (self._source(self.source.mlp(layer)) - self._here(x))[None]
        )

    def _one(self, receiver: int) -> Watcher:
        """A receiver that is alone in reading its copy of the stream."""
        at = torch.tensor([receiver], device=self.patch.device)

        def watch(x: Tensor) -> Tensor | None:
            return self._changed(x, self._here(x) + self._mixed(at)[0]) if self.receiving[receiver] else None

        return watch

    def _source(self, term: Tensor) -> Tensor:
        return term[self.rows, self.positions]

    def _here(self, x: Tensor) -> Tensor:
        """The positions at which terms may differ."""
        return x[:, self.positions]

    def _changed(self, x: Tensor, here: Tensor) -> Tensor:
        """`x` with other values at these positions."""
        return torch.cat([x[:, self.before], here], 1) if self.positions.start else here

    def _write(self, senders: slice, difference: Callable[[], Tensor]) -> None:
        if self.sending[senders].any():
            self.terms.append((senders, difference()))

    def _mixed(self, receivers: Tensor) -> Float[Tensor, "receiver batch pos d_model"]:
        """Σ over the senders so far of patch · (source − live), for some receivers."""
        mixed = self.source.embedding.new_zeros(len(receivers), 1, 1, 1)
        for senders, terms in self.terms:
            weights = self.patch[senders][:, receivers]
            if self.patch.requires_grad or bool(weights.any()):
                mixed = mixed + torch.einsum("sr,sbpd->rbpd", weights, terms)
        return mixed
