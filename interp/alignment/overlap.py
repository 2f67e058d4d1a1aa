"""Do two subspaces share directions? Principal angles, beside those of random subspaces of the same ranks.

The principal angles of two subspaces with orthonormal bases A and B are the arc cosines of the singular values of AᵀB,
the smallest first: the angle of the two nearest directions, then of the two nearest among what is orthogonal to these,
and so on, as many as the smaller rank. 0° is shared, 90° orthogonal.

In few dimensions, or at high ranks, random subspaces are near each other too; hence the band.

When it misleads: blocks of one map are orthogonal by construction. And a training leaves much of where it started:
searches with one seed start their first cell from the same subspace, and what they find overlaps for that reason alone.
Compare what was found from different seeds.

Source: Björck & Golub 1973, doi:10.1090/S0025-5718-1973-0348991-3, as scipy computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.alignment.maps import Subspace, checked_basis, random_columns
from interp.errors import InterpError, ShapeError
from interp.results import Result, provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_DRAWS = 200


@dataclass(frozen=True, repr=False, eq=False)
class Overlap(Result):
    """Principal angles of pairs of subspaces.

    `.data` holds over `pair` × `angle` (from the smallest, counted from 1; NaN beyond the smaller rank): the `degrees`,
    and of random subspaces of the same ranks and width their mean `random` and 95 % band `random_low` to `random_high`;
    over `pair` the `shared` part, mean of the squared cosines (of the smaller subspace's directions, how much lies in
    the larger one), that of random ones (`shared_random`, on average larger rank / width), and `p`, the share of random
    pairs (this one counted among them) with as much in common.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        ranks = ", ".join(f"{name} ({rank})" for name, rank in self.provenance["ranks"].items())
        return f"{ranks}, of {self.provenance['width']} dimensions"

    def summary(self) -> str:
        """A row per pair: what they share, the smallest angle, the same of random subspaces."""
        lines = [f"Overlap of subspaces (ranks): {self.title}"]
        for pair in map(str, self.data["pair"].values):
            here = self.data.sel(pair=pair)
            first = here.isel(angle=0)
            lines.append(
                f"  {pair}: share {float(here['shared']):.3f} (random {float(here['shared_random']):.3f}, p = "
                f"{float(here['p']):.2g}); smallest angle {float(first['degrees']):.1f}° (random "
                f"{float(first['random']):.1f}° [{float(first['random_low']):.1f}, {float(first['random_high']):.1f}])"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A line per pair over the angles from the smallest on, and one with its band for random pairs of its ranks."""
        import xarray as xr

        from interp.plots import curves

        data, ranks = self.data, self.provenance["ranks"]
        kinds = dict.fromkeys(tuple(sorted((ranks[a], ranks[b]))) for a, b in combinations(ranks, 2))
        first = {kind: next(i for i, pair in enumerate(combinations(ranks, 2))
                            if tuple(sorted((ranks[pair[0]], ranks[pair[1]]))) == kind) for kind in kinds}  # fmt: skip
        names = [*map(str, data["pair"].values), *(f"random, ranks {a} and {b}" for a, b in kinds)]

        def lines(of_random: str, of_pair: xr.DataArray) -> xr.DataArray:
            """The pairs, then one line for each kind of random pair."""
            drawn = data[of_random].isel(pair=list(first.values()))
            return xr.concat([of_pair, drawn], "pair").drop_vars("pair")

        none = xr.full_like(data["degrees"], np.nan)
        return curves(
            lines("random", data["degrees"]), x="angle", line="pair", line_labels=names,
            low=lines("random_low", none), high=lines("random_high", none), bars=data.sizes["angle"] == 1,
            title=f"Principal angles of subspaces, and the 95 % band of random ones: {self.title}", unit="degrees",
            quantity="angle", x_title="principal angle, from the smallest", baseline=None,
        )  # fmt: skip


def overlap(subspaces: Mapping[str, Subspace | Tensor], *, draws: int = _DRAWS, seed: int = 0) -> Overlap:
    """Compare subspaces of one width, each with each.

    Args:
        subspaces: by name; of a `Subspace` all columns of its one cell, or a basis [width, rank].
        draws: random pairs for the band.
        seed: of them.

    Raises:
        InterpError: fewer than two subspaces, or a map of several cells.
        ShapeError: a basis that is not orthonormal, of rank 0, or of another width.
    """
    import xarray as xr

    bases = {name: _basis(name, one) for name, one in subspaces.items()}
    widths = {name: basis.shape[0] for name, basis in bases.items()}
    if len(bases) < 2:
        raise InterpError(f"Overlap of {', '.join(bases) or 'nothing'}: give two subspaces at least.")
    if len(set(widths.values())) > 1:
        raise ShapeError(f"Subspaces of one width have angles; these have {widths}.")
    pairs = list(combinations(bases, 2))
    ranks = {name: basis.shape[1] for name, basis in bases.items()}
    width, most = next(iter(widths.values())), max(min(ranks[a], ranks[b]) for a, b in pairs)
    shape = len(pairs), most
    found = {name: np.full(shape, np.nan) for name in ("degrees", "random", "random_low", "random_high")}
    shared, shared_random, p = (np.empty(len(pairs)) for _ in range(3))
    for i, (a, b) in enumerate(pairs):
        n = min(ranks[a], ranks[b])
        own = _angles(bases[a], bases[b])
        drawn = _random(width, *sorted((ranks[a], ranks[b])), draws, seed)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        for name, values in zip(found, (own, drawn.mean(0), low, high), strict=True):
            found[name][i, :n] = np.rad2deg(values)
        of_random = np.square(np.cos(drawn)).mean(1)
        shared[i], shared_random[i] = np.square(np.cos(own)).mean(), of_random.mean()
        p[i] = (1 + (of_random >= shared[i]).sum()) / (1 + draws)
    data = xr.Dataset(
        {name: (("pair", "angle"), values, {"unit": "degrees"}) for name, values in found.items()}
        | {"shared": ("pair", shared), "shared_random": ("pair", shared_random), "p": ("pair", p)},
        {"pair": [f"{a} and {b}" for a, b in pairs], "angle": list(range(1, 1 + most))},
    )
    return Overlap(
        data, provenance(experiment="overlap of subspaces", ranks=ranks, width=width, draws=draws, seed=seed)
    )


def _basis(name: str, one: Subspace | Tensor) -> Float[np.ndarray, "width rank"]:
    cells = one.basis if isinstance(one, Subspace) else checked_basis(one)
    if len(cells) != 1:
        raise InterpError(f"{name!r} is {len(cells)} subspaces, one per cell; take one out with select.")
    if not cells.shape[-1]:
        raise ShapeError(f"{name!r} has rank 0: it has no directions to compare.")
    return cells[0].detach().double().cpu().numpy()


def _angles(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, "angle"]:
    """In radians, from the smallest."""
    from scipy.linalg import subspace_angles

    return np.sort(subspace_angles(one, other))


@cache
def _random(width: int, one: int, other: int, draws: int, seed: int) -> Float[np.ndarray, "draw angle"]:
    """Angles of random subspaces; one of the two may stay where it is, as the other turns uniformly."""
    drawn = random_columns(width, min(one, other), draws, seed).double().numpy()
    return np.stack([_angles(columns, np.eye(width, max(one, other))) for columns in drawn])
