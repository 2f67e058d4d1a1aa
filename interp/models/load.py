"""`interp.load`: from whatever a researcher has to a `LanguageModel`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import nn

from interp.errors import LoadError, nearest
from interp.models.checks import prove_replay, prove_sums
from interp.models.denoiser import Denoiser, describe_pipeline
from interp.models.families import FAMILIES, REFUSED, Family
from interp.models.language_model import LanguageModel, Layer, weight_of

EMBEDDED = ("smollm2-135m", "shapes", "shapes-dit")
"""Models that need no hub: a language model, and two text-to-image models, a UNet and a transformer."""


@overload
def load(
    x: Literal["shapes", "shapes-dit"],
    tokenizer: Any = None,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
) -> Denoiser: ...


@overload
def load(
    x: str | Path | nn.Module | object,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Any: ...


def load(
    x: str | Path | nn.Module | object,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel | Denoiser:
    """A language model or a diffusion pipeline, from what a researcher has.

    `x` may be

    - `"smollm2-135m"` or `"shapes"`, the embedded defaults for text and for images, or `"shapes-dit"`, the second
      architecture for images: they need no hub;
    - a Hugging Face hub id, or the path of a folder with safetensors weights (of a pipeline, if it has a
      `model_index.json`);
    - an `nn.Module` of transformers with its tokenizer;
    - a pipeline of diffusers;
    - a TransformerLens `TransformerBridge`;
    - an nnsight `LanguageModel` (experiments then run through nnsight).

    The network is put in evaluation mode by nobody but its owner: one that is training is refused.
    Loading proves the model's sites (`interp.models.checks`) with three short forward passes; for a pipeline it
    measures the layout of guidance and the shape of every site, with a few single steps.

    Args:
        name: what results call the model; its path or class otherwise.
        dtype: weights' type when loading from a path, float32 if not given.
        trust_remote_code: allow a repository's own Python code; never implied.

    Raises:
        LoadError: nothing loadable, a misspelt embedded name, an unsupported kind of model (with the reason),
            weights that are not finite, or a proof that fails.
    """
    if isinstance(x, str) and x == "shapes":
        from interp.shapes.pipeline import load_pipeline

        return describe_pipeline(_cast(load_pipeline(), dtype), name or x)
    if isinstance(x, str) and x == "shapes-dit":
        from interp.shapes.transformer import load_transformer

        return describe_pipeline(_cast(load_transformer(), dtype), name or x)
    if isinstance(x, str) and x in EMBEDDED:
        from interp.models.smollm2 import load_smollm2

        network, tokenizer = load_smollm2()
        network.requires_grad_(False)
        return describe(network if dtype is None else network.to(dtype), tokenizer, name or x)
    if isinstance(x, str) and get_close_matches(x, EMBEDDED, cutoff=0.8) and not Path(x).exists():
        raise LoadError(f"There is no embedded model {x!r}; a model of the hub is owner/name." + nearest(x, EMBEDDED))
    if isinstance(x, str | Path) and _is_pipeline(x):
        return describe_pipeline(_pipeline_from_pretrained(str(x), dtype or torch.float32), name or str(x))
    if isinstance(x, str | Path):
        network, tokenizer = _from_pretrained(str(x), tokenizer, dtype or torch.float32, trust_remote_code)
        return describe(network, tokenizer, name or str(x))
    if _comes_from(x, "transformer_lens"):
        from interp.models.lens import unwrap_bridge

        network, own = unwrap_bridge(x)
        return describe(network, tokenizer or own, name or _name_of(network))
    if _comes_from(x, "nnsight"):
        from interp.models.remote import unwrap_nnsight

        network, own, runner = unwrap_nnsight(x)
        model = describe(network, tokenizer or own, name or _name_of(network))
        return replace(model, runner=runner, not_replayable="its forward passes run through nnsight")
    if _comes_from(x, "diffusers"):
        return describe_pipeline(x, name or getattr(x, "name_or_path", None) or type(x).__name__)
    if isinstance(x, nn.Module):
        return describe(x, tokenizer, name or _name_of(x))
    raise LoadError(
        f"Cannot load a {type(x).__name__}. Give a hub id or path, a transformers module with its tokenizer, a "
        "diffusers pipeline, a TransformerBridge, an nnsight LanguageModel, or one of "
        f"{', '.join(map(repr, EMBEDDED))}."
    )


def _comes_from(x: object, package: str) -> bool:
    return any(cls.__module__.split(".")[0] == package for cls in type(x).__mro__)


def _name_of(network: nn.Module) -> str:
    return getattr(getattr(network, "config", None), "name_or_path", "") or type(network).__name__


def _from_pretrained(path: str, tokenizer: Any, dtype: torch.dtype, trust_remote_code: bool):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        network = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        ).eval()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"Cannot load {path!r}: {str(error).strip().splitlines()[0]} Give a hub id, a folder with config.json and "
            f"safetensors weights, or an embedded model: {', '.join(map(repr, EMBEDDED))}."
        ) from error
    return network.requires_grad_(False), tokenizer


def _is_pipeline(x: str | Path) -> bool:
    """Whether a folder, or a repository of the hub, holds a pipeline."""
    if Path(x).is_dir():
        return (Path(x) / "model_index.json").is_file()
    from transformers.utils.hub import cached_file

    if len(Path(x).parts) != 2:  # owner/name
        return False
    return (
        cached_file(
            str(x),
            "model_index.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        is not None
    )


def _pipeline_from_pretrained(path: str, dtype: torch.dtype) -> Any:
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from packaging.version import Version

    dtype_name = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    try:
        pipeline = DiffusionPipeline.from_pretrained(path, use_safetensors=True, **{dtype_name: dtype})
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"Cannot load the pipeline {path!r}: {str(error).strip().splitlines()[0]}") from error
    return _cast(pipeline, None)


def _cast(pipeline: Any, dtype: torch.dtype | None) -> Any:
    """The pipeline without gradients and progress bars, in another type if one is given."""
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False)
            if dtype is not None:
                nn.Module.to(module, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def describe(network: nn.Module, tokenizer: Any, name: str) -> LanguageModel:
    """The handle of a loaded network: its family's modules looked up, its sites proved."""
    config = getattr(network, "config", None)
    if config is None:
        raise LoadError(f"{name}: a {type(network).__name__} has no config; give a transformers model.")
    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(f"{name} is refused: {REFUSED['encoder-decoder']}.")
    if network.training:
        raise LoadError(f"{name} is in training mode, where dropout makes every run different: call .eval() first.")
    family = _family(network, config, name)
    blocks = cast(Iterable[nn.Module], _get(network, family.layers, name))  # a list of blocks, in every family
    layers = tuple(_layer(block, family, name) for block in blocks)
    unembed = _get(network, family.unembed, name)
    n_heads = config.num_attention_heads
    mlp_act = layers[0].mlp_act
    model = LanguageModel(
        network=network,
        tokenizer=tokenizer,
        name=name,
        family=family,
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=_in_features(layers[0].o) // n_heads if layers[0].o is not None else config.hidden_size // n_heads,
        d_model=config.hidden_size,
        d_mlp=None if mlp_act is None else _in_features(mlp_act),
        d_vocab=weight_of(unembed).shape[0],
        embed=_get(network, family.embed, name),
        final_norm=None if family.final_norm is None else _get(network, family.final_norm, name),
        unembed=unembed,
        softcap=getattr(config, "final_logit_softcapping", None),
        untouchable=_untouchable(family, layers[0], config),
        not_replayable=None if family.replayable else "its family is known by TransformerLens's adapter only",
    )
    model = replace(model, untouchable={**model.untouchable, **prove_sums(model)})
    return replace(model, not_replayable=prove_replay(model))


