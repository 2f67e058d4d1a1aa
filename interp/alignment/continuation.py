"""From a state to an output: all that fitting an alignment needs to know of a network.

The state of a base and the states of its sources at a place do not depend on the map that is fitted there; they are
taken once. What the map makes of them goes into the rest of the network. A language model is one such
(`interp.alignment.language`), a layer of a toy network another (`FunctionContinuation`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InterpError, ShapeError


class Continuation(ABC):
    """States at some places on some examples, and what the network makes of others put there.

    Attributes:
        base: states of the base run; sources: of the run that each variable's value is taken from. A place may be
            several positions, as the cells of a picture: a map exchanges the same part of the state at each.
    """

    base: Float[Tensor, "place example *pos width"]
    sources: tuple[Float[Tensor, "place example *pos width"], ...]

    @abstractmethod
    def outputs(
        self, values: Float[Tensor, "row *pos width"], place: Int[Tensor, "row"], example: Int[Tensor, "row"]
    ) -> Float[Tensor, "row ..."]:
        """What comes out (logits, usually) when the state at a row's place on its example is its value."""

    @abstractmethod
    def base_outputs(self, example: Int[Tensor, "row"]) -> Float[Tensor, "row ..."]:
        """What comes out of the base run."""

    def parts(self, place: Int[Tensor, "row"], example: Int[Tensor, "row"]) -> list[Int[Tensor, "part"]]:
        """The rows, in groups for which one pass and its backward pass fit into memory."""
        return [torch.arange(len(place), device=place.device)]

    def place(self, name: Hashable) -> int:
        """The number of a place.

        Raises:
            InterpError: there is none of that name.
        """
        if not isinstance(name, int) or not 0 <= name < len(self.base):
            last = len(self.base) - 1
            raise InterpError(f"There is no place {name!r}; {type(self).__name__} has the places 0 to {last}.")
        return name

    def depth(self, place: int) -> tuple[int, ...]:
        """By what places are put in order: none has a state that one of a greater depth can change."""
        return (place,)

    def state(self, place: int, put: Mapping[int, Tensor]) -> Float[Tensor, "example *pos width"]:
        """The state of every example at a place, when at other places there is what was put there.

        Args:
            place: number of it.
            put: states of every example, by place; none: the base run.

        Raises:
            InterpError: the states of several places cannot be set at once here.
        """
        if put:
            raise InterpError(f"{type(self).__name__} sets one place's state at a time; align all variables there.")
        return self.base[place]

    def outputs_of(self, put: Mapping[int, Tensor]) -> Float[Tensor, "example ..."]:
        """What comes out for every example when at some places there is what was put there; none: the base run.

        Raises:
            InterpError: as `state`.
        """
        if len(put) > 1:
            return self.state(max(put), put)  # which refuses
        example = torch.arange(self.base.shape[1], device=self.base.device)
        if not put:
            return self.base_outputs(example)
        ((at, values),) = put.items()
        place = torch.full_like(example, at)
        return torch.cat([self.outputs(values[part], place[part], part) for part in self.parts(place, example)])

    @cached_property
    def differs(self) -> Bool[Tensor, "place example"]:
        """Where some source's state differs from the base's in any bit.

        Elsewhere every map gives the base's state back, and the base run answers for it.
        """
        return torch.stack([(source != self.base).flatten(2).any(-1) for source in self.sources]).any(0)

    def check(self, names: list[str]) -> None:
        """Refuse states that are not finite.

        Raises:
            InterpError: a place, by its name, with such a state.
        """
        for side, states in (("base", self.base), *(("source", source) for source in self.sources)):
            bad = ~torch.isfinite(states).flatten(2).all(-1)
            if bad.any():
                place, example = (int(i) for i in bad.nonzero()[0])
                raise InterpError(f"The {side} state at {names[place]} of example {example} is not finite.")


class FunctionContinuation(Continuation):
    """States and a function of one place's states: a layer of a network that is no language model.

    Args:
        base: [example, width].
        sources: [example, width], one per source.
        function: from states [row, width] to outputs [row, …], row by row.

    Raises:
        ShapeError: base and sources of different shape.
    """

    def __init__(
        self,
        base: Float[Tensor, "example width"],
        sources: tuple[Tensor, ...],
        function: Callable[[Tensor], Tensor],
    ) -> None:
        if not sources or any(source.shape != base.shape for source in sources):
            shapes = ", ".join(str(list(source.shape)) for source in sources) or "none"
            raise ShapeError(f"Sources must have the base's shape {list(base.shape)}; got {shapes}.")
        self.base, self.sources = base[None], tuple(source[None] for source in sources)
        self.function = function

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """The function of the values."""
        return self.function(values)

    def base_outputs(self, example: Tensor) -> Tensor:
        """The function of the base's states."""
        return self.function(self.base[0, example])
