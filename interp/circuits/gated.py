"""The model under gates: several masks of its nodes at once, as rows of one batch, with gradients to the gates.

A gate g in [0, 1] makes an activation x into g·x + (1 − g)·(what the source run had there), or into g·x without a
source run. The frozen network is run once per step for all masks and all prompts of the step. Blocks below the first
gate do not depend on any mask: what enters the first gated block is computed once, when training begins. The
unembedding sees only the positions that the metric reads, and the weights get no gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.patching import read
from interp.interventions.run import run
from interp.models.hooks import Watcher, replaced, stopping_at, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import LAYER_PARTS, Site
from interp.models.tap import Tap
from interp.tasks.metrics import Metric, Readout


class Gated:
    """Prompts whose run is gated at some sites: z (a gate per head), `mlp_out`, or the first `resid_pre`.

    Args:
        sites: where gates will be.
        source: activations there of the run that closed gates show; none: zeros.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Prompts,
        metric: Metric,
        sites: Sequence[Site],
        source: Mapping[Site, Tensor] | None = None,
    ) -> None:
        self.model, self.prompts, self.source = model, prompts, source
        self.readout = Readout.of(metric, prompts.lengths)
        self.sites = sorted(sites, key=lambda site: (site.layer or 0, LAYER_PARTS.index(site.part)))
        self.start = Site("resid_pre", self.sites[0].layer)
        self.stream = run(model, prompts, (), [self.start], logits=False)[self.start]

    def rows_within(self, budget: int, masks: int) -> int:
        """Prompts of which so many masks' runs, with what the backward pass needs, fit into `budget` bytes."""
        model = self.model
        # Per token and layer: about 16 vectors of the stream's width and 5 of the MLP's inside.
        token = model.n_layers * (16 * model.d_model + 5 * (model.d_mlp or 4 * model.d_model)) * model.dtype.itemsize
        return max(1, int(budget / (token * masks * self.prompts.ids.shape[1])))

    def __call__(
        self, gates: Mapping[Site, Float[Tensor, "mask ..."]], rows: Int[Tensor, "row"]
    ) -> Float[Tensor, "mask row"]:
        """The metric of prompts `rows` under each mask.

        Args:
            gates: [mask, head] for z, [mask] for other sites.
        """
        model, some = self.model, self.prompts.select(rows)
        masks, width = len(next(iter(gates.values()))), some.ids.shape[1]
        # Padding stands behind a prompt, where causal attention never looks: no mask is needed, and none is built.
        lengths = torch.full_like(some.lengths, width).repeat(masks)
        batch = Prompts(some.ids.repeat(masks, 1), lengths, some.tokens * masks)
        final: list[Tensor] = []

        def watch(site: Site) -> Watcher:
            gate = gates[site].repeat_interleave(len(rows), 0)[:, None, ..., None]
            if self.source is None:
                return lambda x: x * gate
            other = self.source[site][rows, :width]
            return lambda x: torch.lerp(other.repeat(masks, *(1,) * (other.ndim - 1)), x, gate)

        stream = self.stream[rows, :width]
        watchers: list[tuple[str, Tap, Watcher]] = [
            ("stream", model.tap(self.start), lambda _: stream.repeat(masks, 1, 1))
        ]
        watchers += [(str(site), model.tap(site), watch(site)) for site in self.sites]
        watchers.append(("final_norm", model.tap(Site("final_norm")), final.append))
        below = [layer.block for layer in model.layers[: self.start.layer]]
        with ExitStack() as hooks:
            hooks.enter_context(replaced(dict.fromkeys(below, lambda _: lambda x, *_, **__: x)))
            hooks.enter_context(tapped(watchers, len(batch)))
            hooks.enter_context(stopping_at(model.unembed))
            model.forward(batch)
        return read(model, self.readout, final[0], rows.repeat(masks)).view(masks, len(rows))
