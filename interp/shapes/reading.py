"""What a picture shows, as read by the judge or the checker, and how it compares with the scene that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from interp.shapes.scene import CELLS, Scene

UNCLEAR = "unclear"
"""The value of a factor that a reader sees no value of: a brown object, a blot, a violet background."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as seen; every field may be `UNCLEAR`."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole picture as seen: `cells` in the order of `CELLS`, `None` where there is nothing."""

    background: str
    cells: tuple[Seen | None, ...]


def ideal(scene: Scene) -> Reading:
    """What a perfect picture of the scene shows."""
    at = {thing.cell: Seen(thing.shape, thing.colour, thing.size) for thing in scene.objects}
    return Reading(scene.background, tuple(at.get(cell) for cell in CELLS))


def compare(seen: Reading, wanted: Reading) -> dict[str, list[bool]]:
    """By factor, whether `seen` agrees with `wanted`.

    `background`, `cells` (the same cells are occupied) and `scene` (everything agrees) have one entry; `shape`,
    `colour`, `size` have one per wanted object and are wrong where nothing stands in its cell. `binding` has one entry
    for two wanted objects, and none otherwise: each shape comes with its own colour in its own cell.
    """
    objects = [(have, want) for have, want in zip(seen.cells, wanted.cells, strict=True) if want is not None]
    of = {
        name: [have is not None and getattr(have, name) == getattr(want, name) for have, want in objects]
        for name in ("shape", "colour", "size")
    }
    occupied = [(have is None) == (want is None) for have, want in zip(seen.cells, wanted.cells, strict=True)]
    return {
        "background": [seen.background == wanted.background],
        "cells": [all(occupied)],
        **of,
        "binding": [all(occupied) and all(of["shape"] + of["colour"])] if len(objects) == 2 else [],
        "scene": [seen == wanted],
    }
