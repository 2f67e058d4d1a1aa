"""What is true of rows of activations: the value of every factor. The known side of a dictionary's scores.

A *row* is what one speaks of: a token, a cell of a picture, an object. Activations may be finer than that: an object
stands in several cells. Then `region` says to which row each activation belongs, and codes are averaged over a row's
activations before they are compared with its factors.

`quarters` is the table of the shapes world, where a quarter of a picture holds one object or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from interp.errors import ShapeError
from interp.shapes.scene import CELLS, COLOUR_FAMILIES, FACTORS, SHAPE_FAMILIES

_LOCAL = ("shape_family", "colour_family", "shape", "colour", "size")


@dataclass(frozen=True, eq=False)
class KnownFactors:
    """A table of factors.

    Attributes:
        factors: of each factor the names of its values; no name occurs twice in the table.
        values: of each row and factor the index of its value; −1 where it has none (an empty quarter has no colour).
        group: of each row, what it comes from: a picture, a text. Rows of one group are never split between the half
            that chooses and the half that is held out, and groups are the examples of intervals.
        region: of each activation the row that it belongs to, −1 for none; `None`: activation i is row i.
        parents: values that imply another: {"circle": "round"}.

    Raises:
        ShapeError: parts of different lengths, names that are not distinct or not known, an index that no value has,
            fewer than two groups, a row without an activation.
    """

    factors: Mapping[str, tuple[str, ...]]
    values: Int[np.ndarray, "row factor"]
    group: Int[np.ndarray, "member"]
    region: Int[np.ndarray, "activation"] | None = None
    parents: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, sizes = len(self.values), [len(names) for names in self.factors.values()]
        if self.values.shape[1] != len(sizes) or len(self.group) != rows:
            raise ShapeError(
                f"Values {list(self.values.shape)} and {len(self.group)} groups for {len(sizes)} factors; give one "
                "value per row and factor, and one group per row."
            )
        if len(set(self.names)) < len(self.names):
            raise ShapeError(f"Values have distinct names over all factors; got {', '.join(self.names)}.")
        if (self.values < -1).any() or (self.values >= np.array(sizes)).any():
            raise ShapeError(f"A value's index lies between −1 (none) and the factor's last; factors have {sizes}.")
        if strangers := [name for pair in self.parents.items() for name in pair if name not in self.names]:
            raise ShapeError(f"parents name {strangers[0]!r}, which is no value; there are {', '.join(self.names)}.")
        if len(np.unique(self.group)) < 2:
            raise ShapeError("All rows come from one group; one half must be held out, so there must be at least two.")
        if self.region is not None:
            if self.region.max(initial=-1) >= rows or self.region.min(initial=0) < -1:
                raise ShapeError(f"Regions are rows, 0 to {rows - 1}, or −1; got up to {self.region.max()}.")
            if empty := rows - len(np.unique(self.region[self.region >= 0])):
                raise ShapeError(f"{empty} of {rows} rows have no activation; leave them out of the table.")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The values of all factors, one after the other."""
        return tuple(name for names in self.factors.values() for name in names)

    @cached_property
    def columns(self) -> Mapping[str, range]:
        """Of each factor, where its values are in `names`."""
        ends = np.cumsum([0, *(len(names) for names in self.factors.values())])
        return {factor: range(ends[i], ends[i + 1]) for i, factor in enumerate(self.factors)}

    def indicators(self) -> Bool[np.ndarray, "row value"]:
        """Whether a row has a value."""
        return np.concatenate(
            [self.values[:, [i]] == np.arange(len(names)) for i, names in enumerate(self.factors.values())], axis=1
        )

    @property
    def n_activations(self) -> int:
        """How many activations the table speaks of."""
        return len(self.values) if self.region is None else len(self.region)

    def shuffled(self, seed: int = 0) -> KnownFactors:
        """The table with factors of other groups: the control in which nothing must be found.

        Rows change places as whole groups do, as far as groups are equally large; what goes with what within a row
        stays.
        """
        random = np.random.default_rng(seed)
        order = np.argsort(random.permutation(len(np.unique(self.group)))[_dense(self.group)], kind="stable")
        place = np.argsort(self.group, kind="stable")
        values = np.empty_like(self.values)
        values[place] = self.values[order]
        return KnownFactors(self.factors, values, self.group, self.region, self.parents)


def quarters(
    factors: Sequence[Mapping[str, str]],
    picture: Int[np.ndarray, "activation"],
    cell: Int[np.ndarray, "activation"],
    grid: tuple[int, int],
) -> KnownFactors:
    """The factors of every quarter of pictures of the shapes world; a row is a quarter, its group the picture.

    An empty quarter has a background and nothing else. `object` has one value, for there is one or there is none.

    Args:
        factors: of each scene, as `interp.shapes.scene.factors_of` gives them, and a store keeps them.
        picture: of each activation the number of its scene.
        cell: of each activation its cell, row by row of the grid.
        grid: rows and columns of cells; even.

    Raises:
        ShapeError: a grid without quarters; pictures or cells that are not there.
    """
    height, width = grid
    if height % 2 or width % 2:
        raise ShapeError(f"A grid of {height}×{width} cells has no quarters.")
    if len(cell) != len(picture) or not (cell < height * width).all() or not (picture < len(factors)).all():
        raise ShapeError(
            f"{len(picture)} pictures and {len(cell)} cells, of {len(factors)} scenes and a grid of {height}×{width}."
        )
    known = {"object": ("object",)} | {name: FACTORS[name].values for name in (*_LOCAL, "cell", "background")}
    values = np.full((len(factors), len(CELLS), len(known)), -1)
    for row, scene in enumerate(factors):
        for number, place in enumerate(CELLS):
            here = {"background": scene["background"]}
            if scene[f"{place}.present"] == "yes":
                here |= {name: scene[f"{place}.{name}"] for name in _LOCAL} | {"object": "object", "cell": place}
            values[row, number] = [names.index(here[name]) if name in here else -1 for name, names in known.items()]
    of_cell = cell // width // (height // 2) * 2 + cell % width // (width // 2)
    seen, row = np.unique(picture * len(CELLS) + of_cell, return_inverse=True)
    parents = {leaf: family for family, of in {**SHAPE_FAMILIES, **COLOUR_FAMILIES}.items() for leaf in of}
    parents |= dict.fromkeys((*SHAPE_FAMILIES, *COLOUR_FAMILIES), "object")
    return KnownFactors(known, values.reshape(-1, len(known))[seen], seen // len(CELLS), row, parents)


def _dense(group: Int[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
    return np.unique(group, return_inverse=True)[1]
