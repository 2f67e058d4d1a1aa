"""Proofs, run when a model is loaded, that sites mean what they say on *this* model.

On two short prompts of different length: hooks that change nothing leave the logits bit for bit; every
site fires; the residual stream is the sum of its parts; the heads' results sum to the attention
module's output; and running block by block gives the network's own logits. Hook tables that are
wrong for a checkpoint, a fused kernel that bypasses a module, a new residual scaling: each shows here,
before a number does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import LoadError
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.block import Blocks, rope_tables
from interp.models.families import REFUSED
from interp.models.hooks import attention_options, original_attention, routed, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, LAYER_PARTS, Site


@torch.no_grad()
def prove_sums(model: LanguageModel) -> dict[str, str]:
    """Check that hooks are silent, sites fire, and parts add up; returns parts that do not, and why.

    Raises:
        LoadError: weights or logits that are not finite, hooks that change the logits, or, in a family
            of our own table, parts that do not add up.
        UnfiredError: a module in the family's table that the forward pass does not call.
    """
    for name, weight in model.network.named_parameters():
        if not torch.isfinite(weight).all():
            raise LoadError(f"{model.name}: weight {name} holds NaN or infinite values; nothing can be measured on it.")
    prompts = _probe(model)
    plain = model.forward(prompts)[prompts.mask]
    if not torch.isfinite(plain).all():
        raise LoadError(f"{model.name}: the logits of a plain forward pass are not finite.")
    _prove_causal(model, prompts, plain)
    states: dict[Site, Tensor] = {}
    sites = [Site(part, layer) for layer in range(model.n_layers) for part in LAYER_PARTS if _tappable(model, part)]
    watchers = [(str(s), model.tap(s), lambda x, s=s: states.__setitem__(s, x.clone())) for s in sites]
    with tapped(watchers, len(prompts)):
        watched = model.forward(prompts)[prompts.mask]
    if not torch.equal(plain, watched):
        raise LoadError(f"{model.name}: hooks that change nothing changed the logits; is the network deterministic?")
    wrong: dict[str, str] = {}
    for layer in range(model.n_layers):
        here = {site.part: x[prompts.mask] for site, x in states.items() if site.layer == layer}
        wrong |= _wrong_sums(model, layer, here)
    if wrong and model.family.replayable:
        raise LoadError(f"{model.name}: {'; '.join(dict.fromkeys(wrong.values()))}.")
    return wrong


@torch.no_grad()
def prove_replay(model: LanguageModel) -> str | None:
    """Check that running block by block gives the network's logits; returns why not, or None."""
    if model.not_replayable:
        return model.not_replayable
    prompts = _probe(model)
    plain = model.forward(prompts)[prompts.mask]
    off = (replay(model, prompts) - plain).abs().max()
    # Explicit attention takes its softmax in float32 whatever the model's type, and is no more exact than that.
    attentions = [layer.attn for layer in model.layers if layer.attn is not None]
    explicit = any(getattr(attn.config, "_attn_implementation", None) == "eager" for attn in attentions)
    allowed = tolerance(plain.float() if explicit else plain)
    return f"run block by block, its logits are off by {off:.1e}" if off > allowed else None


def _prove_causal(model: LanguageModel, prompts: Prompts, plain: Tensor) -> None:
    """A prompt's last token must not reach the logits of the tokens before it."""
    ids = prompts.ids.clone()
    last = (torch.arange(len(ids), device=ids.device), prompts.lengths - 1)
    ids[last] = (ids[last] + 1) % model.d_vocab
    other = model.forward(replace(prompts, ids=ids))[prompts.mask]
    before = torch.ones_like(prompts.mask)
    before[last] = False
    if (other - plain)[before[prompts.mask]].abs().max() > tolerance(plain):
        raise LoadError(f"{model.name} is refused: {REFUSED['bidirectional']}.")


