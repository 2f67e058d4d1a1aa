"""Causal models: a hypothesis of what a network computes, as variables, their values, and functions between them.

A model says what follows from its inputs (`run`), and what would follow if some variables had the values that they
have on other inputs (`interchange`). The second is what an alignment is judged by: a network implements the model if
exchanging the aligned parts of its states between two runs changes its answer as the interchange changes the model's.

Start with `CausalModel`; `interp.tasks.causal_models` ships several.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, product
from math import prod
from random import Random
from typing import TypeAlias

import networkx as nx

from interp.errors import InterpError, nearest

Value: TypeAlias = Hashable
Setting: TypeAlias = Mapping[str, Value]
"""A value for each of some variables."""
Draw: TypeAlias = Callable[[Random, Setting | None], Setting]
"""Draws the inputs of a base (given `None`), or those of a source for the base given."""

_MOST_DRAWS = 1000


@dataclass(frozen=True)
class Variable:
    """A variable of a causal model.

    Attributes:
        name: unique in its model.
        values: what it can be.
        parents: names of the variables it is computed from; none for an input.
        function: of the parents' values, in their order; `None` for an input.

    Raises:
        InterpError: no values, or one twice; parents without a function, or a function without parents.
    """

    name: str
    values: tuple[Value, ...] = field(repr=False)
    parents: tuple[str, ...] = ()
    function: Callable[..., Value] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.values:
            raise InterpError(f"Variable {self.name!r} has no values; give at least one.")
        if len(self.domain) < len(self.values):
            twice = next(value for i, value in enumerate(self.values) if value in self.values[:i])
            raise InterpError(f"Variable {self.name!r} has the value {twice!r} twice.")
        if bool(self.parents) != (self.function is not None):
            has, lacks = ("parents", "function") if self.parents else ("a function", "parents")
            raise InterpError(
                f"Variable {self.name!r} has {has} and no {lacks}; an input has neither, every other variable both."
            )

    @cached_property
    def domain(self) -> frozenset[Value]:
        """The values as a set."""
        return frozenset(self.values)

    def check(self, value: Value, where: str) -> None:
        """Refuse a value that is none of this variable's.

        Raises:
            InterpError: it is none.
        """
        if value not in self.domain:
            shown = ", ".join(map(repr, self.values[:8])) + (", …" if len(self.values) > 8 else "")
            raise InterpError(f"{where}: {value!r} is no value of {self.name!r}, which has {shown}.")


@dataclass(frozen=True)
class Interchange:
    """Inputs, and the variables whose values come from elsewhere: a source that is itself an interchange."""

    base: Setting
    sources: Mapping[str, Setting | Interchange]


@dataclass(frozen=True, eq=False)
class CausalModel:
    """Variables, and how each follows from others.

    Attributes:
        name: how figures call it.
        variables: in any order.
        output: the variable that is the answer. Where the model is of a language task, its values are the answers as
            the tokens they are, leading space included: `" Paris"`.
        source: the paper or origin, in one line.

    Raises:
        InterpError: two variables of one name, an unknown parent or output, a cycle (which is shown), an output that
            is an input.
    """

    name: str
    variables: tuple[Variable, ...]
    output: str
    source: str = ""

    def __post_init__(self) -> None:
        names = [variable.name for variable in self.variables]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise InterpError(f"Causal model {self.name!r} has two variables {name!r}.")
        for variable in self.variables:
            for parent in variable.parents:
                if parent not in names:
                    raise InterpError(
                        f"Causal model {self.name!r}: {variable.name!r} has an unknown parent {parent!r}."
                        + nearest(parent, names)
                    )
        if not nx.is_directed_acyclic_graph(self.graph):
            cycle = [edge[0] for edge in nx.find_cycle(self.graph)]
            raise InterpError(
                f"Causal model {self.name!r} has a cycle: {' → '.join([*cycle, cycle[0]])}. "
                "No variable may depend on itself."
            )
        if not self[self.output].parents:
            raise InterpError(f"Causal model {self.name!r}: the output {self.output!r} is an input.")

    @cached_property
    def graph(self) -> nx.DiGraph:
        """An edge from each parent to its child; nodes are names."""
        graph = nx.DiGraph()
        graph.add_nodes_from(variable.name for variable in self.variables)
        graph.add_edges_from((parent, child.name) for child in self.variables for parent in child.parents)
        return graph

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The variables that nothing decides, in the order given."""
        return tuple(variable.name for variable in self.variables if not variable.parents)

    @cached_property
    def order(self) -> tuple[Variable, ...]:
        """Every variable after its parents."""
        return tuple(self[name] for name in nx.lexicographical_topological_sort(self.graph))

    @property
    def inner(self) -> tuple[str, ...]:
        """The variables between inputs and output: those that an alignment asks about, as a rule."""
        return tuple(v.name for v in self.order if v.parents and v.name != self.output)

    def __getitem__(self, name: str) -> Variable:
        """The variable of this name.

        Raises:
            InterpError: there is none.
        """
        if name not in self._by_name:
            raise InterpError(
                f"Causal model {self.name!r} has no variable {name!r}." + nearest(str(name), self._by_name)
            )
        return self._by_name[name]

    def __repr__(self) -> str:
        lines = [f"CausalModel({self.name!r}, inputs {', '.join(self.inputs)}"]
        lines += [f"  {v.name} ← {', '.join(v.parents)}  ({_brief(v.values)})" for v in self.order if v.parents]
        return "\n".join([*lines, f"  output: {self.output})"])

    def run(self, inputs: Setting, fixed: Setting | None = None) -> dict[str, Value]:
        """The value of every variable.

        Args:
            inputs: at least the input variables; values of other variables are not read, so that the result of a run
                can be given again.
            fixed: variables held at these values, whatever their parents say; an input may be among them.

        Raises:
            InterpError: an unknown variable, a missing input, a value outside a variable's domain; a function that
                returns such a value (the parents' values are shown).
        """
        fixed = {} if fixed is None else fixed
        for name in (*inputs, *fixed):
            _ = self[name]
        values: dict[str, Value] = {}
        for variable in self.order:
            name, where = variable.name, f"Causal model {self.name!r}"
            if name in fixed:
                values[name] = fixed[name]
                where += f", fixing {name!r}"
            elif variable.function is None:
                if name not in inputs:
                    raise InterpError(f"{where} needs its input {name!r}; got {', '.join(inputs) or 'nothing'}.")
                values[name] = inputs[name]
            else:
                given = {parent: values[parent] for parent in variable.parents}
                values[name] = variable.function(*given.values())
                where += f", computing {name!r} from {_shown(given)}"
            variable.check(values[name], where)
        return values

    def interchange(self, base: Setting, sources: Mapping[str, Setting | Interchange]) -> dict[str, Value]:
        """The value of every variable on the base's inputs, with some variables as they are on other inputs.

        Args:
            base: inputs.
            sources: by variable, the inputs in whose run it is read. Several variables may have several sources, and
                a source may be an `Interchange` itself (nested).

        Raises:
            InterpError: as `run`.
        """
        fixed = {}
        for name, source in sources.items():
            _ = self[name]
            nested = isinstance(source, Interchange)
            run = self.interchange(source.base, source.sources) if nested else self.run(source)
            fixed[name] = run[name]
        return self.run(base, fixed)

    @property
    def n_settings(self) -> int:
        """How many settings of the inputs there are."""
        return prod(len(self[name].values) for name in self.inputs)

    def settings(self) -> Iterator[dict[str, Value]]:
        """Every setting of the inputs; the last input changes fastest."""
        for values in product(*(self[name].values for name in self.inputs)):
            yield dict(zip(self.inputs, values, strict=True))

    def sample(self, n: int, seed: int = 0) -> tuple[dict[str, Value], ...]:
        """Settings of the inputs, each value drawn uniformly and independently; the first k do not depend on n."""
        random = Random(seed)
        return tuple(self._draw(random) for _ in range(n))

    def counterfactuals(
        self, variables: Sequence[str], seed: int = 0, draw: Draw | None = None
    ) -> Iterator[tuple[Setting, tuple[Setting, ...], Value]]:
        """Without end: base inputs, source inputs (one setting per variable), and the answer under the interchange.

        They take turns, so that no shortcut answers more than half:

        - *change*: the interchange changes the base's answer (to a source's, or to a third);
        - *keep*: it does not, although no source has the base's answer.

        To repeat the base's answer is therefore right in half of them, to repeat a source's in at most half.

        Args:
            variables: those that are exchanged, together; each has a source of its own.
            seed: same seed, same sequence.
            draw: of inputs; `None` draws each value uniformly.

        Raises:
            InterpError: no variable, or an unknown one; one of the two kinds did not turn up in 1000 draws, as when a
                variable never changes the answer, or decides it alone.
        """
        if not variables:
            raise InterpError(
                f"No variable of causal model {self.name!r} was named. Allowed: {', '.join(self._by_name)}."
            )
        names = [self[name].name for name in variables]
        draw = draw or (lambda random, _base: self._draw(random))
        random = Random(seed)
        for row in count():
            changes = row % 2 == 0
            for _ in range(_MOST_DRAWS):
                base = draw(random, None)
                sources = tuple(draw(random, base) for _ in names)
                answer = self.run(base)[self.output]
                label = self.interchange(base, dict(zip(names, sources, strict=True)))[self.output]
                if changes == (label != answer) and (
                    changes or all(self.run(source)[self.output] != answer for source in sources)
                ):
                    yield base, sources, label
                    break
            else:
                what = (
                    "never changed the answer: there is nothing to learn from it"
                    if changes
                    else "never left an answer as it was that the sources do not share: it decides the answer alone"
                )
                raise InterpError(
                    f"Causal model {self.name!r}: in {_MOST_DRAWS} draws, exchanging {' and '.join(names)} {what}."
                )

    def check(self, examples: Iterable[tuple[Setting, Value]]) -> None:
        """Hold the model against what a task says is right.

        Args:
            examples: inputs, and the right answer.

        Raises:
            InterpError: the model gives another answer; the first such example is shown, with every variable.
        """
        for row, (inputs, answer) in enumerate(examples):
            values = self.run(inputs)
            if values[self.output] != answer:
                raise InterpError(
                    f"Causal model {self.name!r} disagrees with example {row}: the right answer is {answer!r}, the "
                    f"model's {values[self.output]!r}. Its variables: {_shown(values)}."
                )

    @cached_property
    def _by_name(self) -> dict[str, Variable]:
        return {variable.name: variable for variable in self.variables}

    def _draw(self, random: Random) -> dict[str, Value]:
        return {name: random.choice(self[name].values) for name in self.inputs}


def _brief(values: Sequence[Value]) -> str:
    return ", ".join(map(repr, values)) if len(values) <= 4 else f"{len(values)} values"


def _shown(values: Setting) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
