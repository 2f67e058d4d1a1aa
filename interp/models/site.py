"""Where in a model: `Site(part, layer, head)`.

A site names an activation, never a position: positions belong to the prompt, and so to the edit; nor a denoising
step or guidance branch, which belong to the edit's `When`.

Language models, whose layers are numbers. The shape is what a capture returns (a chosen head drops its axis):

| part | activation | shape |
|---|---|---|
| `embed` | output of the token embedding | batch pos d_model |
| `resid_pre` `resid_mid` `resid_post` | the stream before attention, between, after the MLP | batch pos d_model |
| `attn_out` `mlp_out` | what attention, and the MLP, add to the residual stream | batch pos d_model |
| `q` `k` `v` | projections, before rotary embedding and q/k norms | batch pos head d_head (kv_head for k, v) |
| `attn_scores` `attn_pattern` | scaled, masked scores; weights after the softmax | batch head query key |
| `z` | attention-weighted values, per head, before the output projection | batch pos head d_head |
| `head_result` | one head's share of the output projection, without its bias | batch pos head d_model |
| `mlp_pre` `mlp_act` | input of the non-linearity (of a gate); of the down projection | batch pos d_mlp |
| `final_norm` | output of the last norm | batch pos d_model |
| `logits` | output of the model, soft-capped where the model does | batch pos d_vocab |

Denoisers of diffusion pipelines, whose layers are block addresses: `"down.1.0"` is the first resnet of the second
down block with the attention behind it, `"down.1.0.3"` the fourth transformer block in there, `"down.1"` the whole
block with its downsampler; `"mid.0"`, `"up.2.1"`; `"block.7"` a block of a diffusion transformer, `"single.7"` one
of Flux's single-stream blocks. Positions are spatial cells, row by row:

| part | activation | shape |
|---|---|---|
| `latents` | x_t as the denoiser receives it, scaled by the scheduler | batch pos channel |
| `time_embed` | the embedding of the timestep, before it reaches the blocks | batch 1 channel |
| `resnet_out` | output of a residual block of convolutions | batch pos channel |
| `block_out` | the stream after a block; in the down path the later skip carries the same value | batch pos channel |
| `block_update` | what an attention stage changes: its output − its input | batch pos channel |
| `self_attn_out` `cross_attn_out` `ff_out` | what each returns, before any gate of adaptive norms | batch pos channel |
| `joint_attn_out` | the image half of what a joint attention (SD3, Flux) returns | batch pos channel |
| `self_q` `self_k` `self_v` `self_z`, `cross_q` … `cross_z` | of the two attentions | batch pos head d_head |
| `self_scores` `cross_scores` `joint_scores` | scaled, masked scores of an attention | batch head query key |
| `self_pattern` `cross_pattern` `joint_pattern` | its weights after the softmax | batch head query key |
| `skip` | the tensor that `"up.i.j"` takes over from the down path | batch pos channel |
| `prediction` | output of the denoiser (ε, v or velocity), before guidance | batch pos channel |

Positions of `cross_k` and `cross_v` are tokens, as are the keys of a cross-attention; queries are cells. In a joint
attention queries and keys are the cells of the picture, then the tokens of the prompt. A pipeline's text encoders have
the language model's parts at the addresses `"text.3"` (`"text2.3"`, `"text3.3"`), and `"text"` for `embed` and
`final_norm`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from interp.errors import SiteError, nearest

LAYER_PARTS = (
    "resid_pre", "q", "k", "v", "attn_scores", "attn_pattern", "z", "head_result", "attn_out",
    "resid_mid", "mlp_pre", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
"""The parts of one layer, in the order in which a forward pass computes them."""

PARTS = ("embed", *LAYER_PARTS, "final_norm", "logits")
HEAD_PARTS = frozenset({"q", "k", "v", "z", "attn_scores", "attn_pattern", "head_result"})
ATTENTION_MAPS = tuple(f"{kind}_{what}" for kind in ("self", "cross", "joint") for what in ("scores", "pattern"))
"""What a denoiser's attentions compute inside."""
ATTENTION_PARTS = frozenset({"attn_scores", "attn_pattern", *ATTENTION_MAPS})
"""The parts of [batch, head, query, key], in either kind of model."""
ATTENTION_PROJECTIONS = tuple(f"{kind}_{what}" for kind in ("self", "cross") for what in "qkvz")
BLOCK_PARTS = (
    "resnet_out", "self_attn_out", "cross_attn_out", "joint_attn_out", "ff_out", "block_update", "block_out", "skip",
    *ATTENTION_PROJECTIONS, *ATTENTION_MAPS,
)  # fmt: skip
"""The parts of a denoiser's block."""
DENOISER_PARTS = ("latents", "time_embed", *BLOCK_PARTS, "prediction")
TEXT_PARTS = ("embed", "resid_pre", "attn_out", "mlp_out", "resid_post", "final_norm")
"""The parts of a text encoder that a pipeline serves."""

_ADDRESS = re.compile(r"(down|mid|up|block|single|text|text2|text3)(\.\d+)*")

