"""Do two trainings find the same latents? Atoms matched one to one between dictionaries that differ by a seed.

Between two dictionaries atoms are paired so that the sum of their cosines is largest (Hungarian method); where one is
larger, its surplus has no partner. A latent whose partner's cosine is above 0.7 is *shared*. Codes have no sign, so
neither
have cosines: an atom and its opposite are different latents.

In few dimensions many atoms lie close to some other by chance, and the matching picks the closest. How close is
measured: the same between random dictionaries of the same sizes.

Source: Paulo & Belrose 2025, "Sparse Autoencoders Trained on the Same Data Learn Different Features"
(arXiv:2501.16615), whose latents must agree in encoder and decoder; here atoms alone are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.concepts.scores.coded import random_dictionary
from interp.dictionaries.dictionary import Dictionary
from interp.errors import InterpError, ShapeError
from interp.results import Result, provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHARED = 0.7
"""Cosine from which two atoms count as the same latent; that of the source."""


@dataclass(frozen=True, repr=False, eq=False)
class AtomStability(Result):
    """How alike the atoms of several dictionaries are.

    `.data` holds, by `first` and `second` dictionary, `cosine`, the mean cosine of matched atoms, and `shared`, the
    share of them above 0.7; `random_cosine` and `random_shared` are the same between random dictionaries of these
    sizes. A dictionary with itself has 1.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        return f"Matched atoms of {self.data.sizes['first']} dictionaries of {', '.join(self.provenance['sites'])}"

    def plot(self) -> Figure:
        """The share of atoms that two dictionaries have in common."""
        from interp.plots import heatmap

        return heatmap(self.data["shared"], x="second", y="first", title=self.title, unit="share", diverging=False)

    def summary(self) -> str:
        """The means over pairs, and by chance."""
        pairs = np.triu_indices(self.data.sizes["first"], 1)
        mean = {str(name): float(x.values[pairs].mean()) for name, x in self.data.data_vars.items()}
        return (
            f"AtomStability: {self.title}\n  mean cosine {mean['cosine']:.3f} (random {mean['random_cosine']:.3f}), "
            f"shared {mean['shared']:.1%} (random {mean['random_shared']:.1%}), over {len(pairs[0])} pairs"
        )


def atom_stability(dictionaries: Mapping[str, Dictionary], seed: int = 0) -> AtomStability:
    """Compare dictionaries of one site pair by pair.

    Args:
        dictionaries: at least two, by name.
        seed: of the random ones.

    Raises:
        InterpError: fewer than two.
        ShapeError: atoms of different widths.
    """
    import xarray as xr

    if len(dictionaries) < 2:
        raise InterpError(f"{len(dictionaries)} dictionaries: stability compares at least two.")
    widths = {name: one.write.width for name, one in dictionaries.items()}
    if len(set(widths.values())) > 1:
        raise ShapeError(f"Atoms of different widths, {widths}, cannot be compared.")
    names, n = list(dictionaries), len(dictionaries)
    atoms = [one.atoms.detach().cpu().double().numpy() for one in dictionaries.values()]
    random = [
        random_dictionary(one, 1, seed + number).atoms.detach().double().numpy()
        for number, one in enumerate(dictionaries.values())
    ]
    found = np.ones((4, n, n))
    for i, j in combinations(range(n), 2):
        for row, of in ((0, atoms), (2, random)):
            cosines = matched_cosines(of[i], of[j])
            found[row, i, j] = found[row, j, i] = cosines.mean()
            found[row + 1, i, j] = found[row + 1, j, i] = (cosines > SHARED).mean()
    variables = ("cosine", "shared", "random_cosine", "random_shared")
    data = xr.Dataset(
        {name: (("first", "second"), x, {"units": "dimensionless"}) for name, x in zip(variables, found, strict=True)},
        {"first": names, "second": names},
    )
    first = next(iter(dictionaries.values()))
    kinds = {name: one.kind for name, one in dictionaries.items()}
    return AtomStability(
        data, provenance(experiment="atoms between seeds", sites=list(first.write.sites), kinds=kinds, seed=seed)
    )  # fmt: skip


def matched_cosines(
    a: Float[np.ndarray, "latent width"], b: Float[np.ndarray, "other width"]
) -> Float[np.ndarray, "pair"]:
    """Cosines of atoms paired one to one, as many pairs as the smaller set has."""
    from scipy.optimize import linear_sum_assignment

    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b)]
    cosine = unit[0] @ unit[1].T
    return cosine[linear_sum_assignment(cosine, maximize=True)]
