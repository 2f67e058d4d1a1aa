"""Principal angles: of planted subspaces, and of random ones within their band."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.alignment.maps import Subspace
from interp.alignment.overlap import Overlap, overlap
from interp.errors import InterpError, ShapeError
from interp.results import Result


def turned(degrees: list[float], width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bases with these angles between them, both hidden by a rotation and mixed within."""
    draw = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.double)).Q
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.double))
    n = len(degrees)
    one, away = q[:, :n], q[:, n : 2 * n]
    other = one * angle.cos() + away * angle.sin()
    mix = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.double)).Q
    return one, other @ mix


def test_planted_angles_are_found() -> None:
    degrees = [0.0, 1e-3, 30.0, 89.0]
    found = overlap({"a": turned(degrees)[0], "b": turned(degrees)[1]})
    np.testing.assert_allclose(found.data["degrees"][0], degrees, atol=1e-5)
    squared = np.cos(np.deg2rad(degrees)) ** 2
    assert float(found.data["shared"][0]) == pytest.approx(squared.mean(), abs=1e-9)
    assert float(found.data["p"][0]) == pytest.approx(1 / 201)


def test_angles_are_those_of_singular_values_also_of_unlike_ranks() -> None:
    a, b = Subspace.random(30, 2, seed=1), Subspace.random(30, 5, seed=2)
    found = overlap({"a": a, "b": b}).data["degrees"][0]
    cosines = torch.linalg.svdvals(a.basis[0].double().mT @ b.basis[0].double())
    np.testing.assert_allclose(found, cosines.acos().rad2deg().numpy(), atol=1e-4)


def test_random_subspaces_lie_in_the_band_and_share_what_chance_gives() -> None:
    inside, ps = [], []
    for seed in range(20):
        found = overlap({"a": Subspace.random(64, 4, seed=1000 + seed), "b": Subspace.random(64, 4, seed=2000 + seed)})
        here = found.data.isel(pair=0)
        inside.append(((here["random_low"] <= here["degrees"]) & (here["degrees"] <= here["random_high"])).values)
        ps.append(float(here["p"]))
    assert 0.85 <= np.mean(inside) <= 1.0
    assert sum(p <= 0.05 for p in ps) <= 4  # 20 tests at 0.05
    assert float(found.data["shared_random"][0]) == pytest.approx(4 / 64, rel=0.1)


def test_it_draws_saves_and_shows(tmp_path) -> None:
    a, b = turned([0.0, 20.0, 70.0])
    found = overlap({"number": a, "tense": b, "one": b[:, :1]})
    assert found.data["pair"].values.tolist() == ["number and tense", "number and one", "tense and one"]
    assert np.isnan(found.data["degrees"].sel(pair="number and one")).sum() == 2
    names = {line.name for line in found.plot().data}
    assert {"number and tense", "tense and one", "random, ranks 3 and 3", "random, ranks 1 and 3"} <= names
    assert "number and tense: share" in repr(found) and "smallest angle 0.0°" in repr(found)
    found.save(tmp_path / "overlap.nc")
    assert isinstance(Result.load(tmp_path / "overlap.nc"), Overlap)


def test_refusals() -> None:
    a = Subspace.random(8, 2)
    with pytest.raises(InterpError, match="two subspaces at least"):
        overlap({"a": a})
    with pytest.raises(ShapeError, match="one width"):
        overlap({"a": a, "b": Subspace.random(9, 2)})
    with pytest.raises(ShapeError, match="orthonormal"):
        overlap({"a": a, "b": torch.ones(8, 2)})
    with pytest.raises(ShapeError, match="rank 0"):
        overlap({"a": a, "b": torch.zeros(8, 0)})
    with pytest.raises(InterpError, match="2 subspaces, one per cell"):
        overlap({"a": a, "b": Subspace.random(8, 2, cells=2)})
