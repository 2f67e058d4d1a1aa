"""An analytic reading of a picture: no learning, and nothing shared with the judge but the table of colours.

The background is the median colour, for objects cover less than a third. In each cell the pixels that differ from
it form connected components; the largest is the object. Its colour is the hue of its core, its size the extent of
its outline, its shape what four moments of its coverage say: how full the outline is, whether the centre and the
corners are, whether the mass lies low. A picture of something else is `UNCLEAR`, or has debris beside its object.
Start with `check`.
"""

from __future__ import annotations

import colorsys
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from interp.errors import ShapeError
from interp.shapes.reading import UNCLEAR, Reading, Seen
from interp.shapes.render import BACKGROUND_RGB, CELL, COLOUR_RGB, SIDE
from interp.shapes.scene import CELLS

_DIFFERENT = 45.0  # RGB distance from the background that makes a pixel foreground; the closest pair is 95 apart
_LEAST_AREA = 8  # pixels; the smallest object has about 30
_DEBRIS_AREA = 6
_BACKGROUND_REACH = 50.0  # RGB distance to the nearest background; they are at least 115 apart
_HUE_REACH = 22.0  # degrees; red and orange are 31 apart, orange and yellow 25
_LEAST_SATURATION = 0.4
_LARGE = 10.0  # pixels of extent: small objects reach 7.0–8.7, large ones 11.3–14
_LONGEST = 1.25  # ratio of the sides; a triangle's is 1.11, and half a ring has the moments of a ring
_MOMENTS = MappingProxyType(
    {
        # fullness, centre, corners, lowness: of the outline's box; means over 2,500 clean pictures
        "circle": (0.785, 1.0, 0.33, 0.0),
        "ring": (0.545, 0.0, 0.33, 0.0),
        "square": (1.0, 1.0, 0.97, 0.0),
        "triangle": (0.575, 1.0, 0.48, 0.146),
        "cross": (0.55, 1.0, 0.0, 0.0),
    }
)
_SCALE = np.array([0.06, 0.25, 0.2, 0.04])  # how far a moment may stray
_SHAPE_REACH = 2.0  # in units of that scale


def check(picture: np.ndarray) -> Reading:
    """What an RGB picture, uint8 [32, 32, 3], shows.

    Raises:
        ShapeError: not a uint8 picture of 32×32.
    """
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ShapeError(f"A uint8 picture of {SIDE}×{SIDE}×3 is needed; got {picture.dtype} {picture.shape}.")
    pixels = picture.astype(np.float32)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    near = min(BACKGROUND_RGB, key=lambda name: float(np.linalg.norm(ground - BACKGROUND_RGB[name])))
    close = np.linalg.norm(ground - BACKGROUND_RGB[near]) <= _BACKGROUND_REACH
    cells = []
    for number in range(len(CELLS)):
        top, left = number // 2 * CELL, number % 2 * CELL
        cells.append(_object(pixels[top : top + CELL, left : left + CELL], ground))
    return Reading(near if close else UNCLEAR, tuple(cells))


def segment(picture: UInt8[np.ndarray, "32 32 3"]) -> Bool[np.ndarray, "4 32 32"]:
    """The pixels of which the object of each cell covers at least half; none where there is no object."""
    pixels = picture.astype(np.float32)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    covered = np.zeros((len(CELLS), SIDE, SIDE), bool)
    for number in range(len(CELLS)):
        top, left = number // 2 * CELL, number % 2 * CELL
        found = _cover(pixels[top : top + CELL, left : left + CELL], ground)
        if found is not None:
            covered[number, top : top + CELL, left : left + CELL] = found[0] >= 0.5
    return covered


def moments(picture: UInt8[np.ndarray, "32 32 3"], cell: int) -> tuple[float, float, float, float] | None:
    """Fullness, centre, corners and lowness of the object in a cell; `None` where there is nothing."""
    pixels = picture.astype(np.float32)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    top, left = cell // 2 * CELL, cell % 2 * CELL
    found = _cover(pixels[top : top + CELL, left : left + CELL], ground)
    return None if found is None else _moments(found[0])[0]


def _object(pixels: Float[np.ndarray, "16 16 3"], ground: np.ndarray) -> Seen | None:
    found = _cover(pixels, ground)
    if found is None:
        return None
    cover, core, debris = found
    values, (width, height) = _moments(cover)
    distances = {shape: float(np.max(abs(np.subtract(values, moment)) / _SCALE)) for shape, moment in _MOMENTS.items()}
    shape = min(distances, key=lambda name: distances[name])
    clear = distances[shape] <= _SHAPE_REACH and max(width / height, height / width) <= _LONGEST and not debris
    return Seen(shape if clear else UNCLEAR, _colour(core), "large" if max(width, height) > _LARGE else "small")


def _cover(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Coverage of the largest component in [0, 1], its core's colour, and whether something else is there too."""
    difference = np.linalg.norm(pixels - ground, axis=-1)
    labels = np.zeros(difference.shape, np.int32)
    ndimage.label(difference > _DIFFERENT, structure=np.ones((3, 3)), output=labels)
    count = int(labels.max())
    areas = ndimage.sum_labels(np.ones_like(difference), labels, np.arange(1, count + 1))
    if count == 0 or areas.max() < _LEAST_AREA:
        return None
    largest = 1 + int(np.argmax(areas))
    own = labels == largest
    core = np.median(pixels[own & (difference >= np.quantile(difference[own], 0.5))], axis=0)
    toward = core - ground
    cover = np.clip((pixels - ground) @ toward / (toward @ toward), 0, 1)
    near = ndimage.binary_dilation(own, np.ones((3, 3)))  # the faint rim belongs to it
    return np.where(near, cover, 0), core, bool((np.delete(areas, largest - 1) >= _DEBRIS_AREA).any())


def _moments(cover: np.ndarray) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
    """The four moments, and width and height of the outline in pixels."""
    cover = np.where(cover < 0.15, 0, cover)
    columns, rows = cover.max(axis=0), cover.max(axis=1)
    width, height = float(columns.sum()), float(rows.sum())  # to a fraction of a pixel
    x = float((columns * np.arange(CELL)).sum() / width)
    y = float((rows * np.arange(CELL)).sum() / height)
    grid = np.arange(CELL)
    low = float(cover.sum(axis=1) @ (grid - y) / cover.sum() / height)
    at = abs(grid[None] - x) / width, abs(grid[:, None] - y) / height
    centre = (at[0] <= 0.13) & (at[1] <= 0.13)
    corner = (at[0] >= 0.27) & (at[1] >= 0.27) & (at[0] <= 0.47) & (at[1] <= 0.47)
    return (
        float(cover.sum() / (width * height)),
        float(cover[centre].mean()) if centre.any() else float(cover[round(y), round(x)]),
        float(cover[corner].mean()) if corner.any() else 0.0,
        low,
    ), (width, height)


def _colour(core: np.ndarray) -> str:
    hue, saturation, _ = colorsys.rgb_to_hsv(*(core / 255))
    if saturation < _LEAST_SATURATION:
        return UNCLEAR
    apart = {
        name: abs((hue - colorsys.rgb_to_hsv(*(np.array(rgb) / 255))[0] + 0.5) % 1 - 0.5) * 360
        for name, rgb in COLOUR_RGB.items()
    }
    nearest_ = min(apart, key=lambda name: apart[name])
    return nearest_ if apart[nearest_] <= _HUE_REACH else UNCLEAR
