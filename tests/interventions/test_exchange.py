"""What an exchange says about its cells; how it fills them is tested with the experiments that go through it."""

from inspect import unwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.interventions.exchange import Exchanged


@pytest.mark.parametrize(("asked", "shown"), [(2, 2), (9, 5)])
def test_heads_that_a_block_lacks_are_never_among_the_strongest(asked, shown):
    """Two blocks of three heads, of which the first block has but two: its third cell is NaN."""
    effect = np.array([[0.5, -3.0, np.nan], [0.0, 2.0, -1.0]])
    values = effect[..., None] + np.array([1.0, 2.0])  # the base run's two rows
    drawn = []

    def pictures(cell, rows):
        drawn.append(cell)
        return torch.full((len(rows), 3, 1, 1), cell / 255)

    found = SimpleNamespace(
        grid=SimpleNamespace(labels={"block": ["b0", "b1"], "head": ["h0", "h1", "h2"]}),
        metrics=(SimpleNamespace(name="first"), SimpleNamespace(name="other")),
        values={"first": values, "other": -values},
        base={"first": np.array([1.0, 2.0]), "other": np.zeros(2)},
        plan=SimpleNamespace(pictures=pictures),
    )
    names, images = unwrap(Exchanged.strongest)(found, [0, 1], asked)  # types are checked, and these are stand-ins
    assert names == ["b0, h1", "b1, h1", "b1, h2", "b0, h0", "b1, h0"][:shown]
    assert drawn == [1, 4, 5, 0, 3][:shown]
    assert images.shape == (shown, 2, 1, 1, 3) and images[:, 0, 0, 0, 0].tolist() == drawn
