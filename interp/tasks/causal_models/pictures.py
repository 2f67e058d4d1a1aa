"""Objects of the shapes world as a causal model: the colour, shape or cell of a picture, exchanged between two prompts.

A prompt says every attribute, the picture shows them, each by a variable of its own. So the label of an interchange is
no token but a picture: the scene that a judge should see. Start with `picture_interchange`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from interp.errors import PairError
from interp.shapes.caption import full_caption
from interp.shapes.scene import BACKGROUNDS, FACTORS, LEAVES, SHAPES, SIZES, Object, Scene
from interp.tasks.causal_model import CausalModel, Setting, Variable
from interp.tasks.pairs import check_choice, check_count, part_of, split_name

EXCHANGED = ("colour", "shape", "cell", "size", "background")
"""The attributes of a picture of one object."""


@dataclass(frozen=True, slots=True)
class PictureCounterfactual:
    """A base, a source per exchanged variable, and the scene that the counterfactual picture should show.

    Each is a scene; `full_caption` of it is its prompt.
    """

    base: Scene
    sources: tuple[Scene, ...]
    scene: Scene

    @property
    def prompt(self) -> str:
        """The base's prompt."""
        return full_caption(self.base)

    @property
    def source_prompts(self) -> tuple[str, ...]:
        """The sources' prompts."""
        return tuple(full_caption(source) for source in self.sources)

    @property
    def expected(self) -> dict[str, str]:
        """What a judge should see in the counterfactual picture, by attribute."""
        return attributes_of(self.scene)


@dataclass(frozen=True)
class PictureInterchange:
    """A named set of counterfactual pictures; like `InterchangeTask`.

    Attributes:
        name: how figures call it.
        variables: attributes that are exchanged, in the order of the sources.
        examples: in order.
        source: the origin, in one line.
        seed: the seed they were drawn with.
    """

    name: str
    variables: tuple[str, ...]
    examples: tuple[PictureCounterfactual, ...]
    source: str
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[PictureCounterfactual]:
        return iter(self.examples)

    def __getitem__(self, rows: object) -> PictureInterchange:
        """The task of a slice of the examples (a single one is `task.examples[i]`)."""
        if not isinstance(rows, slice):
            raise TypeError(f"A task is sliced, task[2:5]; for one example write task.examples[{rows!r}].")
        return PictureInterchange(self.name, self.variables, self.examples[rows], self.source, self.seed)

    def __repr__(self) -> str:
        first = ""
        if self.examples:
            example = self.examples[0]
            told = ", ".join(
                f"{variable} of {prompt!r}"
                for variable, prompt in zip(self.variables, example.source_prompts, strict=True)
            )
            first = f"; {example.prompt!r} with {told} → {full_caption(example.scene)!r}"
        return f"PictureInterchange({self.name!r}, {len(self)} examples, seed={self.seed}{first})"


def attributes_of(scene: Scene) -> dict[str, str]:
    """The attributes of a scene of one object, by the names of `EXCHANGED`."""
    (thing,) = scene.objects
    return {name: scene.background if name == "background" else getattr(thing, name) for name in EXCHANGED}


def picture_model() -> CausalModel:
    """Of each attribute, the word that the prompt says decides what the picture shows.

    Inputs are `said_colour` and so on, variables `colour` and so on; the output `picture` is the tuple of what is
    shown, in the order of `EXCHANGED`.
    """
    values = {name: FACTORS[name].values for name in EXCHANGED}
    said = (Variable(f"said_{name}", values[name]) for name in EXCHANGED)
    shown = (Variable(name, values[name], (f"said_{name}",), lambda word: word) for name in EXCHANGED)
    picture = Variable("picture", tuple(product(*values.values())), EXCHANGED, lambda *seen: seen)
    return CausalModel("attributes of a picture", (*said, *shown, picture), "picture", "procedural, the shapes world")


