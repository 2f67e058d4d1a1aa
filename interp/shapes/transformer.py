"""The shapes world's second architecture: a diffusion transformer under rectified flow, as a diffusers pipeline.

Everything is what PixArt-α has, only smaller: adaLN-single, self-attention over patches, cross-attention to the text.
The latent is the UNet's (`PixelUnshuffle`), so a patch of 2×2 latents is one of 4×4 pixels, and both models start
from the same noise. The text encoder is the UNet's too. Start with `load_transformer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import CLIPTextModel

from interp.shapes.caption import MAX_TOKENS, tokenizer
from interp.shapes.pipeline import WEIGHTS, PixelUnshuffle, assets, load_into, new_text_encoder, read_weights
from interp.shapes.render import SIDE

STEPS = 20
GUIDANCE = 1.5
SHIFT = 2.0
"""How far the schedule leans to noise, as Stable Diffusion 3's does: σ = s·u / (1 + (s − 1)·u) for uniform u.

With 2, a fifth of the steps lie below a signal-to-noise ratio of 1/50, as in the UNet's schedule; without, an eighth.
"""
TIMES = 1000  # of pure noise, as diffusers counts
_HEADS, _HEAD_WIDTH, _LAYERS = 4, 48, 6


class PixelFlowMatchScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler's method for rectified flow, with what PixArt's pipeline asks of a scheduler."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: rectified flow scales no inputs."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Equal steps of u from pure noise to the picture; diffusers' own last step would go from σ = 0.002 to 0."""
        if sigmas is None and timesteps is None and num_inference_steps is not None:
            sigmas = np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps).tolist()
        # diffusers annotates what may be None as if it might not
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)  # pyright: ignore[reportArgumentType]

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """As `FlowMatchEulerDiscreteScheduler.step`; a tuple also has the picture that the prediction amounts to."""
        result = super().step(model_output, timestep, sample, **options)  # pyright: ignore[reportArgumentType]
        if not isinstance(result, tuple):
            return result
        return (*result, sample - timestep / TIMES * model_output)


class ShapesTransformerPipeline(PixArtAlphaPipeline):
    """`PixArtAlphaPipeline` whose call has this model's defaults, and refuses words that it does not know."""

    def encode_prompt(self, *args: Any, max_sequence_length: int = MAX_TOKENS, **options: Any) -> Any:
        """As `PixArtAlphaPipeline.encode_prompt`."""
        return super().encode_prompt(*args, max_sequence_length=max_sequence_length, **options)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        clean_caption: bool = False,
        use_resolution_binning: bool = False,
        max_sequence_length: int = MAX_TOKENS,
        **options: Any,
    ) -> Any:
        """As `PixArtAlphaPipeline.__call__`.

        Raises:
            PairError: a word that is not in `VOCABULARY`, or too many words.
        """
        options |= {
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "clean_caption": clean_caption, "use_resolution_binning": use_resolution_binning,
            "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        # diffusers annotates the prompt as given, and takes None beside embeddings
        return super().__call__(prompt, **options)  # pyright: ignore[reportArgumentType]


def new_transformer() -> PixArtTransformer2DModel:
    """The denoiser, with random weights: 64 patches of 4×4 pixels; an object's cell is 4×4 of them."""
    return PixArtTransformer2DModel(
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD_WIDTH,
        in_channels=12,
        out_channels=12,
        num_layers=_LAYERS,
        cross_attention_dim=_HEADS * _HEAD_WIDTH,
        caption_channels=new_text_encoder().config.hidden_size,
        sample_size=SIDE // 2,
        patch_size=2,
    ).eval()


def new_flow_scheduler() -> PixelFlowMatchScheduler:
    """Rectified flow: the latent is (1 − σ)·picture + σ·noise, the prediction noise − picture.

    Source: Liu et al. 2022, "Flow Straight and Fast" (arXiv:2209.03003); the shift, Esser et al. 2024, "Scaling
    Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv:2403.03206), equation 23.
    """
    return PixelFlowMatchScheduler(num_train_timesteps=TIMES, shift=SHIFT)


def new_transformer_pipeline(
    text_encoder: CLIPTextModel, transformer: PixArtTransformer2DModel
) -> ShapesTransformerPipeline:
    """A pipeline around a text encoder and a denoiser, trained or not."""
    parts: dict[str, Any] = {  # not the classes that diffusers' annotations name, but what its code asks of them
        "vae": PixelUnshuffle(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer(),
        "transformer": transformer,
        "scheduler": new_flow_scheduler(),
    }
    pipeline = ShapesTransformerPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_transformer(folder: Path | None = None) -> ShapesTransformerPipeline:
    """The trained pipeline, in float32 on the CPU; no network is asked.

    Args:
        folder: holds `model.safetensors` and `sha256.json`; the ones that come with interp if not given.

    Raises:
        LoadError: a file that is missing, damaged, or of another model.
    """
    tensors = read_weights((assets("shapes-dit") if folder is None else folder) / WEIGHTS)
    text_encoder, transformer = new_text_encoder(), new_transformer()
    load_into(text_encoder, "text_encoder", tensors)
    load_into(transformer, "transformer", tensors)
    return new_transformer_pipeline(text_encoder, transformer)
