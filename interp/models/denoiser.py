"""A diffusion pipeline as the toolkit sees it: untouched modules, its sites, and how it guides.

The pipeline's own call runs, always: its denoising loop, its scheduler, its guidance. What is added is an address for
every activation that passes: a block and a part (`interp.models.site`), a step, a guidance branch, a row, a position.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from interp.errors import InterpError, LoadError, PairError, SiteError, UnfiredError, nearest
from interp.models.attention import unseen
from interp.models.guidance import UNGUIDED, Branch, Guidance, measure
from interp.models.hooks import Watcher, tapped
from interp.models.pipelines import PipelineFamily, check_words, encode, family_of
from interp.models.site import ATTENTION_PARTS, BLOCK_PARTS, DENOISER_PARTS, Site
from interp.models.tap import Tap


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """What a pipeline is asked for: one picture per row.

    Attributes:
        prompts: of each row (class labels, for a class-conditional pipeline).
        negative: the negative prompt of each row; `None`: what the pipeline takes for none.
        seeds: of each row's starting noise (and of a stochastic scheduler's), so that a row never depends on what
            else is in the batch.
        steps: number of denoising steps.
        guidance: scale of classifier-free guidance; at 1 or below there is none.
        options: further arguments of the pipeline's call.
    """

    prompts: tuple[str | int, ...]
    negative: tuple[str, ...] | None
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(self.seeds)

    def select(self, rows: Sequence[int]) -> Sampling:
        """The sampling of these rows, in this order; a row may come several times."""
        options = self.options
        if "latents" in options:
            options = MappingProxyType({**options, "latents": options["latents"][list(rows)]})
        return Sampling(
            tuple(self.prompts[row] for row in rows),
            None if self.negative is None else tuple(self.negative[row] for row in rows),
            tuple(self.seeds[row] for row in rows),
            self.steps,
            self.guidance,
            options,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One address of a denoiser: the taps of its parts, and how far its picture is scaled down."""

    taps: dict[str, Tap]
    level: int
    stage: nn.Module
    """The top-level module that it belongs to: the unit that a sweep can leave out."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A text-to-image (or class-to-image) pipeline. Make one with `interp.load`.

    Attributes:
        pipeline: exactly what was given.
        network: its denoiser, a UNet or a transformer.
        blocks: by address, in forward order.
        stages: the top-level modules in forward order.
        text: taps of the text encoders' sites.
        guidance: how the branches of classifier-free guidance lie in a batch, measured on loading.
    """

    pipeline: Any
    name: str
    family: PipelineFamily
    network: nn.Module
    blocks: Mapping[str, Block]
    stages: tuple[nn.Module, ...]
    text: Mapping[Site, Tap]
    time_embed: nn.Module | None
    steps: int
    scale: float
    guidance: Guidance
    widths: Mapping[Site, int] = field(default_factory=dict)
    """Size of the last axis at each site that a step reaches, as seen on loading."""
    _token_counts: dict[Any, dict[Site | None, int]] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's weights."""
        return next(self.network.parameters()).dtype

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(cast(Any, self.network).config.in_channels)

    def sampling(
        self,
        inputs: str | int | Sequence[str] | Sequence[int] | Sampling,
        *,
        negative: str | Sequence[str] | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        **options: Any,
    ) -> Sampling:
        """A sampling: every prompt with every seed, the seeds of a prompt one after the other.

        Raises:
            PairError: an empty prompt list, a word or a label that the pipeline does not know, a prompt that it would
                cut off, a negative prompt without guidance, or guidance without one where it needs one.
            InterpError: steps below 1, no seed; an option that the pipeline's call does not have, or that is ours to
                give; settings beside a finished `Sampling`.
        """
        if isinstance(inputs, Sampling):
            own = {"negative": negative, "steps": steps, "guidance": guidance, "seeds": seeds or None} | options
            if given := [name for name, value in own.items() if value is not None]:
                raise InterpError(f"This sampling is settled already; {', '.join(given)} cannot be given beside it.")
            return inputs
        self._check_options(options)
        prompts = [inputs] if isinstance(inputs, str | int) else list(inputs)
        if not prompts:
            raise PairError("No prompt: give at least one.")
        negatives = None if negative is None else [negative] * len(prompts) if isinstance(negative, str) else negative
        if negatives is not None and len(negatives) != len(prompts):
            raise PairError(f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one each.")
        self.check_prompts([*prompts, *(negatives or ())], options)
        asked = guidance
        steps, guidance = self.steps if steps is None else steps, self.scale if guidance is None else guidance
        if steps < 1:
            raise InterpError(f"{steps} denoising steps: at least 1.")
        if negatives is not None and not (guidance > 1 and self.guidance.branches > 1):
            raise PairError(f"A negative prompt needs guidance above 1; got {guidance}.")
        if negatives is None and self.family.default_negative is None and asked is not None and asked > 1:
            raise PairError(f"{self.name} is guided by a negative prompt only: give negative='' beside the guidance.")
        each = (seeds,) if isinstance(seeds, int) else tuple(seeds)
        if not each:
            raise InterpError("No seed: give at least one.")
        row = [i for i in range(len(prompts)) for _ in each]
        if (latents := options.get("latents")) is not None and len(latents) != len(row):
            raise InterpError(f"{len(latents)} starting latents for {len(row)} rows; give one for each.")
        return Sampling(
            tuple(prompts[i] for i in row),
            None if negatives is None else tuple(negatives[i] for i in row),
            each * len(prompts),
            steps,
            float(guidance),
            MappingProxyType(options),
        )

    @torch.no_grad()
    def __call__(self, inputs: Any, **settings: Any) -> list[Any]:
        """The pictures of a sampling, as PIL images: `model("a red circle", seeds=range(4))`.

        Raises:
            PairError, InterpError: as `sampling`.
        """
        sampling = self.sampling(inputs, **settings)
        embeds: dict[str, Tensor] = {}
        for branch in {branch: None for call in self.layout(sampling).calls for branch in call}:
            embeds |= self.embeddings(sampling, branch)
        return self.pipeline(**self.arguments(sampling, embeds) | {"output_type": "pil"}).images

    def _check_options(self, options: Mapping[str, Any]) -> None:
        ours = {"class_labels", "generator", "num_inference_steps", "output_type", "return_dict", self.family.guidance}
        known = [name for name in inspect.signature(type(self.pipeline).__call__).parameters if name != "kwargs"]
        for name in options:
            if name in ours or "prompt" in name:
                raise InterpError(
                    f"{name!r} is no option: the prompts, `negative`, `seeds`, `steps` and `guidance` say it already."
                )
            if name not in known:
                raise InterpError(f"{type(self.pipeline).__name__} has no option {name!r}." + nearest(name, known))

    def check_prompts(self, prompts: Sequence[str | int], options: Mapping[str, Any]) -> None:
        """Refuse prompts (class labels) that the pipeline does not know, or would cut off.

        Raises:
            PairError: such a prompt.
        """
        kind = int if self.family.whole_numbers else str
        if any(not isinstance(prompt, kind) or isinstance(prompt, bool) for prompt in prompts):
            raise PairError(f"{self.name} takes {'class labels' if kind is int else 'texts'}; got {prompts!r}.")
        if kind is str:
            check_words(self.pipeline, self.family, [str(prompt) for prompt in prompts], options)
            return
        classes = int(cast(Any, self.network).config.num_embeds_ada_norm)
        if outside := [label for label in prompts if not 0 <= int(label) < classes]:
            raise PairError(f"{self.name} knows the class labels 0 to {classes - 1}; got {outside}.")

    def layout(self, sampling: Sampling) -> Guidance:
        """The branches that a sampling runs."""
        optional = self.family.default_negative is None and sampling.negative is None
        return UNGUIDED if sampling.guidance <= 1 or optional else self.guidance

    @torch.no_grad()
    def embeddings(self, sampling: Sampling, branch: Branch) -> dict[str, Tensor]:
        """What the text encoders make of one branch's prompts, per row, by the names of the call's arguments.

        A class-conditional pipeline has none.
        """
        if self.family.whole_numbers:
            return {}
        if branch is Branch.COND:
            return encode(self.pipeline, self.family, [str(prompt) for prompt in sampling.prompts], sampling.options)
        negative = sampling.negative or (self.family.default_negative or "",) * len(sampling)
        # Pipelines skip the last layers of CLIP for the prompt only.
        options = {name: value for name, value in sampling.options.items() if name != "clip_skip"}
        embeds = encode(self.pipeline, self.family, negative, options)
        if not self.encodes(sampling, branch):
            embeds = {name: torch.zeros_like(value) for name, value in embeds.items()}
        return {f"negative_{name}": value for name, value in embeds.items()}

    def encodes(self, sampling: Sampling, branch: Branch) -> bool:
        """Whether the denoiser gets what the text encoders make of this branch; SDXL's "no prompt" is zeros."""
        zeros = getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False)
        return branch is Branch.COND or sampling.negative is not None or not zeros

    def arguments(self, sampling: Sampling, embeds: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the pipeline's call for these prompts' embeddings; new generators every time."""
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in sampling.seeds]
        labels = {"class_labels": list(sampling.prompts)} if self.family.whole_numbers else {}
        return {
            **self.family.arguments, **labels, **embeds, self.family.guidance: sampling.guidance,
            "num_inference_steps": sampling.steps, "generator": generators, "output_type": "pt", **sampling.options,
        }  # fmt: skip

    # -- sites ----------------------------------------------------------------------------------------

    def sites(self, part: str) -> tuple[Site, ...]:
        """Every site of a part, in forward order."""
        if part not in DENOISER_PARTS:
            raise SiteError(f"There is no part {part!r} in a denoiser." + nearest(part, DENOISER_PARTS))
        if part not in BLOCK_PARTS:
            return (self.check(Site(part)),)
        found = tuple(Site(part, address) for address, block in self.blocks.items() if part in block.taps)
        if not found:
            raise SiteError(f"{self.name} has no {part!r} anywhere. It has: {', '.join(self._parts)}.")
        return found

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        having = {part for block in self.blocks.values() for part in block.taps}
        return tuple(part for part in BLOCK_PARTS if part in having)

    def check(self, site: Site | str) -> Site:
        """The site, if this model has it.

        Raises:
            SiteError: no such block, part or head; a part of a block that holds several transformer blocks; scores or a
                pattern of an attention that cannot be seen (`interp.models.attention`).
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if site.layer is None:
            if site.part not in DENOISER_PARTS or (site.part == "time_embed" and self.time_embed is None):
                raise SiteError(
                    f"{self.name} has no {site}: it is a diffusion pipeline." + nearest(site.part, DENOISER_PARTS)
                )
            return site
        if str(site.layer).startswith("text"):
            if site not in self.text:
                raise SiteError(f"{self.name} has no {site}." + nearest(str(site), map(str, self.text)))
            return site
        address = str(site.layer)
        block = self.blocks.get(address)
        if block is None:
            raise SiteError(f"{self.name} has no block {address!r}." + nearest(address, self.blocks))
        if site.part not in block.taps:
            below = [a for a, b in self.blocks.items() if a.startswith(f"{address}.") and site.part in b.taps]
            hint = f" Name one of {', '.join(below)}." if below else f" It has: {', '.join(block.taps)}."
            raise SiteError(f"{self.name} has no {site.part!r} at {address!r}.{hint}")
        heads = block.taps[site.part].heads
        if site.head is not None and heads is not None and not 0 <= site.head < heads:
            raise SiteError(f"{site}: {heads} heads there, numbered 0 to {heads - 1}.")
        if site.part in ATTENTION_PARTS and (reason := unseen(block.taps[site.part].module)):
            raise SiteError(f"{site}: {reason}.")
        return site

    def tap(self, site: Site) -> Tap:
        """Where a site's tensor is met."""
        if site.part == "latents":
            return Tap(self.network, "input", spatial=self._spatial_latents)
        if site.part == "prediction":
            return Tap(self.network, "output", spatial=self._spatial_latents)
        if site.part == "time_embed":
            assert self.time_embed is not None
            return Tap(self.time_embed, "output")
        return self.text[site] if site in self.text else self.blocks[str(site.layer)].taps[site.part]

    @cached_property
    def _spatial_latents(self) -> bool:
        return type(self.network).__name__ != "FluxTransformer2DModel"  # which packs 2×2 latents into a token itself

    def heads_of(self, site: Site) -> int | None:
        """Number of heads on a site's head axis, `None` without one."""
        return self.tap(site).heads

    def width_of(self, site: Site) -> int:
        """Size of a site's last axis: channels, or a head's width (not of scores and patterns: see `keys_of`)."""
        return self.widths[site.all_heads]

    def size_of(self, site: Site, sampling: Sampling) -> int:
        """Numbers that a site has in one pass of one row."""
        height, width = self.grid_of(site, sampling)
        last = self.keys_of(site, sampling) if site.part in ATTENTION_PARTS else self.width_of(site)
        return height * width * (self.heads_of(site) or 1) * last

    def keys_of(self, site: Site, sampling: Sampling) -> int:
        """Keys of an attention: cells, tokens, or (of a joint one) cells and then tokens."""
        if site.part.startswith("cross"):
            return self.tokens_of(sampling)
        height, width = self.grid_of(site, sampling)
        return height * width

    def tokens_of(self, sampling: Sampling) -> int:
        """Tokens that the denoiser reads, padding included; 0 for a class-conditional pipeline."""
        return self._tokens(sampling).get(None, 0)

    def grid_of(self, site: Site, sampling: Sampling) -> tuple[int, int]:
        """(rows, columns) of the cells that a site's positions count, row by row; (1, n) where some are tokens."""
        if site in self.text:
            return 1, self._tokens(sampling)[site]
        if site.part in ("cross_k", "cross_v"):
            return 1, self.tokens_of(sampling)
        if site.part in ("joint_scores", "joint_pattern"):
            height, width = self.grid_of(Site("block_out", site.layer), sampling)
            return 1, height * width + self.tokens_of(sampling)
        if site.part == "time_embed":
            return 1, 1
        height, width = self.latent_size(sampling)
        if hasattr(self.network, "down_blocks"):
            for _ in range(0 if site.layer is None else self.blocks[str(site.layer)].level):
                height, width = -(-height // 2), -(-width // 2)
            return height, width
        if site.layer is None and self._spatial_latents:
            return height, width
        patch = 2 if not self._spatial_latents else int(cast(Any, self.network).config.patch_size)
        return height // patch, width // patch

    def _tokens(self, sampling: Sampling) -> dict[Site | None, int]:
        """Tokens at each site of the text encoders, padding included; under `None` those that the denoiser reads."""
        length = sampling.options.get("max_sequence_length")
        if length not in self._token_counts:
            shapes: dict[Site, torch.Size] = {}
            embeds: dict[str, Tensor] = {}
            with suppress(UnfiredError), tapped(_watch_shapes(self.text, shapes), 1, first=True):
                embeds = self.embeddings(sampling.select([0]), Branch.COND)
            found: dict[Site | None, int] = {site: shape[1] for site, shape in shapes.items()}
            if "prompt_embeds" in embeds:
                found[None] = embeds["prompt_embeds"].shape[1]
            self._token_counts[length] = found
        return self._token_counts[length]

    def latent_size(self, sampling: Sampling) -> tuple[int, int]:
        """(height, width) of the latents of a sampling."""
        options, scale = sampling.options, getattr(self.pipeline, "vae_scale_factor", 8)
        if "latents" in options and options["latents"].ndim == 4:
            return tuple(options["latents"].shape[-2:])
        size: Any = getattr(self.pipeline, "default_sample_size", None) or cast(Any, self.network).config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if (pixels := options.get("height")) is not None:
            height = int(pixels) // scale
        if (pixels := options.get("width")) is not None:
            width = int(pixels) // scale
        return height, width

    def stage_of(self, site: Site) -> int:
        """Index of the first stage that an edit of this site can change; the number of stages for `prediction`."""
        if site.part == "prediction":
            return len(self.stages)
        if site.layer is None or str(site.layer).startswith("text"):
            return 0
        return self.stages.index(self.blocks[str(site.layer)].stage)

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the parameters of the denoiser, text encoders and decoder (first 16 hex digits)."""
        digest = hashlib.sha256()
        modules = [
            self.network,
            getattr(self.pipeline, "vae", None),
            *(getattr(self.pipeline, name, None) for name, _ in self.family.encoders),
        ]
        for module in modules:
            for name, weight in module.named_parameters() if isinstance(module, nn.Module) else ():
                data = weight.detach().cpu().contiguous()
                digest.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
                digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"Denoiser({self.name}: {type(self.pipeline).__name__}, {type(self.network).__name__}, "
            f"{len(self.blocks)} blocks, {self.guidance})"
        )


# -- finding the blocks ----------------------------------------------------------------------------------------


def unet_blocks(network: Any) -> tuple[dict[str, Block], tuple[nn.Module, ...]]:
    """Addresses and stages of a `UNet2DConditionModel`."""
    blocks: dict[str, Block] = {}
    channels = network.conv_in.out_channels
    for i, stage in enumerate(network.down_blocks):
        _unet_pairs(blocks, f"down.{i}", stage, i, list(stage.resnets))
        last = stage.downsamplers[-1] if getattr(stage, "downsamplers", None) else None
        _whole(blocks, f"down.{i}", stage, i, last)
        channels = stage.resnets[-1].out_channels
    middle = len(network.down_blocks) - 1
    if network.mid_block is not None:
        _unet_pairs(blocks, "mid", network.mid_block, middle, list(network.mid_block.resnets))
        _whole(blocks, "mid", network.mid_block, middle, None)
        channels = network.mid_block.resnets[-1].out_channels
    for i, stage in enumerate(network.up_blocks):
        level = middle - i
        _unet_pairs(blocks, f"up.{i}", stage, level, list(stage.resnets))
        for j, resnet in enumerate(stage.resnets):
            skip = resnet.in_channels - channels
            tap = Tap(resnet, "input", start=channels, width=skip, spatial=True)
            blocks[f"up.{i}.{j}"].taps["skip"] = tap
            channels = resnet.out_channels
        last = stage.upsamplers[-1] if getattr(stage, "upsamplers", None) else None
        _whole(blocks, f"up.{i}", stage, max(level - 1, 0) if last is not None else level, last)
    return blocks, (*network.down_blocks, *([network.mid_block] if network.mid_block else []), *network.up_blocks)


def _unet_pairs(blocks: dict[str, Block], prefix: str, stage: Any, level: int, resnets: list[nn.Module]) -> None:
    attentions = list(getattr(stage, "attentions", None) or [])
    for j, resnet in enumerate(resnets):
        taps = {"resnet_out": Tap(resnet, "output", spatial=True)}
        block = blocks[f"{prefix}.{j}"] = Block(taps, level, stage)
        if j >= len(attentions):
            taps["block_out"] = Tap(resnet, "output", spatial=True)
            continue
        inner = list(getattr(attentions[j], "transformer_blocks", []))
        taps["block_update"] = taps["block_out"] = Tap(attentions[j], "output", spatial=True)
        for k, transformer in enumerate(inner):
            found = transformer_taps(transformer)
            if len(inner) == 1:
                block.taps.update(found)
            else:
                taps_k = found | {"block_out": Tap(transformer, "output")}
                blocks[f"{prefix}.{j}.{k}"] = Block(taps_k, level, stage)


def _whole(blocks: dict[str, Block], address: str, stage: Any, level: int, resampler: nn.Module | None) -> None:
    """The address of a whole block: its output is that of its resampler, or of its last pair."""
    if resampler is not None:
        lower = address.startswith("down")
        tap = Tap(resampler, "output", spatial=True)
        blocks[address] = Block({"block_out": tap}, level + 1 if lower else level, stage)
    else:
        last = blocks[[a for a in blocks if a.startswith(f"{address}.") and a.count(".") == address.count(".") + 1][-1]]
        blocks[address] = Block({"block_out": last.taps["block_out"]}, level, stage)


def transformer_blocks(network: Any, image_item: int) -> tuple[dict[str, Block], tuple[nn.Module, ...]]:
    """Addresses and stages of a diffusion transformer."""
    blocks: dict[str, Block] = {}
    stages: list[nn.Module] = []
    for kind, modules in (("block", "transformer_blocks"), ("single", "single_transformer_blocks")):
        for i, module in enumerate(getattr(network, modules, None) or []):
            taps = transformer_taps(module) if kind == "block" else attention_taps("joint", cast(Any, module).attn)
            taps["block_out"] = Tap(module, "output", item=image_item)
            blocks[f"{kind}.{i}"] = Block(taps, 0, module)
            stages.append(module)
    return blocks, tuple(stages)


def transformer_taps(block: Any) -> dict[str, Tap]:
    """Parts inside a transformer block, whatever its kind."""
    taps: dict[str, Tap] = {}
    if (joint := getattr(block, "attn", None)) is not None:
        taps["joint_attn_out"] = Tap(joint, "output")
        taps |= attention_taps("joint", joint)
    for attribute in ("attn1", "attn2"):
        attention = getattr(block, attribute, None)
        if attention is None:
            continue
        # The second attention of SD 3.5's dual blocks is a self-attention of the image, as PixArt's first one.
        kind = "cross" if attribute == "attn2" and getattr(attention, "is_cross_attention", True) else "self"
        if f"{kind}_attn_out" in taps:
            continue
        taps[f"{kind}_attn_out"] = Tap(attention, "output")
        heads = attention.heads
        for what in "qkv":
            taps[f"{kind}_{what}"] = Tap(getattr(attention, f"to_{what}"), "output", heads=heads)
        taps[f"{kind}_z"] = Tap(attention.to_out[0], "input", heads=heads)
        taps |= attention_taps(kind, attention)
    if (feed_forward := getattr(block, "ff", None)) is not None:
        taps["ff_out"] = Tap(feed_forward, "output")
    return taps


def attention_taps(kind: str, attention: Any) -> dict[str, Tap]:
    """The scores and the pattern of an attention."""
    return {
        f"{kind}_scores": Tap(attention, "scores", heads=attention.heads),
        f"{kind}_pattern": Tap(attention, "pattern", heads=attention.heads),
    }


def text_taps(pipeline: Any, family: PipelineFamily) -> dict[Site, Tap]:
    """Sites of the text encoders, CLIP's and T5's."""
    taps: dict[Site, Tap] = {}
    for number, (attribute, _) in enumerate(family.encoders):
        encoder = getattr(pipeline, attribute, None)
        if encoder is None:
            continue
        address = "text" if number == 0 else f"text{number + 1}"
        inner = getattr(encoder, "text_model", encoder)
        if hasattr(inner.encoder, "layers"):
            taps[Site("embed", address)] = Tap(inner.embeddings.token_embedding, "output")
            for i, layer in enumerate(inner.encoder.layers):
                taps[Site("resid_pre", f"{address}.{i}")] = Tap(layer, "input")
                taps[Site("attn_out", f"{address}.{i}")] = Tap(layer.self_attn, "output")
                taps[Site("mlp_out", f"{address}.{i}")] = Tap(layer.mlp, "output")
                taps[Site("resid_post", f"{address}.{i}")] = Tap(layer, "output")
            taps[Site("final_norm", address)] = Tap(inner.final_layer_norm, "output")
        else:
            taps[Site("embed", address)] = Tap(encoder.encoder.embed_tokens, "output")
            for i, layer in enumerate(encoder.encoder.block):
                taps[Site("resid_pre", f"{address}.{i}")] = Tap(layer, "input")
                taps[Site("resid_post", f"{address}.{i}")] = Tap(layer, "output")
            taps[Site("final_norm", address)] = Tap(encoder.encoder.final_layer_norm, "output")
    return taps


def refuse_silenced(network: nn.Module, name: str) -> None:
    """Refuse what keeps hooks from firing.

    Raises:
        LoadError: a compiled network, fused projections, a cache that skips blocks.
    """
    if getattr(network, "is_cache_enabled", False):
        raise LoadError(f"{name} has a step cache, which skips blocks: call disable_cache() on its denoiser.")
    for path, module in network.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise LoadError(
                f"{name} is compiled by torch.compile{path and f' at {path}'}, which passes hooks by: give the "
                "uncompiled pipeline."
            )
        if getattr(module, "fused_projections", False):
            raise LoadError(
                f"{name} has fused projections at {path}, where hooks on q, k and v never fire: call "
                "unfuse_qkv_projections()."
            )


def describe_pipeline(pipeline: Any, name: str) -> Denoiser:
    """The handle of a diffusers pipeline: its blocks looked up, its guidance measured.

    Raises:
        LoadError: a pipeline of an unknown kind, one that is training, hooks that would be silent, weights that are
            not finite, guidance that cannot be told.
    """
    family = family_of(pipeline)
    network = getattr(pipeline, family.denoiser)
    for attribute in (family.denoiser, *(attribute for attribute, _ in family.encoders)):
        module = getattr(pipeline, attribute, None)
        if isinstance(module, nn.Module) and module.training:
            raise LoadError(f"{name}: its {attribute} is in training mode; call .eval() on it first.")
        if isinstance(module, nn.Module):
            refuse_silenced(module, name)
        for weight_name, weight in module.named_parameters() if isinstance(module, nn.Module) else ():
            if not torch.isfinite(weight).all():
                raise LoadError(f"{name}: {attribute}.{weight_name} holds NaN or infinite numbers.")
    if hasattr(network, "down_blocks"):
        blocks, stages = unet_blocks(network)
    else:
        blocks, stages = transformer_blocks(network, family.image_item)
    defaults = inspect.signature(type(pipeline).__call__).parameters
    model = Denoiser(
        pipeline, name, family, network, blocks, stages, text_taps(pipeline, family),
        getattr(network, "time_embedding", None), defaults["num_inference_steps"].default,
        float(defaults[family.guidance].default), UNGUIDED,
    )  # fmt: skip
    guided = replace(model, guidance=Guidance(((Branch.UNCOND, Branch.COND),)))  # so that the probe may ask for both

    def probe() -> None:
        negative = None if family.whole_numbers else ("",)
        sampling = replace(_small(guided), negative=negative, guidance=3.0)
        embeds = guided.embeddings(sampling, Branch.COND) | guided.embeddings(sampling, Branch.UNCOND)
        with torch.no_grad():
            pipeline(**guided.arguments(sampling, embeds))

    guidance = measure(probe, network, pipeline.scheduler, 3.0)
    return _measured(replace(model, guidance=guidance))


def _small(model: Denoiser) -> Sampling:
    """One step of one small picture."""
    side = 16 * getattr(model.pipeline, "vae_scale_factor", 8)
    sized = "height" in inspect.signature(type(model.pipeline).__call__).parameters
    options = MappingProxyType({"height": side, "width": side} if sized else {})
    return Sampling((0,) if model.family.whole_numbers else ("a",), None, (0,), 1, 0.0, options)


def _measured(model: Denoiser) -> Denoiser:
    """The model with the width of every site, and without sites that a step never reaches."""
    shapes: dict[Site, torch.Size] = {}
    sampling = _small(model)
    with suppress(UnfiredError), tapped(_watch_shapes(model.text, shapes), 1, first=True):
        embeds = model.embeddings(sampling, Branch.COND)
    own = [Site("latents"), Site("prediction"), *([] if model.time_embed is None else [Site("time_embed")])]
    inner = [
        Site(part, address)
        for address, block in model.blocks.items()
        for part in block.taps
        if part not in ATTENTION_PARTS
    ]
    taps = {site: model.tap(site) for site in [*own, *inner]}
    with torch.no_grad(), suppress(UnfiredError), tapped(_watch_shapes(taps, shapes), 1):
        model.pipeline(**model.arguments(sampling, embeds))
    for address, block in model.blocks.items():
        for part in [part for part in block.taps if part not in ATTENTION_PARTS and Site(part, address) not in shapes]:
            del block.taps[part]
            if part.endswith("_attn_out"):  # the whole module is never called
                for inside in ("scores", "pattern"):
                    del block.taps[part.replace("attn_out", inside)]
    text = {site: tap for site, tap in model.text.items() if site in shapes}
    return replace(model, text=text, widths={site: shape[-1] for site, shape in shapes.items()})


def _watch_shapes(taps: Mapping[Site, Tap], shapes: dict) -> list[tuple[str, Tap, Watcher]]:
    def watch(site: Site) -> Watcher:
        return lambda x: shapes.__setitem__(site, x.shape)

    return [(str(site), tap, watch(site)) for site, tap in taps.items()]
