"""Where the nodes and edges of a circuit's picture go: input below, logits above, every edge upwards.

Rows are given by depth: of each layer the key and value inputs that heads share, the heads, the MLP; layers without a
node are left out. Heads stand where their edges to other heads are short, MLPs in a lane of their own on the right;
every edge bends to the side on which it covers the fewest boxes. All of it is deterministic.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from interp.errors import ShapeError
from interp.plots.circuit import Edge


@dataclass
class Box:
    """A node, or the key and value inputs of a group of heads; `x` and `y` are its centre, in pixels upwards.

    Attributes:
        first: rank of its strongest edge.
    """

    name: str
    kind: str
    layer: int | None
    number: int
    first: int
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0


@dataclass
class Layout:
    """A laid out circuit.

    Attributes:
        edges: strongest first.
        boxes: by name.
        paths: [edge, point, 2], from sender to receiver.
        links: from a group's box to one of its heads, [link, point, 2], with the names of both.
        bands: of each layer that is drawn, its lower and upper y.
        span: (left, right), (lower, upper) of everything.
    """

    edges: Sequence[Edge]
    boxes: dict[str, Box]
    paths: Float[np.ndarray, "edge point 2"] = field(default_factory=lambda: np.empty((0, 2, 2)))
    links: list[tuple[str, str, Float[np.ndarray, "point 2"]]] = field(default_factory=list)
    bands: dict[int, tuple[float, float]] = field(default_factory=dict)
    span: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))


_NAME = re.compile(
    r"(?P<bar>input|logits)|m(?P<mlp>\d+)|a(?P<layer>\d+)\.(?P<kind>h|kv)(?P<number>\d+)(<(?P<port>[qkv])>)?"
)
_ROWS = {"group": 0, "head": 1, "mlp": 2}
_SIZES = {"head": (46.0, 18.0), "group": (30.0, 14.0), "mlp": (36.0, 18.0)}
_COLUMN, _LANE, _BAR = 60.0, 76.0, 22.0
"""Distance of heads, of the MLPs from the last head, and height of input and logits, in pixels."""
_PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
"""Where an edge ends, in widths of the box from its middle."""
_T = np.linspace(0, 1, 25)
_BERNSTEIN = np.stack([(1 - _T) ** 3, 3 * (1 - _T) ** 2 * _T, 3 * (1 - _T) * _T**2, _T**3], 1)
_BENDS = np.array([0, 15, -15, 30, -30, 60, -60, 95, -95], dtype=float)
_SWEEPS = 40


def lay_out(edges: Sequence[Edge], group: int) -> Layout:
    """Place the nodes and bend the edges.

    Args:
        edges: strongest first.
        group: how many heads share a key and value.

    Raises:
        ShapeError: no edge; a name that is none; an edge twice, or not upwards; a score that is not finite.
    """
    _check(edges)
    layout = Layout(edges, _boxes(edges))
    _set_heights(layout)
    sharing = [
        (name, head)
        for name, box in layout.boxes.items()
        if box.kind == "group"
        for number in range(box.number * group, (box.number + 1) * group)
        if (head := f"a{box.layer}.h{number}") in layout.boxes
    ]
    _set_places(layout, sharing)
    _set_paths(layout, sharing)
    _set_bars(layout)
    return layout


def box_name(end: str) -> str:
    """The box at which an edge ends: the receiver without its `<q>`."""
    return end.partition("<")[0]


def _check(edges: Sequence[Edge]) -> None:
    if not edges:
        raise ShapeError("A circuit of no edges cannot be drawn.")
    for edge in edges:
        for name, receives in ((edge.sender, False), (edge.receiver, True)):
            found = _NAME.fullmatch(name)
            wanted = receives and found is not None and found["kind"] is not None
            if found is None or (found["port"] is not None) != wanted or (not receives and found["kind"] == "kv"):
                kinds = "'a3.h5<q>', 'a3.kv1<k>', 'm3' or 'logits'" if receives else "'input', 'a3.h5' or 'm3'"
                raise ShapeError(f"{name!r} names no {'receiver' if receives else 'sender'}: {kinds}.")
        if _depth(edge.sender) >= _depth(box_name(edge.receiver)):
            raise ShapeError(f"{edge.sender}->{edge.receiver} does not lead upwards.")
        if not np.isfinite(edge.score):
            raise ShapeError(f"{edge.sender}->{edge.receiver} has the score {edge.score}; it must be finite.")
    if len({edge[:2] for edge in edges}) < len(edges):
        raise ShapeError("An edge is there twice.")


def _read(name: str) -> tuple[str, int | None, int]:
    """(kind, layer, number in its row) of a box."""
    found = _NAME.fullmatch(name)
    assert found is not None  # _check has seen it
    if found["bar"]:
        return found["bar"], None, 0
    if found["mlp"]:
        return "mlp", int(found["mlp"]), 0
    return "head" if found["kind"] == "h" else "group", int(found["layer"]), int(found["number"])


def _depth(name: str) -> tuple[float, int]:
    kind, layer, _ = _read(name)
    if layer is None:
        return (-1.0 if kind == "input" else float("inf")), 0
    return float(layer), _ROWS[kind]


def _boxes(edges: Sequence[Edge]) -> dict[str, Box]:
    boxes: dict[str, Box] = {}
    for rank, edge in enumerate(edges):
        for name in (edge.sender, box_name(edge.receiver)):
            if name not in boxes:
                kind, layer, number = _read(name)
                width, height = _SIZES.get(kind, (0.0, _BAR))
                boxes[name] = Box(name, kind, layer, number, rank, width=width, height=height)
    return boxes


def _set_heights(layout: Layout) -> None:
    """Rows from below; deep circuits are packed closer."""
    rows = defaultdict(list)
    for box in layout.boxes.values():
        rows[_depth(box.name)].append(box)
    layers = sorted({box.layer for box in layout.boxes.values() if box.layer is not None})
    between = float(np.clip(820 / max(len(layers), 1) - 40, 36, 72))
    y, before = 0.0, None
    for depth in sorted(rows):
        kind, layer = rows[depth][0].kind, rows[depth][0].layer
        if before is not None:
            y += between if layer is None or layer != before else 25.0 if kind == "head" else 30.0
        for box in rows[depth]:
            box.y = y
        before = layer if layer is not None else -1
    for layer in layers:
        inside = [box for box in layout.boxes.values() if box.layer == layer]
        low, high = (pick(box.y for box in inside) for pick in (min, max))
        layout.bands[layer] = (low - 18, high + 18)


def _set_places(layout: Layout, links: Sequence[tuple[str, str]]) -> None:
    """Places along the rows: every box goes to the mean of its neighbours, as far as the others of its row let it.

    For boxes in a given order with a least distance, the places closest to the wanted ones are an isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    rows = defaultdict(list)
    for box in layout.boxes.values():
        if box.kind in ("head", "group"):
            rows[box.layer, box.kind].append(box)
    pulls = defaultdict(list)
    largest = max(abs(edge.score) for edge in layout.edges) or 1.0
    for edge in layout.edges:
        ends = layout.boxes[edge.sender], layout.boxes[box_name(edge.receiver)]
        if all(end.kind in ("head", "group") for end in ends):
            for one, other in (ends, ends[::-1]):
                pulls[one.name].append((other, (abs(edge.score) / largest) ** 0.5))
    for one, other in links:
        pulls[one].append((layout.boxes[other], 2.0))
        pulls[other].append((layout.boxes[one], 2.0))
    for row in rows.values():
        row.sort(key=lambda box: box.number)
        for place, box in enumerate(row):
            box.x = _COLUMN * (place - (len(row) - 1) / 2)
    for _ in range(_SWEEPS):
        for row in rows.values():
            wanted = []
            for box in row:
                near = [(box.x, 0.3), *((other.x, weight) for other, weight in pulls[box.name])]
                wanted.append(np.average([x for x, _ in near], weights=[weight for _, weight in near]))
            order = np.argsort(wanted, kind="stable")
            steps = _COLUMN * np.arange(len(row))
            for place, x in zip(order, isotonic_regression(np.array(wanted)[order] - steps).x + steps, strict=True):
                row[place].x = float(x)
    right = max((box.x for row in rows.values() for box in row), default=0.0)
    for box in layout.boxes.values():
        if box.kind == "mlp":
            box.x = right + _LANE


