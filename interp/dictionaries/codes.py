"""Sparse codes: which latents are on in which rows, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ShapeError
from interp.kernels.sparse_codes import rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """What a dictionary makes of rows of activations.

    The entries of a row lie together: row r has the entries `offsets[r]` to `offsets[r + 1]`. An entry may be 0 (a
    top-k choice that the ReLU cut off); it counts nowhere.

    Attributes:
        values: how strongly each entry's latent is on, in the units of the standardised activation; never negative.
        latents: which latent each entry is.
        offsets: where each row's entries begin, and where the last one's end.
        n_latents: of the dictionary.
    """

    values: Float[Tensor, "entry"]
    latents: Int[Tensor, "entry"]
    offsets: Int[Tensor, "bound"]
    n_latents: int

    @classmethod
    def from_rows(cls, values: Float[Tensor, "row k"], latents: Int[Tensor, "row k"], n_latents: int) -> Codes:
        """Codes with the same number of entries in every row."""
        rows, k = latents.shape
        offsets = torch.arange(0, rows * k + 1, max(k, 1), device=latents.device)[: rows + 1]
        return cls(values.reshape(-1), latents.reshape(-1), offsets if k else latents.new_zeros(rows + 1), n_latents)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "row latent"]) -> Codes:
        """Codes with an entry wherever the dense matrix is not 0; gradients flow back to it."""
        row, latents = dense.detach().nonzero(as_tuple=True)
        offsets = F.pad(torch.bincount(row, minlength=len(dense)).cumsum(0), (1, 0))
        return cls(dense[row, latents], latents, offsets, dense.shape[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, "entry"]:
        """The row of every entry."""
        return rows_of(self.offsets)

    def l0(self) -> Int[Tensor, "row"]:
        """How many latents are on in each row."""
        return torch.zeros_like(self.offsets[1:]).index_add_(0, self.rows, (self.values > 0).long())

    def fired(self) -> Int[Tensor, "latent"]:
        """In how many rows each latent is on."""
        return torch.bincount(self.latents[self.values > 0], minlength=self.n_latents)

    def dense(self) -> Float[Tensor, "row latent"]:
        """The codes as a matrix; for small dictionaries, and tests."""
        whole = self.values.new_zeros(len(self) * self.n_latents)
        return whole.index_add(0, self.rows * self.n_latents + self.latents, self.values).view(-1, self.n_latents)

    def of(self, latents: Sequence[int]) -> Float[Tensor, "row chosen"]:
        """The columns of these latents, dense.

        Raises:
            ShapeError: a latent that the dictionary does not have.
        """
        chosen = checked_latents(latents, self.n_latents)
        column = torch.full((self.n_latents,), -1, device=self.values.device)
        column[chosen] = torch.arange(len(chosen), device=column.device)
        mine = column[self.latents] >= 0
        out = self.values.new_zeros(len(self), len(chosen))
        return out.index_put((self.rows[mine], column[self.latents[mine]]), self.values[mine], accumulate=True)

    def select(self, rows: Sequence[int] | Tensor) -> Codes:
        """The codes of these rows, in this order; a row may come several times."""
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.offsets.device)
        counts = self.offsets.diff()[rows]
        offsets = F.pad(counts.cumsum(0), (1, 0))
        within = torch.arange(int(offsets[-1]), device=rows.device) - torch.repeat_interleave(offsets[:-1], counts)
        at = torch.repeat_interleave(self.offsets[rows], counts) + within
        return Codes(self.values[at], self.latents[at], offsets, self.n_latents)

    def per_row(self) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
        """Values and latents as rectangles, strongest first; rows with fewer entries end in value 0, latent 0."""
        counts, rows = self.offsets.diff(), self.rows
        k = int(counts.max()) if len(counts) else 0
        column = torch.arange(len(self.values), device=rows.device) - self.offsets[rows]
        values, latents = self.values.new_zeros(len(self), k), self.latents.new_zeros(len(self), k)
        values[rows, column], latents[rows, column] = self.values.detach(), self.latents
        order = values.argsort(dim=1, descending=True, stable=True)
        return values.gather(1, order), latents.gather(1, order)

    def __repr__(self) -> str:
        mean = float(self.l0().float().mean()) if len(self) else 0.0
        return f"Codes({len(self)} rows × {self.n_latents} latents, {mean:.1f} on per row)"


def checked_latents(latents: Sequence[int] | Tensor, n_latents: int) -> Int[Tensor, "chosen"]:
    """Indices of latents, as a tensor.

    Raises:
        ShapeError: one that is out of range, or that comes twice.
    """
    found = torch.as_tensor(latents, dtype=torch.long).flatten()
    outside = [int(i) for i in found if not 0 <= int(i) < n_latents]
    if outside:
        raise ShapeError(f"There is no latent {outside[0]}: the dictionary has {n_latents}, numbered from 0.")
    if len(found.unique()) < len(found):
        raise ShapeError(f"Each latent may be named once; got {found.tolist()}.")
    return found
