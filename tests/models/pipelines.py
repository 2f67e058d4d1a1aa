"""Tiny random-init diffusers pipelines of every supported family, built from config: no file, no network.

Each has a real text stage (a word-level tokenizer, two or three layers per text encoder), a denoiser whose blocks all
matter, and a VAE that doubles the side. The words of a prompt must be WORDS; a prompt of more than ten loses its end.
"""

from __future__ import annotations

import diffusers as df
import tokenizers as tk
import torch
import transformers as tf

WORDS = (
    "a an the and or of on in at to with under above below beside near left right top bottom "
    "red green blue yellow black white grey orange purple pink brown "
    "circle square triangle star stars cross ring bar dot line cat dog bird tree house car "
    "small large big tiny bright dark striped plain one two three no not photo picture drawing"
).split()

CLIP_LENGTH = 12  # tokens per prompt, <start> and <end> included
T5_LENGTH = 10  # what CALLS ask for; the tokenizer itself would allow T5_LIMIT
T5_LIMIT = 16

FAMILIES = ("sd", "sdxl", "pixart", "dit", "sd3", "flux")
UNETS = ("sd", "sdxl")

PROMPTS = ["a red circle on a blue square", "two green stars", "the small cat under a tree"]
NEGATIVES = ["dark photo", "no triangle at left", "grey"]
LABELS = [3, 7, 999]  # for "dit"

_SIZE = dict(height=16, width=24, num_inference_steps=2, output_type="pt")
_TEXT = dict(prompt=PROMPTS[:1], negative_prompt=NEGATIVES[:1])

# The keyword arguments of a cheap call with guidance; a generator comes on top.
CALLS = {
    "sd": _SIZE | _TEXT | dict(guidance_scale=4.0),
    "sdxl": _SIZE | _TEXT | dict(guidance_scale=4.0),
    "pixart": _SIZE | _TEXT | dict(
        guidance_scale=4.0, max_sequence_length=T5_LENGTH, clean_caption=False, use_resolution_binning=False
    ),
    "dit": dict(class_labels=LABELS[:1], num_inference_steps=2, output_type="pt", guidance_scale=4.0),  # always square
    "sd3": _SIZE | _TEXT | dict(guidance_scale=4.0, max_sequence_length=T5_LENGTH),
    "flux": _SIZE | _TEXT | dict(true_cfg_scale=4.0, guidance_scale=3.0, max_sequence_length=T5_LENGTH),
}  # fmt: skip

# What CALLS of a family have to be changed to for a call without guidance.
UNGUIDED = {family: dict(guidance_scale=1.0, negative_prompt=None) for family in FAMILIES} | {
    "pixart": dict(guidance_scale=1.0),  # knows no None; ignores the negative prompt by itself
    "dit": dict(guidance_scale=1.0),
    "flux": dict(true_cfg_scale=1.0, negative_prompt=None),  # its guidance_scale is an input of the network
}

# Schedulers to try with "sd", by name: stateful, stochastic or with another number of timesteps than of steps.
SCHEDULERS = {
    "ddim_stochastic": lambda config: df.DDIMScheduler.from_config(config),  # with eta=1 in the call
    "dpm_multistep": lambda config: df.DPMSolverMultistepScheduler.from_config(config),
    "dpm_sde": lambda config: df.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "unipc": lambda config: df.UniPCMultistepScheduler.from_config(config),
    "pndm": lambda config: df.PNDMScheduler.from_config(config, skip_prk_steps=True),  # visits one timestep twice
    "euler": lambda config: df.EulerDiscreteScheduler.from_config(config),
    "euler_ancestral": lambda config: df.EulerAncestralDiscreteScheduler.from_config(config),
    "heun": lambda config: df.HeunDiscreteScheduler.from_config(config),  # two timesteps per step but for the last
}
STOCHASTIC = ("ddim_stochastic", "dpm_sde", "euler_ancestral")

_BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def arguments(family: str, guided: bool = True, batch: int = 1, seed: int = 0, **changes) -> dict:
    """A call's keyword arguments, with one generator per image so that an image knows not its neighbours."""
    call = CALLS[family] | ({} if guided else UNGUIDED[family])
    for name, values in (("prompt", PROMPTS), ("negative_prompt", NEGATIVES), ("class_labels", LABELS)):
        if call.get(name) is not None:
            call[name] = values[:batch]
    images = batch * changes.get("num_images_per_prompt", 1)
    return call | dict(generator=[torch.Generator().manual_seed(seed + i) for i in range(images)]) | changes


def pipeline(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, blocks: int | None = None, t5: bool = True
) -> df.DiffusionPipeline:
    """A random-init pipeline on the CPU that runs offline from prompts (from class labels for "dit").

    Args:
        blocks: transformer blocks of a DiT-like, 3 unless told ("flux": 2 double ones and as many single ones).
        t5: False leaves out the third text encoder of "sd3".
    """
    depth = {} if blocks is None else dict(blocks=blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _sd3(t5=t5, **depth) if family == "sd3" else _BUILDERS[family](**depth)
        for name, part in sorted(made.components.items()):
            if isinstance(part, torch.nn.Module):
                _randomise(part, torch.Generator().manual_seed(seed + sum(map(ord, name))), dtype)
                part.eval().requires_grad_(False)
    made.set_progress_bar_config(disable=True)
    return made


def denoiser(made: df.DiffusionPipeline) -> torch.nn.Module:
    """The network that is called at every step."""
    return made.unet if hasattr(made, "unet") else made.transformer


def scheduler(name: str, made: df.DiffusionPipeline) -> df.SchedulerMixin:
    """One of SCHEDULERS for this pipeline."""
    return SCHEDULERS[name](made.scheduler.config)


def block_names(made: df.DiffusionPipeline) -> list[str]:
    """The denoiser's blocks, in the order of computation, as module paths."""
    network = denoiser(made)
    if hasattr(network, "mid_block"):
        down = [f"down_blocks.{i}" for i in range(len(network.down_blocks))]
        return [*down, "mid_block", *(f"up_blocks.{i}" for i in range(len(network.up_blocks)))]
    stacks = [s for s in ("transformer_blocks", "single_transformer_blocks") if hasattr(network, s)]
    return [f"{stack}.{i}" for stack in stacks for i in range(len(getattr(network, stack)))]


def tokenizer(style: str = "clip", pad: str = "<end>") -> tf.PreTrainedTokenizerFast:
    """One token per word; "clip" writes <start> … <end> and pads like SD with <end>, "t5" writes … <end>."""
    special = ["<pad>", "<start>", "<end>", "<unk>"]
    made = tk.Tokenizer(tk.models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    made.normalizer = tk.normalizers.Lowercase()
    made.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    single = "<start> $A <end>" if style == "clip" else "$A <end>"
    made.post_processor = tk.processors.TemplateProcessing(single=single, special_tokens=[("<start>", 1), ("<end>", 2)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=CLIP_LENGTH if style == "clip" else T5_LIMIT,
        bos_token="<start>" if style == "clip" else None, eos_token="<end>", unk_token="<unk>", pad_token=pad,
    )  # fmt: skip


def _randomise(module: torch.nn.Module, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Redraw every weight, also those that start at zero: gates, modulations and output projections.

    In float64 first: a pipeline in float32 has the same weights, rounded.
    """
    torch.nn.Module.to(module, torch.float64)  # not module.to: diffusers warns of every cast, even of a harmless one
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        owner = module.get_submodule(name.rpartition(".")[0])
        with torch.no_grad():
            if isinstance(owner, torch.nn.Embedding):
                weight.copy_(noise)
            elif name.endswith("scale_shift_table"):
                weight.copy_(0.5 * noise)
            elif weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            elif name.endswith("weight"):  # of a norm
                weight.copy_(1 + 0.2 * noise)
            else:
                weight.copy_(0.2 * noise)
    torch.nn.Module.to(module, dtype)


def _vae(**changes) -> df.AutoencoderKL:
    return df.AutoencoderKL(
        block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, layers_per_block=1, sample_size=16,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **changes,
    )  # fmt: skip


def _clip(hidden: int = 16, projection: int | None = None, act: str = "quick_gelu"):
    config = tf.CLIPTextConfig(
        vocab_size=4 + len(WORDS), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=CLIP_LENGTH, projection_dim=projection or hidden,
        hidden_act=act, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return tf.CLIPTextModel(config) if projection is None else tf.CLIPTextModelWithProjection(config)


def _t5(width: int = 32) -> tf.T5EncoderModel:
    return tf.T5EncoderModel(
        tf.T5Config(
            vocab_size=4 + len(WORDS), d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj="gated-gelu",
            dropout_rate=0.0, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
        )
    )  # fmt: skip


def _sd() -> df.StableDiffusionPipeline:
    return df.StableDiffusionPipeline(
        unet=df.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,  # SD 1's "head dim": 2 heads
        ),
        scheduler=df.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        vae=_vae(), text_encoder=_clip(), tokenizer=tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> df.StableDiffusionXLPipeline:
    return df.StableDiffusionXLPipeline(
        unet=df.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
            cross_attention_dim=16 + 24, attention_head_dim=(2, 4, 4), norm_num_groups=4,
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=df.EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        vae=_vae(), text_encoder=_clip(), tokenizer=tokenizer(),
        text_encoder_2=_clip(24, 20, "gelu"), tokenizer_2=tokenizer(pad="<pad>"), add_watermarker=False,
    )  # fmt: skip


def _pixart(blocks: int = 3) -> df.PixArtAlphaPipeline:
    return df.PixArtAlphaPipeline(
        transformer=df.PixArtTransformer2DModel(
            sample_size=8, num_layers=blocks, patch_size=2, num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=8, caption_channels=32, cross_attention_dim=24, use_additional_conditions=False,
        ),
        scheduler=df.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False),
        vae=_vae(), text_encoder=_t5(), tokenizer=tokenizer("t5", "<pad>"),
    )  # fmt: skip


def _dit(blocks: int = 3) -> df.DiTPipeline:
    return df.DiTPipeline(
        transformer=df.DiTTransformer2DModel(
            sample_size=8, num_layers=blocks, patch_size=2, num_attention_heads=2, attention_head_dim=8,
            in_channels=4, out_channels=8, num_embeds_ada_norm=1000,  # the pipeline's null class is 1000
        ),
        scheduler=df.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False), vae=_vae(),
    )  # fmt: skip


def _sd3(blocks: int = 3, t5: bool = True) -> df.StableDiffusion3Pipeline:
    return df.StableDiffusion3Pipeline(
        transformer=df.SD3Transformer2DModel(
            sample_size=8, num_layers=blocks, patch_size=2, num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=4, joint_attention_dim=32, caption_projection_dim=24,
            pooled_projection_dim=12 + 8, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        scheduler=df.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_clip(12, 12), tokenizer=tokenizer(),
        text_encoder_2=_clip(16, 8, "gelu"), tokenizer_2=tokenizer(pad="<pad>"),
        text_encoder_3=_t5() if t5 else None, tokenizer_3=tokenizer("t5", "<pad>") if t5 else None,
    )  # fmt: skip


def _flux(blocks: int = 2) -> df.FluxPipeline:
    return df.FluxPipeline(
        transformer=df.FluxTransformer2DModel(
            in_channels=16, num_layers=blocks, num_single_layers=blocks, num_attention_heads=2, attention_head_dim=16,
            joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
        scheduler=df.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_clip(), tokenizer=tokenizer(), text_encoder_2=_t5(), tokenizer_2=tokenizer("t5", "<pad>"),
    )  # fmt: skip


_BUILDERS = {"sd": _sd, "sdxl": _sdxl, "pixart": _pixart, "dit": _dit, "flux": _flux}
