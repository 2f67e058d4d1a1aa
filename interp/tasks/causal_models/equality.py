"""Equality of vectors: causal models for networks that are small enough to train, and inputs without words.

An input is a row of symbols, each drawn as a random vector; a symbol that stands twice is the same vector twice. The
networks read nothing else, so that every example has vectors of its own, and what is held out is every value.

| model | its variables | symbols | answer |
|---|---|---|---|
| `equality` | `left`, `right` | a b c d | is `a = b` as true as `c = d`? |
| `first argument` | `first` | the same | the same |
| `and-or-and` | `early`, `late` | a b c d e f | is `c = d`, and one of `a = b` and `e = f`? |
| `and-or` | `middle`, `outer` | the same | the same |

Two models of one task compute the same answers by different variables. Start with `vector_interchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.tasks.causal_model import CausalModel, Value, Variable
from interp.tasks.pairs import check_choice, check_count

WIDTH = 4
"""Numbers per symbol; each is uniform in [−½, ½]."""

_EQUALITY = "Geiger et al. 2023, arXiv:2303.02536"
_DILEMMA = "Sutter et al. 2025, arXiv:2507.08802"
LAWS = ("even", "published")
_MOST_SYMBOLS = 18  # three rows of six


def _model(name: str, source: str, letters: str, *computed: tuple[str, str, Callable[..., bool]]) -> CausalModel:
    symbols = tuple(range(_MOST_SYMBOLS))
    inputs = tuple(Variable(letter, symbols) for letter in letters)
    rest = tuple(Variable(of, (False, True), tuple(parents.split()), rule) for of, parents, rule in computed)
    return CausalModel(name, (*inputs, *rest), "answer", source)


def _same(one: Value, other: Value) -> bool:
    return one == other


def _first_argument() -> CausalModel:
    symbols = tuple(range(_MOST_SYMBOLS))
    variables = (
        *(Variable(letter, symbols) for letter in "abcd"),
        Variable("first", symbols, ("a",), lambda a: a),
        Variable("left", (False, True), ("first", "b"), _same),
        Variable("right", (False, True), ("c", "d"), _same),
        Variable("answer", (False, True), ("left", "right"), _same),
    )
    return CausalModel("first argument", variables, "answer", _DILEMMA)


VECTOR_MODELS: Mapping[str, CausalModel] = MappingProxyType(
    {
        "equality": _model(
            "equality", _EQUALITY, "abcd",
            ("left", "a b", _same),
            ("right", "c d", _same),
            ("answer", "left right", _same),
        ),
        "first argument": _first_argument(),
        "and-or-and": _model(
            "and-or-and", _DILEMMA, "abcdef",
            ("early", "a b c d", lambda a, b, c, d: a == b and c == d),
            ("late", "c d e f", lambda c, d, e, f: c == d and e == f),
            ("answer", "early late", lambda early, late: early or late),
        ),
        "and-or": _model(
            "and-or", _DILEMMA, "abcdef",
            ("middle", "c d", _same),
            ("outer", "a b e f", lambda a, b, e, f: a == b or e == f),
            ("answer", "middle outer", lambda middle, outer: middle and outer),
        ),
    }
)  # fmt: skip
"""The causal models, by name."""

VECTOR_VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"equality": ("left", "right"), "first argument": ("first",), "and-or-and": ("early", "late"),
     "and-or": ("middle", "outer")}
)  # fmt: skip
"""The variables of each that are exchanged."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorInterchange:
    """Counterfactuals on vectors; row `b` of everything is example `b`.

    Attributes:
        name: of the causal model.
        variables: those that have sources.
        base: inputs.
        sources: inputs, of each variable.
        exchanged: which variables are exchanged; the source of another is to be ignored.
        answer: to the base.
        source_answers: to the sources.
        label: the causal model's answer under the interchange.
        symbols: of base and sources, which symbol of the example stands at each place.
    """

    name: str
    variables: tuple[str, ...]
    base: Float[Tensor, "batch width"]
    sources: Float[Tensor, "variable batch width"]
    exchanged: Bool[Tensor, "variable batch"]
    answer: Bool[Tensor, "batch"]
    source_answers: Bool[Tensor, "variable batch"]
    label: Bool[Tensor, "batch"]
    symbols: Int[Tensor, "batch side place"]

    def __len__(self) -> int:
        return len(self.base)

    def settings(self, side: int) -> tuple[dict[str, Value], ...]:
        """The value of every variable of the causal model, on the base (0) or on the source of a variable (from 1)."""
        model = VECTOR_MODELS[self.name]
        kinds, which = self.symbols[:, side].unique(dim=0, return_inverse=True)
        found = [model.run(dict(zip(model.inputs, kind, strict=True))) for kind in kinds.tolist()]
        return tuple(found[i] for i in which.tolist())

    def exchanging(self, variables: Sequence[str]) -> VectorInterchange:
        """The examples in which exactly these variables are exchanged, with no other's sources.

        Raises:
            PairError: a variable that has no sources here.
        """
        for variable in variables:
            check_choice(f"variable of {self.name!r}", variable, self.variables)
        kept = [i for i, variable in enumerate(self.variables) if variable in variables]
        wanted = torch.tensor([i in kept for i in range(len(self.variables))])
        rows = (self.exchanged == wanted[:, None]).all(0).nonzero()[:, 0]
        return VectorInterchange(
            self.name, tuple(self.variables[i] for i in kept), self.base[rows], self.sources[kept][:, rows],
            self.exchanged[kept][:, rows], self.answer[rows], self.source_answers[kept][:, rows], self.label[rows],
            self.symbols[rows][:, [0, *(1 + i for i in kept)]],
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"VectorInterchange({self.name!r}, {len(self)} examples of {self.base.shape[1]} numbers, "
            f"variables {', '.join(self.variables)})"
        )


