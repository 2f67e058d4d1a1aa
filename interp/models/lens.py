"""What interp asks of TransformerLens: the plain network inside a bridge, and the paths of its adapters.

A `TransformerBridge` replaces submodules of a Hugging Face network by its own, in place. interp works
on the plain network, so `unwrap_bridge` builds a second, empty one of the same class and hangs the very
same parameters and buffers into it: no weight is copied, and the bridge is not touched.

TransformerLens also knows over a hundred architectures. Its adapters need only a config, so
`adapter_paths` asks one where the parts of a network are, and proves each path on the network.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING, Any, cast

from interp.errors import LoadError

if TYPE_CHECKING:
    from torch import nn

INSTALL = "pip install 'interp[lens]'"

# Our name of each part -> where an adapter's component mapping has it.
_MODEL_PARTS = {"embed": "embed", "final_norm": "ln_final", "unembed": "unembed"}
_LAYER_PARTS = {
    "attn": "attn",
    "mlp": "mlp",
    "ln1": "ln1",
    "ln2": "ln2",
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "o": "attn.o",
}


# ---------------------------------------------------------------- bridges


def is_bridge(x: object) -> bool:
    """Whether `x` is a `TransformerBridge`, found out without importing TransformerLens."""
    return any(
        kind.__name__ == "TransformerBridge" and kind.__module__.startswith("transformer_lens")
        for kind in type(x).__mro__
    )


def unwrap_bridge(bridge: Any) -> tuple[nn.Module, Any]:
    """The Hugging Face network inside a `TransformerBridge`, and its tokenizer.

    The network is new, of the original class, with ordinary module paths and the config's default
    attention. Its parameters and buffers *are* the bridge's (a write to one is seen by both). The bridge
    stays as it is and stays usable.

    Args:
        bridge: a `TransformerBridge` around a Hugging Face network.

    Returns:
        `(network, tokenizer)`; the tokenizer is `None` where the bridge has none.

    Raises:
        LoadError: not a bridge; a bridge whose weights were processed (folded, centred); a bridge around
            something else than a local Hugging Face network; weights that are missing or offloaded.
    """
    import torch
    from transformers import PreTrainedModel

    if not is_bridge(bridge):
        raise LoadError(f"Expected a TransformerBridge, got {type(bridge).__name__}.")
    if getattr(bridge, "_weights_processed", bridge.compatibility_mode):
        raise LoadError(
            "This bridge has processed weights (enable_compatibility_mode folds layer norms and centres "
            "weights), which are not those of the model. Boot a fresh bridge and leave the mode off, or call "
            "enable_compatibility_mode(no_processing=True)."
        )
    try:
        wrapped = bridge.original_model
    except AttributeError as error:
        raise LoadError(f"This bridge has no network in this process: {error}") from error
    if not isinstance(wrapped, PreTrainedModel):
        raise LoadError(
            f"This bridge wraps a {type(wrapped).__name__}, which is not a Hugging Face network. "
            "Pass an nn.Module of your own to interp.load instead."
        )

    config = copy.deepcopy(wrapped.config)
    config._attn_implementation = None  # a bridge may have forced "eager"; None asks for the default
    with torch.device("meta"):
        network = type(wrapped)(config)
    for path, module in network.named_modules():
        _fill(module, _original(wrapped, path), path)
    network.generation_config = copy.deepcopy(wrapped.generation_config)
    network.train(wrapped.training)
    return network, getattr(bridge, "tokenizer", None)


def _original(wrapped: nn.Module, path: str) -> nn.Module:
    """The module that was at this path before the bridge put its own there."""
    module = _unwrapped(wrapped)
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            raise LoadError(
                f"The bridge's network has no module {path!r} any more, so its weights cannot be taken over. "
                "Pass the Hugging Face network itself to interp.load."
            )
        module = _unwrapped(child)
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    while (original := module._modules.get("_original_component")) is not None:
        module = original
    return module


def _fill(module: nn.Module, original: nn.Module, path: str) -> None:
    """Hang the original's parameters, buffers and loose tensors into an empty module."""
    import torch

    stores: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (module._parameters, original._parameters),
        (module._buffers, original._buffers),
        (vars(module), vars(original)),
    ]
    for mine, theirs in stores:
        for name, empty in list(mine.items()):
            if not isinstance(empty, torch.Tensor) or not empty.is_meta:
                continue
            tensor = theirs.get(name)
            if tensor is None or tensor.is_meta or tensor.shape != empty.shape:
                found = "none" if tensor is None else f"{tuple(tensor.shape)} on {tensor.device}"
                raise LoadError(
                    f"The bridge's network has no usable tensor {f'{path}.{name}'!r}: wanted shape "
                    f"{tuple(empty.shape)} in memory, found {found}."
                )
            mine[name] = tensor


