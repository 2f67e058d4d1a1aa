"""Attention of packed rows to one shared copy of the base run's keys and values, and to their own.

The op that a GPU wants: the layout of the rows is laid out once for all layers (`PackedRows`), then every layer is one
call, in which nothing is copied or filled up by row. On the CPU the rows go through `segment_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.kernels.path import choose
from interp.kernels.segment_attention import Segment, segment_attention


@dataclass(frozen=True, slots=True, eq=False)
class EdgeBias:
    """What is added to the scores of single queries: −∞ cuts an edge.

    Attributes:
        row: of each token and head, a row of `table`; −1: nothing is added.
        table: float32, by key position; keys beyond its width get nothing.
    """

    row: Int[Tensor, "token head"]
    table: Float[Tensor, "bias key"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Where the packed tokens are, of all rows.

    Attributes:
        segments: the rows; together they hold the tokens from 0 on, in order.
        begin: of each token, the first token of its row: those from there to itself are its own keys.
        position: of each token. Before the position of its row's first token it sees the base run's keys.
    """

    segments: Sequence[Segment]
    begin: Int[Tensor, "token"]
    position: Int[Tensor, "token"]
    _tiles: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> PackedRows:
        """The layout of these segments, in 32-bit numbers on a device."""
        begins, positions = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for segment in segments:
            n = segment.tokens.stop - segment.tokens.start
            place = np.arange(n) if segment.place is None else segment.place.cpu().numpy()
            row = place // segment.length
            first = np.flatnonzero(np.diff(row, prepend=-1))
            begins.append(segment.tokens.start + np.repeat(first, np.diff(np.append(first, n))))
            positions.append(segment.start + place % segment.length)
        begin, position = (
            torch.from_numpy(np.concatenate(parts).astype(np.int32)).to(device) for parts in (begins, positions)
        )
        return cls(segments, begin, position)

    def tiles(self, size: int) -> Int[Tensor, "three tile"]:
        """(first token, end, example) of stretches of at most so many tokens, each within one segment."""
        if size not in self._tiles:
            firsts = [np.arange(s.tokens.start, s.tokens.stop, size) for s in self.segments]
            ends = [np.minimum(f + size, s.tokens.stop) for f, s in zip(firsts, self.segments, strict=True)]
            examples = [np.full(len(f), s.example) for f, s in zip(firsts, self.segments, strict=True)]
            empty = np.empty((3, 0), dtype=np.int64)
            table = np.concatenate([empty, *(np.stack(c) for c in zip(firsts, ends, examples, strict=True))], 1)
            self._tiles[size] = torch.from_numpy(table.astype(np.int32)).to(self.begin.device)
        return self._tiles[size]


def prefix_attention(
    query: Float[Tensor, "token head d_head"],
    key: Float[Tensor, "token kv_head d_head"],
    value: Float[Tensor, "token kv_head d_head"],
    prefix_key: Float[Tensor, "example pos kv_head d_head"],
    prefix_value: Float[Tensor, "example pos kv_head d_head"],
    rows: PackedRows,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    softmax_dtype: torch.dtype | None = None,
    edges: EdgeBias | None = None,
) -> Float[Tensor, "token head d_head"]:
    """Attention output of every packed token: causal, over the base run's keys and then the row's own.

    Rotary embeddings have been applied. A query that sees no key at all gets NaN, as from a softmax, and in the kernel
    so does one that sees a value of a row that is not finite. The kernel takes no memory in proportion to rows ×
    prefix; the reference does for explicit scores. While gradients are recorded, the PyTorch calls are made.

    Args:
        window: a query sees at most this many keys, itself included.
        softmax_dtype: as in `segment_attention`. The kernel's weights are float32 in any case.
        edges: what is added to scores, after the cap.
    """
    path = choose("prefix_attention", query, key, value, prefix_key, prefix_value, d_head=query.shape[-1])
    if path.fused and not torch.is_grad_enabled():
        from interp.kernels.fused.prefix_attention import prefix_attention as fused

        return fused(
            query, key, value, prefix_key, prefix_value, rows,
            scaling=scaling, softcap=softcap, window=window, edges=edges,
        )  # fmt: skip
    return segmented(
        query, key, value, prefix_key, prefix_value, rows,
        scaling=scaling, softcap=softcap, window=window, softmax_dtype=softmax_dtype, edges=edges,
    )  # fmt: skip


def segmented(
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
    softmax_dtype: torch.dtype | None = None,
    edges: EdgeBias | None = None,
) -> Tensor:
    """The reference: `segment_attention`."""

    def add(segment: Segment, scores: Tensor) -> Tensor:
        assert edges is not None
        row = edges.row[segment.tokens].to(scores.device)
        known = min(edges.table.shape[1], scores.shape[3])
        table = torch.cat([edges.table[:, :known], edges.table.new_zeros(1, known)])  # row −1: zeros
        added = table.to(scores)[row.long()]
        place = torch.arange(len(row)) if segment.place is None else segment.place
        grid = scores.transpose(1, 2).flatten(0, 1)  # [row · query, head, key]
        grid = grid.index_add(0, place.to(scores.device), torch.nn.functional.pad(added, (0, grid.shape[2] - known)))
        return grid.unflatten(0, (segment.rows, segment.length)).transpose(1, 2)

    return segment_attention(
        query, key, value, prefix_key, prefix_value, rows.segments,
        scaling=scaling, softcap=softcap, window=window, softmax_dtype=softmax_dtype,
        edit_scores=None if edges is None else add,
    )  # fmt: skip
