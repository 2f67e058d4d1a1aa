"""`run`: one execution of a model, with edits and captures.

The definition of every other number in the toolkit: the value of a variant in a sweep is the metric of
`run` with the variant's edits, however few operations the sweep took to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.captured import DenoisingRun, Run
from interp.interventions.denoise import denoise
from interp.interventions.edits import Edit, Positions, When
from interp.interventions.plan import Ops, Plan, compile_variants, position_grid
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.denoiser import Denoiser, Sampling
from interp.models.hooks import Core, Watcher, attention_options, routed, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, PARTS, Site
from interp.models.tap import Tap

Captures = Sequence[Site | str]
"""Sites, hook names, or bare part names, which mean every layer of the part."""


@overload
def run(
    model: LanguageModel,
    inputs: str | Sequence[str] | Prompts | Tensor,
    edits: Sequence[Edit] = (),
    capture: Captures = (),
    *,
    positions: Positions = None,
    logits: bool = True,
    grad: bool = False,
) -> Run: ...


@overload
def run(
    model: Denoiser,
    inputs: str | int | Sequence[str] | Sequence[int] | Sampling,
    edits: Sequence[Edit] = (),
    capture: Captures = (),
    *,
    positions: Positions = None,
    when: When | None = None,
    **settings: Any,
) -> DenoisingRun: ...


def run(
    model: LanguageModel | Denoiser,
    inputs: Any,
    edits: Sequence[Edit] = (),
    capture: Captures = (),
    *,
    positions: Positions = None,
    logits: bool = True,
    grad: bool = False,
    when: When | None = None,
    **settings: Any,
) -> Run | DenoisingRun:
    """One forward pass of the network's own code, with edits applied and activations captured.

    Without edits, the logits are bit for bit those of the untouched network. On a diffusion pipeline: one whole
    denoising loop of the pipeline's own call, and the same promise about its pictures.

    Args:
        inputs: prompts (text, or tokens from `model.prompts`; for a pipeline what `model.sampling` takes).
        edits: applied in list order, to the prompts and positions that each names.
        capture: sites, hook names, or part names (every layer); recorded after any edit made there.
        positions: keep captures at these positions only (queries, for attention scores and patterns):
            an int, a list, or a [batch, n] tensor; negative ones count from each prompt's end.
        logits: `False` keeps none, and spares the unembedding.
        grad: keep the autograd graph.
        when: steps and branch of a denoising run to capture; all if not given.
        **settings: of a denoising run: `negative`, `seeds`, `steps`, `guidance` … as in `Denoiser.sampling`.

    Returns:
        Logits [batch, pos, d_vocab] and the captured activations; of a pipeline a `DenoisingRun`.

    Raises:
        InterpError: as `compile_variants`, before the forward pass.
        UnfiredError: a place that the forward pass never reached.
    """
    if isinstance(model, Denoiser):
        if grad or not logits:
            raise InterpError("A denoising run has no logits, and keeps no graph: leave `logits` and `grad` out.")
        return denoise(model, model.sampling(inputs, **settings), edits, capture, when=when, positions=positions)
    if settings or when is not None:
        raise InterpError(f"{', '.join(settings) or 'when'}: only a denoising run has such a setting.")
    prompts = model.prompts(inputs)
    if any(edit.when is not None for edit in edits):
        raise InterpError("`when` names generated steps; use interp.generate, or leave it out.")
    plan = compile_variants(model, prompts, [edits])
    only = None if positions is None else position_grid(prompts, positions)
    return run_plan(model, plan, capture_sites(model, capture), only=only, logits=logits, grad=grad)


def capture_sites(model: LanguageModel, capture: Captures) -> tuple[Site, ...]:
    """The sites asked for, each once, checked against the model."""
    if isinstance(capture, str | Site):
        raise InterpError(f"`capture` is a list of sites; write [{capture!r}].")
    sites: list[Site] = []
    for item in capture:
        sites += model.sites(item) if isinstance(item, str) and item in PARTS else [model.check(item)]
    return tuple(dict.fromkeys(sites))


def run_plan(
    model: LanguageModel,
    plan: Plan,
    capture: Sequence[Site],
    *,
    only: Int[Tensor, "batch n"] | None = None,
    logits: bool = True,
    grad: bool = False,
) -> Run:
    """`run`, of a plan with one variant."""
    prompts, kept = plan.prompts, {}
    wanted = {site.all_heads for site in capture}
    places = Places(plan, wanted, kept, prompts.ids.shape[1], only)
    out = None
    if model.runner is not None:
        if grad:
            raise InterpError(f"{model.name} runs through nnsight, which keeps no graph here; load the network itself.")
        out = model.runner.forward(model.network, prompts, places.watchers(model), places.cores(model))
    else:
        with torch.set_grad_enabled(grad), ExitStack() as hooks:
            hooks.enter_context(tapped(places.watchers(model), len(prompts)))
            hooks.enter_context(routed(places.cores(model)))
            # Logits are edited and captured at the network's output.
            if logits or Site("logits") in wanted | plan.sites.keys():
                out = model.forward(prompts)
            else:
                model.forward_to_unembedding(prompts)
    whole = Run(prompts, out if logits else None, kept, only)
    return Run(prompts, whole.logits, {site: whole[site] for site in capture}, only)


class Places:
    """What to do at each site of a forward pass over [batch, pos] tokens: edit, then keep."""

    def __init__(
        self, plan: Plan, wanted: set[Site], kept: dict[Site, Tensor], width: int, only: Tensor | None = None
    ) -> None:
        self.plan, self.wanted, self.kept, self.width, self.only = plan, wanted, kept, width, only

    def watchers(self, model: LanguageModel) -> list[tuple[str, Tap, Watcher]]:
        """A watcher for every site that is a tensor at a module's side."""
        sites = [site for site in {**self.plan.sites, **dict.fromkeys(self.wanted)} if site.part not in ATTENTION_PARTS]
        # At a shared tap (q, k, v of a fused projection; z, then the heads' results) the forward order.
        sites.sort(key=lambda site: forward_order(site, model.n_layers))
        watchers: list[tuple[str, Tap, Watcher]] = []
        for site in sites:
            if site.part == "head_result":
                watchers += self._head_result(model, site)
            else:
                watchers.append((str(site), model.tap(site), lambda x, site=site: self.visit(site, x)))
        return watchers

    def visit(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit and keep one [batch, pos, …] activation; None if nothing changes."""
        ops = self.plan.sites.get(site, ())
        for op in ops:
            x = op.apply(x.flatten(0, 1), self.token(op)).view(x.shape)
        self.keep(site, x)
        return x if ops else None

    def keep(self, site: Site, x: Tensor) -> None:
        """Record an activation, if it is wanted."""
        if site not in self.wanted:
            return
        if self.only is not None:
            row = torch.arange(len(x), device=x.device)[:, None]
            attention = site.part in ATTENTION_PARTS
            self.kept[site] = x[row, :, self.only].transpose(1, 2) if attention else x[row, self.only]
        else:
            self.kept[site] = x if torch.is_grad_enabled() else x.clone()

    def token(self, op: Ops) -> np.ndarray:
        """Index of each entry in the flattened [batch · pos] tokens."""
        return op.example * self.width + op.position

    def _head_result(self, model: LanguageModel, site: Site) -> list[tuple[str, Tap, Watcher]]:
        """No module returns a single head's result: compute it from z, and add what an edit changes."""
        assert site.layer is not None
        output = model.layers[site.layer].o
        assert output is not None
        heads_in = Tap(output, "input", heads=model.n_heads)
        z: list[Tensor] = []

        def watch(projected: Tensor) -> Tensor | None:
            results = torch.einsum("bphd,hde->bphe", z.pop(), model.head_projection(site.layer or 0))
            edited = self.visit(site, results)
            return None if edited is None else projected + (edited - results).sum(2)

        return [(str(site), heads_in, lambda x: z.append(x)), (str(site), Tap(output, "output"), watch)]

    def cores(self, model: LanguageModel) -> dict[torch.nn.Module, Core]:
        """A core for every layer whose scores or pattern are wanted; the others keep their own attention."""
        layers = {site.layer for site in {*self.plan.sites, *self.wanted} if site.part in ATTENTION_PARTS}
        cores: dict[torch.nn.Module, Core] = {}
        for layer in sorted(layer for layer in layers if layer is not None):
            attn = model.layers[layer].attn
            assert attn is not None
            cores[attn] = self._core(layer, attn)
        return cores

    def _core(self, layer: int, attn: torch.nn.Module) -> Core:
        own = attn.config  # before routing: it says how this module's own attention computes

        def core(
            _module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **how: Any
        ) -> Tensor:
            batch, _, width, _ = query.shape
            query, key, value = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
            nothing = key.new_empty(1, 0, *key.shape[1:])
            z = segment_attention(
                query, key, value, nothing, nothing, [Segment(slice(0, batch * width), batch, 0, width, 0)],
                edit_scores=lambda _, x: self._attention("attn_scores", layer, x),
                edit_pattern=lambda _, x: self._attention("attn_pattern", layer, x),
                **attention_options(own, how),
            )  # fmt: skip
            return z.unflatten(0, (batch, width))

        return core

    def _attention(self, part: str, layer: int, x: Tensor) -> Tensor:
        """Edit and keep [batch, head, query, key] scores or weights."""
        site = Site(part, layer)
        for op in self.plan.sites.get(site, ()):
            by_query = x.transpose(1, 2)
            x = op.apply(by_query.flatten(0, 1), self.token(op)).view(by_query.shape).transpose(1, 2)
        self.keep(site, x)
        return x


def forward_order(site: Site, n_layers: int) -> tuple[int, int]:
    """By what sites are put in the order in which a forward pass computes them."""
    layer = (-1 if site.part == "embed" else n_layers) if site.layer is None else site.layer
    return layer, PARTS.index(site.part)
