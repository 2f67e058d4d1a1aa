"""Proofs, run when a model is loaded, that sites mean what they say on *this* model.

On two short prompts of different length: hooks that change nothing leave the logits bit for bit; every
site fires; the residual stream is the sum of its parts; the heads' results sum to the attention
module's output; and running block by block gives the network's own logits. Hook tables that are
wrong for a checkpoint, a fused kernel that bypasses a module, a new residual scaling: each shows here,
before a number does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.errors import LoadError
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.block import Blocks, rope_tables
from interp.models.hooks import attention_options, original_attention, routed, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, LAYER_PARTS, Site


@torch.no_grad()
def prove(model: LanguageModel) -> str | None:
    """Check the sites of a model; returns why it cannot be replayed block by block, or None.

    Raises:
        LoadError: weights or logits that are not finite, or a proof that fails.
        UnfiredError: a module in the family's table that the forward pass does not call.
    """
    for name, weight in model.network.named_parameters():
        if not torch.isfinite(weight).all():
            raise LoadError(f"{model.name}: weight {name} holds NaN or infinite values; nothing can be measured on it.")
    prompts = _probe(model)
    plain = model.forward(prompts)[prompts.mask]
    if not torch.isfinite(plain).all():
        raise LoadError(f"{model.name}: the logits of a plain forward pass are not finite.")
    states: dict[Site, Tensor] = {}
    sites = [Site(part, layer) for layer in range(model.n_layers) for part in LAYER_PARTS if _tappable(model, part)]
    watchers = [(str(s), model.tap(s), lambda x, s=s: states.__setitem__(s, x.clone())) for s in sites]
    with tapped(watchers, len(prompts)):
        watched = model.forward(prompts)[prompts.mask]
    if not torch.equal(plain, watched):
        raise LoadError(f"{model.name}: hooks that change nothing changed the logits; is the network deterministic?")
    for layer in range(model.n_layers):
        _prove_sums(model, layer, {site.part: x[prompts.mask] for site, x in states.items() if site.layer == layer})
    if model.not_replayable:
        return model.not_replayable
    off = (replay(model, prompts) - plain).abs().max()
    if off > tolerance(plain):
        return f"run block by block, its logits are off by {off:.1e}"
    return None


def _probe(model: LanguageModel) -> Prompts:
    ids = torch.arange(1, 15, device=model.device).view(2, 7) * max(1, model.d_vocab // 15) % model.d_vocab
    lengths = torch.tensor([7, 5], device=model.device)
    return Prompts(ids, lengths, tuple(tuple(map(str, row[:n])) for row, n in zip(ids.tolist(), (7, 5), strict=True)))


def _tappable(model: LanguageModel, part: str) -> bool:
    return part not in model.untouchable and part not in ATTENTION_PARTS and part != "head_result"


def tolerance(like: Tensor) -> float:
    """How far two orders of the same additions may lie apart at this type and magnitude."""
    return min(1e4 * torch.finfo(like.dtype).eps, 0.1) * max(1.0, float(like.abs().max()))


def _prove_sums(model: LanguageModel, layer: int, states: dict[str, Tensor]) -> None:
    post = states["resid_post"]
    sums = {"resid_pre + attn_out + mlp_out = resid_post": (("resid_pre", "attn_out", "mlp_out"), post)}
    if "resid_mid" in states:
        sums["resid_pre + attn_out = resid_mid"] = (("resid_pre", "attn_out"), states["resid_mid"])
    for claim, (parts, total) in sums.items():
        if any(part not in states for part in parts):
            continue
        off = (sum(states[part] for part in parts) - total).abs().max()
        if off > tolerance(post):
            raise LoadError(
                f"{model.name}, layer {layer}: {claim} is off by {off:.1e}. This block adds something the table of "
                "interp.models.families does not know (a residual scale, a norm, a third branch)."
            )
    if "z" in states and model.layers[layer].post_attn_norm is None and "attn_out" in states:
        results = torch.einsum("bhd,hde->be", states["z"], model.head_projection(layer))
        bias = getattr(model.layers[layer].o, "bias", None)
        off = (results + (0 if bias is None else bias) - states["attn_out"]).abs().max()
        if off > tolerance(post):
            raise LoadError(f"{model.name}, layer {layer}: the heads' results do not sum to attn_out (off by {off:.1e}).")


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
    segments = [Segment(offset, 1, 0, length, b) for b, (offset, length) in enumerate(zip(offsets, lengths, strict=True))]
    position = torch.nonzero(prompts.mask)[:, 1]

    def core(layer: int):
        def attend(query: Tensor, key: Tensor, value: Tensor, how: dict[str, Any]) -> Tensor:
            nothing = key.new_empty(len(lengths), 0, *key.shape[1:])
            options = attention_options(modules[layer].config, how)
            return segment_attention(query, key, value, nothing, nothing, segments, **options)

        return attend

    blocks, x = Blocks(model), inputs[0]
    for layer in range(model.n_layers):
        rope = None if ropes[layer] is None else tuple(table[position] for table in ropes[layer])
        attn = blocks.attn_out(layer, blocks.attention(layer, x, rope, position, core(layer)))
        mid = x + attn
        x = mid + blocks.mlp_out(layer, x, mid)
    return model.unembed_columns(blocks.final_norm(x))

