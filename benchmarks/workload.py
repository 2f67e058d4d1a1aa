"""The prompts and grids of the benchmarks, and the naive way to compute a cell: hooks, written in full.

Nothing in the naive way goes through interp, so that it can serve as the oracle. No benchmark by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
ANSWER, WRONG_ANSWER = " Mary", " John"
FACT, SUBJECT, FACT_ANSWER = "The Eiffel Tower is located in the city of", "The Eiffel Tower", " Paris"


class Cell(NamedTuple):
    """One state to patch; None stands for all positions (of a head), or for all heads."""

    layer: int
    pos: int | None
    head: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A grid of cells, and the arguments that make `interp.patch` compute it."""

    name: str
    part: str
    axes: tuple[str, ...]
    cells: list[Cell]
    arguments: dict[str, Any]

    def values(self, result: Any) -> Callable[[Cell], float]:
        """A look-up of the cells' values in what `interp.patch` returned."""
        grid = result.data["logit_difference"]
        layers = {layer: i for i, layer in enumerate(grid["layer"].values.tolist())}
        numbers = grid.values[..., 0]

        def value(cell: Cell) -> float:
            at = {"layer": layers[cell.layer], "head": cell.head, "pos": cell.pos}
            return float(numbers[tuple(at[axis] for axis in self.axes)])

        return value


def experiments(n_positions: int, n_heads: int, layers: Sequence[int]) -> dict[str, Experiment]:
    """The patching experiments of the speed table."""
    layers, heads, positions = list(layers), range(n_heads), range(n_positions)

    def head_cells(where: Sequence[int | None]) -> list[Cell]:
        return [Cell(layer, pos, head) for layer, head, pos in product(layers, heads, where)]

    grids = [
        Experiment(
            "resid_pre", "resid_pre", ("layer", "pos"), [Cell(a, b) for a, b in product(layers, positions)], {}
        ),
        Experiment(
            "heads by position", "z", ("layer", "head", "pos"), head_cells(positions),
            {"over": ("layer", "head", "pos")},
        ),
        Experiment(
            "heads, last position", "z", ("layer", "head"), head_cells([n_positions - 1]), {"positions": -1}
        ),
        Experiment("heads, all positions", "z", ("layer", "head"), head_cells([None]), {}),
    ]  # fmt: skip
    return {
        grid.name: Experiment(grid.name, grid.part, grid.axes, grid.cells, grid.arguments | {"layers": layers})
        for grid in grids
    }


# ---------------------------------------------------------------- the naive way


def blocks(network: nn.Module) -> nn.ModuleList:
    """The layers of a Llama or a GPT-2."""
    return network.model.layers if hasattr(network, "model") else network.transformer.h


def place(network: nn.Module, part: str, layer: int) -> nn.Module:
    """The module whose input is the state."""
    block = blocks(network)[layer]
    if part == "resid_pre":
        return block
    return block.self_attn.o_proj if hasattr(block, "self_attn") else block.attn.c_proj


class Hooks:
    """Activation patching with one hooked forward pass per cell, as one would write it by hand."""

    def __init__(
        self, network: nn.Module, part: str, n_heads: int, clean: Tensor, corrupted: Tensor, *, last_only: bool = False
    ) -> None:
        self.network, self.part, self.n_heads, self.corrupted = network, part, n_heads, corrupted
        self.options = {"use_cache": False} | ({"logits_to_keep": 1} if last_only else {})
        self.clean: dict[int, Tensor] = {}
        handles = [
            place(network, part, layer).register_forward_pre_hook(
                lambda module, args, layer=layer: self.clean.__setitem__(layer, args[0].clone())
            )
            for layer in range(len(blocks(network)))
        ]
        with torch.no_grad():
            network(clean, **self.options)
        for handle in handles:
            handle.remove()

    def logits(self, cell: Cell) -> Tensor:
        """Next-token logits [batch, vocabulary] of the corrupted prompts with one clean state."""

        def patch(module: nn.Module, args: tuple) -> tuple:
            state, clean = args[0].clone(), self.clean[cell.layer]
            where = slice(None) if cell.pos is None else cell.pos
            if cell.head is None:
                state[:, where] = clean[:, where]
            else:
                width = state.shape[-1] // self.n_heads
                units = slice(cell.head * width, (cell.head + 1) * width)
                state[:, where, units] = clean[:, where, units]
            return (state, *args[1:])

        handle = place(self.network, self.part, cell.layer).register_forward_pre_hook(patch)
        try:
            with torch.no_grad():
                return self.network(self.corrupted, **self.options).logits[:, -1]
        finally:
            handle.remove()

    def values(self, cells: Sequence[Cell], answer: int, wrong_answer: int) -> list[float]:
        """Logit differences of the first prompt."""
        found = []
        for cell in cells:
            logits = self.logits(cell)[0]
            found.append(float(logits[answer] - logits[wrong_answer]))
        return found


class RomeTrace:
    """Causal tracing by ROME's protocol: a cell is one forward pass of a clean row and ten noised ones."""

    def __init__(self, network: nn.Module, ids: Tensor, subject: tuple[int, int], sigma: float, noises: int) -> None:
        self.network, self.rows = network, ids.repeat(noises + 1, 1)
        first, last = subject
        self.subject = slice(first, last + 1)
        # The draws of interp.trace(seed=0), so that values can be compared one by one.
        shape = (noises, last + 1 - first, network.config.hidden_size)
        self.noise = sigma * torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def probabilities(self, cell: Cell, answer: int) -> Tensor:
        """p(answer) of every noised row, with one state restored from the clean row."""

        def add_noise(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            out = out.clone()
            out[1:, self.subject] += self.noise
            return out

        def restore(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            out = out.clone()
            out[1:, cell.pos] = out[0, cell.pos]
            return out

        handles = [
            self.network.model.embed_tokens.register_forward_hook(add_noise),
            blocks(self.network)[cell.layer].register_forward_hook(restore),
        ]
        try:
            with torch.no_grad():
                logits = self.network(self.rows, use_cache=False).logits[1:, -1]
        finally:
            for handle in handles:
                handle.remove()
        return logits.softmax(-1)[:, answer]
