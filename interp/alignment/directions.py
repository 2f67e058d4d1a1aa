"""Closed-form directions as maps of an alignment: rows of the same table as what was trained, at no cost.

The directions are those of `interp.kernels.directions`, where it says what each assumes and when it misleads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.alignment.maps import Subspace
from interp.errors import InterpError, nearest
from interp.kernels.directions import METHODS as METHODS
from interp.kernels.directions import Labels as Labels
from interp.kernels.directions import checked_labels as checked_labels
from interp.kernels.directions import difference_of_means as difference_of_means
from interp.kernels.directions import kmeans as kmeans
from interp.kernels.directions import lda as lda
from interp.kernels.directions import pca as pca
from interp.kernels.directions import pls as pls
from interp.kernels.directions import probe as probe


def closed_form(method: str, states: Float[Tensor, "*cell example width"], labels: Labels) -> Subspace:
    """The subspace of one of `METHODS`, of each cell's states.

    Raises:
        InterpError: an unknown method; as the method.
        ShapeError: as the method.
    """
    if method not in METHODS:
        raise InterpError(f"No closed-form direction {method!r}." + nearest(method, METHODS))
    cells = states[None] if states.ndim == 2 else states
    return Subspace(torch.stack([METHODS[method](cell, labels) for cell in cells]))
