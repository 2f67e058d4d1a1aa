"""A pipeline with some of its weights changed, as a new model that shares everything else with the old one.

Nothing is copied but the modules on the way from a pipeline's component down to a changed weight, and of these only
the shell: names, settings, and the lists of their children. Every other module *is* the old one's, so a second model
costs the memory of the changed weights, and the old model stays as it was to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import ShapeError, SiteError, nearest
from interp.models.denoiser import Block, Denoiser


def with_weights(model: Denoiser, weights: Mapping[str, Tensor], name: str) -> Denoiser:
    """The model with other values for some weights; `model` itself is untouched and shares all the others.

    Args:
        weights: by component and parameter, as in `"unet.mid_block.attentions.0. … .attn2.to_k.weight"`.
        name: what results call the new model.

    Raises:
        SiteError: a component or weight that the pipeline does not have.
        ShapeError: a value of another shape, or one that is not finite.
    """
    changed: dict[str, dict[str, Tensor]] = {}
    for path, old in weights_of(model, weights).items():
        if old.shape != weights[path].shape:
            raise ShapeError(f"{path} is {tuple(old.shape)}; got {tuple(weights[path].shape)}.")
        if not torch.isfinite(weights[path]).all():
            raise ShapeError(f"The new {path} holds NaN or infinite numbers.")
        component, _, inner = path.partition(".")
        changed.setdefault(component, {})[inner] = weights[path].detach().to(old)
    pipeline = copy.copy(model.pipeline)
    moved: dict[nn.Module, nn.Module] = {}
    for component, values in changed.items():
        root = getattr(model.pipeline, component)
        owners: dict[nn.Module, dict[str, Tensor]] = {}
        for inner, value in values.items():
            owner, _, attribute = inner.rpartition(".")
            owners.setdefault(root.get_submodule(owner), {})[attribute] = value
        setattr(pipeline, component, _shell(root, owners, moved))
    return _described(model, pipeline, moved, name)


def weights_of(model: Denoiser, paths: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a pipeline by component and parameter.

    Raises:
        SiteError: a component or weight that the pipeline does not have.
    """
    found: dict[str, Tensor] = {}
    known: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        component, _, inner = path.partition(".")
        if component not in known:
            root = getattr(model.pipeline, component, None)
            known[component] = (
                dict(root.named_parameters(remove_duplicate=False)) if isinstance(root, nn.Module) else {}
            )
        if inner not in known[component]:
            names = [f"{component}.{name}" for name in known[component]] or list(model.pipeline.components)
            raise SiteError(f"{model.name} has no weight {path!r}." + nearest(path, names))
        found[path] = known[component][inner].detach()
    return found


def _shell(
    module: nn.Module, owners: Mapping[nn.Module, Mapping[str, Tensor]], moved: dict[nn.Module, nn.Module]
) -> nn.Module:
    """The module itself if nothing changes below it, else a shell around its (partly new) children.

    A module that is met again, under another name, becomes the same shell again.
    """
    if module in moved:
        return moved[module]
    children = {name: child and _shell(child, owners, moved) for name, child in module._modules.items()}
    own = owners.get(module, {})
    if not own and all(child is module._modules[name] for name, child in children.items()):
        return module
    shell = moved[module] = copy.copy(module)
    for name, value in vars(module).items():  # a hook put on the shell must not land on the old module
        if isinstance(value, dict) and name.startswith("_"):
            vars(shell)[name] = copy.copy(value)
    shell._modules = children
    for name, value in own.items():
        shell._parameters[name] = nn.Parameter(value, requires_grad=False)
    return shell


def _described(model: Denoiser, pipeline: Any, moved: Mapping[nn.Module, nn.Module], name: str) -> Denoiser:
    """The handle of the new pipeline: the old one's, looking at the new modules."""

    def at(module: nn.Module) -> nn.Module:
        return moved.get(module, module)

    def taps(of: Mapping) -> dict:
        return {key: replace(tap, module=at(tap.module)) for key, tap in of.items()}

    kept = {field.name: getattr(model, field.name) for field in fields(Denoiser)}
    return Denoiser(
        **kept
        | {
            "pipeline": pipeline,
            "name": name,
            "network": at(model.network),
            "blocks": {a: Block(taps(b.taps), b.level, at(b.stage)) for a, b in model.blocks.items()},
            "stages": tuple(at(stage) for stage in model.stages),
            "text": taps(model.text),
            "time_embed": None if model.time_embed is None else at(model.time_embed),
        }
    )
