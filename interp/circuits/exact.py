"""Exact effects of every node and every edge, as rows of sweeps.

An edge's receiver reads base stream + (source term − base term) of the sender, all of it known from the base run and
the source run. So what the receiver computes from it (a query, a key, a value; an MLP's output; the last stream) is
computed once, for many senders in one matrix product, and written into the base run as an edit. From there the
engine does the rest: rows join at that layer, with the tokens from the first changed one on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.ablation import Ablated
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Problem
from interp.circuits.stream import Terms, project
from interp.interventions.base_states import BaseStates, base_states, states_with_source
from interp.interventions.edits import Edit, Replace
from interp.interventions.packed import needed_sites
from interp.interventions.plan import compile_variants
from interp.interventions.sweep import plan_sweep
from interp.models.block import Blocks
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.tasks.metrics import Metric


def node_effects(
    problem: Problem, direction: str, budget: int | None, progress: Progress, checkpoint: str | Path | None
) -> Float[Tensor, "example sender"]:
    """Effects of writing each sender's other term, with the sign of `interp.circuits.score`."""
    graph, model = problem.graph, problem.model
    sites = [Site("resid_pre", 0)]
    for layer in range(graph.n_layers):
        sites += [Site("z", layer, head) for head in range(graph.n_heads)] + [Site("mlp_out", layer)]
    kept = {site.all_heads for site in sites}
    wanted = needed_sites(kept, graph.n_layers) | kept
    found = []
    for number, (rows, clean, corrupted, _) in enumerate(problem.groups(3, BUDGET)):
        base, source = (clean, corrupted) if direction == "noising" else (corrupted, clean)
        group = _Group.of(problem, rows, base, source, wanted)
        assert group.source is not None
        run = group.source.as_run(source, kept)
        variants: list[list[Edit]] = [[Replace(site, run)] for site in sites]
        found.append(group.swept(model, variants, budget, progress, _folder(checkpoint, number)).T)
    return torch.cat(found) * _sign(direction)


def edge_effects(
    ablated: Ablated, direction: str, budget: int | None, progress: Progress, checkpoint: str | Path | None
) -> Float[Tensor, "example sender receiver"]:
    """Effects of each edge alone, with the sign of `interp.circuits.score`; 0 where there is no edge."""
    problem = ablated.problem
    graph, model = problem.graph, problem.model
    layers = range(graph.n_layers)
    wanted = {Site(part, layer) for layer in layers for part in ("q", "k", "v", "z", "mlp_out", "attn_out")}
    wanted = needed_sites(wanted, graph.n_layers) | wanted
    found = []
    for number, (rows, clean, other, _) in enumerate(ablated.groups(3, BUDGET)):
        # `Ablated` has seen to it that constants come with noising alone.
        base, source = (clean, other) if direction == "noising" or isinstance(other, Terms) else (other, clean)
        group = _Group.of(problem, rows, base, source, wanted)
        effects = torch.zeros(len(rows), *graph.edges.shape, dtype=torch.float64)
        edges = _Edges(problem, group, source if isinstance(source, Terms) else None)
        for layer in progress([*layers, graph.n_layers], "layers"):
            at, variants = edges.of(layer)
            folder = _folder(checkpoint, number, layer)
            effects[:, at[:, 0], at[:, 1]] = group.swept(model, variants, budget, silent, folder).T.double().cpu()
        found.append(effects)
    return torch.cat(found) * _sign(direction)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Pairs whose base run, and source run where terms come from one, are held together."""

    prompts: Prompts
    base: BaseStates
    source: BaseStates | None
    metric: _Rows

    @classmethod
    def of(cls, problem: Problem, rows: Tensor, base: Prompts, source: Prompts | Terms, sites: set[Site]) -> _Group:
        """The runs of these pairs."""
        model, metric = problem.model, _Rows(problem.metric, rows)
        if isinstance(source, Terms):
            return cls(base, base_states(model, compile_variants(model, base, [()]), sites), None, metric)
        return cls(base, *states_with_source(model, base, source, sites), metric)

    def swept(
        self,
        model: LanguageModel,
        variants: list[list[Edit]],
        budget: int | None,
        progress: Progress,
        folder: Path | None,
    ) -> Float[Tensor, "variant example"]:
        """Effects [variant, example]."""
        plan = plan_sweep(model, self.prompts, variants, self.metric, budget=budget, base=self.base)
        swept = plan.run(progress=progress, checkpoint=folder)
        return swept.values[self.metric.name] - swept.base[self.metric.name]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A metric of some of its examples (a dataclass, so that checkpoints know it again)."""

    metric: Metric
    rows: Tensor

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def unit(self) -> str:
        return self.metric.unit

    @property
    def columns(self) -> Tensor | None:
        return None if self.metric.columns is None else self.metric.columns[self.rows]

    @property
    def positions(self) -> Tensor | None:
        return None if self.metric.positions is None else self.metric.positions[self.rows]

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        return self.metric(logits, self.rows[example])


