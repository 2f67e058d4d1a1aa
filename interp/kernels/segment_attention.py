"""Causal attention over packed rows that share a prefix.

The rows of a sweep differ from the base run only from some position on. A *segment* is a set of rows
of one example, packed one after the other, that are live from position `start` or a little later; each
attends to the base run's keys and values before its own first token and to its own from there on.
Nothing of the base run is stored once per row. Rows that begin later than the segment are filled up
with the base's keys and values, so that rows of similar length share one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EditAttention = Callable[["Segment", Tensor], Tensor]
"""(segment, [row head query key]) → the same shape, edited."""

FEW_KEYS = 48
"""Up to so many keys, explicit scores of all rows at once are quicker than a fused kernel's call per row."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of one example whose tokens are `tokens` of the packed matrix.

    Attributes:
        rows: number of rows.
        start: the position of their first token, at the earliest.
        length: they occupy positions `start` to `start + length`.
        example: whose base states they share.
        place: of each token, its flat index in [row, position − start]; `None` if every row is live from
            `start`, so that the tokens are that grid.
        source: the inverse: for each place of the grid, the token (counted from the segment's first), or
            the number of tokens plus position − start where the row is still the base run.
    """

    tokens: slice
    rows: int
    start: int
    length: int
    example: int
    place: Int[Tensor, "token"] | None = None
    source: Int[Tensor, "row position"] | None = None

    def grid(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """[row, position, …] from packed tokens; where a row is not live, `base` (or anything)."""
        x = x[self.tokens]
        if self.source is None:
            return x.unflatten(0, (self.rows, self.length))
        if base is None:
            x = x.index_select(0, self.source.flatten().clamp(max=len(x) - 1))
        else:
            x = torch.cat([x, base[self.example, self.start : self.start + self.length]])
            x = x.index_select(0, self.source.flatten())
        return x.unflatten(0, self.source.shape)

    def packed(self, grid: Tensor) -> Tensor:
        """Packed tokens from [row, position, …]."""
        flat = grid.flatten(0, 1)
        return flat if self.place is None else flat.index_select(0, self.place)


def segment_attention(
    query: Float[Tensor, "token head d_head"],
    key: Float[Tensor, "token kv_head d_head"],
    value: Float[Tensor, "token kv_head d_head"],
    prefix_key: Float[Tensor, "example pos kv_head d_head"],
    prefix_value: Float[Tensor, "example pos kv_head d_head"],
    segments: Sequence[Segment],
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    softmax_dtype: torch.dtype | None = None,
    edit_scores: EditAttention | None = None,
    edit_pattern: EditAttention | None = None,
) -> Float[Tensor, "token head d_head"]:
    """Attention output of every packed token.

    Args:
        window: a query sees at most this many keys, itself included (sliding-window layers).
        softmax_dtype: type in which the weights are computed, `None` for the queries' own. (Explicit
            attention in transformers uses float32 whatever the model's type.)
        edit_scores: changes the scaled, capped and masked scores; in a segment with `place`, rows of the
            grid that are no tokens must be left alone.
        edit_pattern: the same of the weights.
    """
    explicit = not (softcap is softmax_dtype is edit_scores is edit_pattern is None)
    out = []
    for segment in segments:
        q, k, v = segment.grid(query), segment.grid(key, prefix_key), segment.grid(value, prefix_value)
        before_k = prefix_key[segment.example, : segment.start]
        before_v = prefix_value[segment.example, : segment.start]
        if explicit or segment.start + segment.length <= FEW_KEYS:
            hidden = _hidden(segment.start, segment.length, window, q.device)
            scores = _scores(q, k, before_k, scaling, softcap)
            hidden = None if hidden is None else hidden.T[..., None]
            if hidden is not None:
                scores = scores.masked_fill(hidden, -torch.inf)
            if edit_scores is not None:
                scores = _by_head(edit_scores, segment, scores)
                if hidden is not None:  # an edit reveals no later key
                    scores = scores.masked_fill(hidden, -torch.inf)
            pattern = scores.softmax(2, dtype=softmax_dtype).to(q.dtype)
            if edit_pattern is not None:
                pattern = _by_head(edit_pattern, segment, pattern)
                if hidden is not None:
                    pattern = pattern.masked_fill(hidden, 0)
            z = _weigh(pattern, v, before_v)
        elif segment.start and window is None and q.device.type == "cpu" and not torch.is_grad_enabled():
            z = _in_two_parts(q, k, v, before_k, before_v, scaling)
        else:
            z = _fused(q, k, v, before_k, before_v, scaling, window)
        out.append(segment.packed(z))
    return out[0] if len(out) == 1 else torch.cat(out)


def _hidden(start: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    """[query, key], True where a query may not look; None where nothing is hidden."""
    if length == 1 and (window is None or start < window):
        return None
    queries = torch.arange(start, start + length, device=device)[:, None]
    keys = torch.arange(start + length, device=device)
    later = keys > queries
    return later if window is None else later | (keys <= queries - window)


def _in_two_parts(
    q: Tensor, k: Tensor, v: Tensor, before_k: Tensor, before_v: Tensor, scaling: float
) -> Float[Tensor, "row query head d_head"]:
    """Attention to the prefix and to a row's own keys, each by a fused kernel, weighed by their softmax's sums.

    The prefix is one sequence of keys for the queries of all rows, so nothing is copied once per row. The sums carry
    no gradient in PyTorch, and its public function does not return them.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, length, heads, _ = q.shape
    kv_heads = k.shape[2]
    groups = heads // kv_heads
    own_k, own_v = (x.repeat_interleave(groups, 2).transpose(1, 2) for x in (k, v))
    own, own_sum = kernel(q.transpose(1, 2), own_k, own_v, 0.0, True, scale=scaling)
    # To the prefix nothing has an order: the heads of a group, and the rows, are more queries of their key head.
    queries = q.unflatten(2, (kv_heads, groups)).permute(2, 0, 1, 3, 4).flatten(1, 3)[None]
    shared, shared_sum = kernel(
        queries, before_k.transpose(0, 1)[None], before_v.transpose(0, 1)[None], 0.0, False, scale=scaling
    )
    grid = (kv_heads, rows, length, groups)
    shared = shared[0].unflatten(1, grid[1:]).permute(1, 2, 0, 3, 4).flatten(2, 3)
    shared_sum = shared_sum.view(grid).permute(1, 2, 0, 3).flatten(2, 3)
    share = torch.sigmoid(shared_sum - own_sum.transpose(1, 2)).to(q.dtype)[..., None]
    return torch.lerp(own.transpose(1, 2), shared, share)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, before_k: Tensor, before_v: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Attention by the fused kernel that PyTorch chooses, the prefix copied for every row."""
    rows, start = q.shape[0], before_k.shape[0]
    if start:
        k = torch.cat([before_k.expand(rows, -1, -1, -1), k], 1)
        v = torch.cat([before_v.expand(rows, -1, -1, -1), v], 1)
    hidden = _hidden(start, q.shape[1], window, q.device) if start or window is not None else None
    groups = q.shape[2] // k.shape[2]
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=None if hidden is None else ~hidden, is_causal=not start and window is None,
        scale=scaling, enable_gqa=groups > 1,
    )  # fmt: skip
    return z.transpose(1, 2)


def _scores(
    q: Tensor, k: Tensor, before_k: Tensor, scaling: float, softcap: float | None
) -> Float[Tensor, "kv_head row key query group"]:
    """Scaled and capped scores; the heads of a group are more queries of their key head.

    The keys stand before the queries: a softmax over an inner axis is vectorised along the outer ones, over
    a short last axis it is not.
    """
    rows, length, heads, d_head = q.shape
    kv_heads = k.shape[2]
    groups = heads // kv_heads
    q = q.unflatten(2, (kv_heads, groups)).permute(2, 0, 1, 3, 4).reshape(kv_heads, rows, length * groups, d_head)
    scores = k.permute(2, 0, 1, 3) @ q.transpose(2, 3)
    if len(before_k):
        shared = before_k.transpose(0, 1) @ q.flatten(1, 2).transpose(1, 2)
        scores = torch.cat([shared.unflatten(2, (rows, length * groups)).transpose(1, 2), scores], 2)
    scores = scores * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.unflatten(3, (length, groups))


def _by_head(edit: EditAttention, segment: Segment, x: Tensor) -> Tensor:
    kv_heads, _, _, _, groups = x.shape
    edited = edit(segment, x.permute(1, 0, 4, 3, 2).flatten(1, 2))
    return edited.unflatten(1, (kv_heads, groups)).permute(1, 0, 4, 3, 2)


def _weigh(pattern: Tensor, v: Tensor, before_v: Tensor) -> Float[Tensor, "row query head d_head"]:
    _, rows, _, length, groups = pattern.shape
    start = before_v.shape[0]
    flat = pattern.flatten(3, 4).transpose(2, 3)
    z = flat[..., start:] @ v.permute(2, 0, 1, 3)
    if start:
        z = z + (flat[..., :start].flatten(1, 2) @ before_v.transpose(0, 1)).unflatten(1, (rows, length * groups))
    return z.unflatten(2, (length, groups)).permute(1, 2, 0, 3, 4).flatten(2, 3)
