"""Activations that a dictionary can find: sparse sums of known directions."""

from __future__ import annotations

import pytest
import torch

from interp.dictionaries.standardise import Moments, Standardisation


class Planted:
    """Rows = 3 + 2 · (sparse non-negative codes @ unit directions), in float32."""

    def __init__(self, rows: int = 4096, directions: int = 24, width: int = 16, on: int = 3, seed: int = 77) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(torch.randn(directions, width, generator=generator), dim=1)
        order = torch.rand(rows, directions, generator=generator).argsort(1)
        self.codes = (order < on) * (0.5 + torch.rand(rows, directions, generator=generator))
        self.x = 3 + 2 * self.codes @ self.directions
        self.read = Standardisation.from_moments(Moments.of(self.x))


@pytest.fixture(scope="session")
def planted():
    return Planted()