class _Edges:
    """The edits that patch single edges."""

    def __init__(self, problem: Problem, group: _Group, constants: Terms | None = None) -> None:
        self.problem, self.group = problem, group
        # Zero, bit for bit, before the first token that differs, where base and source ran in one batch.
        other = constants or _terms(problem, group.source)
        self.terms = other.minus(_terms(problem, group.base), problem.graph).transpose(0, 1)
        self.unchanged = (self.terms == 0).all(-1)[..., None]

    @torch.no_grad()
    def of(self, layer: int) -> tuple[Tensor, list[list[Edit]]]:
        """(sender, receiver) indices, and a variant for each, of a layer's receivers (of the logits, after all)."""
        found = list(self._logits() if layer == self.problem.graph.n_layers else self._layer(layer))
        return torch.tensor([at for at, _ in found]), [[edit] for _, edit in found]

    def _layer(self, layer: int) -> Iterator[tuple[tuple[int, int], Edit]]:
        graph, model, base = self.problem.graph, self.problem.model, self.group.base
        n, receivers = graph.before_attention(layer), graph.attention(layer)
        places = [Site(part, layer, head) for part in "qkv" for head in range(model.heads_of(part) or 0)]
        for sender in range(n):
            moved = base.resid[layer] + self.terms[sender]
            found = project(model, layer, moved[None], slice(None))
            for number, site in enumerate(places):
                old = base.at(site.all_heads)[:, :, site.head or 0]
                value = torch.where(self.unchanged[sender], old, found[number])
                yield (sender, receivers.start + number), Replace(site, value)
        blocks = Blocks(model)
        for sender in range(graph.before_mlp(layer)):
            pre = (base.resid[layer] + self.terms[sender]).flatten(0, 1)
            mid = pre if graph.parallel else (base.middle(layer) + self.terms[sender]).flatten(0, 1)
            out = blocks.mlp_out(layer, pre, mid).view_as(base.resid[layer])
            site = Site("mlp_out", layer)
            yield (sender, graph.mlp(layer)), Replace(site, torch.where(self.unchanged[sender], base.at(site), out))

    def _logits(self) -> Iterator[tuple[tuple[int, int], Edit]]:
        graph, base = self.problem.graph, self.group.base
        site = Site("resid_post", graph.n_layers - 1)
        for sender in range(len(graph.senders)):
            yield (sender, len(graph.receivers) - 1), Replace(site, base.at(site) + self.terms[sender])


def _terms(problem: Problem, states: BaseStates | None) -> Terms:
    assert states is not None
    parts = [Site(part, layer) for layer in range(problem.graph.n_layers) for part in ("z", "mlp_out")]
    at = {Site("resid_pre", 0): states.resid[0], **{site: states.at(site) for site in parts}}
    return Terms(problem.model, at)


def _sign(direction: str) -> float:
    """Noising takes the clean term away, so that the metric's gain by it is minus the effect."""
    return -1.0 if direction == "noising" else 1.0


def _folder(checkpoint: str | Path | None, group: int, layer: int | None = None) -> Path | None:
    if checkpoint is None:
        return None
    folder = Path(checkpoint) / f"pairs_{group:04d}"
    return folder if layer is None else folder / f"layer_{layer:03d}"
