"""Alignment maps: which part of a state is a variable, as a function that exchanges that part between two runs.

A map φ takes a state of width d to coordinates in which each variable has a block of its own, and back. Its one use is
the *interchange*

    swap(b, s₁, s₂, …) = φ⁻¹( φ(b) with the block of variable i taken from φ(sᵢ) )

of which a search asks whether the network then answers as the causal model does. How free φ is decides what an answer
means: what a rotation finds is linear structure; a flexible φ finds any variable in any network that keeps its inputs
apart, trained or not (`interp.alignment.capacity`). Fix the kind of map before looking.

| map | φ | per cell trained | swap of the variable's block |
|---|---|---|---|
| `Subspace` | given orthonormal columns R | nothing | b + R Rᵀ(s − b) |
| `Whole` | the identity, one variable | nothing | s |
| `LowRank` | orthonormal columns R (DAS) | d · rank | the same |
| `Affine` | any invertible linear map | 2 d · rank | b + W Vᵀ(s − b), VᵀW = 1 |
| `Boundless` | a rotation, blocks of learned size | d² + variables | the same with learned rank |
| `UnitMask` | fixed axes, a choice of which | axes · variables | the chosen axes |
| `RevNet` | invertible network | its weights | non-linear |

Most searches fit many maps of one kind at once, one for each site or position. So **every parameter and every buffer
has a leading axis `cell`**, and one map is a map of one cell. Cells never touch each other; `select` takes some out.

Sources: Geiger, Wu, Potts, Icard & Goodman 2023 (arXiv:2303.02536) for the interchange and the rotation.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InterpError, ShapeError

_Map = TypeVar("_Map", bound="AlignmentMap")

_ORTHONORMAL = 1e-4
"""How far the products of a given basis' columns may be from 0 and 1: what float32 and a file's rounding leave."""


class AlignmentMap(nn.Module, ABC):
    """What every map answers. States are [..., width], or [cell, ..., width] for a map of several cells.

    Attributes:
        width: d, of the states.
        n_variables: how many blocks there are, in the order of the sources.
        cells: how many maps this is.
        ranks: coordinates of each variable's block, where that is fixed.
    """

    ranks: tuple[int, ...] = ()

    def __init__(self, width: int, n_variables: int, cells: int) -> None:
        super().__init__()
        if width < 1 or n_variables < 1 or cells < 1:
            raise ShapeError(f"A map of width {width}, {n_variables} variables and {cells} cells: each is at least 1.")
        self.width, self.n_variables, self.cells = width, n_variables, cells

    def swap(self, base: Float[Tensor, "*row width"], sources: Sequence[Tensor]) -> Float[Tensor, "*row width"]:
        """The base's states with the block of variable i taken from `sources[i]`.

        A variable whose source is the base itself stays as it is. Computed in the map's dtype, returned in the base's.

        Raises:
            ShapeError: another number of sources than variables; states of another width, of unlike shapes, or whose
                first axis is not the cells.
        """
        if len(sources) != self.n_variables:
            raise ShapeError(f"{len(sources)} sources for {self.n_variables} variables; give one for each, in order.")
        for source in sources:
            if source.shape != base.shape:
                raise ShapeError(f"Base states are {list(base.shape)}, those of a source {list(source.shape)}.")
        flat = self._flat(base)
        return self._swap(flat, [self._flat(source) for source in sources]).to(base.dtype).reshape(base.shape)

    def coordinates(self, states: Float[Tensor, "*row width"]) -> tuple[Float[Tensor, "*row coordinate"], ...]:
        """What a swap exchanges: of each variable the coordinates in its block, as φ gives them.

        Raises:
            ShapeError: as `swap`.
        """
        found = self._coordinates(self._flat(states))
        return tuple(block.reshape(*states.shape[:-1], block.shape[-1]) for block in found)

    @property
    def capacity(self) -> int:
        """Trained numbers per cell."""
        return sum(parameter[0].numel() for parameter in self.parameters())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each variable's block; where they differ by cell, those of the first."""
        return self.ranks

    def penalty(self) -> Float[Tensor, "cell"]:
        """What the map itself adds to each cell's loss; 0 unless it chooses how much to exchange."""
        return next(self._tensors()).new_zeros(self.cells)

    def anneal(self, progress: float) -> None:
        """Set what changes in the course of training, as `progress` goes from 0 to 1; in most maps nothing."""

    def followed(self) -> dict[str, Float[Tensor, "cell ..."]]:
        """What is worth following in the course of training, by name; in most maps nothing."""
        return {}

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser, `rate` being that of the map's main parameters."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def select(self: _Map, cells: Sequence[int]) -> _Map:
        """A copy of these cells only."""
        chosen = copy.deepcopy(self)
        index = torch.as_tensor(list(cells), dtype=torch.long, device=next(self._tensors()).device)
        for name, parameter in self.named_parameters():
            setattr(chosen, name, nn.Parameter(parameter.detach()[index]))
        for name, buffer in self.named_buffers():
            setattr(chosen, name, buffer[index])
        chosen.cells = len(index)
        return chosen

    def extra_repr(self) -> str:
        """For the repr."""
        cells = f", {self.cells} cells" if self.cells > 1 else ""
        return f"width {self.width}, {self._blocks()}{cells}, {self.capacity:,} trained numbers each"

    @abstractmethod
    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """`swap` on [cell, row, width]."""

    @abstractmethod
    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        """`coordinates` on [cell, row, width]."""

    @abstractmethod
    def _blocks(self) -> str:
        """The blocks, in words."""

    def _tensors(self) -> Any:
        yield from self.parameters()
        yield from self.buffers()

    def _flat(self, states: Tensor) -> Float[Tensor, "cell row width"]:
        if states.shape[-1] != self.width:
            raise ShapeError(f"States are {states.shape[-1]} wide, the map is of width {self.width}.")
        if self.cells > 1 and (states.ndim < 2 or states.shape[0] != self.cells):
            raise ShapeError(
                f"States are {list(states.shape)}; the first axis of a map of {self.cells} cells is the cell. "
                "For the same states in every cell, expand them; for one cell, use select."
            )
        own = next(self._tensors())
        return states.to(own.dtype).reshape(self.cells, -1, self.width)


