"""LEACE: take out of states exactly what a linear classifier could read of a variable, and as little else as possible.

With μ and Σ the mean and covariance of the states x, and C their covariance with the labels z (one-hot), the erasure is

    r(x) = x − W⁺ P W (x − μ),      W = (Σ^½)⁺,  P the orthogonal projection onto the columns of W C

Of all affine maps after which *no linear classifier does better than a constant*, whatever its convex loss, it moves
states least in mean square. W⁺PW is a projection too, but writes along other directions than it reads: an `Affine`
map, under which the erased part can be exchanged instead (`Erasure.map`).

When it misleads: the guarantee is of the states it was fitted on, up to sampling for others; a non-linear reader, such
as the next MLP, may still read the variable; and erasing it takes along what is correlated with it.

Source: Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff & Biderman 2023 (arXiv:2306.03819), theorem 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.alignment.directions import Labels, checked_labels
from interp.alignment.maps import Affine


@dataclass(frozen=True, slots=True, eq=False)
class Erasure:
    """x ← x − W Vᵀ(x − μ), VᵀW = 1.

    Attributes:
        mean: μ.
        read: V.
        write: W.
    """

    mean: Float[Tensor, "width"]
    read: Float[Tensor, "width rank"]
    write: Float[Tensor, "width rank"]

    def __call__(self, states: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
        """The states without the variable."""
        return states - (states - self.mean) @ self.read @ self.write.mT

    @property
    def map(self) -> Affine:
        """The map whose swap exchanges what the erasure takes out."""
        made = Affine(*self.read.shape).to(self.read)
        with torch.no_grad():
            made.read.copy_(self.read)
            made.write.copy_(self.write)
        return made.requires_grad_(False)


def leace(states: Float[Tensor, "example width"], labels: Labels) -> Erasure:
    """The erasure of labels from states; rank: labels − 1, or less where means of labels coincide.

    Computed in float64. Directions in which states hardly vary (a standard deviation below 10⁻⁶ of the largest) are
    taken not to vary, and are left alone.

    Raises:
        ShapeError: states or labels of another shape, or not finite.
        InterpError: fewer than two labels.
    """
    x, y = checked_labels(states, labels)
    variance, axes = np.linalg.eigh(x.T @ x / len(x))
    kept = variance > 1e-12 * variance[-1]
    axes, scale = axes[:, kept], np.sqrt(variance[kept])
    one_hot = np.eye(y.max() + 1)[y]
    whitened = (axes.T @ (x.T @ (one_hot - one_hot.mean(0)) / len(x))) / scale[:, None]
    columns, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
    columns = columns[:, sizes > 1e-9]
    read, write = axes @ (columns / scale[:, None]), axes @ (columns * scale[:, None])
    mean, read, write = (torch.from_numpy(a).to(states) for a in (states.double().mean(0).cpu().numpy(), read, write))
    return Erasure(mean, read, write)
