"""Joint interchanges: several variables at once, each from a source of its own and at a place of its own.

Variables whose blocks one map holds are exchanged in one swap. Of several places the lower comes first, and a higher
one is swapped in the state that the lower one's swap has led to (*nested*): where that has changed the higher block,
the source overrides it, as fixing a variable of a causal model overrides what its parents say. What is not exchanged
is left alone, and takes whatever values follow.

Source: Geiger et al. 2023 (arXiv:2303.02536), whose interchanges are of variables that share one rotation of one state;
Geiger, Potts & Icard 2023 (arXiv:2301.04709) for those of a whole model.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.maps import AlignmentMap, Subspace, Whole
from interp.errors import InterpError, nearest


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Variables, and the map that holds their blocks at one place.

    Attributes:
        variables: in the order of the map's blocks.
        place: a `Place` of a language model, or the number of a continuation's place.
        map: of one cell.

    Raises:
        InterpError: a map of several cells, or with another number of blocks than there are variables.
    """

    variables: tuple[str, ...]
    place: Hashable
    map: AlignmentMap

    def __post_init__(self) -> None:
        if self.map.cells != 1:
            raise InterpError(f"A map of {self.map.cells} cells at {self.place}; take one out with select.")
        if self.map.n_variables != len(self.variables):
            raise InterpError(
                f"{', '.join(self.variables)} at {self.place}: {len(self.variables)} variables, and a map with blocks "
                f"for {self.map.n_variables}."
            )

    def __str__(self) -> str:
        where = f"place {self.place}" if isinstance(self.place, int) else str(self.place)
        ranks = " + ".join(map(str, self.map.sizes))
        return f"{' and '.join(self.variables)}: {where}, {type(self.map).__name__} of rank {ranks}"

    def whole(self, exchanged: Collection[str]) -> Aligned | None:
        """The exchange of the whole state there; `None` if several of its variables are exchanged."""
        mine = tuple(v for v in self.variables if v in exchanged)
        return Aligned(mine, self.place, Whole(self.map.width)) if len(mine) == 1 else None

    def random(self, seed: int) -> Aligned:
        """Random subspaces of the sizes of its blocks."""
        drawn = Subspace.random(self.map.width, self.map.sizes, seed=seed)
        return Aligned(self.variables, self.place, drawn.to(next(iter(self.map.state_dict().values())).device))


def check_aligned(aligned: Sequence[Aligned]) -> tuple[str, ...]:
    """The variables of all, each once.

    Raises:
        InterpError: none; a variable that is aligned twice; two maps at one place, which would undo each other.
    """
    variables = [v for one in aligned for v in one.variables]
    if not variables:
        raise InterpError("Nothing is aligned: give at least one variable with its place and map.")
    if twice := [v for i, v in enumerate(variables) if v in variables[:i]]:
        raise InterpError(f"{twice[0]!r} is aligned twice; a joint interchange takes one place for each variable.")
    for i, one in enumerate(aligned):
        for other in aligned[:i]:
            if other.place == one.place:
                names = " and ".join((*other.variables, *one.variables))
                raise InterpError(
                    f"{names} have maps of their own at the same place, {one.place}. Subspaces that were found apart "
                    "may overlap, and the second swap would undo the first: fit them together, as blocks of one map "
                    "(align with a task of both)."
                )
    return tuple(variables)


def subsets(variables: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every set of variables that is not empty, the small ones first, each in the order given."""
    for size in range(1, len(variables) + 1):
        yield from combinations(variables, size)


def joint_outputs(aligned: Sequence[Aligned], exchanged: Sequence[str], continuation: Continuation) -> Tensor:
    """What the network puts out for every example when these variables are exchanged together; none: the base run.

    Args:
        aligned: at least these variables.
        exchanged: in the order of the continuation's sources.
        continuation: whose places are those of `aligned`.

    Raises:
        InterpError: a variable that is not aligned; another number of sources; a network in which the places cannot be
            set together.
    """
    known = check_aligned(aligned)
    for name in exchanged:
        if name not in known:
            raise InterpError(f"Variable {name!r} is not aligned." + nearest(name, known))
    if exchanged and len(exchanged) != len(continuation.sources):
        raise InterpError(f"{', '.join(exchanged)} are exchanged, with {len(continuation.sources)} sources for them.")
    put: dict[int, Tensor] = {}
    at = {one: continuation.place(one.place) for one in aligned if set(one.variables) & set(exchanged)}
    for one, place in sorted(at.items(), key=lambda pair: continuation.depth(pair[1])):
        state = continuation.state(place, put)
        sources = [continuation.sources[exchanged.index(v)][place] if v in exchanged else state for v in one.variables]
        put[place] = one.map.swap(state, sources)
    return continuation.outputs_of(put)
