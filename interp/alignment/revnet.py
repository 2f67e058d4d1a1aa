"""A non-linear alignment map: an invertible network (RevNet), for the question how much a flexible map proves.

A block adds to one half of the coordinates a function of the other half, then the other way round,

    y₁ = x₁ + F(x₂)        y₂ = x₂ + G(y₁)

so its inverse subtracts the same terms in the opposite order, exactly, whatever F and G are. Here each is one hidden
layer of ReLUs.

When it misleads: always, unless the same map fitted to a randomly initialised network fails. Any algorithm that solves
a network's task can be aligned with it by some such map, as long as the layer keeps inputs apart; what is found may be
computed by the map. `interp.alignment.capacity` shows both side by side.

Source: Sutter, Minder, Hofmann & Pimentel 2025, "The Non-Linear Representation Dilemma" (arXiv:2507.08802), for the
use; Gomez, Ren, Urtasun & Grosse 2017 (arXiv:1707.04585) for the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.alignment.maps import AlignmentMap, checked_ranks
from interp.errors import ShapeError


class RevNet(AlignmentMap):
    """An invertible network; variables take the first coordinates of its output, one block after the other.

    Args:
        width: d, even.
        ranks: coordinates per variable; an int for one variable.
        blocks: how many.
        hidden: ReLUs in each F and each G.
        cells: how many maps.
        seed: of the weights, drawn as torch draws those of a linear layer.

    Raises:
        ShapeError: an odd width; no block, or no hidden unit; ranks as in `checked_ranks`.
    """

    def __init__(
        self,
        width: int,
        ranks: int | Sequence[int],
        *,
        blocks: int = 8,
        hidden: int = 64,
        cells: int = 1,
        seed: int = 0,
    ) -> None:
        self.ranks = checked_ranks(width, ranks)
        super().__init__(width, len(self.ranks), cells)
        if width % 2:
            raise ShapeError(f"A RevNet halves its states and their width is {width}; use LowRank or Affine instead.")
        if blocks < 1 or hidden < 1:
            raise ShapeError(f"A RevNet of {blocks} blocks with {hidden} hidden units; each is at least 1.")
        self.blocks, self.hidden = blocks, hidden
        generator, half = torch.Generator().manual_seed(seed), width // 2

        def drawn(rows: int, columns: int, fan_in: int) -> nn.Parameter:
            """[cell, block, F or G, …], uniform in ± 1/√fan_in."""
            uniform = torch.rand(cells, blocks, 2, rows, columns, generator=generator)
            return nn.Parameter((2 * uniform - 1) / fan_in**0.5)

        self.weight_in, self.bias_in = drawn(half, hidden, half), drawn(1, hidden, half)
        self.weight_out, self.bias_out = drawn(hidden, half, hidden), drawn(1, half, hidden)

    def forward(self, states: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
        """φ.

        Raises:
            ShapeError: as `swap`.
        """
        return self._forward(self._flat(states)).to(states.dtype).reshape(states.shape)

    def inverse(self, coordinates: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
        """φ⁻¹.

        Raises:
            ShapeError: as `swap`.
        """
        return self._inverse(self._flat(coordinates)).to(coordinates.dtype).reshape(coordinates.shape)

    def _swap(self, base: Tensor, sources: Sequence[Tensor]) -> Tensor:
        mapped = self._forward(torch.cat([base, *sources], 1)).chunk(1 + len(sources), 1)
        blocks = [self._split(source)[i] for i, source in enumerate(mapped[1:])]
        return self._inverse(torch.cat([*blocks, self._split(mapped[0])[-1]], -1))

    def _coordinates(self, states: Tensor) -> Sequence[Tensor]:
        return self._split(self._forward(states))[:-1]

    def _blocks(self) -> str:
        return f"rank {' + '.join(map(str, self.ranks))}, {self.blocks} blocks of {self.hidden} hidden units"

    def _split(self, coordinates: Tensor) -> Sequence[Tensor]:
        """Each variable's block, then those of no variable."""
        return coordinates.split([*self.ranks, self.width - sum(self.ranks)], -1)

    def _forward(self, states: Tensor) -> Tensor:
        left, right = states.chunk(2, -1)
        for f, g in self._layers():
            left = left + _mlp(f, right)
            right = right + _mlp(g, left)
        return torch.cat([left, right], -1)

    def _inverse(self, coordinates: Tensor) -> Tensor:
        left, right = coordinates.chunk(2, -1)
        for f, g in reversed(list(self._layers())):
            right = right - _mlp(g, left)
            left = left - _mlp(f, right)
        return torch.cat([left, right], -1)

    def _layers(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Weights of F and of G, block by block; unbound at once, as every slice alone would cost a full gradient."""
        weights = (self.weight_in, self.bias_in, self.weight_out, self.bias_out)
        for block in zip(*(weight.unbind(1) for weight in weights), strict=True):
            halves = [weight.unbind(1) for weight in block]
            yield [half[0] for half in halves], [half[1] for half in halves]


def _mlp(weights: list[Tensor], x: Float[Tensor, "cell row half"]) -> Float[Tensor, "cell row half"]:
    weight_in, bias_in, weight_out, bias_out = weights
    return torch.baddbmm(bias_out, torch.baddbmm(bias_in, x, weight_in).relu(), weight_out)
