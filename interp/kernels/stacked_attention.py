"""Causal attention over packed rows of many examples at once.

`segment_attention` calls its products once per example. With a few tokens per example, as in a training step over a
batch of prompts, it is the number of calls that takes time. Here examples whose rows are alike are *stacked*: filled up
to one grid [example, row, position], which a handful of products serve. The arithmetic is that of the explicit scores
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

Index = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Rows of some examples, as a grid [example, row, position].

    Attributes:
        shape: of the grid.
        token: of each place of the grid, flat: a packed token; from the number of tokens on, a base state of `filled`;
            places that are neither hold token 0, and what is computed there is never used. `None` if the packed tokens
            are the grid.
        filled: (example, position) of the base's keys and values before a row's first token.
        example: whose prefix each layer of the stack sees; prefix: its longest length.
        hidden: [example, before] of the prefix, True beyond an example's own; `None` if all are equally long.
        later: [key, query] of a row's own tokens.
    """

    shape: tuple[int, int, int]
    token: Int[Tensor, "place"] | None
    filled: tuple[Int[Tensor, "fill"], Int[Tensor, "fill"]]
    example: Int[Tensor, "example"]
    prefix: int
    hidden: Bool[Tensor, "example before"] | None
    later: Bool[Tensor, "key query"] | None

    def grid(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """[example, row, position, …] from packed tokens; before a row's first token the base's, or anything."""
        if self.token is None:
            return x.view(*self.shape, *x.shape[1:])
        if base is None:
            return x.index_select(0, self.token.clamp(max=len(x) - 1)).unflatten(0, self.shape)
        if len(self.filled[0]):
            x = torch.cat([x, base[self.filled]])
        return x.index_select(0, self.token).unflatten(0, self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Stacks:
    """Stacks that hold every packed token once.

    Attributes:
        place: of each packed token, its place in the grids, one after the other; `None` if that is the tokens' order.
    """

    stacks: tuple[Stack, ...]
    place: Int[Tensor, "token"] | None


def stack_rows(
    begin: Index, start: Index, length: Index, example: Index, groups: Sequence[slice], device: torch.device
) -> Stacks:
    """Stacks of rows.

    Args:
        begin: index of each row's first token in the packed matrix; start: that token's position; length: of the row;
            example: whose base states it sees.
        groups: consecutive rows of one example, the first of which is the longest: one layer of a grid each.
    """
    n_tokens = int(length.sum())
    rows = np.array([group.stop - group.start for group in groups])
    widest = length[[group.start for group in groups]]
    order = np.lexsort((rows, widest))[::-1]
    stacks, places, offset = [], np.empty(n_tokens, dtype=np.int64), 0
    while len(order):
        # Groups come with falling length: take as many as fill a grid at least by half.
        cells = np.maximum.accumulate(rows[order]) * widest[order[0]] * np.arange(1, len(order) + 1)
        sparse = cells > 2 * np.cumsum(rows[order] * widest[order])
        n = int(sparse.argmax()) if sparse.any() else len(order)
        chosen, order = np.sort(order[:n]), order[n:]
        stack, tokens, at = _stack(begin, start, length, example, [groups[i] for i in chosen], n_tokens, device)
        places[tokens] = at + offset
        offset += int(np.prod(stack.shape))
        stacks.append(stack)
    in_order = offset == n_tokens and (places == np.arange(n_tokens)).all()
    return Stacks(tuple(stacks), None if in_order else torch.from_numpy(places).to(device))


def _stack(
    begin: Index, start: Index, length: Index, example: Index, groups: Sequence[slice], n_tokens: int,
    device: torch.device,
) -> tuple[Stack, Index, Index]:  # fmt: skip
    """(the stack, its packed tokens, their places in its grid)."""
    firsts = np.array([group.start for group in groups])
    sizes = np.array([group.stop - group.start for group in groups])
    layer = np.repeat(np.arange(len(groups)), sizes)
    row = np.concatenate([np.arange(group.start, group.stop) for group in groups])
    slot = np.concatenate([np.arange(size) for size in sizes])
    origin = start[firsts]
    shape = (len(groups), int(sizes.max()), int(length[firsts].max()))
    line = (layer * shape[1] + slot) * shape[2]  # where each row's line of the grid begins
    skipped = start[row] - origin[layer]
    tokens, at = _ranges(begin[row], line + skipped, length[row])
    token = np.zeros(int(np.prod(shape)), dtype=np.int64)
    token[at] = tokens
    position, fill = _ranges(origin[layer], line, skipped)
    token[fill] = n_tokens + np.arange(len(fill))
    whole = len(tokens) == n_tokens == len(token) and (token == np.arange(n_tokens)).all()
    filled = (torch.from_numpy(np.repeat(example[row], skipped)).to(device), torch.from_numpy(position).to(device))
    prefix = int(origin.max())
    hidden = None if (origin == prefix).all() else torch.from_numpy(np.arange(prefix) >= origin[:, None]).to(device)
    later = None if shape[2] == 1 else torch.ones(shape[2], shape[2], dtype=torch.bool, device=device).tril(-1)
    stack = Stack(
        shape, None if whole else torch.from_numpy(token).to(device), filled,
        torch.from_numpy(example[firsts]).to(device), prefix, hidden, later,
    )  # fmt: skip
    return stack, tokens, at


def _ranges(first: Index, second: Index, length: Index) -> tuple[Index, Index]:
    """`first … first + length` and `second … second + length` of every row, concatenated."""
    step = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(first, length) + step, np.repeat(second, length) + step


def stacked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stacks: Stacks,
    *,
    scaling: float,
    softcap: float | None = None,
    softmax_dtype: torch.dtype | None = None,
) -> Tensor:
    """Attention output of every packed token [token, head, d_head]; arguments as in `segment_attention`."""
    out = []
    for stack in stacks.stacks:
        q, k, v = stack.grid(query), stack.grid(key, prefix_key), stack.grid(value, prefix_value)
        examples, rows, length, heads, d_head = q.shape
        kv_heads = k.shape[3]
        groups = heads // kv_heads
        # The heads of a group are more queries of their key head; keys stand before the queries (`segment_attention`).
        q = q.unflatten(3, (kv_heads, groups)).permute(0, 3, 1, 2, 4, 5).reshape(-1, rows, length * groups, d_head)
        k, v = (x.permute(0, 3, 1, 2, 4).reshape(-1, rows, length, d_head) for x in (k, v))
        scores = _capped(k @ q.transpose(2, 3), scaling, softcap)
        if stack.later is not None:
            scores = scores.unflatten(3, (length, groups)).masked_fill(stack.later[..., None], -torch.inf).flatten(3)
        if stack.prefix:
            before_k, before_v = (
                x[stack.example, : stack.prefix].transpose(1, 2).flatten(0, 1) for x in (prefix_key, prefix_value)
            )
            shared = _capped(before_k @ q.flatten(1, 2).transpose(1, 2), scaling, softcap)
            shared = shared.unflatten(2, (rows, -1)).transpose(1, 2)
            if stack.hidden is not None:
                hidden = stack.hidden.repeat_interleave(kv_heads, 0)[:, None, :, None]
                shared = shared.masked_fill(hidden, -torch.inf)
            scores = torch.cat([shared, scores], 2)
        pattern = scores.softmax(2, dtype=softmax_dtype).to(q.dtype).transpose(2, 3)
        z = pattern[..., stack.prefix :] @ v
        if stack.prefix:
            z = z + (pattern[..., : stack.prefix].flatten(1, 2) @ before_v).view_as(z)
        z = z.view(examples, kv_heads, rows, length, groups, d_head).permute(0, 2, 3, 1, 4, 5)
        out.append(z.reshape(-1, heads, d_head))
    z = out[0] if len(out) == 1 else torch.cat(out)
    return z if stacks.place is None else z.index_select(0, stacks.place)


def _capped(scores: Tensor, scaling: float, softcap: float | None) -> Tensor:
    scores = scores * scaling
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap
