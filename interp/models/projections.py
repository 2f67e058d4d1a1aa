"""The linear maps through which a prompt enters a pipeline, where their weights are, and what they read.

| site | linear map | reads |
|---|---|---|
| `cross_k`, `cross_v` of a block | keys and values of its cross-attention | the prompt's states |
| `attn_out` of a layer of a CLIP text encoder | the attention's output projection | its heads, side by side |
| `mlp_out` of such a layer | the second matrix of its MLP | the hidden neurons |

These are where closed-form edits act. Other pipelines bring text in by other ways: SD3 and Flux mix it with the
picture in joint attention, `DiTPipeline` has classes and no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import SiteError, nearest
from interp.models.denoiser import Denoiser
from interp.models.guidance import Branch
from interp.models.hooks import tapped
from interp.models.site import Site
from interp.models.tap import Tap

CROSS = ("cross_k", "cross_v")


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A linear map at a site.

    Attributes:
        path: of its weight, by component, as `interp.models.reweighted.with_weights` takes it.
        module: the map itself, weight [out, in].
    """

    site: Site
    path: str
    module: nn.Linear

    @property
    def reads_text(self) -> bool:
        """Whether it reads the finished states of the prompt, and not something inside a text encoder."""
        return self.site.part in CROSS


def projections(model: Denoiser, where: Sequence[Site | str]) -> tuple[Projection, ...]:
    """The linear maps at sites (a part name means every block that has it), text encoders first, in forward order.

    Raises:
        SiteError: a site that the model does not have, or that is no such map; a pipeline without any; keys and values
            that read something else than the prompt's states.
    """
    sites: list[Site] = []
    for item in where:
        named = isinstance(item, str) and "." not in item
        if named and item in CROSS and not any(item in block.taps for block in model.blocks.values()):
            raise SiteError(f"{model.name} ({type(model.pipeline).__name__}) has no {item}: {_instead(model)}")
        sites += model.sites(str(item)) if named else [model.check(item)]
    names = {
        module: f"{component}.{name}"
        for component, root in model.pipeline.components.items()
        if isinstance(root, nn.Module)
        for name, module in root.named_modules()
    }
    found = [Projection(site, f"{names[m]}.weight", m) for site in dict.fromkeys(sites) for m in [_linear(model, site)]]
    _check_reading(model, found)
    order = {site: number for number, site in enumerate(model.text)}
    return tuple(sorted(found, key=lambda one: order.get(one.site, len(order))))


def _check_reading(model: Denoiser, found: Sequence[Projection]) -> None:
    for one in found:
        if one.reads_text:
            component, _, inner = one.path.removesuffix(".weight").partition(".")
            attention = getattr(model.pipeline, component).get_submodule(inner.rpartition(".")[0])
            if getattr(attention, "norm_cross", None) or getattr(model.network, "encoder_hid_proj", None):
                raise SiteError(
                    f"{one.site} of {model.name} does not read the prompt's states as they are: a norm or an adapter "
                    "(norm_cross, encoder_hid_proj) stands between, so what it reads of a prompt is not known."
                )


def _instead(model: Denoiser) -> str:
    if model.family.whole_numbers:
        return "it knows classes and no text, so there is no concept to edit."
    editable = [str(site) for site in model.text if site.part in ("attn_out", "mlp_out")]
    return f"text meets the picture in joint attention there. Editable: {', '.join(editable) or 'nothing'}."


def _linear(model: Denoiser, site: Site) -> nn.Linear:
    module: Any = model.tap(site).module
    if site in model.text:
        owner, name = {"attn_out": (module, "out_proj"), "mlp_out": (module, "fc2")}.get(site.part, (module, ""))
        module = getattr(owner, name, None) if name else None
    elif site.part not in CROSS:
        module = None
    if not isinstance(module, nn.Linear):
        allowed = (*CROSS, *(str(s) for s in model.text if s.part in ("attn_out", "mlp_out")))
        raise SiteError(f"{site} is no linear map of the prompt." + nearest(str(site), allowed))
    return module


@torch.no_grad()
def states_read(
    model: Denoiser, at: Projection, prompts: Sequence[str]
) -> tuple[Float[Tensor, "row token d_in"], Bool[Tensor, "row token"]]:
    """What a projection reads of prompts, and which of these tokens count (padding that is masked out does not).

    Raises:
        PairError: as `Denoiser.sampling`.
    """
    sampling = replace(model.sampling(list(prompts)), negative=None)
    if not at.reads_text:
        seen: list[Tensor] = []
        with tapped([(str(at.site), Tap(at.module, "input"), seen.append)], len(sampling), first=True):
            embeds = model.embeddings(sampling, Branch.COND)
        return seen[0], _mask(embeds, seen[0])
    states = _projected(model, embeds := model.embeddings(sampling, Branch.COND))
    return states, _mask(embeds, states)


def _projected(model: Denoiser, embeds: Mapping[str, Tensor]) -> Tensor:
    """The prompt's states as cross-attention gets them; PixArt narrows T5's first."""
    narrow = getattr(cast(Any, model.network), "caption_projection", None)
    return embeds["prompt_embeds"] if narrow is None else narrow(embeds["prompt_embeds"])


def _mask(embeds: Mapping[str, Tensor], states: Tensor) -> Tensor:
    mask = embeds.get("prompt_attention_mask")
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
