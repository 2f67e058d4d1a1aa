"""The tiny pipelines behind the toolkit's handle, and what their native calls give for the same sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from models.pipelines import CALLS, FAMILIES, LABELS, NEGATIVES, PROMPTS, UNGUIDED, pipeline, scheduler

from interp.models.denoiser import Denoiser, Sampling, describe_pipeline
from interp.models.load import load
from interp.models.site import BLOCK_PARTS, Site

STEPS = dict.fromkeys(FAMILIES, 2) | {"pixart": 3, "dit": 3}
"""Steps of a run of which at least two do something: these two schedules end with one at timestep 0."""

SIDES = dict.fromkeys(FAMILIES, (8, 12)) | {"dit": (8, 8)}
"""Height and width of the latents."""


@cache
def described(family: str) -> Denoiser:
    """One handle of each family, for tests that leave it alone."""
    return load(pipeline(family), name=family)


def changed(change: Callable[[torch.nn.Module], None] = lambda unet: None) -> Denoiser:
    """Stable Diffusion, of its own, with its UNet changed."""
    made = pipeline("sd")
    with torch.no_grad():
        change(made.unet)
    return describe_pipeline(made, "tiny")


def words_enter_at(address: str | None) -> Callable[[torch.nn.Module], None]:
    """A change that cuts the words off everywhere but at one cross-attention (`up.1.1`), or everywhere."""
    part, *numbers = (address or "").split(".")
    stage = "mid_block" if part == "mid" else f"{part}_blocks.{numbers.pop(0)}" if address else ""
    kept = f"{stage}.attentions.{numbers[0]}.transformer_blocks.0.attn2" if address else None

    def change(unet: torch.nn.Module) -> None:
        paths = {path: module for path, module in unet.named_modules() if path.endswith("attn2")}
        assert kept is None or kept in paths
        for path, module in paths.items():
            if path != kept:
                module.to_out[0].weight.zero_()

    return change


@cache
def scheduled(name: str) -> Denoiser:
    """Stable Diffusion with one of SCHEDULERS."""
    made = pipeline("sd")
    made.scheduler = scheduler(name, made)
    return load(made, name=name)


def options(family: str) -> dict:
    """The options of a cheap call, without prompts, steps and guidance."""
    ours = ("num_inference_steps", "output_type", "clean_caption", "use_resolution_binning", guidance_name(family))
    return {k: v for k, v in CALLS[family].items() if k not in ours and "prompt" not in k and k != "class_labels"}


def guidance_name(family: str) -> str:
    return "true_cfg_scale" if family == "flux" else "guidance_scale"


def texts(family: str, batch: int = 2, negative: bool = False) -> list:
    return LABELS[:batch] if family == "dit" else (NEGATIVES if negative else PROMPTS)[:batch]


def sampling(
    family: str, batch: int = 2, seeds=0, guided: bool = True, prompts=None, negative=None, steps: int | None = None, model=None, **more
) -> Sampling:  # fmt: skip
    """Prompts with negative prompts of their own, where the family knows any."""
    negative = negative if negative is not None else texts(family, batch, True) if guided and family != "dit" else None
    return (model or described(family)).sampling(
        prompts or texts(family, batch), negative=negative, seeds=seeds, steps=steps or STEPS[family], guidance=4.0 if guided else 1.0,
        **options(family) | more,
    )  # fmt: skip


def native(
    family: str, seeds: list[int], batch: int = 2, guided: bool = True, each: int = 1, **changes
) -> torch.Tensor:
    """Pictures of the pipeline's own call, given prompts, one generator for each picture."""
    call = CALLS[family] | ({} if guided else UNGUIDED[family]) | dict(num_inference_steps=STEPS[family])
    for name in ("prompt", "negative_prompt", "class_labels"):
        if call.get(name) is not None:
            call[name] = [text for text in texts(family, batch, name == "negative_prompt") for _ in range(each)]
    call |= dict(generator=[torch.Generator().manual_seed(seed) for seed in seeds]) | changes
    images = described(family).pipeline(**call).images
    return images if torch.is_tensor(images) else torch.from_numpy(images).permute(0, 3, 1, 2)


def every_site(model: Denoiser) -> list[Site]:
    """All sites, the text encoders' first."""
    parts = [part for part in BLOCK_PARTS if any(part in block.taps for block in model.blocks.values())]
    own = [Site("latents"), Site("prediction"), *([] if model.time_embed is None else [Site("time_embed")])]
    return [*model.text, *own, *(site for part in parts for site in model.sites(part))]


def state_of(model: Denoiser) -> tuple:
    """What hooks, patched methods and wrapped schedulers would change."""
    scheduler = model.pipeline.scheduler
    modules = [
        (name, vars(module).get("forward"), len(module._forward_hooks), len(module._forward_pre_hooks))
        for part in model.pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for name, module in part.named_modules()
    ]
    return modules, vars(scheduler).get("step"), type(scheduler)