def vector_interchange(
    name: str, n: int, seed: int = 0, variables: Sequence[str] | None = None, law: str = "even"
) -> VectorInterchange:
    """Counterfactuals of a causal model on vectors.

    The law: every non-empty set of the variables is exchanged equally often, the base's answer is true in half of the
    examples, and independently the interchange changes it in half. So to repeat the base's answer is right in half.
    Base and sources share no vector, but for `first`: there the source's first symbol is the base's second one in half
    of the examples. About the sources' answers there are two laws:

    - `"even"`: whatever the base, they are true in half of the examples wherever they can be both;
    - `"published"`: sources are drawn with true and false answers equally often, and kept where they fit. With the
      models of the distributive law, a source's answer is then the label in 0.77 (`early` alone) to 0.84 (`middle`
      alone) of the examples, which is what a network gets that carries the answer over; under `"even"` in 0.62.

    Args:
        name: one of `VECTOR_MODELS`.
        n: number of examples.
        seed: another seed has other vectors, so no value of one set is in the other.
        variables: those to exchange; `None` means `VECTOR_VARIABLES[name]`.
        law: of the sources' answers.

    Raises:
        PairError: an unknown name, variable or law, or `n` below 1.

    Source: Sutter et al. 2025 (arXiv:2507.08802), who use the published law, after Geiger et al. 2023
        (arXiv:2303.02536). For `equality` and `first argument` the two laws are the same.
    """
    check_count(n)
    check_choice("causal model of vectors", name, VECTOR_MODELS)
    variables = VECTOR_VARIABLES[name] if variables is None else tuple(variables)
    for variable in variables:
        check_choice(f"variable of {name!r}", variable, VECTOR_VARIABLES[name])
    check_choice("law", law, LAWS)
    patterns = _patterns(name, variables)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(patterns.odds(law), n, replacement=True, generator=generator)
    symbols = patterns.symbols[rows]  # [batch, side, place]
    n_symbols = int(patterns.symbols.max()) + 1
    vectors = torch.rand(n, n_symbols, WIDTH, generator=generator) - 0.5
    width = symbols.shape[2] * WIDTH
    sides = [vectors.gather(1, side[:, :, None].expand(-1, -1, WIDTH)).reshape(n, width) for side in symbols.unbind(1)]
    answers = patterns.answers[rows].T
    return VectorInterchange(
        name, variables, sides[0], torch.stack(sides[1:]), patterns.exchanged[rows].T, answers[0], answers[1:],
        patterns.label[rows], symbols,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Patterns:
    """Every pattern of equal symbols in base and sources, and what the causal model says of it."""

    symbols: Int[Tensor, "pattern side place"]
    exchanged: Bool[Tensor, "pattern variable"]
    answers: Bool[Tensor, "pattern side"]
    label: Bool[Tensor, "pattern"]

    def odds(self, law: str) -> Float[Tensor, "pattern"]:
        """How often each is drawn."""
        sources = self.answers[:, 1:]
        true = sources.float().mean(0)
        odds = torch.where(sources, 1 / true, 1 / (1 - true)).prod(1)
        changed = self.label != self.answers[:, 0]
        groups = torch.cat([self.exchanged, self.answers[:, :1], changed[:, None]], 1)
        if law == "even":
            odds = _even(odds, torch.cat([groups, sources], 1))
        return _even(odds, groups)


def _even(odds: Float[Tensor, "pattern"], keys: Bool[Tensor, "pattern key"]) -> Float[Tensor, "pattern"]:
    """The odds, such that all groups of patterns of the same keys are equally likely."""
    kinds, group = keys.unique(dim=0, return_inverse=True)
    return odds / torch.zeros(len(kinds)).index_add(0, group, odds)[group]


@cache
def _patterns(name: str, variables: tuple[str, ...]) -> _Patterns:
    model, rows = VECTOR_MODELS[name], []
    n_pairs = len(model.inputs) // 2
    subsets = [s for size in range(1, len(variables) + 1) for s in combinations(variables, size)]
    for sides in _rows_of_symbols(n_pairs, len(variables), borrowing=name == "first argument"):
        settings = [dict(zip(model.inputs, side, strict=True)) for side in sides]
        answers = [model.run(setting)[model.output] for setting in settings]
        for subset in subsets:
            given = {v: source for v, source in zip(variables, settings[1:], strict=True) if v in subset}
            label = model.interchange(settings[0], given)[model.output]
            rows.append((sides, [v in subset for v in variables], answers, label))
    symbols, exchanged, answers, labels = zip(*rows, strict=True)
    return _Patterns(torch.tensor(symbols), torch.tensor(exchanged), torch.tensor(answers), torch.tensor(labels))


def _rows_of_symbols(n_pairs: int, n_sources: int, borrowing: bool) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Base and sources, whose pairs are equal or not in every combination.

    Every place has a symbol of its own, but for the second of an equal pair. If `borrowing`, the source's first symbol
    may also be the base's second.
    """
    places = 2 * n_pairs
    for equal in product((False, True), repeat=n_pairs * (1 + n_sources)):
        flat = [2 * pair + (0 if same or half == 0 else 1) for pair, same in enumerate(equal) for half in range(2)]
        sides = tuple(tuple(flat[side * places : (side + 1) * places]) for side in range(1 + n_sources))
        yield sides
        if borrowing:
            first, second = sides[1][:2]
            borrowed = sides[0][1]
            yield sides[0], (borrowed, borrowed if first == second else second, *sides[1][2:])
