"""From scenes to pixels: uint8 pictures of 32×32, and which pixels each object covers.

Every shape is a set in the plane, tested at 4×4 points per pixel (all objects of a batch at once): what counts as
covered is known exactly, and straight edges move by quarters of a pixel. An object, jitter included, stays inside
its own 16×16 cell. Nuisances are a hash of (scene seed, object, number), not a random generator: a counterfactual
that changes nothing else keeps every one of them, whatever the machine, the batch or the library's version.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, UInt8

from interp.shapes.scene import CELLS, MAX_OBJECTS, SHAPES, Scene

SIDE = 32
CELL = SIDE // 2
RADII = MappingProxyType({"small": 4.2, "large": 6.8})
"""Pixels from the centre to the rim; before a wobble of ±3 %."""

COLOUR_RGB = MappingProxyType(
    {
        "red": (220, 40, 40),
        "orange": (240, 140, 30),
        "yellow": (240, 225, 60),
        "green": (40, 170, 70),
        "blue": (40, 80, 220),
        "purple": (150, 60, 190),
    }
)
BACKGROUND_RGB = MappingProxyType(
    {"white": (245, 245, 245), "black": (25, 25, 25), "gray": (130, 130, 130), "pink": (250, 190, 205)}
)
_POINTS = 4  # per pixel and axis
_JITTER = 0.8  # pixels; 6.8 · 1.03 + 0.8 < 8, so no object leaves its cell
_RADIUS_WOBBLE = 0.03
_COLOUR_WOBBLE = 12.0
_BACKGROUND_WOBBLE = 5.0
_BACKGROUND_STREAM = MAX_OBJECTS  # objects draw from the streams before it


def render(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "batch 32 32 3"]:
    """The pictures, RGB."""
    seeds = np.array([scene.seed for scene in scenes], np.uint64)
    ground = np.array([BACKGROUND_RGB[scene.background] for scene in scenes], np.float32)
    ground = ground + _BACKGROUND_WOBBLE * _nuisance(seeds, np.full(len(scenes), _BACKGROUND_STREAM), 3)
    pictures = np.repeat(ground[:, None], SIDE * SIDE, axis=1).reshape(len(scenes), SIDE, SIDE, 3)
    row, _, cell, cover, paint = _drawn(scenes)
    top, left = cell // 2 * CELL, cell % 2 * CELL
    for i in range(len(row)):  # cells of one scene are disjoint, so the order of objects does not matter
        patch = pictures[row[i], top[i] : top[i] + CELL, left[i] : left[i] + CELL]
        patch += cover[i, ..., None] * (paint[i] - patch)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def coverage(scenes: Sequence[Scene]) -> Float[np.ndarray, "batch object 32 32"]:
    """The share of each pixel that each object covers, in 1/16; zero for an object that is not there."""
    shares = np.zeros((len(scenes), MAX_OBJECTS, SIDE, SIDE), np.float32)
    row, slot, cell, cover, _ = _drawn(scenes)
    top, left = cell // 2 * CELL, cell % 2 * CELL
    for i in range(len(row)):
        shares[row[i], slot[i], top[i] : top[i] + CELL, left[i] : left[i] + CELL] = cover[i]
    return shares


def masks(scenes: Sequence[Scene]) -> Bool[np.ndarray, "batch object 32 32"]:
    """The pixels of which each object covers at least half."""
    return coverage(scenes) >= 0.5


def _drawn(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of all objects of all scenes: row, slot, cell number, coverage of the cell [16, 16], colour."""
    objects = [(row, slot, thing) for row, scene in enumerate(scenes) for slot, thing in enumerate(scene.objects)]
    row = np.array([r for r, _, _ in objects])
    slot = np.array([s for _, s, _ in objects])
    cell = np.array([CELLS.index(thing.cell) for _, _, thing in objects])
    seeds = np.array([scenes[r].seed for r, _, _ in objects], np.uint64)
    wobble = _nuisance(seeds, slot, 6)
    radius = np.array([RADII[thing.size] for _, _, thing in objects], np.float32)
    radius = radius * (1 + _RADIUS_WOBBLE * wobble[:, 2])
    centre = CELL / 2 + _JITTER * wobble[:, :2]
    grid = (np.arange(CELL * _POINTS, dtype=np.float32) + 0.5) / _POINTS
    x = ((grid[None] - centre[:, :1]) / radius[:, None])[:, None, :]
    y = ((grid[None] - centre[:, 1:]) / radius[:, None])[:, :, None]
    inside = np.empty((len(objects), CELL * _POINTS, CELL * _POINTS), bool)
    kind = np.array([SHAPES.index(thing.shape) for _, _, thing in objects])
    for number, shape in enumerate(SHAPES):
        of = kind == number
        inside[of] = _inside(shape, x[of], y[of])
    points = inside.reshape(len(objects), CELL, _POINTS, CELL, _POINTS)
    cover = points.mean(axis=(2, 4), dtype=np.float32)
    paint = np.array([COLOUR_RGB[thing.colour] for _, _, thing in objects], np.float32)
    return row, slot, cell, cover, paint + _COLOUR_WOBBLE * wobble[:, 3:]


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points, in radii from the centre with y downwards, belong to a shape."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "ring":
        squared = x * x + y * y
        return (squared <= 1) & (squared >= 0.55**2)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.86
    if shape == "triangle":
        return (abs(x) <= (y + 1) / 1.8) & (y <= 0.8)
    return (np.minimum(abs(x), abs(y)) <= 0.33) & (np.maximum(abs(x), abs(y)) <= 1)


def _nuisance(seeds: np.ndarray, streams: np.ndarray, count: int) -> Float[np.ndarray, "item count"]:
    """`count` numbers in [-1, 1) per item: splitmix64 of (seed, stream, number)."""
    with np.errstate(over="ignore"):
        key = seeds[:, None] * np.uint64(64) + streams.astype(np.uint64)[:, None] * np.uint64(16)
        z = (key + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32) / 2**23) - 1