# ---------------------------------------------------------------- adapters


def adapter_paths(network: nn.Module) -> dict[str, str | None]:
    """Where the parts of a network are, by TransformerLens's adapter for its architecture.

    Args:
        network: a Hugging Face network (or one with a `config` of that sort).

    Returns:
        Dotted paths under `layers` (the container), `embed`, `final_norm`, `unembed`, from the network;
        and `attn`, `mlp`, `ln1`, `ln2`, `q`, `k`, `v`, `o`, from a layer (proved on the first one). `None`
        where there is no such module, as for fused query-key-value projections, a parallel block's second
        norm, or norms that come after their sublayer (OLMo 2). `ln2` is the norm before the MLP.

    Raises:
        LoadError: TransformerLens is not installed, has no adapter for this architecture, or has one
            whose layers are not in this network.
    """
    adapter = _adapter(network)
    mapping = adapter.get_component_mapping() or {}
    layers = getattr(mapping.get("blocks"), "name", None)
    # The adapters' `blocks` are lists of layers.
    blocks = None if layers is None else cast("nn.ModuleList | None", _resolve(network, layers))
    if layers is None or blocks is None or not len(blocks):
        raise LoadError(
            f"TransformerLens's {type(adapter).__name__} names no list of layers that "
            f"{type(network).__name__} has (it says {layers!r}); its components: {', '.join(mapping)}."
        )
    paths: dict[str, str | None] = {"layers": layers}
    for part, place in _MODEL_PARTS.items():
        paths[part] = _checked(network, _component_path(mapping, place))
    layer = blocks[0]
    for part, place in _LAYER_PARTS.items():
        paths[part] = _checked(layer, _component_path(mapping["blocks"].submodules, place))
    return paths


def _adapter(network: nn.Module):
    """TransformerLens's adapter for a network, made from its config alone."""
    if importlib.util.find_spec("transformer_lens") is None:
        raise LoadError(
            f"interp has no table of its own for {type(network).__name__}, and TransformerLens, which may "
            f"have an adapter, is not installed. Run: {INSTALL}"
        )
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    architecture = type(network).__name__
    hf = cast(Any, network)  # its `dtype` is a property of transformers' networks, not of torch's modules
    try:
        config = build_bridge_config_from_hf(copy.deepcopy(hf.config), architecture, architecture, hf.dtype)
        return ArchitectureAdapterFactory.select_architecture_adapter(config)
    except Exception as error:  # foreign code over a foreign config: whatever it raises means "no adapter"
        raise LoadError(
            f"TransformerLens has no usable adapter for {architecture}: {type(error).__name__}: {error}"
        ) from error


def _component_path(components: dict, place: str) -> str | None:
    """The path of a component such as `attn.q`, joined over its parents; `None` where there is none."""
    names = []
    for key in place.split("."):
        component = components.get(key)
        if component is None:
            return None
        names.append(component.name)
        components = component.submodules
    if names[-1] is None:  # a component without a module of its own
        return None
    return ".".join(name for name in names if name)


def _resolve(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    return module


def _checked(module: nn.Module, path: str | None) -> str | None:
    return path if path and _resolve(module, path) is not None else None
