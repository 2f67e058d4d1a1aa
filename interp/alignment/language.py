"""Places of a language model, for alignment: sites and regions of an interchange task.

Base and sources run once, as rows of the same passes: where they agree on a prefix their states agree bit for bit, so
that interchanges which change nothing are known. Of the base run, what lies below the lowest site is forgotten.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.errors import InterpError, PairError, nearest
from interp.interventions.base_states import BaseStates, base_states
from interp.interventions.differentiable import Differentiable, differentiable
from interp.interventions.edits import Edit, Replace
from interp.interventions.memory import free_bytes
from interp.interventions.packed import needed_sites
from interp.interventions.plan import compile_variants
from interp.interventions.run import forward_order, run
from interp.interventions.schedule import bytes_per_token
from interp.interventions.sweep import plan_sweep
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, Site
from interp.tasks.interchange import EncodedInterchange, InterchangeTask
from interp.tasks.metrics import FunctionMetric

MAX_TOKENS = 2048
"""Tokens of one pass; more gain nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """A site, and the region of each prompt at whose last token it is."""

    site: Site
    region: str

    def __str__(self) -> str:
        return f"{self.site} at {self.region!r}"


class LanguageContinuation(Continuation):
    """What a language model answers when the state at a place is another.

    Args:
        model: any language model.
        task: bases, sources, labels.
        places: at which there will be values. Their sites must be of one width, without heads or with one named.
        budget: bytes for activations; half of the free memory if not given.

    Raises:
        InterpError: no place; sites of unlike width; states that are not finite.
        SiteError: a site that the model does not have.
        PairError: a region that the task does not have.
    """

    def __init__(
        self, model: LanguageModel, task: EncodedInterchange, places: Sequence[Place], *, budget: int | None = None
    ) -> None:
        self.model, self.task, self.places = model, task, tuple(places)
        sites = check_places(model, places)
        self.budget = free_bytes(model.device) // 2 if budget is None else budget
        found = [task.position(place.region) for place in places]
        self.position = torch.stack([base for base, _ in found])
        theirs = [torch.stack([sources[i] for _, sources in found]) for i in range(len(task.sources))]
        states, everywhere = _states(
            model, [task.base, *task.sources], [self.position, *theirs], self.places, self.budget
        )
        self.base, *sources = everywhere
        self.sources = tuple(sources)
        self.check([str(place) for place in places])
        self.ready: Differentiable = differentiable(model, task.base, sites, base=states)
        with torch.no_grad():
            self.base_logits = self.ready.base_logits()[:, 0]

    def base_outputs(self, example: Tensor) -> Tensor:
        """Logits of the base run at each prompt's last token."""
        return self.base_logits[example]

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """Logits at each prompt's last token, all rows in one packed pass; with gradients if they are enabled."""
        pair = place * len(self.task) + example
        order = torch.argsort(pair, stable=True)
        # Several values at one place of one example are different variants.
        first = torch.searchsorted(pair[order], pair[order])
        turn = torch.empty_like(pair)
        turn[order] = torch.arange(len(pair), device=pair.device) - first
        variants, at = [], torch.empty_like(pair)
        which = place * (int(turn.max()) + 1) + turn
        for number, key in enumerate(which.unique().tolist()):
            rows = torch.nonzero(which == key)[:, 0]
            rows = rows[torch.argsort(example[rows])]
            own, where = example[rows], self.places[int(place[rows[0]])]
            positions = self.position[place[rows[0]], own][:, None]
            edit = Replace(where.site, values[rows][:, None], positions=positions, rows=own.tolist())
            variants.append([edit])
            at[rows] = number * len(self.task) + own
        with torch.set_grad_enabled(torch.is_grad_enabled() and values.requires_grad):
            found = self.ready.rows(variants)
        ran = torch.full((len(variants) * len(self.task),), -1, device=pair.device)
        ran[found.variant * len(self.task) + found.example] = torch.arange(len(found.variant), device=pair.device)
        if (ran[at] >= 0).all():
            return found.logits[:, 0].index_select(0, ran[at])
        unread = self.base_logits[example]  # the last layer's states at other tokens
        return torch.where((ran[at] >= 0)[:, None], found.logits[:, 0][ran[at].clamp(min=0)], unread)

    def place(self, name: Hashable) -> int:
        """The number of a `Place`.

        Raises:
            InterpError: it is none of these.
        """
        if name not in self.places:
            raise InterpError(f"{name} is none of the places here." + nearest(str(name), map(str, self.places)))
        return self.places.index(cast(Place, name))

    def depth(self, place: int) -> tuple[int, ...]:
        """Where its site comes in a forward pass."""
        return forward_order(self.places[place].site, self.model.n_layers)

    @torch.no_grad()
    def state(self, place: int, put: Mapping[int, Tensor]) -> Tensor:
        """The base's state, or, with something put elsewhere, that of a whole run with these edits."""
        if not put:
            return self.base[place]
        site, found = self.places[place].site, []
        for rows in self._passes():
            edits = self._edits(put, rows, range(len(rows)))
            at, prompts = self.position[place, rows][:, None], self.task.base.select(rows)
            found.append(run(self.model, prompts, edits, [site], positions=at, logits=False)[site][:, 0])
        return torch.cat(found)

    @torch.no_grad()
    def outputs_of(self, put: Mapping[int, Tensor]) -> Tensor:
        """Logits at each prompt's last token, packed: above the lowest of the places, from their first position on."""
        logits = self.base_logits.clone()
        for rows in self._passes() if put else []:
            found = self.ready.rows([self._edits(put, rows, rows.tolist())])
            logits[found.example] = found.logits[:, 0]
        return logits

    def _edits(self, put: Mapping[int, Tensor], example: Tensor, rows: Sequence[int]) -> list[Edit]:
        """What puts states there, of these examples, which are these rows of the prompts that run."""
        return [
            Replace(self.places[p].site, x[example][:, None], self.position[p, example][:, None], list(rows))
            for p, x in put.items()
        ]

    def _passes(self) -> Sequence[Int[Tensor, "part"]]:
        """Examples in order, for each whole pass."""
        width = self.task.base.ids.shape[1]
        per_example = width * self.model.n_layers * bytes_per_token(self.model, width) + 12 * self.model.d_vocab
        size = max(1, min(MAX_TOKENS // width, self.budget // per_example))
        return torch.arange(len(self.task), device=self.model.device).split(size)

    def parts(self, place: Tensor, example: Tensor) -> list[Tensor]:
        """Rows in order, as many as `MAX_TOKENS` and the budget admit."""
        layer = torch.tensor([p.site.layer or 0 for p in self.places], device=place.device)[place]
        layers = (self.model.n_layers - layer).double()
        tokens = (self.task.base.lengths[example] - self.position[place, example]).double()
        width = self.task.base.ids.shape[1]
        cost = tokens * layers * bytes_per_token(self.model, width) + 12 * self.model.d_vocab
        share = torch.maximum(tokens / MAX_TOKENS, cost / self.budget).cumsum(0)
        number = share.floor().long()
        return list(torch.arange(len(place), device=place.device).split(_runs(number)))


def _runs(number: Int[Tensor, "row"]) -> list[int]:
    return torch.unique_consecutive(number, return_counts=True)[1].tolist()


def check_places(model: LanguageModel, places: Sequence[Place]) -> list[Site]:
    """The sites of places, each once.

    Raises:
        InterpError: no place; a site without a single state, or sites of unlike width.
        SiteError: a site that the model does not have.
    """
    if not places:
        raise InterpError("There is no place to align: name layers and positions.")
    sites = list(dict.fromkeys(model.check(place.site) for place in places))
    for site in sites:
        if site.part in ATTENTION_PARTS or (model.heads_of(site) and site.head is None):
            raise InterpError(f"{site} has no single state: name a head, or another part.")
    widths = {model.width_of(site) for site in sites}
    if len(widths) > 1:
        raise InterpError(f"Sites of one search must have states of one width; these have {sorted(map(str, widths))}.")
    return sites


@torch.no_grad()
def _states(
    model: LanguageModel, prompts: Sequence[Prompts], positions: Sequence[Tensor], places: Sequence[Place], budget: int
) -> tuple[BaseStates | None, list[Tensor]]:
    """(states of the base run, states [place, example, width] of the base and of each source)."""
    n, width = len(prompts[0]), max(p.ids.shape[1] for p in prompts)
    per_example = 2 * len(prompts) * width * model.n_layers * bytes_per_token(model, width) // 4
    size = max(1, min(n, budget // per_example))
    sites = list(dict.fromkeys(place.site.all_heads for place in places))
    lowest = min(
        site.layer if site.layer is not None else (0 if site.part == "embed" else model.n_layers) for site in sites
    )
    kept, everywhere = [], []
    for first in range(0, n, size):
        rows = list(range(first, min(first + size, n)))
        joined = prompts[0].select(rows)
        for other in prompts[1:]:
            joined = joined.joined(other.select(rows))
        if model.not_replayable:
            whole = run(model, joined, (), sites, logits=False)
            at = whole.activations.__getitem__
        else:
            states = base_states(model, compile_variants(model, joined, [()]), needed_sites(sites, model.n_layers))
            kept.append(_above(states.rows(slice(0, len(rows)), prompts[0].select(rows)), lowest))
            at = states.at
        stacked = []
        for i, place in enumerate(places):
            x = at(place.site.all_heads)
            x = x if place.site.head is None else x[:, :, place.site.head]
            own = [
                x[side * len(rows) + torch.arange(len(rows), device=x.device), position[i, first : first + len(rows)]]
                for side, position in enumerate(positions)
            ]
            stacked.append(torch.stack(own))
        everywhere.append(torch.stack(stacked))
    whole = torch.cat(everywhere, 2)
    return (_joined(kept) if kept else None), list(whole.unbind(1))


def _above(states: BaseStates, layer: int) -> BaseStates:
    """A copy without the states of layers below `layer`: NaN there, which takes no memory."""

    def only(x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_forgotten(each, each.shape) if i < layer else each.clone() for i, each in enumerate(x))

    sites = {site: x.clone() for site, x in states.sites.items()}
    return replace(states, resid=only(states.resid), keys=only(states.keys), values=only(states.values), sites=sites)


def _forgotten(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.new_full((), torch.nan).expand(shape)


def _joined(parts: Sequence[BaseStates]) -> BaseStates:
    """The states of consecutive examples, as those of all."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.resid[-1].shape[1] for part in parts)

    def together(each: Sequence[Tensor]) -> Tensor:
        if not any(each[0].stride()):
            return _forgotten(each[0], (sum(map(len, each)), width, *each[0].shape[2:]))
        return torch.cat([F.pad(x, (0, 0) * (x.ndim - 2) + (0, width - x.shape[1])) for x in each])

    longest = max(parts, key=lambda part: part.resid[-1].shape[1])
    resid, keys, values = (
        tuple(together(each) for each in zip(*(getattr(part, name) for part in parts), strict=True))
        for name in ("resid", "keys", "values")
    )
    sites = {site: together([part.sites[site] for part in parts]) for site in parts[0].sites}
    return BaseStates(resid, keys, values, longest.ropes, sites)


@torch.no_grad()
def right(
    model: LanguageModel, task: EncodedInterchange, among: Int[Tensor, "answer"] | None = None
) -> Bool[Tensor, "example"]:
    """Whether the model answers an example's base and all its sources rightly, by the highest logit (of some)."""

    def best(logits: Tensor, example: Tensor) -> Tensor:
        return (logits.argmax(-1) if among is None else among[logits[:, among].argmax(-1)]).double()

    fine = torch.ones(len(task), dtype=torch.bool, device=model.device)
    for prompts, answer in zip([task.base, *task.sources], [task.answer, *task.source_answers], strict=True):
        for rows in torch.arange(len(task)).split(64):
            plan = plan_sweep(model, prompts.select(rows), [], FunctionMetric(best, "answer", "token"))
            fine[rows] &= plan.base_values()[0].long() == answer[rows]
    return fine


def kept(model: LanguageModel, task: InterchangeTask, among_answers: bool, only_right: bool) -> EncodedInterchange:
    """A task as tokens of a model; of its examples, if asked, those whose base and sources the model answers rightly.

    Args:
        among_answers: the model's answer is the best of the task's.
        only_right: keep no others.

    Raises:
        PairError: fewer than two are left; as `InterchangeTask.encode`.
    """
    encoded = task.encode(model)
    if not only_right:
        return encoded
    rows = torch.nonzero(right(model, encoded, encoded.answers if among_answers else None))[:, 0]
    if len(rows) < 2:
        raise PairError(
            f"{model.name} answers base and sources of {len(rows)} of {len(encoded)} examples of {task.name} "
            "rightly. An alignment would be with a computation that the model does not do; take more examples or an "
            "easier task (or among_answers=True, or only_right=False)."
        )
    return encoded.select(rows.tolist())