def checked_ranks(width: int, ranks: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of the variables' blocks, as a tuple; an int is one variable.

    Raises:
        ShapeError: a negative rank, no variable, or more coordinates than the states have.
    """
    found = (ranks,) if isinstance(ranks, int) else tuple(int(rank) for rank in ranks)
    if not found or min(found) < 0:
        raise ShapeError(f"Ranks are {list(found)}; give each variable 0 coordinates or more.")
    if sum(found) > width:
        what = f"A rank of {found[0]} is" if len(found) == 1 else f"Ranks of {' + '.join(map(str, found))} are together"
        raise ShapeError(f"{what} above the width of the states, {width}; take at most that.")
    return found


def checked_basis(basis: Tensor) -> Float[Tensor, "cell width rank"]:
    """A copy of orthonormal columns, [width, rank] or [cell, width, rank], as a map keeps them.

    Raises:
        ShapeError: another shape, more columns than the width, columns that are not orthonormal or not finite.
    """
    found = basis.detach()[None] if basis.ndim == 2 else basis.detach()
    if found.ndim != 3:
        raise ShapeError(f"A basis is [width, rank] or [cell, width, rank], not {list(basis.shape)}.")
    rank = found.shape[-1]
    if rank > found.shape[1]:
        raise ShapeError(f"A basis of {rank} columns of width {found.shape[1]}; is it transposed?")
    excess = (found.mT @ found - torch.eye(rank, dtype=found.dtype, device=found.device)).abs()
    if excess.numel() and not excess.max() <= _ORTHONORMAL:
        raise ShapeError(
            f"The columns of a basis B are not orthonormal: an entry of BᵀB − 1 is {float(excess.max()):.2g}, allowed "
            f"{_ORTHONORMAL:g}. torch.linalg.qr(basis).Q spans the same subspace."
        )
    return found.clone(memory_format=torch.contiguous_format)


def random_columns(width: int, rank: int, cells: int, seed: int) -> Float[Tensor, "cell width rank"]:
    """Columns whose span is drawn uniformly, another for each cell."""
    return torch.randn(cells, width, rank, generator=torch.Generator().manual_seed(seed))


def orthonormal(columns: Float[Tensor, "cell width rank"]) -> Float[Tensor, "cell width rank"]:
    """The columns made orthonormal one after another (Gram and Schmidt's result, by Householder reflections).

    Of the ways to train an orthonormal basis this one is orthonormal to float32's rounding at any step and at any
    conditioning of what is trained, has no square d × d matrix in it, and is one call for all cells. A Cayley map or
    torch's `orthogonal` costs d × d or a loop over reflections; Cholesky's factor is cheaper for one cell only.
    """
    q, r = torch.linalg.qr(columns)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)
    return q * sign[:, None]


class Subspace(AlignmentMap):
    """A given subspace for each variable: closed-form directions, random controls, what was trained before.

    Args:
        basis: [width, rank] or [cell, width, rank], orthonormal columns; those of the variables stand side by side.
        ranks: how many columns belong to each variable; `None`: all to one.

    Raises:
        ShapeError: columns that are not orthonormal or not finite; ranks that are not as many as the columns.
    """

    basis: Tensor

    def __init__(self, basis: Tensor, ranks: int | Sequence[int] | None = None) -> None:
        checked = checked_basis(basis)
        cells, width, rank = checked.shape
        self.ranks = checked_ranks(width, rank if ranks is None else ranks)
        super().__init__(width, len(self.ranks), cells)
        if sum(self.ranks) != rank:
            raise ShapeError(f"Ranks {list(self.ranks)} of a basis with {rank} columns; they must add up to it.")
        self.register_buffer("basis", checked)

    @classmethod
    def random(cls, width: int, ranks: int | Sequence[int], *, cells: int = 1, seed: int = 0) -> Subspace:
        """The control: subspaces of these ranks, drawn uniformly; where a `LowRank` of this seed starts.

        Raises:
            ShapeError: as `checked_ranks`.
        """
        found = checked_ranks(width, ranks)
        return cls(orthonormal(random_columns(width, sum(found), cells, seed)), found)

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return _exchanged(base, sources, self.basis, self.basis, self.ranks)

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return (states @ self.basis).split(self.ranks, -1)

    def _blocks(self) -> str:
        return _ranks(self.ranks)


class LowRank(AlignmentMap):
    """Distributed alignment search: a trained subspace of given rank for each variable, orthogonal to the others'.

    It is the rotation of DAS, at any rank. Of a full rotation, a swap reads no column outside the variables' blocks,
    and these columns can follow any others; so they are not kept. Ranks that add up to the width are a full rotation.

    Args:
        width: d.
        ranks: coordinates per variable; an int for one variable.
        cells: how many maps.
        seed: of the start, a uniformly drawn subspace for each cell.

    Raises:
        ShapeError: as `checked_ranks`.
    """

    def __init__(self, width: int, ranks: int | Sequence[int], *, cells: int = 1, seed: int = 0) -> None:
        self.ranks = checked_ranks(width, ranks)
        super().__init__(width, len(self.ranks), cells)
        start = orthonormal(random_columns(width, sum(self.ranks), cells, seed))
        self.columns = nn.Parameter(start.contiguous())

    @property
    def basis(self) -> Float[Tensor, "cell width rank"]:
        """R, orthonormal; the variables' columns side by side."""
        return orthonormal(self.columns)

    def frozen(self) -> Subspace:
        """The subspace as it is now."""
        return Subspace(self.basis, self.ranks)

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        basis = self.basis
        return _exchanged(base, sources, basis, basis, self.ranks)

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return (states @ self.basis).split(self.ranks, -1)

    def _blocks(self) -> str:
        return _ranks(self.ranks)


class Affine(AlignmentMap):
    """An invertible affine map: a variable is read along some directions and written along others.

    In a swap the offset cancels, and only the columns of the variables' blocks are read, together with the rows of the
    inverse that belong to them: an oblique projection. So two sets of columns are trained, `read` (V) and `write` (W),
    and W is brought to VᵀW = 1; any such pair belongs to some invertible map, and every invertible map has such a pair.

    Args:
        width: d.
        ranks: coordinates per variable; an int for one variable.
        cells: how many maps.
        seed: of the start, which is that of `LowRank` (V = W).

    Raises:
        ShapeError: as `checked_ranks`.
    """

    def __init__(self, width: int, ranks: int | Sequence[int], *, cells: int = 1, seed: int = 0) -> None:
        self.ranks = checked_ranks(width, ranks)
        super().__init__(width, len(self.ranks), cells)
        start = orthonormal(random_columns(width, sum(self.ranks), cells, seed))
        self.read = nn.Parameter(start.contiguous())
        self.write = nn.Parameter(start.clone(memory_format=torch.contiguous_format))

    @property
    def written(self) -> Float[Tensor, "cell width rank"]:
        """W, such that VᵀW = 1.

        Raises:
            InterpError: there is none: the map is no longer invertible.
        """
        try:
            return torch.linalg.solve(self.read.mT @ self.write, self.write, left=False)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage] (public, says its manual)
            raise InterpError(
                "An affine map is no longer invertible: what one variable reads, nothing writes. Train with a lower "
                "rate or rank, or take LowRank, which cannot degenerate."
            ) from error

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return _exchanged(base, sources, self.read, self.written, self.ranks)

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return (states @ self.read).split(self.ranks, -1)

    def _blocks(self) -> str:
        return _ranks(self.ranks)


class Whole(AlignmentMap):
    """Everything belongs to the one variable: a swap is the source. Without the d × d identity of a `Subspace`.

    Args:
        width: d.
        cells: how many maps.
        dtype: in which states are handed on.
    """

    nothing: Tensor

    def __init__(self, width: int, cells: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(width, 1, cells)
        self.ranks = (width,)
        self.register_buffer("nothing", torch.empty(cells, 0, dtype=dtype))

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return sources[0]

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return [states]

    def _blocks(self) -> str:
        return "the whole state"


def _exchanged(
    base: Tensor, sources: Sequence[Tensor], read: Tensor, write: Tensor, ranks: Sequence[int]
) -> Float[Tensor, "cell row width"]:
    """On rows, b + Σᵢ Wᵢ Vᵢᵀ (sᵢ − b). Where a source is the base, its term is exactly 0."""
    read_by_variable = read.split(tuple(ranks), -1)
    moved = [(source - base) @ columns for source, columns in zip(sources, read_by_variable, strict=True)]
    return torch.baddbmm(base, torch.cat(moved, -1), write.mT)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {' + '.join(map(str, ranks))}"
