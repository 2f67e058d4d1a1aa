"""ACDC: go from the output to the input, and take away every edge that the metric does not miss.

    for each receiver, from the logits back to the first layer
        for each sender that it reads, the latest first
            take the edge away, for good if metric(circuit) − metric(circuit without the edge) < threshold

An edge that was taken away carries the corrupted run's term (`EdgePatching`). The outcome depends on the order: of two
edges that stand in for each other, the one that is tried first goes.

The plain way is one forward pass per edge. The same decisions, in the same order, cost far less here:

- *Upstream is the clean run.* When a receiver's turn comes, nothing before it has lost an edge yet. So its input
  without some edges is known without a forward pass, and only what follows from it is computed.
- *Only what is on the way.* Of that, only nodes that the receiver reaches in the current circuit and that reach the
  logits in it; and only tokens from the first on in which clean and corrupted prompts differ.
- *Nothing for dead nodes.* If all edges of a node are gone, those into it go too: whatever they carry is not read.
- *Guessing that edges go.* Most do. A batch tries the next n candidates at once: row i without the first i of them. Up
  to the first edge that stays, each row is the very trial that the plain way makes; the rows behind it are thrown away.

Source: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability" (arXiv:2304.14997),
Algorithm 1. As there, the default metric is the KL divergence from the whole model, its sign turned. We differ in the
order of a receiver's senders and of a layer's receivers (MLP, then values, keys, queries, each from the last head to
the first), which the algorithm leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import Circuit, edge_scores
from interp.circuits.select import circuit
from interp.circuits.stream import Terms, head_differences, project
from interp.errors import InterpError
from interp.interventions.base_states import states_with_source
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.block import Blocks
from interp.models.hooks import attention_options, tapped
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent

_UNEMBEDDED = 256
"""Rows whose logits of the whole vocabulary are held at once."""


def acdc(
    model: LanguageModel,
    task: Pairs,
    threshold: float,
    *,
    metric: str = "negative_kl",
    absolute: bool = False,
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> Circuit:
    """The circuit that is left when every edge that the metric does not miss has been taken away, one by one.

    Its `score` is what each edge's trial cost: metric(circuit of that moment) − metric(the same without the edge), mean
    over pairs; 0 for edges into nodes that led nowhere any more. Its provenance counts the trials (`n_trials`, what the
    plain way would need a forward pass for each), `n_untried` edges into dead nodes, the `n_rows` that ran and how many
    of them were guessed in vain (`n_vain`), and `work`: the attention and MLP evaluations (token × layer) that this
    took, as a share of a forward pass per edge.

    All pairs are held together: memory is that of the terms of all of them (`BUDGET`'s are per group elsewhere), and
    `budget` on top.

    Args:
        threshold: in the metric's unit; greater than 0, since effects of exactly 0 differ from it by rounding.
        metric: any of `METRICS`. Logit differences grow as edges go that speak against the answer: all those go.
        absolute: an edge stays also if the metric *gains* by at least the threshold when it goes. (The paper's rule
            looks at losses alone.)
        budget: bytes of rows that run at once.
        progress: over receivers.

    Raises:
        InterpError: as `Problem.of`; a threshold that is not positive; one at which no edge stays.
    """
    if not threshold > 0:
        raise InterpError(f"A threshold of {threshold} keeps edges without any effect; take one greater than 0.")
    problem = Problem.of(model, task, metric, only_right)
    current, graph = _Current(problem), problem.graph
    scores, errors = np.zeros(graph.edges.shape), np.zeros(graph.edges.shape)
    trials, untried, vain, size = 0, 0, 0, 8
    for receiver in progress(list(reversed(range(len(graph.receivers)))), "receivers"):
        waiting = np.flatnonzero(graph.edges[:, receiver])[::-1]
        if not current.matters(receiver):
            current.kept[torch.from_numpy(waiting.copy()), receiver] = 0
            untried += len(waiting)
            continue
        while len(waiting):
            some = waiting[: min(size, current.most(receiver, budget))]
            trial = current.without(receiver, torch.from_numpy(some.copy()).to(model.device))
            losses = (torch.cat([current.values[:, None], trial.values], 1)).diff().neg().double().cpu().numpy()
            means = losses.mean(0)
            missed = np.flatnonzero((np.abs(means) if absolute else means) >= threshold)
            gone = int(missed[0]) if len(missed) else len(some)
            done = min(gone + 1, len(some))
            scores[some[:done], receiver] = means[:done]
            errors[some[:done], receiver] = _standard_error(losses[:, :done])
            if gone:
                current.commit(trial, gone)
            trials, vain = trials + done, vain + len(some) - done
            size = 2 * size if gone == len(some) else 2 * (gone + 1)
            waiting = waiting[done:]
    kept = current.kept.bool().cpu().numpy()
    if not kept.any():
        raise InterpError(
            f"At a threshold of {threshold:g} {problem.metric.unit} no edge stays; the trial that cost most cost "
            f"{scores.max():.2g}, and clean and corrupted prompts lie {float(_gap(problem)):.2g} apart. Lower it."
        )
    passes = trials + untried
    facts: dict[str, Any] = {
        "threshold": threshold, "absolute": absolute, "n_trials": trials, "n_untried": untried,
        "n_rows": trials + vain, "n_vain": vain, "work": current.worked / (passes * current.pass_work),
    }  # fmt: skip
    found = edge_scores(problem, "ACDC", scores, errors, **facts)
    return circuit(found, kept, f"ACDC at {threshold:g} {problem.metric.unit}")


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """Runs of the circuit without the first 1, 2, … of some edges into a receiver.

    Attributes:
        values: of the metric.
        moved: (senders, their terms less the current run's [sender, batch, row, pos, d_model]), where any differ.
    """

    receiver: int
    senders: Tensor
    values: Float[Tensor, "batch row"]
    moved: list[tuple[Tensor, Tensor]]


class _Current:
    """The current circuit's run.

    Every receiver reads the corrupted stream plus, for each edge that it kept, what the sender writes in this run less
    what it writes in the corrupted one: `terms` [batch, sender, pos, d_model], positions from the first that differs.
    """

    @torch.no_grad()
    def __init__(self, problem: Problem) -> None:
        self.model, self.graph, self.readout = problem.model, problem.graph, problem.readout
        clean, corrupted = problem.encoded.clean, problem.encoded.corrupted
        differ = torch.nonzero(((clean.ids != corrupted.ids) & clean.mask).any(0))[:, 0]
        self.first, self.width, layers = int(differ[0]), clean.ids.shape[1], range(self.graph.n_layers)
        sites = {Site(part, layer) for layer in layers for part in ("z", "attn_out", "mlp_out")}
        base, source = states_with_source(self.model, clean, corrupted, sites)
        self.clean, self.corrupted, self.blocks = base, source, Blocks(self.model)
        self.kept = torch.from_numpy(self.graph.edges).to(self.model.device, self.model.dtype)
        terms = (Terms(self.model, {Site("resid_pre", 0): x.resid[0], **x.sites}) for x in (base, source))
        self.terms = next(terms).minus(next(terms), self.graph, self.first)
        self.values = problem.values["clean"]
        self.feeds = _feeds(self.model, self.graph).to(self.model.device)
        self._projected: dict[int, Tensor] = {}
        self.worked, self.pass_work = 0, 2 * len(layers) * clean.ids.numel()

    def matters(self, receiver: int) -> bool:
        """Whether the logits depend on what a receiver reads."""
        return bool((self.feeds[receiver] & self._alive()).any())

    def most(self, receiver: int, budget: int) -> int:
        """Rows that fit into the budget, for edges into a receiver."""
        row = self.terms[:, 0].numel() * self.model.dtype.itemsize
        # Terms of alive nodes from its layer on, and what a layer needs at a time: inputs, and the inside of the MLP.
        later = self._alive()[self.graph.before_attention(receiver // (self.graph.mlp(0) + 1)) :]
        inside = self.graph.n_heads + 2 * self.graph.n_kv_heads + 2 * (self.model.d_mlp or 0) // self.model.d_model + 8
        return max(1, int(budget / (row * (int(later.sum()) + inside))))

    @torch.no_grad()
    def without(self, receiver: int, senders: Tensor) -> _Trial:
        """The circuit without the first, the first two, … of these edges."""
        inputs = self._inputs(torch.tensor([receiver], device=self.model.device))[0][:, None]
        inputs = inputs - self.terms[:, senders].cumsum(1)
        moved: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.graph.n_layers):
            attention = self.graph.attention(layer)
            if receiver >= attention.stop + 1:
                continue
            own = receiver - attention.start if attention.start <= receiver < attention.stop else None
            self._attention(layer, own, inputs, moved)
            mlp = self.graph.mlp(layer)
            if (x := self._reached(mlp, receiver, inputs, moved)) is not None:
                out = self.blocks.mlp_out(layer, x.flatten(0, 2), x.flatten(0, 2)).view_as(x)
                at = self.graph.mlp_sender(layer)
                term = out - self._corrupted(self.corrupted.at(Site("mlp_out", layer)))[:, None]
                moved.append((torch.tensor([at], device=x.device), (term - self.terms[:, at, None])[None]))
                self.worked += x[..., 0].numel()
        final = self._reached(len(self.graph.receivers) - 1, receiver, inputs, moved)
        if final is None:  # what the receiver's node wrote is as good as not read: no kept edge leads on
            return _Trial(receiver, senders, self.values[:, None].expand(-1, len(senders)), moved)
        return _Trial(receiver, senders, self._read(final), moved)

    def commit(self, trial: _Trial, n: int) -> None:
        """Take the first n edges of a trial away."""
        self.kept[trial.senders[:n], trial.receiver] = 0
        self.values = trial.values[:, n - 1]
        for senders, difference in trial.moved:
            self.terms[:, senders] += difference[:, :, n - 1].transpose(0, 1)
        self._projected = {layer: x for layer, x in self._projected.items() if self._before(layer, trial.receiver)}

    # -- what receivers read --------------------------------------------------------------------------

    def _alive(self) -> Tensor:
        """Bool [node]: nodes that somebody reads (whose readers had their turn); `logits` is always read."""
        return torch.cat([self.kept.any(1), self.kept.new_ones(1).bool()])

    def _before(self, layer: int, receiver: int) -> bool:
        return self.graph.attention(layer).stop <= receiver

    def _inputs(self, receivers: Tensor) -> Float[Tensor, "receiver batch pos d_model"]:
        """What receivers read in the current run."""
        layer, within = divmod(int(receivers[0]), self.graph.mlp(0) + 1)
        if within < self.graph.mlp(0) or self.graph.parallel or layer == self.graph.n_layers:
            stream = self.corrupted.resid[layer]
        else:
            stream = self.corrupted.middle(layer)
        carried = torch.einsum("sr,bspd->rbpd", self.kept[:, receivers], self.terms)
        return self._corrupted(stream) + carried

    def _corrupted(self, x: Tensor) -> Tensor:
        return x[:, self.first :]

    def _moved(self, receivers: Tensor, moved: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """What moved senders change in what receivers read [receiver, batch, row, pos, d_model]; None if nothing."""
        change = None
        for senders, difference in moved:
            weights = self.kept[senders][:, receivers]
            if bool(weights.any()):
                more = torch.einsum("sr,sbcpd->rbcpd", weights, difference)
                change = more if change is None else change + more
        return change

    def _reached(
        self, receiver: int, changed: int, inputs: Tensor, moved: list[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "batch row pos d_model"] | None:
        """What an MLP or the logits read in each row; None where nothing changes, or nobody reads the outcome."""
        if receiver == changed:
            return inputs
        if not self.matters(receiver):
            return None
        at = torch.tensor([receiver], device=self.model.device)
        change = self._moved(at, moved)
        return None if change is None else self._inputs(at)[0][:, None] + change[0]

    # -- attention ------------------------------------------------------------------------------------

    def _attention(self, layer: int, own: int | None, inputs: Tensor, moved: list[tuple[Tensor, Tensor]]) -> None:
        """Run a layer's heads, if what one of them reads has changed, and note what they write now."""
        receivers, heads, alive = self.graph.attention(layer), self.graph.heads(layer), self._alive()
        feeds = self.feeds[receivers, heads]
        if own is not None:
            which, x = torch.tensor([own], device=inputs.device), inputs[None]
        else:
            reading = torch.zeros(len(feeds), dtype=torch.bool, device=feeds.device)
            for senders, _ in moved:
                reading |= self.kept[senders, receivers].any(0)
            which = torch.nonzero(reading & (feeds & alive[heads]).any(1))[:, 0]
            if not len(which):
                return
            change = self._moved(receivers.start + which, moved)
            assert change is not None
            x = self._inputs(receivers.start + which)[:, :, None] + change
        z = self._attend(layer, which, x)
        writing = torch.nonzero(feeds[which].any(0) & alive[heads])[:, 0]
        other = self._corrupted(self.corrupted.at(Site("z", layer)))[:, None].expand_as(z)
        terms = head_differences(self.model, layer, z.flatten(0, 1), other.flatten(0, 1))[writing]
        senders = heads.start + writing
        now = self.terms[:, senders].transpose(0, 1)[:, :, None]
        moved.append((senders, terms.unflatten(1, z.shape[:2]) - now))
        self.worked += z[..., 0, 0].numel()

    def _attend(
        self, layer: int, which: Tensor, x: Float[Tensor, "receiver batch row pos d_model"]
    ) -> Float[Tensor, "batch row pos head d_head"]:
        """Mixed values of every row, where some of the layer's receivers read x and the others what they read now."""
        if layer not in self._projected:
            receivers = self.graph.attention(layer)
            everything = torch.arange(receivers.start, receivers.stop, device=x.device)
            self._projected[layer] = project(self.model, layer, self._inputs(everything), slice(None))
        now = self._projected[layer]
        _, batch, rows, length, _ = x.shape
        projected = now[:, :, None].expand(-1, -1, rows, -1, -1).clone()
        projected[which] = project(self.model, layer, x.flatten(1, 2), which).unflatten(1, (batch, rows))
        tokens = projected.flatten(1, 3).transpose(0, 1)  # [token, receiver, d_head]
        position = torch.arange(self.first, self.width, device=x.device).repeat(batch * rows)
        tables = self.clean.ropes[layer]
        rope = None if tables is None else tuple(table.index_select(0, position) for table in tables)
        size = rows * length
        segments = [Segment(slice(b * size, (b + 1) * size), rows, self.first, length, b) for b in range(batch)]
        attn, mixed = self.model.layers[layer].attn, []
        assert attn is not None

        def core(query: Tensor, key: Tensor, value: Tensor, how: dict[str, Any]) -> Tensor:
            prefix = self.clean.keys[layer], self.clean.values[layer]
            mixed.append(segment_attention(query, key, value, *prefix, segments, **attention_options(attn.config, how)))
            return mixed[0]

        heads, kv = self.graph.n_heads, self.graph.n_kv_heads
        parts = dict(zip("qkv", tokens.split([heads, kv, kv], 1), strict=True))
        watchers = [
            (f"{part} {layer}", self.model.tap(Site(part, layer)), lambda _, part=part: parts[part][None])
            for part in "qkv"
        ]
        with tapped(
            watchers, 1
        ):  # queries, keys and values are handed over: what the module itself projects is not used
            self.blocks.attention(layer, tokens.new_zeros(len(tokens), self.model.d_model), rope, position, core)
        return mixed[0].view(batch, rows, length, heads, -1)

    # -- the metric -----------------------------------------------------------------------------------

    def _read(self, final: Float[Tensor, "batch row pos d_model"]) -> Float[Tensor, "batch row"]:
        batch, rows = final.shape[:2]
        example = torch.arange(batch, device=final.device)
        reads = self.readout.positions - self.first
        at = (
            final.transpose(1, 2)[example[:, None], reads].transpose(1, 2).flatten(0, 1)
        )  # [batch · row, read, d_model]
        values = []
        for some, x in zip(example.repeat_interleave(rows).split(_UNEMBEDDED), at.split(_UNEMBEDDED), strict=True):
            columns = None if self.readout.columns is None else self.readout.columns[some][:, None]
            columns = None if columns is None else columns.expand(-1, x.shape[1], -1)
            logits = self.model.unembed_columns(self.blocks.final_norm(x), columns)
            values.append(self.readout.values(logits, some)[0])
        return torch.cat(values).view(batch, rows)


def _feeds(model: LanguageModel, graph: Graph) -> Tensor:
    """Bool [receiver, node]: whose terms a receiver helps to compute. A norm behind attention ties a layer's heads."""
    feeds = torch.from_numpy(graph.feeds).clone()
    for layer in range(graph.n_layers):
        if model.layers[layer].post_attn_norm is not None:
            feeds[graph.attention(layer), graph.heads(layer)] = True
    return feeds


def _standard_error(losses: np.ndarray) -> np.ndarray:
    if len(losses) < 2:
        return np.full(losses.shape[1], np.nan)
    return losses.std(0, ddof=1) / len(losses) ** 0.5


def _gap(problem: Problem) -> Tensor:
    return problem.values["clean"].mean() - problem.values["corrupted"].mean()
