"""`prefix_attention` as one launch: a softmax built up block of keys by block of keys, first the base run's, then own.

A tile holds queries of several rows, and all query heads of one key head, so that a block of the shared keys is loaded
once for all of them.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from interp.errors import ShapeError
from interp.kernels.fused.launch import check_count, check_tensors, padded
from interp.kernels.path import MOST_D_HEAD
from interp.kernels.prefix_attention import EdgeBias, PackedRows


@triton.jit
@no_type_check
def scored(query, key, n, shown, bias, bias_end, scaling, softcap, CAPPED: tl.constexpr, BIASED: tl.constexpr):
    """Scores of a block [query, key], −∞ where the key is not shown.

    bias: of each query, the address of what is added for key 0; for keys n below bias_end.
    """
    scores = tl.dot(query, key, input_precision="ieee") * scaling
    if CAPPED:
        scores = softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))  # tanh, which has no portable name
    if BIASED:
        scores += tl.load(bias[:, None] + n[None, :], mask=shown & (n[None, :] < bias_end[:, None]), other=0.0)
    return tl.where(shown, scores, -float("inf"))


@triton.jit
@no_type_check
def added(total, top, norm, scores, value):
    """The softmax's running sum, maximum and norm, with a block of keys more."""
    above = tl.maximum(top, tl.max(scores, 1))
    finite = tl.where(above == -float("inf"), 0.0, above)  # nothing shown yet: every weight is 0, not NaN
    weight = tl.exp(scores - finite[:, None])
    shrink = tl.exp(top - finite)
    norm = norm * shrink + tl.sum(weight, 1)
    total = total * shrink[:, None]
    if value.dtype == tl.float32:
        total += tl.dot(weight, value, input_precision="ieee")
    else:  # rounded once, a weight would be good to 8 bits only; the rest goes in as a second number
        high = weight.to(value.dtype)
        total += tl.dot(high, value)
        total += tl.dot((weight - high.to(tl.float32)).to(value.dtype), value)
    return total, above, norm