def _set_paths(layout: Layout, links: Sequence[tuple[str, str]]) -> None:
    """Cubic curves that leave and arrive upwards, each bent to the side on which it covers the fewest boxes."""
    inside = [box for box in layout.boxes.values() if box.layer is not None]
    centres = np.array([[box.x, box.y] for box in inside]).reshape(-1, 2)
    halves = np.array([[box.width, box.height] for box in inside]).reshape(-1, 2) / 2 + 2
    layout.paths = np.empty((len(layout.edges), len(_T), 2))
    landed: list[float] = []  # where edges leave the input or reach the logits
    for number, edge in enumerate(layout.edges):
        sender, receiver = layout.boxes[edge.sender], layout.boxes[box_name(edge.receiver)]
        tried = [_path(sender, receiver, _port(edge.receiver), bend) for bend in _BENDS.tolist()]
        own = np.array([box in (sender, receiver) for box in inside], dtype=bool)
        bar = [-1] if receiver.kind == "logits" else [0] if sender.kind == "input" else []
        cost = np.abs(_BENDS) / 200
        for which, path in enumerate(tried):
            cost[which] += ((np.abs(path[:, None] - centres) < halves).all(-1).any(0) & ~own).sum()
            cost[which] += 0.5 * sum(abs(path[end, 0] - x) < 8 for end in bar for x in landed)
        layout.paths[number] = tried[int(cost.argmin())]
        landed += [float(layout.paths[number][end, 0]) for end in bar]
    layout.links = [(a, b, _path(layout.boxes[a], layout.boxes[b], 0.3 * _SIZES["head"][0], 0.0)) for a, b in links]


