"""The same weights and states give what pyvene gives (`benchmarks/pyvene_maps.py` wrote it down)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from interp.alignment.maps import AlignmentMap, LowRank, Subspace
from interp.alignment.masks import Boundless

FILE = Path(__file__).with_name("pyvene.safetensors")


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    with safe_open(FILE, "pt") as opened:
        assert opened.metadata()["made by"].startswith("pyvene 0.1.8")
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping


def check(made: AlignmentMap, name: str, theirs: dict[str, torch.Tensor]) -> None:
    swapped = made.swap(theirs["base"], [theirs["source"]])
    torch.testing.assert_close(swapped, theirs[f"{name}.swapped"], atol=1e-5, rtol=0)
    assert not torch.allclose(swapped, theirs["base"], atol=0.1)


def low_rank(weight: torch.Tensor) -> LowRank:
    made = LowRank(*weight.shape)
    with torch.no_grad():
        made.columns.copy_(3.0 * weight)  # whose length is nothing that a swap sees
    return made


def test_low_rank_rotation(theirs: dict[str, torch.Tensor]) -> None:
    check(low_rank(theirs["low_rank.weight"]), "low_rank", theirs)
    check(Subspace(theirs["low_rank.weight"]), "low_rank", theirs)


def test_the_first_coordinates_of_a_full_rotation_are_a_low_rank_map(theirs: dict[str, torch.Tensor]) -> None:
    check(low_rank(theirs["full.weight"][:, :5]), "full", theirs)


def test_boundless_rotation(theirs: dict[str, torch.Tensor]) -> None:
    made = Boundless(24)
    made.temperature.fill_(2.5)
    with torch.no_grad():
        made.columns.copy_(theirs["boundless.weight"])
        made.share.fill_(0.4)
    check(made, "boundless", theirs)
