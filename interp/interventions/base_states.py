"""The base run of a sweep, once: every state from which a variant may depart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.captured import Run
from interp.interventions.edits import Edit
from interp.interventions.plan import Plan, compile_variants
from interp.interventions.run import Places
from interp.models.block import rope_tables
from interp.models.hooks import Core, original_attention, routed, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, Site


@dataclass(frozen=True, slots=True, eq=False)
class BaseStates:
    """States of the base run, all [batch, pos, …].

    Attributes:
        resid: the stream at each layer boundary; `resid[n_layers]` is what the final norm receives.
        keys: per layer, rotary applied: with the values, the prefix that every variant shares.
        values: per layer.
        ropes: per layer, rotary tables [pos, d_rope], or None.
        sites: activations where variants act first, and what joining there needs. Also, where the base's own
            edits come between: `resid_post` before edits of the next `resid_pre`; `resid_mid`; and what the
            base edits after the last boundary.
    """

    resid: tuple[Float[Tensor, "batch pos d_model"], ...]
    keys: tuple[Float[Tensor, "batch pos kv_head d_head"], ...]
    values: tuple[Float[Tensor, "batch pos kv_head d_head"], ...]
    ropes: tuple[tuple[Tensor, ...] | None, ...]
    sites: dict[Site, Tensor]

    def at(self, site: Site) -> Tensor:
        """The base activation of a site."""
        if site.part == "resid_pre":
            return self.resid[site.layer or 0]
        if site.part == "resid_post":
            return self.arriving((site.layer or 0) + 1)
        return self.sites[site]

    def arriving(self, layer: int) -> Tensor:
        """The stream at a boundary before the base's edits of `resid_pre` there (at the first one, after them)."""
        before = None if layer == 0 else self.sites.get(Site("resid_post", layer - 1))
        return self.resid[layer] if before is None else before

    def middle(self, layer: int) -> Tensor:
        """The stream between attention and MLP, after the base's edits there; of a layer that kept its parts."""
        known = self.sites.get(Site("resid_mid", layer))
        return self.resid[layer] + self.sites[Site("attn_out", layer)] if known is None else known

    @property
    def nbytes(self) -> int:
        """Bytes that these states keep alive, those of rows that they share storage with included."""
        states = [*self.resid, *self.keys, *self.values, *self.sites.values()]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in states}
        return sum(storages.values())

    def rows(self, rows: slice, prompts: Prompts) -> BaseStates:
        """The states of some rows, which are these prompts."""
        width = prompts.ids.shape[1]
        resid, keys, values = (
            tuple(x[rows, :width] for x in states) for states in (self.resid, self.keys, self.values)
        )
        return BaseStates(resid, keys, values, self.ropes, {s: _rows(x, rows, width, s) for s, x in self.sites.items()})

    def as_run(self, prompts: Prompts, sites: Iterable[Site]) -> Run:
        """The run of these prompts that captured `sites`, to take values from."""
        return Run(prompts, None, {site: self.at(site) for site in sites})


def _rows(x: Tensor, rows: slice, width: int, site: Site) -> Tensor:
    return x[rows, :, :width, :width] if site.part in ATTENTION_PARTS else x[rows, :width]


@torch.no_grad()
def base_states(model: LanguageModel, plan: Plan, sites: Iterable[Site]) -> BaseStates:
    """Run the base once, by the network's own forward pass, and keep what the sweep may need.

    Args:
        plan: the base's own edits (one variant, often empty).
        sites: where variants act.
    """
    prompts, last = plan.prompts, model.n_layers - 1
    stream = [Site("resid_pre", layer) for layer in range(model.n_layers)] + [Site("resid_post", last)]
    wanted = {site for site in sites if site.part not in ("resid_pre", "resid_post")}
    for site in plan.sites:
        wanted |= {Site("resid_post", site.layer - 1)} if site.part == "resid_pre" and site.layer else set()
        wanted |= {site} if site.part in ("resid_mid", "final_norm", "logits") else set()
    kept: dict[Site, Tensor] = {}
    places = Places(plan, wanted | set(stream), kept, prompts.ids.shape[1])
    keys: dict[torch.nn.Module, Tensor] = {}
    values: dict[torch.nn.Module, Tensor] = {}

    def recording(inner: Core) -> Core:
        def core(
            module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any
        ) -> Tensor:
            keys[module], values[module] = key.transpose(1, 2), value.transpose(1, 2)
            return inner(module, query, key, value, mask, **how)

        return core

    modules = [layer.attn for layer in model.layers if layer.attn is not None]
    edited = places.cores(model)
    cores = {module: recording(edited.get(module) or original_attention(module)) for module in modules}
    with ExitStack() as hooks:
        hooks.enter_context(tapped(places.watchers(model), len(prompts)))
        calls = hooks.enter_context(routed(cores))
        if Site("logits") in wanted | plan.sites.keys():
            model.forward(prompts)
        else:
            model.forward_to_unembedding(prompts)
    return BaseStates(
        resid=tuple(kept.pop(site) for site in stream),
        keys=tuple(keys[module] for module in modules),
        values=tuple(values[module] for module in modules),
        ropes=tuple(rope_tables(calls[module]) for module in modules),
        sites=kept,
    )


def states_with_source(
    model: LanguageModel, base: Prompts, source: Prompts, sites: Iterable[Site], edits: Sequence[Edit] = ()
) -> tuple[BaseStates, BaseStates]:
    """States of the base run and of the run that values come from, as rows of one forward pass.

    That is cheaper than two passes, and where base and source agree on a prefix their states agree bit
    for bit, so that edits which change nothing are recognised.

    Args:
        sites: what both must hold besides the residual stream.
        edits: of the base run only.
    """
    plan = compile_variants(model, base, [edits])
    n = len(base)
    both = base_states(model, Plan(base.joined(source), plan.n_variants, plan.sites), sites)
    return both.rows(slice(0, n), base), both.rows(slice(n, n + len(source)), source)