# TransformerLens's name of each part: the lingua franca of the field's files.
_LENS_NAMES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "attn_pattern": "blocks.{}.attn.hook_pattern",
    "z": "blocks.{}.attn.hook_z",
    "head_result": "blocks.{}.attn.hook_result",
    "mlp_pre": "blocks.{}.mlp.hook_pre",
    "mlp_act": "blocks.{}.mlp.hook_post",
    "final_norm": "ln_final.hook_normalized",
    "logits": "unembed.hook_out",
}
# The canonical names of TransformerLens 4, accepted as well.
_LENS_ALIASES = {
    "embed.hook_out": "embed",
    "blocks.{}.hook_in": "resid_pre",
    "blocks.{}.hook_out": "resid_post",
    "blocks.{}.attn.q.hook_out": "q",
    "blocks.{}.attn.k.hook_out": "k",
    "blocks.{}.attn.v.hook_out": "v",
    "blocks.{}.attn.hook_out": "attn_out",
    "blocks.{}.mlp.hook_out": "mlp_out",
    "ln_final.hook_out": "final_norm",
}
_PART_OF_LENS_NAME = {name: part for part, name in _LENS_NAMES.items()} | _LENS_ALIASES


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a model.

    Args:
        part: one of `PARTS`, or of `DENOISER_PARTS`.
        layer: counted from 0, or a block address; `None` for `embed`, `final_norm`, `logits` of a language model and
            for `latents`, `time_embed`, `prediction` of a denoiser.
        head: query head (`q`, `z`, `head_result`, scores and patterns) or key/value head (`k`, `v`); `None` means all
            heads.

    Raises:
        SiteError: an unknown part, a layer where there is none (or none where one is needed), an address that is
            none, a head on a part without heads.
    """

    part: str
    layer: Any = None  # int, str or None: either kind of model knows which of them it has
    head: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS and self.part not in DENOISER_PARTS:
            raise SiteError(f"There is no part {self.part!r}." + nearest(str(self.part), (*PARTS, *DENOISER_PARTS)))
        if isinstance(self.layer, str):
            self._check_address(self.layer)
        elif self.part in DENOISER_PARTS and (self.layer is not None or self.part in BLOCK_PARTS):
            wants = "needs a block address, like 'up.1.0'" if self.part in BLOCK_PARTS else "belongs to no block"
            raise SiteError(f"Part {self.part!r} {wants}; got layer={self.layer!r}.")
        elif self.part in PARTS and (self.layer is None) == (self.part in LAYER_PARTS):
            wants = "needs a layer" if self.part in LAYER_PARTS else "belongs to no layer"
            raise SiteError(f"Part {self.part!r} {wants}; got layer={self.layer}.")
        having = (*(p for p in LAYER_PARTS if p in HEAD_PARTS), *ATTENTION_PROJECTIONS, *ATTENTION_MAPS)
        if self.head is not None and self.part not in having:
            raise SiteError(
                f"Part {self.part!r} has no heads; got head={self.head}. Parts with heads: {', '.join(having)}."
            )

    def _check_address(self, address: str) -> None:
        if not _ADDRESS.fullmatch(address):
            raise SiteError(
                f"{address!r} is no block address; these are: 'down.1.0', 'mid.0', 'up.2.1', 'block.7', 'text.3'."
            )
        wanted = TEXT_PARTS if address.startswith("text") else BLOCK_PARTS
        if self.part not in wanted:
            raise SiteError(f"There is no part {self.part!r} at {address!r}." + nearest(self.part, wanted))

    @classmethod
    def parse(cls, name: str) -> Site:
        """The site of a TransformerLens hook name, or of our own `str(site)`.

        `Site.parse("blocks.5.attn.hook_z") == Site.parse("L5.z") == Site("z", 5)`;
        `Site.parse("up.1.0.cross_attn_out") == Site("cross_attn_out", "up.1.0")`.
        """
        if own := re.fullmatch(r"(?:L(\d+)(?:H(\d+))?\.)?(\w+)", name):
            layer, head, part = own.groups()
            if part in PARTS or part in DENOISER_PARTS:
                return cls(part, *(None if n is None else int(n) for n in (layer, head)))
        if own := re.fullmatch(rf"({_ADDRESS.pattern})(?:\.H(\d+))?\.([a-z]\w+)", name):
            address, head, part = own.group(1), own.group(4), own.group(5)
            return cls(part, address, None if head is None else int(head))
        layer = re.search(r"blocks\.(\d+)\.", name)
        part = _PART_OF_LENS_NAME.get(re.sub(r"blocks\.\d+\.", "blocks.{}.", name))
        if part is None:
            known = [n.format(layer.group(1) if layer else "0") for n in _PART_OF_LENS_NAME]
            raise SiteError(f"{name!r} is neither a site nor a known hook name." + nearest(name, known))
        return cls(part, int(layer.group(1)) if layer else None)

    @property
    def lens_name(self) -> str:
        """TransformerLens's name of this activation (which knows no single head, and no denoiser)."""
        if self.part not in _LENS_NAMES or isinstance(self.layer, str):
            raise SiteError(f"{self}: TransformerLens has no name for it.")
        return _LENS_NAMES[self.part].format(self.layer)

    @property
    def all_heads(self) -> Site:
        """The same activation with every head."""
        return self if self.head is None else replace(self, head=None)

    def __str__(self) -> str:
        if isinstance(self.layer, str):
            return ".".join([self.layer, *([] if self.head is None else [f"H{self.head}"]), self.part])
        where = "" if self.layer is None else f"L{self.layer}"
        where += "" if self.head is None else f"H{self.head}"
        return f"{where}.{self.part}" if where else self.part