def _family(network: nn.Module, config: Any, name: str) -> Family:
    family = FAMILIES.get(config.model_type)
    if family is None:
        return _adapter_family(network)
    if config.model_type == "opt" and (
        not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size
    ):
        raise LoadError(
            f"{name} is refused: this OPT normalises after its residual sums, so its stream is no sum of parts."
        )
    return replace(family, parallel=family.parallel and getattr(config, "use_parallel_residual", True))


def _adapter_family(network: nn.Module) -> Family:
    """A family known to TransformerLens, whose adapters give module paths but not how a block adds up."""
    from interp.models.lens import adapter_paths

    paths = adapter_paths(network)
    missing = [part for part in ("layers", "embed", "unembed") if paths[part] is None]
    if missing:
        raise LoadError(f"{type(network).__name__}: TransformerLens's adapter names no {', '.join(missing)}.")
    return Family(
        layers=str(paths["layers"]), embed=str(paths["embed"]), unembed=str(paths["unembed"]),
        final_norm=paths["final_norm"], attn=paths["attn"], norm1=paths["ln1"], norm2=paths["ln2"],
        mlp=paths["mlp"], q=paths["q"], k=paths["k"], v=paths["v"], o=paths["o"],
        mlp_pre=None, mlp_act=None, parallel=paths["ln2"] is None, replayable=False,
    )  # fmt: skip


