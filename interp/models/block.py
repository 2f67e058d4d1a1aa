"""One block at a time, over packed tokens.

A sweep's rows enter the network at different layers and positions, so no forward pass of the whole
network serves them all. Here a block is a few steps, each a call of the network's own modules on a
matrix of tokens [token, d_model] whose rows may belong to any prompt at any position:

    pre-norm     mid = x + attn(norm1(x))                 post = mid + mlp(norm2(mid))
    sandwich     mid = x + norm(attn(norm1(x)))           post = mid + norm(mlp(norm2(mid)))
    parallel     post = x + attn(norm1(x)) + mlp(norm2(x))

Attention goes to a core of the caller's, through a shadow of the attention module: the same parameters
and submodules, another configuration. That this equals the network's own forward pass is proved when
a model is loaded (`interp.models.checks`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.hooks import routed_config
from interp.models.language_model import LanguageModel

PackedCore = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""(query, key, value, how), each [token, head, d_head] → z [token, head, d_head]."""


class Blocks:
    """The blocks of a model, step by step; holds no state but views of the modules."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._shadows = [_shadow(layer.attn) for layer in model.layers if layer.attn is not None]

    def attention(
        self,
        layer: int,
        x: Float[Tensor, "token d_model"],
        rope: tuple[Float[Tensor, "token d_rope"], ...] | None,
        position: Int[Tensor, "token"],
        core: PackedCore,
    ) -> Float[Tensor, "token d_model"]:
        """Output of the attention module (before any norm of the sandwich) for the normed stream of `x`."""

        def unpacked(_module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **how: Any):
            query, key, value = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
            return core(query, key, value, how)[None]

        modules = self.model.layers[layer]
        kwargs: dict[str, Any] = {"attention_mask": None, "position_ids": position[None], "interp_core": unpacked}
        if rope is not None:
            kwargs["position_embeddings"] = tuple(table[None] for table in rope)
        normed = x if modules.norm1 is None else modules.norm1(x)
        return self._shadows[layer](normed[None], **kwargs)[0].squeeze(0)

    def project_heads(self, layer: int, z: Float[Tensor, "token head d_head"]) -> Float[Tensor, "token d_model"]:
        """The output projection alone: what the attention module returns for these z."""
        output = self.model.layers[layer].o
        assert output is not None
        return output(z.flatten(-2)[None]).squeeze(0)

    def attn_out(self, layer: int, projected: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What attention adds to the residual stream."""
        norm = self.model.layers[layer].post_attn_norm
        return projected if norm is None else norm(projected)

    def mlp_out(
        self, layer: int, resid_pre: Float[Tensor, "token d_model"], resid_mid: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        """What the MLP adds to the residual stream; a parallel block's MLP reads `resid_pre`."""
        modules = self.model.layers[layer]
        assert modules.norm2 is not None and modules.mlp is not None
        out = modules.mlp(modules.norm2(resid_pre if self.model.family.parallel else resid_mid)[None]).squeeze(0)
        return out if modules.post_mlp_norm is None else modules.post_mlp_norm(out)

    def final_norm(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The norm before the unembedding."""
        return x if self.model.final_norm is None else self.model.final_norm(x)


def rope_tables(kwargs: dict[str, Any]) -> tuple[Tensor, ...] | None:
    """Rotary tables [pos, d_rope] among the arguments of an attention module, `None` if it has none.

    The tables must have been made for positions 0, 1, 2 … of every row, as `Prompts` are laid out.
    """
    tables = kwargs.get("position_embeddings")
    return None if tables is None else tuple(table[0] for table in tables)


def _shadow(attn: nn.Module) -> nn.Module:
    shadow = copy.copy(attn)
    shadow.config = routed_config(attn.config)
    return shadow