def picture_interchange(
    n: int, seed: int = 0, variables: Sequence[str] = ("colour",), split: str = "all",
    values: Mapping[str, Sequence[str]] | None = None,
) -> PictureInterchange:  # fmt: skip
    """Counterfactual pictures of one object.

    Base and source are drawn independently, so that what is carried over besides the variable shows. The law differs
    from that of texts, as no picture is "the answer": each variable changes its attribute in every example, and every
    other attribute of base and source differs as it falls; to show the base's picture is never right, to show the
    source's hardly ever.

    Args:
        n: number of examples.
        seed: same seed, same examples; the first k of n do not depend on n.
        variables: of `EXCHANGED`.
        split: `"train"` and `"held out"` share no context, which is shape, size and background together. The exchanged
            values are the same: there are too few colours to spare. To hold out values too, give `values`.
        values: by attribute, the values to draw from, as `{"colour": ("red", "blue")}`; the others are not limited.

    Raises:
        PairError: no variable or an unknown one, an unknown split or attribute, fewer than two values of an exchanged
            attribute, a value that the attribute does not have, or `n` below 1.
    """
    check_count(n)
    if not variables:
        raise PairError(f"No attribute was named to exchange. Allowed: {', '.join(EXCHANGED)}.")
    for variable in variables:
        check_choice("attribute", variable, EXCHANGED)
    allowed = _allowed(values or {}, variables)
    contexts = part_of(_shuffled(product(SHAPES, SIZES, BACKGROUNDS)), split)
    contexts = tuple(c for c in contexts if all(v in allowed[a] for a, v in zip(_CONTEXT, c, strict=True)))
    model, random, examples = picture_model(), Random(seed), []
    while len(examples) < n:
        base, *sources = (_draw(random, contexts, allowed) for _ in range(1 + len(variables)))
        if any(base[v] == source[v] for v, source in zip(variables, sources, strict=True)):
            continue
        given = {v: _said(source) for v, source in zip(variables, sources, strict=True)}
        picture = model.interchange(_said(base), given)
        nuisance = random.getrandbits(32)
        examples.append(
            PictureCounterfactual(
                _scene(base, nuisance), tuple(_scene(source, nuisance) for source in sources), _scene(picture, nuisance)
            )
        )
    name = split_name(f"picture-{'-'.join(variables)}", split)
    return PictureInterchange(name, tuple(variables), tuple(examples), model.source, seed)


_CONTEXT = ("shape", "size", "background")


def _allowed(values: Mapping[str, Sequence[str]], variables: Sequence[str]) -> dict[str, tuple[str, ...]]:
    for name, of in values.items():
        check_choice("attribute", name, EXCHANGED)
        for value in of:
            check_choice(name, value, FACTORS[name].values)
    allowed = {name: tuple(values.get(name, FACTORS[name].values)) for name in EXCHANGED}
    for name in EXCHANGED:
        fewest = 2 if name in variables else 1
        if len(set(allowed[name])) < fewest:
            raise PairError(f"To draw {name}, give at least {fewest} of its values; got {allowed[name]}.")
    return allowed


def _shuffled(contexts: Iterator[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """In a fixed order without pattern, so that a third of them holds every value."""
    listed = list(contexts)
    Random(0).shuffle(listed)
    return tuple(listed)


def _draw(random: Random, contexts: Sequence[tuple[str, ...]], allowed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    context = dict(zip(_CONTEXT, random.choice(contexts), strict=True))
    return {**context, **{name: random.choice(allowed[name]) for name in ("colour", "cell")}}


def _said(attributes: Mapping[str, str]) -> Setting:
    return {f"said_{name}": attributes[name] for name in EXCHANGED}


def _scene(attributes: Mapping[str, object], nuisance: int) -> Scene:
    return Scene(str(attributes["background"]), (Object(**{leaf: str(attributes[leaf]) for leaf in LEAVES}),), nuisance)
