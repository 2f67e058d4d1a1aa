"""Tokenised prompts: the input of every experiment on a language model.

Padding is our affair, not the caller's. Prompts of different lengths are held left-aligned, so that
position `p` of a prompt is column `p` of every tensor, whatever side the tokenizer pads on, and a
result never depends on what else is in the batch. Negative positions count from a prompt's own end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import PairError, ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """A batch of token sequences, left-aligned.

    Attributes:
        ids: token ids; columns past a prompt's length hold padding that nothing reads.
        lengths: number of tokens of each prompt.
        tokens: the same as strings, ragged: `tokens[b][p]`.
    """

    ids: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, "batch"]
    tokens: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """True where a column holds a token of the prompt."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def select(self, rows: Sequence[int] | Tensor) -> Prompts:
        """The prompts of these rows, trimmed to the longest of them."""
        rows = torch.as_tensor(rows, device=self.ids.device)
        lengths = self.lengths[rows]
        tokens = tuple(self.tokens[int(row)] for row in rows)
        return Prompts(self.ids[rows][:, : int(lengths.max())], lengths, tokens)

    def joined(self, other: Prompts) -> Prompts:
        """These prompts, then the other ones."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        ids = torch.cat([F.pad(p.ids, (0, width - p.ids.shape[1])) for p in (self, other)])
        return Prompts(ids, torch.cat([self.lengths, other.lengths]), self.tokens + other.tokens)


def tokenize(tokenizer: Any, text: str | Sequence[str], *, device: torch.device | str = "cpu") -> Prompts:
    """Prompts from text, with the tokenizer's own special tokens.

    Raises:
        PairError: no prompt, or a prompt without tokens.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or any(not isinstance(t, str) or not t for t in texts):
        raise PairError(f"A prompt must be a text of at least one token; got {texts!r}.")
    return from_token_lists(tokenizer, [tokenizer(t).input_ids for t in texts], device=device)


def from_token_lists(tokenizer: Any, rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> Prompts:
    """Prompts from lists of token ids."""
    if not rows or any(len(row) == 0 for row in rows):
        raise PairError("A prompt must have at least one token; got an empty one.")
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.as_tensor(tokens)
    return Prompts(
        ids.to(device),
        lengths.to(device),
        tuple(tuple(token_strings(tokenizer, row)) for row in rows),
    )


def from_tensor(
    tokenizer: Any,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
) -> Prompts:
    """Prompts from a padded batch, on either side; `mask` (the tokenizer's attention mask) says where.

    Raises:
        ShapeError: ids and mask of different shape, or a mask with a hole inside a prompt.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise ShapeError(
            f"Token ids must be [batch, pos] with a mask of the same shape; "
            f"got {tuple(ids.shape)} and {tuple(mask.shape)}."
        )
    rows = []
    for row, keep in zip(ids.tolist(), mask.bool().tolist(), strict=True):
        inside = [token for token, kept in zip(row, keep, strict=True) if kept]
        if keep != sorted(keep) and keep != sorted(keep, reverse=True):
            raise ShapeError(f"The mask {keep} has padding inside the prompt; only left or right padding is meant.")
        rows.append(inside)
    return from_token_lists(tokenizer, rows, device=ids.device)


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token as the text it stands for (a leading space is kept)."""
    if tokenizer is None:
        return [str(int(i)) for i in ids]
    return [tokenizer.decode([int(i)]) for i in ids]
