"""The world of the shapes model: what a picture can hold, as values whose hierarchy of concepts is known.

| level | factors |
|---|---|
| 0, the scene | `layout` (derived from the cells), `background` |
| 1, the objects | `present`: one or two of the four cells hold an object |
| 2, families | `shape_family` of the shape, `colour_family` of the colour |
| 3, leaves | `shape`, `colour`, `size`, `cell` |

A scene is a value. `Scene.counterfactual` changes one factor and keeps everything else, with the nuisances
(jitter, wobble of radius and colour) that the picture draws from `Scene.seed` and the object's place in
`objects`. Scenes are sampled by variant (`VARIANTS`), so that a method can be asked for a hierarchy that is
there, and for one that is not. Start with `sample_scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType

from interp.errors import SceneError, nearest

SHAPES = ("circle", "ring", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
CELLS = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS = ("white", "black", "gray", "pink")
LAYOUTS = ("single", "row", "column", "diagonal")
SHAPE_FAMILIES = MappingProxyType({"round": ("circle", "ring"), "angular": ("square", "triangle", "cross")})
COLOUR_FAMILIES = MappingProxyType({"warm": ("red", "orange", "yellow"), "cool": ("green", "blue", "purple")})
MAX_OBJECTS = 2


@dataclass(frozen=True, slots=True)
class Factor:
    """A variable of the world.

    Args:
        values: what it can be.
        level: 0 for the scene, 1 for presence, 2 for families, 3 for leaves.
        parent: the factor above it: what gates it (`present`) or contains it (a family); `None` at the top.
        local: whether every object has its own value.
    """

    name: str
    values: tuple[str, ...]
    level: int
    parent: str | None
    local: bool


_FACTORS = (
    Factor("layout", LAYOUTS, 0, None, False),
    Factor("background", BACKGROUNDS, 0, None, False),
    Factor("present", ("no", "yes"), 1, "layout", True),
    Factor("shape_family", tuple(SHAPE_FAMILIES), 2, "present", True),
    Factor("colour_family", tuple(COLOUR_FAMILIES), 2, "present", True),
    Factor("shape", SHAPES, 3, "shape_family", True),
    Factor("colour", COLOURS, 3, "colour_family", True),
    Factor("size", SIZES, 3, "present", True),
    Factor("cell", CELLS, 3, "present", True),
)
FACTORS = MappingProxyType({factor.name: factor for factor in _FACTORS})
"""Every factor by name, parents first."""

LEAVES = ("shape", "colour", "size", "cell")
"""The factors that an object is made of."""


def _check(factor: str, value: str) -> None:
    if value not in FACTORS[factor].values:
        raise SceneError(f"There is no {factor} {value!r}." + nearest(str(value), FACTORS[factor].values))


@dataclass(frozen=True, slots=True)
class Object:
    """One object.

    Raises:
        SceneError: a value that its factor does not have.
    """

    shape: str
    colour: str
    size: str
    cell: str

    def __post_init__(self) -> None:
        for leaf in LEAVES:
            _check(leaf, getattr(self, leaf))

    @property
    def shape_family(self) -> str:
        """`round` or `angular`."""
        return next(family for family, shapes in SHAPE_FAMILIES.items() if self.shape in shapes)

    @property
    def colour_family(self) -> str:
        """`warm` or `cool`."""
        return next(family for family, colours in COLOUR_FAMILIES.items() if self.colour in colours)


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and one or two objects in cells of their own.

    Args:
        objects: the order is the objects' identity: nuisances belong to the place in this tuple.
        seed: of the nuisances; 0 ≤ seed < 2³².

    Raises:
        SceneError: an unknown background, no object or more than two, two objects in one cell, a seed out of range.
    """

    background: str
    objects: tuple[Object, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        _check("background", self.background)
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise SceneError(f"A scene holds 1 or {MAX_OBJECTS} objects; got {len(self.objects)}.")
        cells = [thing.cell for thing in self.objects]
        if len(set(cells)) < len(cells):
            raise SceneError(f"Two objects share the cell {cells[0]!r}; each needs its own.")
        if not 0 <= self.seed < 2**32:
            raise SceneError(f"The nuisance seed must lie in [0, 2**32); got {self.seed}.")

    @property
    def layout(self) -> str:
        """What the occupied cells say: `single`, `row` (side by side), `column` (one above the other), `diagonal`."""
        if len(self.objects) == 1:
            return "single"
        (a, b), (c, d) = (divmod(CELLS.index(thing.cell), 2) for thing in self.objects)
        return "row" if a == c else "column" if b == d else "diagonal"

    def counterfactual(self, factor: str, value: str, which: int = 0) -> Scene:
        """The same scene, nuisances included, with one factor changed.

        Args:
            factor: `background`, or a leaf of an object: `shape`, `colour`, `size`, `cell`. (Families and layout
                follow from these; objects come and go by `with_object` and `without`.)
            value: the new value; the old one gives an equal scene.
            which: the object concerned, by its place in `objects`; without meaning for the background.

        Raises:
            SceneError: another factor, an unknown value, an object that is not there, a cell that is taken.
        """
        if factor == "background":
            return replace(self, background=value)
        if factor not in LEAVES:
            raise SceneError(f"{factor!r} cannot be set directly." + nearest(factor, ("background", *LEAVES)))
        self._check_object(which)
        changed = replace(self.objects[which], **{factor: value})
        return replace(self, objects=tuple(changed if i == which else o for i, o in enumerate(self.objects)))

    def with_object(self, thing: Object) -> Scene:
        """The same scene with a second object."""
        return replace(self, objects=(*self.objects, thing))

    def without(self, which: int) -> Scene:
        """The same scene without one of its two objects; only the last leaves the other's nuisances untouched."""
        self._check_object(which)
        return replace(self, objects=tuple(o for i, o in enumerate(self.objects) if i != which))

    def _check_object(self, which: int) -> None:
        if not 0 <= which < len(self.objects):
            raise SceneError(f"There is no object {which}: the scene holds {len(self.objects)}, counted from 0.")


def factors_of(scene: Scene) -> dict[str, str]:
    """Every factor's value, objects by cell: `{"background": "white", "top left.colour": "red", …}`.

    Empty cells have only `present`, which is "no": an absent object has no colour.
    """
    at = {thing.cell: thing for thing in scene.objects}
    values = {"layout": scene.layout, "background": scene.background}
    for cell in CELLS:
        values[f"{cell}.present"] = "yes" if cell in at else "no"
        if cell in at:
            for name in ("shape_family", "colour_family", "shape", "colour", "size"):
                values[f"{cell}.{name}"] = getattr(at[cell], name)
    return values


@dataclass(frozen=True, slots=True)
class Variant:
    """How scenes are drawn, and whether captions may name families.

    Args:
        shapes: the shapes in use.
        colours: the colours in use.
        two: probability of a second object.
        warm_if_round: P(warm colour | round shape).
        warm_if_angular: P(warm colour | angular shape).
        large_if_warm: P(large | warm colour).
        large_if_cool: P(large | cool colour).
        held_out: (shape, colour) pairs that never occur.
        names_families: captions sometimes say "angular" for the shape, or "warm" for the colour.
    """

    name: str
    meaning: str
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    two: float = 0.55
    warm_if_round: float = 0.5
    warm_if_angular: float = 0.5
    large_if_warm: float = 0.5
    large_if_cool: float = 0.5
    held_out: frozenset[tuple[str, str]] = frozenset()
    names_families: bool = False


_HELD_OUT = frozenset({("circle", "blue"), ("square", "red"), ("triangle", "yellow"), ("cross", "purple")})
_VARIANTS = (
    Variant("A", "independent factors, families never named"),
    Variant("B", "independent factors, families sometimes named instead of leaves", names_families=True),
    Variant(
        "C",
        "shape family → colour family → size: family of shape and size are correlated, but no cause of each other",
        warm_if_round=0.8,
        warm_if_angular=0.2,
        large_if_warm=0.75,
        large_if_cool=0.25,
    ),
    Variant("D", "4 of the 30 pairs of shape and colour never occur", held_out=_HELD_OUT),
    # One object always, so nothing gates anything; three hues 120° apart, and three shapes, one or none a family:
    # a method that reports a hierarchy here has invented it.
    Variant("E", "flat control", ("circle", "triangle", "cross"), ("red", "green", "blue"), two=0.0),
)
VARIANTS = MappingProxyType({variant.name: variant for variant in _VARIANTS})
"""A–E, all drawn by `sample_scene`."""


def variant_named(name: str) -> Variant:
    """The variant A, B, C, D or E.

    Raises:
        SceneError: there is none of this name.
    """
    if name not in VARIANTS:
        raise SceneError(f"There is no variant {name!r}." + nearest(name, VARIANTS))
    return VARIANTS[name]


def sample_scene(random: Random, variant: Variant = VARIANTS["A"], two: float | None = None) -> Scene:
    """One scene. `two` overrides the variant's probability of a second object."""
    background = random.choice(BACKGROUNDS)
    both = random.random() < (variant.two if two is None else two)
    cells = random.sample(CELLS, 2 if both else 1)
    objects = tuple(_sample_object(random, variant, cell) for cell in cells)
    return Scene(background, objects, random.getrandbits(32))


def sample_scenes(n: int, seed: int = 0, variant: str = "A") -> tuple[Scene, ...]:
    """`n` scenes of a variant; the first k of them do not depend on n.

    Raises:
        SceneError: an unknown variant, or `n` below 1.
    """
    if n < 1:
        raise SceneError(f"At least one scene is needed; got n={n}.")
    random, rule = Random(seed), variant_named(variant)
    return tuple(sample_scene(random, rule) for _ in range(n))


def _sample_object(random: Random, variant: Variant, cell: str) -> Object:
    """Shape → colour family → colour and size, by the variant's probabilities; held-out pairs are drawn again."""
    while True:
        shape = random.choice(variant.shapes)
        warm = variant.warm_if_round if shape in SHAPE_FAMILIES["round"] else variant.warm_if_angular
        family = "warm" if random.random() < warm else "cool"
        if variant.colours != COLOURS:  # a flat set of colours has no families to choose from
            colour = random.choice(variant.colours)
        else:
            colour = random.choice(COLOUR_FAMILIES[family])
        large = variant.large_if_warm if family == "warm" else variant.large_if_cool
        size = "large" if random.random() < large else "small"
        if (shape, colour) not in variant.held_out:
            return Object(shape, colour, size, cell)
