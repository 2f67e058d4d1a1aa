"""The shapes model as a plain diffusers `StableDiffusionPipeline`, read from the weights that come with interp.

Everything is what a Stable Diffusion pipeline of the hub has, only smaller: a CLIP text encoder, a
`UNet2DConditionModel`, DDIM with zero terminal signal-to-noise ratio and v-prediction. The latent is the picture
itself: `PixelUnshuffle` stands in for the autoencoder, has no parameters, and is exactly invertible. Start with
`load_pipeline`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextConfig, CLIPTextModel

from interp.errors import LoadError
from interp.shapes.caption import MAX_TOKENS, VOCABULARY, tokenizer
from interp.shapes.render import SIDE

STEPS = 20
GUIDANCE = 1.5
WEIGHTS = "model.safetensors"
DIGESTS = "sha256.json"
_WIDTH = 64  # of a token's state


class PixelUnshuffle(ModelMixin, ConfigMixin):
    """The place of an autoencoder: a pixel's 2×2 neighbourhood becomes 12 channels, and back; exact, no weights."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (3, 12),  # diffusers reads the scale from its length: 2 ** (2 - 1)
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(0), persistent=False)  # pipelines ask a model for dtype and device

    @property
    def device(self) -> torch.device:
        """Where latents should be."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """What latents should be."""
        return self.place.dtype

    def encode(self, x: Float[Tensor, "batch 3 height width"], return_dict: bool = True) -> Any:
        """The latent of pictures in [-1, 1], as the certain distribution that it is."""
        latent = pixel_unshuffle(x, 2)
        certain = SimpleNamespace(sample=lambda generator=None: latent, mode=lambda: latent)
        return SimpleNamespace(latent_dist=certain) if return_dict else (certain,)

    def decode(
        self, z: Float[Tensor, "batch 12 height width"], return_dict: bool = True, generator: Any = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The pictures of latents."""
        picture = pixel_shuffle(z, 2)
        return DecoderOutput(sample=picture) if return_dict else (picture,)


class ShapesPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` whose call has this model's defaults, and refuses words that it does not know."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        **options: Any,
    ) -> Any:
        """As `StableDiffusionPipeline.__call__`.

        Raises:
            PairError: a word that is not in `VOCABULARY`, or too many words.
        """
        options |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        # diffusers annotates the prompt as given, and takes None beside embeddings
        return super().__call__(prompt, **options)  # pyright: ignore[reportArgumentType]


def new_text_encoder() -> CLIPTextModel:
    """The text encoder, with random weights: 2 layers of width 64. Padding is read too, and serves as registers."""
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=_WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_act="gelu",
    )
    return CLIPTextModel(config).eval()


def new_unet() -> UNet2DConditionModel:
    """The denoiser, with random weights. It attends to the text at 8×8 and 4×4, where an object is 4×4 and 2×2."""
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(48, 96, 96),
        norm_num_groups=8,
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,  # diffusers takes this for the number of heads
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, rescaled to end in pure noise.

    A fifth of its steps lie below a signal-to-noise ratio of 1/50, where the content of flat areas of a hundred
    pixels is decided; the cosine schedule has an eleventh there.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_pipeline(text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> ShapesPipeline:
    """A pipeline around a text encoder and a denoiser, trained or not."""
    parts: dict[str, Any] = {  # not the classes that diffusers' annotations name, but what its code asks of them
        "vae": PixelUnshuffle(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer(),
        "unet": unet,
        "scheduler": new_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = ShapesPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assets(model: str = "shapes") -> Path:
    """The folder of a model's weights: beside the package in a checkout, inside it in a wheel.

    Raises:
        LoadError: neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "assets" / model, package / "assets" / model):
        if folder.is_dir():
            return folder
    raise LoadError(f"The weights of the {model} model are missing: there is no folder assets/{model} near {package}.")


def load_pipeline(folder: Path | None = None) -> ShapesPipeline:
    """The trained pipeline, in float32 on the CPU; no network is asked.

    Args:
        folder: holds `model.safetensors` and `sha256.json`; the ones that come with interp if not given.

    Raises:
        LoadError: a file that is missing, damaged, or of another model.
    """
    tensors = read_weights((assets() if folder is None else folder) / WEIGHTS)
    text_encoder, unet = new_text_encoder(), new_unet()
    for name, module in {"text_encoder": text_encoder, "unet": unet}.items():
        load_into(module, name, tensors)
    return new_pipeline(text_encoder, unet)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after its SHA-256 agrees with `sha256.json` beside it.

    Raises:
        LoadError: a file that is missing or damaged.
    """
    try:
        content = path.read_bytes()
        expected = json.loads((path.parent / DIGESTS).read_text("utf-8"))[path.name]
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise LoadError(f"{path.name} is damaged: its SHA-256 is {found}, and {DIGESTS} says {expected}.")
        return load_safetensors(content)
    except (OSError, ValueError, KeyError, SafetensorError, struct.error) as error:
        raise LoadError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def load_into(module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Copy `prefix.*` into a module, which must have exactly these weights.

    Raises:
        LoadError: other names or shapes, or values that are not finite.
    """
    own = {name.removeprefix(f"{prefix}."): t.float() for name, t in tensors.items() if name.startswith(f"{prefix}.")}
    broken = [name for name, tensor in own.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoadError(f"Weights of {prefix} are not finite: {', '.join(broken[:5])}.")
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise LoadError(f"The file holds another {prefix} than this version of interp: {error}") from error