def _probe(model: LanguageModel) -> Prompts:
    ids = torch.arange(1, 15, device=model.device).view(2, 7) * max(1, model.d_vocab // 15) % model.d_vocab
    lengths = torch.tensor([7, 5], device=model.device)
    return Prompts(ids, lengths, tuple(tuple(map(str, row[:n])) for row, n in zip(ids.tolist(), (7, 5), strict=True)))


def _tappable(model: LanguageModel, part: str) -> bool:
    return part not in model.untouchable and part not in ATTENTION_PARTS and part != "head_result"


def tolerance(like: Tensor) -> float:
    """How far two orders of the same additions may lie apart at this type and magnitude."""
    return min(1e4 * torch.finfo(like.dtype).eps, 0.1) * max(1.0, float(like.abs().max()))


def _wrong_sums(model: LanguageModel, layer: int, states: dict[str, Tensor]) -> dict[str, str]:
    """Parts whose claimed sum does not hold at this layer, and by how much."""
    post, wrong = states["resid_post"], {}

    def claim(parts: tuple[str, ...], total: Tensor, what: str, blamed: tuple[str, ...]) -> None:
        if all(part in states for part in parts):
            off = (sum(states[part] for part in parts) - total).abs().max()
            if off > tolerance(post):
                wrong.update(dict.fromkeys(blamed, f"at layer {layer}, {what} is off by {off:.1e}"))

    everything = ("resid_pre", "attn_out", "mlp_out")
    claim(everything, post, "resid_pre + attn_out + mlp_out − resid_post", ("attn_out", "mlp_out"))
    if "resid_mid" in states:
        claim(everything[:2], states["resid_mid"], "resid_pre + attn_out − resid_mid", ("attn_out", "resid_mid"))
    if "z" in states and "attn_out" in states and model.layers[layer].post_attn_norm is None:
        results = torch.einsum("bhd,hde->be", states["z"], model.head_projection(layer))
        bias = getattr(model.layers[layer].o, "bias", None)
        off = (results + (0 if bias is None else bias) - states["attn_out"]).abs().max()
        if off > tolerance(post):
            wrong["head_result"] = f"at layer {layer}, the heads' results do not sum to attn_out (off by {off:.1e})"
    return wrong


def replay(model: LanguageModel, prompts: Prompts) -> Tensor:
    """Logits of every token [token, d_vocab], computed block by block over the packed prompts."""
    inputs: list[Tensor] = []
    watcher = ("resid_pre", model.tap(Site("resid_pre", 0)), lambda x: inputs.append(x[prompts.mask]))
    modules = [layer.attn for layer in model.layers if layer.attn is not None]
    originals = {module: original_attention(module) for module in modules}
    with tapped([watcher], len(prompts)), routed(originals) as calls:
        model.forward(prompts)
    ropes = [rope_tables(calls[module]) for module in modules]
    lengths = prompts.lengths.tolist()
    offsets = [sum(lengths[:b]) for b in range(len(lengths))]
    segments = [
        Segment(slice(offset, offset + length), 1, 0, length, b)
        for b, (offset, length) in enumerate(zip(offsets, lengths, strict=True))
    ]
    position = torch.nonzero(prompts.mask)[:, 1]

    def core(layer: int):
        def attend(query: Tensor, key: Tensor, value: Tensor, how: dict[str, Any]) -> Tensor:
            nothing = key.new_empty(len(lengths), 0, *key.shape[1:])
            options = attention_options(modules[layer].config, how)
            return segment_attention(query, key, value, nothing, nothing, segments, **options)

        return attend

    blocks, x = Blocks(model), inputs[0]
    for layer in range(model.n_layers):
        tables = ropes[layer]
        rope = None if tables is None else tuple(table[position] for table in tables)
        attn = blocks.attn_out(layer, blocks.attention(layer, x, rope, position, core(layer)))
        mid = x + attn
        x = mid + blocks.mlp_out(layer, x, mid)
    return model.unembed_columns(blocks.final_norm(x))
