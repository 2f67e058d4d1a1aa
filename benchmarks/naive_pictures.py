"""The naive way to patch a UNet pipeline, with plain PyTorch hooks and nothing of interp. No benchmark by itself.

One row: its own loop over the scheduler's steps, guidance as [uncond | cond], a hook on one module at a time. The loop
is leaner than the pipeline's call, which checks its arguments and shows progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def place(unet: Any, address: str, part: str) -> tuple[nn.Module, str, slice]:
    """(module, side, channels) of one part of a block: "up.1.0" and "cross_attn_out" and the like."""
    name, *numbers = address.split(".")
    stage = unet.mid_block if name == "mid" else getattr(unet, f"{name}_blocks")[int(numbers.pop(0))]
    every = slice(None)
    if not numbers:  # the whole block: what its resampler gives, or its last pair
        resampler = (getattr(stage, "downsamplers", None) or getattr(stage, "upsamplers", None) or [None])[-1]
        if resampler is not None:
            return resampler, "output", every
        numbers = [str(len(stage.resnets) - 1)]
    j = int(numbers[0])
    attentions = list(getattr(stage, "attentions", None) or [])
    attention = attentions[j] if j < len(attentions) else None
    if part == "skip":
        skipped = stage.resnets[j]
        own = skipped.in_channels - _skip_width(unet, int(address.split(".")[1]), j)
        return skipped, "input", slice(own, None)
    if part == "resnet_out" or attention is None:
        return stage.resnets[j], "output", every
    block = attention.transformer_blocks[0]
    if part in ("block_out", "block_update"):
        return attention, "update" if part == "block_update" else "output", every
    if part == "ff_out":
        return block.ff, "output", every
    module = block.attn1 if part.startswith("self") else block.attn2
    if part.endswith("attn_out"):
        return module, "output", every
    what = part[-1]
    return (module.to_out[0], "input", every) if what == "z" else (getattr(module, f"to_{what}"), "output", every)


def _skip_width(unet: Any, i: int, j: int) -> int:
    """Channels of the skip that a resnet of an up block takes over: skips leave in the order in which they came."""
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets]
        widths += [block.downsamplers[0].out_channels] if block.downsamplers else []
    taken = sum(len(block.resnets) for block in unet.up_blocks[:i]) + j
    return widths[-1 - taken]


class Loop:
    """A pipeline's denoising of one prompt and seed."""

    def __init__(self, pipeline: Any, steps: int, guidance: float, seed: int) -> None:
        self.pipeline, self.unet, self.steps, self.guidance, self.seed = pipeline, pipeline.unet, steps, guidance, seed

    @torch.no_grad()
    def embeddings(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(cond, uncond)."""
        found = self.pipeline.encode_prompt(prompt, self.pipeline._execution_device, 1, True)
        return found[0], found[1]

    @torch.no_grad()
    def picture(self, prompt: str, at_step: Callable[[int, Tensor, Any], Any]) -> Tensor:
        """The picture in [0, 1]; `at_step(step, x, timestep)` returns a context in which the denoiser runs."""
        cond, uncond = self.embeddings(prompt)
        both = torch.cat([uncond, cond])
        scheduler, unet = self.pipeline.scheduler, self.unet
        scheduler.set_timesteps(self.steps)
        side = unet.config.sample_size
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(1, unet.config.in_channels, side, side, generator=generator, dtype=unet.dtype)
        x = x * scheduler.init_noise_sigma
        for step, timestep in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(torch.cat([x, x]), timestep)
            with at_step(step, seen[:1], timestep):
                out = unet(seen, timestep, encoder_hidden_states=both).sample
            without, with_prompt = out.chunk(2)
            x = scheduler.step(without + self.guidance * (with_prompt - without), timestep, x).prev_sample
        decoded = self.pipeline.vae.decode(x / self.pipeline.vae.config.scaling_factor, return_dict=False)[0]
        return (decoded / 2 + 0.5).clamp(0, 1)


class Patched:
    """Hooks that keep, or replace, one place; a context."""

    def __init__(self, where: tuple[nn.Module, str, slice], value: Tensor | None = None) -> None:
        (self.module, self.side, self.channels), self.value = where, value
        self.kept: Tensor | None = None

    def __enter__(self) -> Patched:
        hooked = self.module
        if self.side == "input":
            self.handle = hooked.register_forward_pre_hook(lambda _, args: (self._seen(args[0]), *args[1:]))
        else:
            self.handle = hooked.register_forward_hook(self._output)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _output(self, _: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output if isinstance(output, Tensor) else output.sample
        before = args[0] if self.side == "update" else 0.0
        changed = self._seen(first - before) + before
        if isinstance(output, tuple):
            return (changed, *output[1:])
        return changed if isinstance(output, Tensor) else type(output)(sample=changed)

    def _seen(self, x: Tensor) -> Tensor:
        at = (slice(None), self.channels)
        if self.value is None:
            self.kept = x[at][-1:].clone()
            return x
        x = x.clone()
        x[-1:, self.channels] = self.value  # the conditional line is the last
        return x
