"""Where in a model: `Site(part, layer, head)`.

A site names an activation, never a position: positions belong to the prompt, and so to the edit.
The parts, with the shape that a capture returns (a chosen head drops the head axis):

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
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from interp.errors import SiteError, nearest

LAYER_PARTS = (
    "resid_pre", "q", "k", "v", "attn_scores", "attn_pattern", "z", "head_result", "attn_out",
    "resid_mid", "mlp_pre", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
"""The parts of one layer, in the order in which a forward pass computes them."""

PARTS = ("embed", *LAYER_PARTS, "final_norm", "logits")
HEAD_PARTS = frozenset({"q", "k", "v", "z", "attn_scores", "attn_pattern", "head_result"})
ATTENTION_PARTS = frozenset({"attn_scores", "attn_pattern"})

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
        part: one of `PARTS`.
        layer: counted from 0; `None` for `embed`, `final_norm`, `logits`.
        head: query head (`q`, `z`, `attn_scores`, `attn_pattern`, `head_result`) or key/value head
            (`k`, `v`); `None` means all heads.

    Raises:
        SiteError: an unknown part, a layer where there is none (or none where one is needed), a
            head on a part without heads.
    """

    part: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise SiteError(f"There is no part {self.part!r}." + nearest(str(self.part), PARTS))
        if (self.layer is None) == (self.part in LAYER_PARTS):
            wants = "needs a layer" if self.part in LAYER_PARTS else "belongs to no layer"
            raise SiteError(f"Part {self.part!r} {wants}; got layer={self.layer}.")
        if self.head is not None and self.part not in HEAD_PARTS:
            raise SiteError(
                f"Part {self.part!r} has no heads; got head={self.head}. "
                f"Parts with heads: {', '.join(p for p in LAYER_PARTS if p in HEAD_PARTS)}."
            )

    @classmethod
    def parse(cls, name: str) -> Site:
        """The site of a TransformerLens hook name, or of our own `str(site)`.

        `Site.parse("blocks.5.attn.hook_z") == Site.parse("L5.z") == Site("z", 5)`.
        """
        if own := re.fullmatch(r"(?:L(\d+)(?:H(\d+))?\.)?(\w+)", name):
            layer, head, part = own.groups()
            if part in PARTS:
                return cls(part, *(None if n is None else int(n) for n in (layer, head)))
        layer = re.search(r"blocks\.(\d+)\.", name)
        part = _PART_OF_LENS_NAME.get(re.sub(r"blocks\.\d+\.", "blocks.{}.", name))
        if part is None:
            known = [n.format(layer.group(1) if layer else "0") for n in _PART_OF_LENS_NAME]
            raise SiteError(f"{name!r} is neither a site nor a known hook name." + nearest(name, known))
        return cls(part, int(layer.group(1)) if layer else None)

    @property
    def lens_name(self) -> str:
        """TransformerLens's name of this activation (which knows no single head)."""
        return _LENS_NAMES[self.part].format(self.layer)

    @property
    def all_heads(self) -> Site:
        """The same activation with every head."""
        return self if self.head is None else replace(self, head=None)

    def __str__(self) -> str:
        where = "" if self.layer is None else f"L{self.layer}"
        where += "" if self.head is None else f"H{self.head}"
        return f"{where}.{self.part}" if where else self.part
