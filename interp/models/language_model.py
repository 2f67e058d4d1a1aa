"""A language model as the toolkit sees it: an untouched network, its tokenizer, and its sites."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import SiteError, nearest
from interp.models.families import Family
from interp.models.hooks import stopping_at
from interp.models.prompts import Prompts, from_tensor, tokenize
from interp.models.site import ATTENTION_PARTS, LAYER_PARTS, PARTS, Site
from interp.models.tap import Tap


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The modules of one block, looked up once. `None`: this family has no such module."""

    block: nn.Module
    attn: nn.Module | None
    norm1: nn.Module | None
    norm2: nn.Module | None
    mlp: nn.Module | None
    mlp_last: nn.Module | None
    post_attn_norm: nn.Module | None
    post_mlp_norm: nn.Module | None
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    o: nn.Module | None
    mlp_pre: nn.Module | None
    mlp_act: nn.Module | None


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model: `network` and `tokenizer` are exactly what was given.

    Nothing here changes the network: no folded weights, no modes, no permanent hooks. Make one with
    `interp.load`.
    """

    network: nn.Module
    tokenizer: Any  # of transformers; None where only token ids are given
    name: str
    family: Family
    layers: tuple[Layer, ...]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int | None
    d_vocab: int
    embed: nn.Module
    final_norm: nn.Module | None
    unembed: nn.Module
    softcap: float | None
    untouchable: dict[str, str] = field(default_factory=dict)
    """Parts that this model cannot serve, and why."""
    not_replayable: str | None = None
    """Why blocks cannot be run one by one (`interp.models.block`); None where they can."""
    runner: Any = None
    """Who runs the forward pass, when it is not this process's own PyTorch (see `interp.models.remote`)."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the unembedding is."""
        return weight_of(self.unembed).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return weight_of(self.unembed).dtype

    def forward(self, prompts: Prompts) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a plain forward pass."""
        padded = int(prompts.lengths.min()) < prompts.ids.shape[1]
        mask = {"attention_mask": prompts.mask.long()} if padded else {}
        return self.network(input_ids=prompts.ids, use_cache=False, **mask).logits

    def forward_to_unembedding(self, prompts: Prompts) -> None:
        """A forward pass that ends where the unembedding would begin; for what hooks see on the way."""
        with stopping_at(self.unembed):
            self.forward(prompts)

    def prompts(self, text: str | Sequence[str] | Prompts | Tensor, mask: Tensor | None = None) -> Prompts:
        """Tokenised prompts from text, or from padded token ids with their attention mask."""
        if isinstance(text, Prompts):
            return text
        if isinstance(text, Tensor):
            return from_tensor(self.tokenizer, text.to(self.device), None if mask is None else mask.to(self.device))
        return tokenize(self.tokenizer, text, device=self.device)

    def sites(self, part: str) -> tuple[Site, ...]:
        """Every site of a part: one per layer, or the only one."""
        if part not in PARTS:
            raise SiteError(f"There is no part {part!r}." + nearest(part, PARTS))
        if part not in LAYER_PARTS:
            return (self.check(Site(part)),)
        return tuple(self.check(Site(part, layer)) for layer in range(self.n_layers))

    def check(self, site: Site | str) -> Site:
        """The site, if this model has it.

        Raises:
            SiteError: no such layer or head, or a part that this model cannot serve (with the reason).
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if reason := self.untouchable.get(site.part):
            raise SiteError(f"{self.name} cannot serve {site.part!r}: {reason}.")
        if site.layer is not None and not 0 <= site.layer < self.n_layers:
            raise SiteError(
                f"{site}: {self.name} has {self.n_layers} layers, numbered 0 to {self.n_layers - 1}; "
                f"the nearest is {min(max(site.layer, 0), self.n_layers - 1)}."
            )
        heads = self.heads_of(site.part)
        if site.head is not None and heads is not None and not 0 <= site.head < heads:
            kind = "key/value heads (grouped-query attention)" if site.part in "kv" else "heads"
            raise SiteError(
                f"{site}: {self.name} has {heads} {kind}, numbered 0 to {heads - 1}; "
                f"the nearest is {min(max(site.head, 0), heads - 1)}."
            )
        return site

    def heads_of(self, site: Site | str) -> int | None:
        """Number of heads on the head axis of a site or part, `None` without one."""
        part = site if isinstance(site, str) else site.part
        if part in ("k", "v"):
            return self.n_kv_heads
        return self.n_heads if part in ("q", "z", "head_result") or part in ATTENTION_PARTS else None

    def width_of(self, site: Site | str) -> int | None:
        """Size of the last axis of a site or part; `None` for attention scores and patterns (the keys)."""
        part = site if isinstance(site, str) else site.part
        if part in ATTENTION_PARTS:
            return None
        if part in ("q", "k", "v", "z"):
            return self.d_head
        return {"mlp_pre": self.d_mlp, "mlp_act": self.d_mlp, "logits": self.d_vocab}.get(part, self.d_model)

    def tap(self, site: Site) -> Tap:
        """Where a site's tensor is met in the forward pass (all heads; not for attention parts)."""
        if site.layer is None:
            module = {"embed": self.embed, "final_norm": self.final_norm, "logits": self.network}[site.part]
            assert module is not None
            return Tap(module, "output")
        layer, family = self.layers[site.layer], self.family
        match site.part:
            case "resid_pre":
                return Tap(layer.block, "input")
            case "resid_mid":
                return Tap(_found(layer.norm2), "shared_input")
            case "resid_post":
                return Tap(layer.block, "output")
            case "attn_out":
                return Tap(layer.post_attn_norm or _found(layer.attn), "output")
            case "mlp_out":
                return Tap(layer.post_mlp_norm or _found(layer.mlp_last), "output")
            case "q" | "k" | "v" as part:
                heads = self.heads_of(part)
                assert heads is not None
                module = _found(getattr(layer, part))
                if family.fused == "interleaved":
                    return Tap(module, "output", heads=heads, interleaved="qkv".index(part))
                if family.fused == "concat":
                    q, kv = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
                    start = {"q": 0, "k": q, "v": q + kv}[part]
                    return Tap(module, "output", start, q if part == "q" else kv, heads)
                return Tap(module, "output", heads=heads)
            case "z":
                return Tap(_found(layer.o), "input", heads=self.n_heads)
            case "mlp_pre":
                return Tap(_found(layer.mlp_pre), "output", 0, self.d_mlp if family.mlp_pre_half else None)
            case "mlp_act":
                return Tap(_found(layer.mlp_act), "input")
        raise SiteError(f"{site} is not a tensor at a module's side.")

    def head_projection(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """The output projection, per head (without its bias)."""
        module = _found(self.layers[layer].o)
        # GPT-2's Conv1D stores [in, out]; everything else is a Linear, [out, in].
        weight = weight_of(module) if type(module).__name__ == "Conv1D" else weight_of(module).T
        return weight.unflatten(0, (self.n_heads, self.d_head))

    def unembed_columns(
        self, final_norm: Float[Tensor, "... d_model"], columns: Int[Tensor, "... column"] | None = None
    ) -> Float[Tensor, "... column"]:
        """Logits from the output of the last norm: of the whole vocabulary, or of some columns per row."""
        if columns is None:
            logits = self.unembed(final_norm)
        else:
            weight, bias = weight_of(self.unembed)[columns], getattr(self.unembed, "bias", None)
            logits = torch.einsum("...d,...cd->...c", final_norm, weight)
            if bias is not None:
                logits = logits + bias[columns]
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over every parameter's name, shape, type and bytes (first 16 hex digits)."""

        def digest(item: tuple[str, Tensor]) -> bytes:
            name, weight = item
            data = weight.detach().cpu().contiguous()
            head = f"{name} {tuple(data.shape)} {data.dtype}".encode()
            return hashlib.sha256(head + data.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()

        with ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(digest, self.network.named_parameters()))).hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name}: {type(self.network).__name__}, {self.n_layers} layers, "
            f"{self.n_heads} heads, d_model {self.d_model}, {str(self.dtype).removeprefix('torch.')})"
        )


def weight_of(module: nn.Module) -> Tensor:
    """A module's `weight`, which torch's types take for a tensor or a submodule."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _found(module: nn.Module | None) -> nn.Module:
    assert module is not None, "checked by LanguageModel.check"
    return module
