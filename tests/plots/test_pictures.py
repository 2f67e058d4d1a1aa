"""Grids of pictures show the bytes that they were given, and where two of them differ."""

import base64
from io import BytesIO

import numpy
import pytest
from PIL import Image

from interp.errors import ShapeError
from interp.plots import picture_grid

PICTURES = numpy.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=numpy.uint8)


def shown(image):
    data = Image.open(BytesIO(base64.b64decode(image.source.split(",")[1])))
    return numpy.asarray(data)


def test_the_bytes_and_the_difference():
    other = PICTURES.copy()
    other[0, 1, 2] = [255, 0, 10]
    figure = picture_grid({"a": PICTURES, "<b>": other}, rows=["x", "y"], title="t", difference=("<b>", "a"))
    images = figure.layout.images
    assert len(images) == 6
    for number, array in enumerate((PICTURES[0], PICTURES[1], other[0], other[1])):
        picture = shown(images[number])
        times = picture.shape[0] // 4
        numpy.testing.assert_array_equal(picture[::times, ::times], array)
    change = shown(images[4])
    times = change.shape[0] // 4
    expected = 255 - numpy.abs(other[0].astype(int) - PICTURES[0]).max(-1)
    numpy.testing.assert_array_equal(change[::times, ::times, 0], expected)
    assert (shown(images[5]) == 255).all()
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert texts == ["a", "&lt;b&gt;", "|&lt;b&gt; − a|", "x", "y"]
    lefts = [image.x for image in images]
    assert lefts == sorted(lefts)


@pytest.mark.parametrize(
    ("columns", "rows", "difference", "message"),
    [
        ({"a": PICTURES, "b": PICTURES[:1]}, ["x", "y"], None, "the same of every column"),
        ({"a": PICTURES.astype(float)}, ["x", "y"], None, "uint8"),
        ({}, [], None, "uint8"),
        ({"a": PICTURES}, ["x"], None, "1 names for 2 rows"),
        ({"a": PICTURES}, ["x", "y"], ("a", "c"), "no column 'c'"),
    ],
)
def test_refusals(columns, rows, difference, message):
    with pytest.raises(ShapeError, match=message):
        picture_grid(columns, rows=rows, title="t", difference=difference)