@triton.jit
@no_type_check
def attend_tile(
    query_ptr, key_ptr, value_ptr, prefix_key_ptr, prefix_value_ptr, out_ptr, begin_ptr, position_ptr, tile_ptr,
    bias_row_ptr, bias_ptr,
    n_tiles, group, d_head, scaling, softcap, window, bias_width,
    query_token, query_head, key_token, key_head, value_token, value_head,
    prefix_key_example, prefix_key_position, prefix_key_head,
    prefix_value_example, prefix_value_position, prefix_value_head,
    out_token, out_head, bias_token, bias_stride,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, BIASED: tl.constexpr,
    TOKENS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One program: the output of up to TOKENS tokens and the query heads of one key head.

    query_ptr, out_ptr: [token, head, d_head]; key_ptr, value_ptr: [token, kv_head, d_head]; prefix_…: [example, pos,
    kv_head, d_head]. The last axis of each is contiguous. begin_ptr, position_ptr: [token] int32, as in `PackedRows`.
    tile_ptr: [3, tile] int32, contiguous: first token, end, example. bias_row_ptr: [token, head] int32, last axis
    contiguous; bias_ptr: [bias, key] float32, last axis contiguous.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    first = tl.load(tile_ptr + tile)
    end = tl.load(tile_ptr + n_tiles + tile)
    example = tl.load(tile_ptr + 2 * n_tiles + tile).to(tl.int64)
    line = tl.arange(0, TOKENS * GROUP)
    token = first + line // GROUP
    in_group = line % GROUP
    inside = (token < end) & (in_group < group)
    head = kv_head * group + in_group
    d = tl.arange(0, D)
    within = inside[:, None] & (d < d_head)[None, :]
    begin = tl.load(begin_ptr + token, mask=inside, other=0)
    position = tl.load(position_ptr + token, mask=inside, other=0)
    start = tl.where(inside, position - (token - begin), 0)
    bias, bias_end = bias_ptr + line.to(tl.int64), line
    if BIASED:
        row = tl.load(bias_row_ptr + token.to(tl.int64) * bias_token + head, mask=inside, other=-1)
        bias = bias_ptr + tl.maximum(row, 0).to(tl.int64) * bias_stride
        bias_end = tl.where(row < 0, -1073741824, bias_width)  # no row: below every key
    at = token.to(tl.int64)[:, None] * query_token + head[:, None] * query_head + d[None, :]
    query = tl.load(query_ptr + at, mask=within, other=0.0)
    total = tl.zeros((TOKENS * GROUP, D), dtype=tl.float32)
    top = tl.full((TOKENS * GROUP,), -float("inf"), dtype=tl.float32)
    norm = tl.zeros((TOKENS * GROUP,), dtype=tl.float32)

    lowest = 0
    if WINDOWED:
        lowest = tl.maximum(tl.min(tl.where(inside, position, 2147483647), 0) - window + 1, 0) // KEYS * KEYS
    k_base = prefix_key_ptr + example * prefix_key_example + kv_head * prefix_key_head
    v_base = prefix_value_ptr + example * prefix_value_example + kv_head * prefix_value_head
    highest = tl.max(start, 0)
    for block in range(lowest, highest, KEYS):
        n = block + tl.arange(0, KEYS)
        there = n < highest
        shown = inside[:, None] & (n[None, :] < start[:, None])
        if WINDOWED:
            shown = shown & (n[None, :] > position[:, None] - window)
        far = n.to(tl.int64)
        key = tl.load(
            k_base + far[None, :] * prefix_key_position + d[:, None],
            mask=there[None, :] & (d < d_head)[:, None],
            other=0.0,
        )
        value = tl.load(
            v_base + far[:, None] * prefix_value_position + d[None, :],
            mask=there[:, None] & (d < d_head)[None, :],
            other=0.0,
        )
        scores = scored(query, key, n, shown, bias, bias_end, scaling, softcap, CAPPED, BIASED)
        total, top, norm = added(total, top, norm, scores, value)

    k_base = key_ptr + kv_head * key_head
    v_base = value_ptr + kv_head * value_head
    broken = tl.zeros((TOKENS * GROUP,), dtype=tl.int32)
    # Token n of a row is the key of position n + shift.
    shift = position - token
    bias, bias_end = bias + shift, bias_end - shift
    lowest = tl.min(tl.where(inside, begin, 2147483647), 0)
    if WINDOWED:
        lowest = tl.maximum(lowest, first - window + 1)
    for block in range(lowest, end, KEYS):
        n = block + tl.arange(0, KEYS)
        there = n < end
        shown = inside[:, None] & (n[None, :] >= begin[:, None]) & (n[None, :] <= token[:, None])
        if WINDOWED:
            shown = shown & (n[None, :] > token[:, None] - window)
        far = n.to(tl.int64)
        key = tl.load(
            k_base + far[None, :] * key_token + d[:, None], mask=there[None, :] & (d < d_head)[:, None], other=0.0
        )
        value = tl.load(
            v_base + far[:, None] * value_token + d[None, :], mask=there[:, None] & (d < d_head)[None, :], other=0.0
        )
        scores = scored(query, key, n, shown, bias, bias_end, scaling, softcap, CAPPED, BIASED)
        # A hidden key has weight 0, but 0 · ∞ is no number: what one row runs into must not reach the others.
        finite = tl.abs(value.to(tl.float32)) < float("inf")
        value = tl.where(finite, value, 0.0)
        infinite = tl.max(tl.where(finite, 0, 1), 1)
        broken = tl.maximum(broken, tl.max(tl.where(shown, infinite[None, :], 0), 1))
        total, top, norm = added(total, top, norm, scores, value)

    # A query without a key gets NaN, as from a softmax; so does one that sees a value that is not finite.
    norm = tl.where((norm == 0) | (broken > 0), tl.where(inside, float("nan"), 1.0), norm)
    total = total / norm[:, None]
    at = token.to(tl.int64)[:, None] * out_token + head[:, None] * out_head + d[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=within)


def tile(group: int, d_head: int, dtype: torch.dtype, biased: bool = False) -> dict[str, int]:
    """Sizes of a program's tile: 64 lines of queries, fewer in float32, of wide heads, and with a bias to be looked up.

    The largest that compile without spills on the three targets of docs/kernels.md.
    """
    heads, d = padded(group), padded(d_head, 16)
    if dtype == torch.float32 or d > 128:
        lines, keys = 32 if d <= 64 else 16, 16
    else:
        lines, keys = 32 if biased else 64, 64 if d <= 64 else 32
    return {"TOKENS": max(lines, heads) // heads, "GROUP": heads, "KEYS": keys, "D": d}


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    rows: PackedRows,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    edges: EdgeBias | None = None,
) -> Tensor:
    """As `interp.kernels.prefix_attention.prefix_attention`, in one launch. It records no gradient.

    Its weights are float32 in any case: there is no `softmax_dtype`.

    Raises:
        InterpError: an element type that is not float32, float16 or bfloat16; tensors on several devices.
        ShapeError: element types or shapes that differ; a last axis that is not contiguous; heads wider than 256
            numbers; query heads that are no multiple of the key heads; segments of tokens, examples or prefixes that
            the tensors do not have, or that leave tokens out; `LIMIT` tokens or more.
    """
    tensors = {"query": query, "key": key, "value": value, "prefix_key": prefix_key, "prefix_value": prefix_value}
    check_tensors("prefix_attention", tensors)
    tokens, heads, d_head = query.shape
    kv_heads = key.shape[1]
    check_count("prefix_attention", "tokens", tokens)
    if len({x.dtype for x in tensors.values()}) > 1:
        raise ShapeError(f"prefix_attention: element types {[str(x.dtype) for x in tensors.values()]}; give one.")
    if d_head > MOST_D_HEAD or heads % kv_heads:
        raise ShapeError(
            f"prefix_attention: {heads} query heads, {kv_heads} key heads of {d_head} numbers; the kernel takes a "
            f"multiple of the key heads, and up to {MOST_D_HEAD} numbers."
        )
    for segment in rows.segments:
        outside = not 0 <= segment.example < len(prefix_key) or segment.tokens.stop > tokens
        latest = segment.start + (0 if segment.place is None else segment.length - 1)  # of any row's beginning
        if outside or segment.start < 0 or latest > prefix_key.shape[1]:
            raise ShapeError(
                f"prefix_attention: a segment of tokens up to {segment.tokens.stop} behind {latest} positions "
                f"of example {segment.example}; there are {tokens} tokens, and prefixes {list(prefix_key.shape[:2])}."
            )
    wanted = {"key": (tokens, kv_heads, d_head), "value": (tokens, kv_heads, d_head)}
    wanted |= dict.fromkeys(("prefix_key", "prefix_value"), (*prefix_key.shape[:2], kv_heads, d_head))
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ShapeError(f"prefix_attention: {name} has shape {list(tensors[name].shape)}, not {list(shape)}.")
    if sum(segment.tokens.stop - segment.tokens.start for segment in rows.segments) != tokens:
        raise ShapeError(f"prefix_attention: segments do not hold each of the {tokens} tokens once.")
    if edges is not None:
        ready = edges.row.dtype == torch.int32 and edges.table.dtype == torch.float32
        ready &= edges.row.shape == query.shape[:2] and edges.row.device == edges.table.device == query.device
        if not ready or edges.row.stride(1) != 1 or edges.table.stride(1) != 1:
            raise ShapeError(
                f"prefix_attention: rows of the bias {list(edges.row.shape)}, {edges.row.dtype}, on "
                f"{edges.row.device}, a table of {edges.table.dtype}; they must be "
                f"contiguous, [{tokens}, {heads}] in int32 and a table in float32, and on {query.device}."
            )
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    sizes = tile(heads // kv_heads, d_head, query.dtype, edges is not None)
    table = rows.tiles(sizes["TOKENS"])
    no_rows, no_table = rows.begin, query.new_empty(1, dtype=torch.float32)
    row, bias = (no_rows, no_table) if edges is None else (edges.row, edges.table)
    biased: dict[str, Any] = {
        "bias_width": 0 if edges is None else bias.shape[1],
        "bias_token": 0 if edges is None else row.stride(0),
        "bias_stride": 0 if edges is None else bias.stride(0),
    }
    if tokens:
        attend_tile[(table.shape[1], kv_heads)](
            query, key, value, prefix_key, prefix_value, out, rows.begin, rows.position, table, row, bias,
            n_tiles=table.shape[1], group=heads // kv_heads, d_head=d_head, scaling=scaling, softcap=softcap or 1.0,
            window=window or 0,
            query_token=query.stride(0), query_head=query.stride(1), key_token=key.stride(0), key_head=key.stride(1),
            value_token=value.stride(0), value_head=value.stride(1),
            prefix_key_example=prefix_key.stride(0), prefix_key_position=prefix_key.stride(1),
            prefix_key_head=prefix_key.stride(2), prefix_value_example=prefix_value.stride(0),
            prefix_value_position=prefix_value.stride(1), prefix_value_head=prefix_value.stride(2),
            out_token=out.stride(0), out_head=out.stride(1), **biased,
            CAPPED=softcap is not None, WINDOWED=window is not None, BIASED=edges is not None, **sizes,
        )  # fmt: skip
    return out