def _set_bars(layout: Layout) -> None:
    """Input and logits, as wide as all the rest, and the frame around everything."""
    boxes = layout.boxes.values()
    sides = [box.x + side * box.width / 2 for box in boxes for side in (-1, 1)]
    left, right = (pick([*sides, *layout.paths[..., 0].ravel().tolist()]) for pick in (min, max))
    for name in ("input", "logits"):
        if name in layout.boxes:
            layout.boxes[name].x, layout.boxes[name].width = float(left + right) / 2, float(right - left) + 20
    layout.span = (left - 20, right + 20), (min(box.y for box in boxes) - 20, max(box.y for box in boxes) + 20)


def _port(receiver: str) -> float:
    """How far from the middle of its box an edge ends."""
    name, _, rest = receiver.partition("<")
    kind, *_ = _read(name)
    return _PORTS[rest[0]] * _SIZES[kind][0] if rest else 0.0


def _path(sender: Box, receiver: Box, port: float, bend: float) -> Float[np.ndarray, "point 2"]:
    start, end = (
        np.array([sender.x, sender.y + sender.height / 2]),
        np.array([receiver.x + port, receiver.y - receiver.height / 2]),
    )
    # The bars at the two ends are as wide as the picture: an edge leaves and arrives there where it likes to.
    leaning = [bend, bend]
    if receiver.kind == "logits":
        end[0] = start[0] + bend
        leaning[1] = 0
    if sender.kind == "input":
        start[0] = end[0] + bend
        leaning = [0, 0 if receiver.kind == "logits" else bend]
    rise = 0.45 * (end[1] - start[1])
    if sender.kind == receiver.kind == "mlp" and rise > 40:  # past the MLPs between, on the outer side
        leaning = [24 + 0.2 * rise + abs(bend)] * 2
    bent = np.stack([start, end]) + np.array([[leaning[0], rise], [leaning[1], -rise]])
    return _BERNSTEIN @ np.stack([start, *bent, end])