def _untouchable(family: Family, layer: Layer, config: Any) -> dict[str, str]:
    """Why this model cannot serve some parts."""
    reasons: dict[str, str] = {}
    if family.parallel:
        reasons["resid_mid"] = "attention and MLP read the same stream in parallel, so no state lies between them"
    elif layer.norm2 is None:
        reasons["resid_mid"] = "no module of its block receives the stream between attention and MLP"
    if layer.mlp_pre is None:
        moe = "its neurons sit inside experts, another set for every token"
        reason = moe if hasattr(config, "num_local_experts") else "no module of its MLP has it as input or output"
        reasons |= {"mlp_pre": reason, "mlp_act": reason}
    for part in ("q", "k", "v"):
        if getattr(layer, part) is None:
            reasons[part] = "its attention has no separate projection for it"
    if layer.o is None:
        reasons |= dict.fromkeys(("z", "head_result"), "its attention has no output projection module")
    if layer.attn is None:
        reasons["attn_out"] = "its block has no attention module"
    if layer.mlp_last is None:
        reasons["mlp_out"] = "its block has no MLP module"
    if family.final_norm is None:
        reasons["final_norm"] = "it has no final norm"
    if not family.replayable:
        reasons |= dict.fromkeys(
            ("attn_scores", "attn_pattern"), "only families of interp.models.families route their attention"
        )
    return reasons


def _get(module: nn.Module, path: str, name: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise LoadError(
            f"{name}: no module {path!r} in {type(module).__name__}; give the model with its language-model head."
        ) from error


def _layer(block: nn.Module, family: Family, name: str) -> Layer:
    def get(path: str | None) -> nn.Module | None:
        return None if path is None else _get(block, path, name)

    chain = [_get(block, path, name) for path in (family.mlp or "").split()]
    return Layer(
        block=block,
        attn=get(family.attn),
        norm1=get(family.norm1),
        norm2=get(family.norm2),
        mlp=None if not chain else chain[0] if len(chain) == 1 else nn.Sequential(*chain).train(block.training),
        mlp_last=chain[-1] if chain else None,
        post_attn_norm=get(family.post_attn_norm),
        post_mlp_norm=get(family.post_mlp_norm),
        q=get(family.q),
        k=get(family.k),
        v=get(family.v),
        o=get(family.o),
        mlp_pre=get(family.mlp_pre),
        mlp_act=get(family.mlp_act),
    )


def _in_features(module: nn.Module) -> int:
    return weight_of(module).shape[0 if type(module).__name__ == "Conv1D" else 1]
