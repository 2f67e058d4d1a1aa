"""Path patching: what travels along chosen paths, and along nothing else.

A *path* is written as a sender and the inputs that it goes through: `a5.h3->a8.h1<v>->logits`: what head 5.3 writes,
as the value of head 8.1 reads it, as the logits read that head. The sender's term is that of the other run; every
head and MLP on the way is computed once more, from the base stream plus what has changed on the path; whatever the
path does not name keeps what it has in the base run. At its end a path is either read by `logits`, or it is *open*:
`a5.h3->a8.h1<v>` changes that input, and then everything after it follows.

Several paths at once share what they have in common from the end on: `a->b->logits` and `c->b->logits` change one b
that reads both; `a->b->logits` and `c->b->d->logits` have a b each, as in a network unrolled into a tree. Inputs at
open ends are set to what the paths make of the base run: one of them does not hear another before it.

Under grouped-query attention a path may go on from one head of a group, `a5.h3->a8.h1<k>->logits`; an open end is the
input itself, `a5.h3->a8.kv0<k>`, which the group shares.

`mlps="recomputed"` is the definition of Wang et al. 2022: a step of a path is the direct way *or any way through MLPs
only*; attention is frozen. Otherwise a step is an edge, and MLPs are frozen like everything else.

Cost: one row of a sweep per set of paths, and a forward pass for every head *inside* a path.

Source: Wang et al. 2022 (IOI, arXiv:2211.00593, appendix B); Goldowsky-Dill et al. 2023, "Localizing Model Behavior
with Path Patching" (arXiv:2304.05969), for the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.circuits.problem import Direction, Pairs, Problem, checked_direction
from interp.circuits.results import NodeScores, node_scores
from interp.circuits.stream import Terms, head_terms, project, scaled
from interp.errors import InterpError, SiteError, nearest
from interp.interventions.base_states import states_with_source
from interp.interventions.edits import Add, Edit, Replace
from interp.interventions.packed import needed_sites
from interp.interventions.run import run
from interp.interventions.sweep import plan_sweep
from interp.models.block import Blocks
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result
from interp.statistics import mean_effect

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Mlps = Literal["frozen", "recomputed"]
Stream: TypeAlias = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True, repr=False, eq=False)
class PathEffects(Result):
    """Effects of sets of paths.

    `.data` holds over `path` (the set's paths, joined by " + ") × `example` the `effect`: how much the metric gains
    when these paths carry the clean instead of the corrupted term, in its unit; and over `path` its `mean`, 95 %
    interval `low` and `high`, and `p` (sign flips, Holm-corrected over the sets).
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Effects of paths ({p['direction']}) · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    def summary(self) -> str:
        """A line per set of paths."""
        data, p = self.data, self.provenance
        gap = float(data["clean"].mean() - data["corrupted"].mean())
        lines = [f"PathEffects: {self.title}", f"  {p['metric']} clean − corrupted {gap:+.3f} {p['unit']}"]
        for i, path in enumerate(data["path"].values):
            mean, low, high = (float(data[name][i]) for name in ("mean", "low", "high"))
            lines.append(f"  {mean:+.3f} ({low:+.3f} to {high:+.3f}), p {float(data['p'][i]):.2g}: {path}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A bar per set of paths, with its interval."""
        from interp.plots import bars

        x, low, high = (self.data[name].expand_dims(of=["effect"]) for name in ("mean", "low", "high"))
        return bars(
            x, y="path", bar="of", low=low, high=high, title=self.title, unit=self.provenance["unit"],
            quantity="effect",
        )  # fmt: skip


def path_patching(
    model: LanguageModel,
    task: Pairs,
    paths: Sequence[str | Sequence[str]],
    *,
    mlps: Mlps = "frozen",
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | File | None = None,
) -> PathEffects:
    """The effect of each path, or of each set of paths that are patched at once. Exact.

    Args:
        paths: as written in the module's text; a list among them is a set.
        mlps: whether a step of a path may also go through MLPs.
        budget: as in `sweep`.
        progress: as in `sweep`.
        checkpoint: as in `sweep`.

    Raises:
        InterpError: as `Problem.of`; an unknown way to treat MLPs; no paths; a set in which a path goes through a
            node where another begins on the same way.
        SiteError: a name that is not in the graph, a step that is no edge, or an input that several heads read where
            a path goes on.
    """
    problem = Problem.of(model, task, metric, only_right)
    sets = [[one] if isinstance(one, str) else list(one) for one in paths]
    patching = _Patching(problem, checked_direction(direction), checked_mlps(mlps))
    effects = patching.effects(sets, budget, progress, checkpoint)
    import xarray as xr

    unit = {"unit": problem.metric.unit}
    mean, low, high, p = mean_effect(effects)
    variables = {
        "effect": (("path", "example"), effects, unit), "mean": ("path", mean, unit), "low": ("path", low, unit),
        "high": ("path", high, unit), "p": ("path", p),
        **{which: ("example", x.double().cpu().numpy(), unit) for which, x in problem.values.items()},
    }  # fmt: skip
    data = xr.Dataset(variables, {"path": [" + ".join(one) for one in sets], "example": list(range(effects.shape[1]))})
    record = problem.record("path patching", direction=direction, mlps=mlps)
    return PathEffects(data, {**record, "experiment": "path patching"})


def senders_into(
    model: LanguageModel,
    task: Pairs,
    receivers: Sequence[str],
    *,
    onward: Sequence[str] = (),
    mlps: Mlps = "frozen",
    direction: Direction = "noising",
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | File | None = None,
) -> NodeScores:
    """Who writes into these inputs? The effect of every sender by way of them, all at once.

    "Which heads write into the queries of the name movers": `receivers=["a9.h9<q>", "a9.h6<q>"]`.

    Args:
        receivers: names of the graph's receivers.
        onward: what then reads their heads' or MLPs' outputs, such as `["logits"]`; if not given, everything does.
        mlps: as in `path_patching`.
        budget: as in `sweep`.
        progress: as in `sweep`.
        checkpoint: as in `sweep`.

    Returns:
        Scores of the senders, NaN for those that none of the receivers reads.

    Raises:
        InterpError: as `path_patching`; no receivers.
        SiteError: as `path_patching`.
    """
    problem = Problem.of(model, task, metric, only_right)
    graph = problem.graph
    if not receivers:
        raise InterpError("Name the receivers that are to be written into, such as 'a1.h0<q>'.")
    ways = []
    for name in receivers:
        if name not in graph.receivers:
            raise SiteError(f"{graph.model} has no receiver {name!r}." + nearest(name, graph.receivers))
        ways += (
            [(name, name)] if not onward else [(name, f"{way}->{on}") for way in _goes_on(graph, name) for on in onward]
        )
    sets, within = [], np.zeros(len(graph.senders), dtype=bool)
    for number, sender in enumerate(graph.senders):
        own = [f"{sender}->{way}" for name, way in ways if graph.edges[number, graph.receivers.index(name)]]
        within[number] = bool(own)
        sets += [own] if own else []
    effects = _Patching(problem, checked_direction(direction), checked_mlps(mlps)).effects(
        sets, budget, progress, checkpoint
    )
    mean, error = np.full((2, len(within)), np.nan)
    mean[within] = effects.mean(1)
    if effects.shape[1] > 1:
        error[within] = effects.std(1, ddof=1) / effects.shape[1] ** 0.5
    facts = {"direction": direction, "mlps": mlps, "receivers": list(receivers), "onward": list(onward)}
    return node_scores(problem, f"paths into {', '.join(receivers)}", mean, error, **facts)


@dataclass(frozen=True, slots=True)
class _Path:
    """Node, receiver, node, receiver …: `receivers[i]` reads `nodes[i]`, and feeds `nodes[i + 1]` if there is one."""

    nodes: tuple[int, ...]
    receivers: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, text: str) -> _Path:
        node, *steps = text.split("->")
        if not steps:
            raise SiteError(f"{text!r} is no path; paths look like 'a0.h1->a1.h0<v>->logits' or 'a0.h1->m1'.")
        nodes, receivers = [], []
        for number, step in enumerate(steps):
            inside = number < len(steps) - 1
            head, _, part = step.partition("<")
            shared = graph.n_kv_heads < graph.n_heads and part in ("k>", "v>") and head in graph.senders
            if inside and shared:  # one head's use of what its group shares
                layer, _, own = head.partition(".h")
                step = f"{layer}.kv{int(own) * graph.n_kv_heads // graph.n_heads}<{part}"
            sender, receiver = graph.index(f"{node}->{step}")
            nodes.append(sender)
            receivers.append(receiver)
            fed = [graph.nodes[i] for i in np.flatnonzero(graph.feeds[receiver])]
            if inside and step == "logits":
                raise SiteError(f"{text!r}: nothing comes after the logits.")
            if inside and len(fed) > 1 and not shared:
                raise SiteError(f"{text!r}: {step} is read by {', '.join(fed)}; say which, as in '{fed[0]}<{part}'.")
            node = head if shared else fed[0]
        return cls(tuple(nodes), tuple(receivers))

    def before_last(self) -> _Path:
        """The way to the last node."""
        return _Path(self.nodes[:-1], self.receivers[:-1])


class _Patching:
    def __init__(self, problem: Problem, direction: str, mlps: str) -> None:
        self.problem, self.model, self.graph = problem, problem.model, problem.graph
        self.through_mlps, self.sign = mlps == "recomputed", -1.0 if direction == "noising" else 1.0
        pair = problem.encoded.clean, problem.encoded.corrupted
        self.prompts, other = pair if direction == "noising" else pair[::-1]
        layers = range(self.graph.n_layers)
        wanted = {Site(part, layer) for layer in layers for part in ("q", "k", "v", "z", "mlp_out", "attn_out")}
        wanted |= needed_sites(wanted, self.graph.n_layers)
        self.base, source = states_with_source(self.model, self.prompts, other, wanted)
        kept = [Site(part, layer) for layer in layers for part in ("z", "mlp_out")]
        self.own, self.other = (
            Terms(self.model, {Site("resid_pre", 0): states.resid[0], **{site: states.at(site) for site in kept}})
            for states in (self.base, source)
        )
        self.blocks = Blocks(self.model)

    @torch.no_grad()
    def effects(
        self, sets: list[list[str]], budget: int | None, progress: Progress, checkpoint: str | File | None
    ) -> np.ndarray:
        """Effects [set, example]."""
        if not sets or not all(sets):
            raise InterpError("Give at least one path, and no empty set of paths.")
        parsed = [{_Path.of(self.graph, text) for text in one} for one in sets]
        variants = [self._edits(one) for one in progress(parsed, "paths")]
        metric = self.problem.metric
        plan = plan_sweep(self.model, self.prompts, variants, metric, budget=budget, base=self.base)
        swept = plan.run(progress=progress, checkpoint=checkpoint)
        effects = swept.values[metric.name] - swept.base[metric.name]
        return self.sign * effects.double().cpu().numpy()

    def _edits(self, paths: set[_Path]) -> list[Edit]:
        """What the ends of the paths read, written into the base run."""
        edits: list[Edit] = []
        for receiver, own in _grouped(paths, lambda path: path.receivers[-1]).items():
            change = self._arriving(receiver, own)
            if receiver == len(self.graph.receivers) - 1:
                edits.append(Add(Site("resid_post", self.graph.n_layers - 1), change))
            else:
                edits.append(self._read(receiver, change))
        return edits

    def _arriving(self, receiver: int, paths: set[_Path]) -> Stream:
        """How the stream that a receiver reads changes, by paths that end there."""
        changes = {node: self._written(node, own) for node, own in _grouped(paths, lambda path: path.nodes[-1]).items()}
        if not self.through_mlps:
            return torch.stack(list(changes.values())).sum(0)
        graph, nothing = self.graph, torch.zeros_like(self.base.resid[0])
        change = changes.get(0, nothing)
        for layer in range(graph.n_layers):
            attention, mlp, writes = graph.attention(layer), graph.mlp(layer), graph.mlp_sender(layer)
            if attention.start <= receiver < attention.stop:
                break
            middle = change
            for head in range(*graph.heads(layer).indices(len(graph.senders))):
                middle = middle + changes.get(head, nothing)
            read = change if graph.parallel else middle
            if receiver == mlp:
                return read
            if writes in changes:
                change = middle + changes[writes]
            else:
                change = middle + (self._mlp(layer, read) if read.any() else nothing)
        return change

    def _written(self, node: int, paths: set[_Path]) -> Stream:
        """How a node's term changes, by paths of which it is the last node."""
        if any(len(path.nodes) == 1 for path in paths):
            if len(paths) > 1:
                raise InterpError(
                    f"One path begins at {self.graph.nodes[node]} where another goes through it, on the same way: the "
                    "first carries all of its term, so that the other has nothing to add. Leave one out."
                )
            return self._replaced(node)
        inputs = _grouped((path.before_last() for path in paths), lambda path: path.receivers[-1])
        changes = {receiver: self._arriving(receiver, own) for receiver, own in inputs.items()}
        layer = (node - 1) // (self.graph.n_heads + 1)
        if node == self.graph.mlp_sender(layer):
            return self._mlp(layer, changes[self.graph.mlp(layer)])
        head, site = node - self.graph.heads(layer).start, Site("z", layer)
        edits = [self._read(receiver, change) for receiver, change in changes.items()]
        z = self.base.at(site).clone()
        z[:, :, head] = run(self.model, self.prompts, edits, [site], logits=False)[site][:, :, head]
        return head_terms(self.model, layer, scaled(self.model, layer, z) - self.own.z(layer))[head]

    def _replaced(self, node: int) -> Stream:
        """The other run's term of a sender, less its own."""
        if node == 0:
            return self.other.embedding - self.own.embedding
        layer = (node - 1) // (self.graph.n_heads + 1)
        if node == self.graph.mlp_sender(layer):
            return self.other.mlp(layer) - self.own.mlp(layer)
        head = node - self.graph.heads(layer).start
        return head_terms(self.model, layer, self.other.z(layer) - self.own.z(layer))[head]

    def _mlp(self, layer: int, change: Stream) -> Stream:
        """How an MLP's term changes when what it reads does."""
        stream = self.base.resid[layer] if self.graph.parallel else self.base.middle(layer)
        moved = (stream + change).flatten(0, 1)
        out = self.blocks.mlp_out(layer, moved, moved).view_as(stream)
        return torch.where(_moved(change), out - self.base.at(Site("mlp_out", layer)), 0)

    def _read(self, receiver: int, change: Stream) -> Replace:
        """What a receiver makes of a changed stream, as an edit of the base run."""
        graph = self.graph
        layer = next(layer for layer in range(graph.n_layers) if receiver <= graph.mlp(layer))
        if receiver == graph.mlp(layer):
            site = Site("mlp_out", layer)
            return Replace(site, self.base.at(site) + self._mlp(layer, change))
        number = receiver - graph.attention(layer).start
        places = [Site(part, layer, head) for part in "qkv" for head in range(self.model.heads_of(part) or 0)]
        site = places[number]
        new = project(self.model, layer, (self.base.resid[layer] + change)[None], slice(number, number + 1))[0]
        old = self.base.at(site.all_heads)[:, :, site.head or 0]
        return Replace(site, torch.where(_moved(change), new, old))


def _moved(change: Stream) -> Tensor:
    """[batch, pos, 1]: where anything changes. Elsewhere the base's own values stay, bit for bit."""
    return (change != 0).any(-1, keepdim=True)


def _grouped(paths: Iterable[_Path], key: Callable[[_Path], int]) -> dict[int, set[_Path]]:
    groups: dict[int, set[_Path]] = {}
    for path in sorted(paths, key=lambda path: (path.nodes, path.receivers)):
        groups.setdefault(key(path), set()).add(path)
    return groups


def _goes_on(graph: Graph, receiver: str) -> list[str]:
    """How a path names its way through a receiver: for a shared input, once for every head that reads it."""
    fed = [graph.nodes[i] for i in np.flatnonzero(graph.feeds[graph.receivers.index(receiver)])]
    return [f"{node}<{receiver.partition('<')[2]}" for node in fed] if len(fed) > 1 else [receiver]


def checked_mlps(mlps: str) -> str:
    """A way to treat MLPs, if it is one.

    Raises:
        InterpError: they are neither frozen nor recomputed.
    """
    if mlps not in ("frozen", "recomputed"):
        raise InterpError(f"On a path MLPs are 'frozen' or 'recomputed'; got {mlps!r}.")
    return mlps
