"""Semi-NMF: activations as non-negative sums of sparse sets of neurons, A ≈ Y Zᵀ with Y ≥ 0.

Meant for the activations behind an MLP's non-linearity (`mlp_act`). A feature is a column of Z, a few signed neurons;
Y says how much of it each token holds. Nothing is trained by gradients: both factors are updated in turns,

    Z ← Aᵀ Y (Yᵀ Y + ε)⁻¹,  of each column only the largest |entries| kept (*winner takes all*)
    Y ← Y · √( ([A Z]₊ + Y [ZᵀZ]₋) / ([A Z]₋ + Y [ZᵀZ]₊ + ε) ),   [X]± = (|X| ± X) / 2

and columns of Y are brought to unit length, Z taking up the rest. The second line never makes the error larger for a
fixed Z (Ding, Li, Jordan 2010); the first is a least-squares solution, cut off, and can. So the best iterate is kept.

`refine` splits Y itself, Y ≈ Y₂ Zᵀ₂ with Z₂ ≥ 0, level by level, and fits all levels together: features of features.

Source: Shafran, Geiger, Geva 2025, "Decomposing MLP Activations into Interpretable Features via Semi-Nonnegative Matrix
Factorization" (arXiv:2506.10920), and the order of updates in its authors' code. Ours differs in the hierarchy: weights
between levels stay non-negative while all levels are fitted together, so that a parent is made of children and never of
their absence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, ShapeError
from interp.progress import Progress, silent

Start = Literal["random", "k-means", "svd"]
_RIDGE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A ≈ Y Zᵀ.

    Attributes:
        neurons: Z; a column is a feature.
        codes: Y; how much of each feature a row holds, columns of unit length.
        errors: ‖A − Y Zᵀ‖² / ‖A‖² after every update; the factors are those of the smallest.
    """

    neurons: Float[Tensor, "d_mlp feature"]
    codes: Float[Tensor, "row feature"]
    errors: Float[np.ndarray, "update"]

    @property
    def error(self) -> float:
        """The smallest, that of these factors."""
        return float(self.errors.min())

    def directions(self, output: Float[Tensor, "d_model d_mlp"]) -> Float[Tensor, "feature d_model"]:
        """What each feature writes into the residual stream: the MLP's output matrix times its neurons."""
        return self.neurons.T @ output.T

    def encode(self, x: Float[Tensor, "row d_mlp"], updates: int = 200) -> Float[Tensor, "row feature"]:
        """Codes of other rows, by the same update with Z held fixed.

        Raises:
            ShapeError: rows of another width.
        """
        if x.shape[1] != len(self.neurons):
            raise ShapeError(f"Rows are {x.shape[1]} wide, the features {len(self.neurons)}.")
        codes = x.new_full((len(x), self.neurons.shape[1]), 1.0)
        for _ in range(updates):
            codes = _multiplied(codes, x @ self.neurons, self.neurons.T @ self.neurons)
        return codes

    def top_rows(self, feature: int, n: int = 10) -> list[int]:
        """The rows that hold most of a feature: the inputs that activate it, the strongest first.

        Raises:
            ShapeError: a feature that is not there.
        """
        if not 0 <= feature < self.codes.shape[1]:
            raise ShapeError(f"There is no feature {feature}: there are {self.codes.shape[1]}, numbered from 0.")
        return self.codes[:, feature].topk(min(n, len(self.codes))).indices.tolist()


def semi_nmf(
    x: Float[Tensor, "row d_mlp"],
    rank: int,
    *,
    kept: float = 0.01,
    start: Start = "random",
    updates: int = 2000,
    tolerance: float = 1e-4,
    patience: int = 100,
    seed: int = 0,
    progress: Progress = silent,
) -> Factors:
    """Factors of a matrix of activations.

    Args:
        x: A, rows of activations; signed is allowed.
        rank: features.
        kept: share of the neurons that a feature keeps; 1 for plain semi-NMF.
        start: `random` (Z normal, Y uniform), `k-means` (Z centroids, Y which one is nearest), or `svd`.
        updates: at most.
        tolerance: share by which the error must fall to count as progress.
        patience: updates without progress after which it ends.
        seed: of the start.

    Raises:
        ShapeError: rows that are not finite or all 0; a rank below 1 or above the number of rows.
        InterpError: a share of neurons outside (0, 1], another start.
    """
    if not x.isfinite().all() or not x.any():
        raise ShapeError("Activations must be finite, and not all 0.")
    if not 1 <= rank <= len(x):
        raise ShapeError(f"rank={rank} of {len(x)} rows: give a number from 1 to {len(x)}.")
    if not 0 < kept <= 1:
        raise InterpError(f"kept={kept}: give a share of the neurons above 0 and at most 1.")
    neurons, codes = _start(x, rank, start, seed)
    most, total = math.ceil(kept * x.shape[1] - 1e-9), float(x.square().sum())
    best: tuple[float, Tensor, Tensor] | None = None
    errors, waited, reference = [], 0, float("inf")
    for _ in progress(list(range(updates)), f"semi-NMF, rank {rank}"):
        neurons = _winners(_solved(x, codes), most)
        length = codes.norm(dim=0).clamp(min=1e-12)
        codes, neurons = codes / length, neurons * length
        codes = _multiplied(codes, x @ neurons, neurons.T @ neurons)
        errors.append(float((x - codes @ neurons.T).square().sum()) / total)
        if best is None or errors[-1] < best[0]:
            best = errors[-1], neurons, codes
        waited = 0 if errors[-1] < reference * (1 - tolerance) else waited + 1
        reference = min(reference, errors[-1])
        if waited >= patience:
            break
    if best is None:
        raise InterpError("updates=0: at least one is needed.")
    length = best[2].norm(dim=0).clamp(min=1e-12)
    return Factors(best[1] * length, best[2] / length, np.array(errors))


@dataclass(frozen=True, slots=True, eq=False)
class Hierarchy:
    """A ≈ Y_L Wᵀ_L … Wᵀ₂ Zᵀ: features of features.

    Attributes:
        neurons: Z of the finest level.
        weights: W of each further level, non-negative: how much of each feature below a feature is made of.
        codes: Y of the coarsest level.
        error: ‖A − product‖² / ‖A‖² of all levels together.
    """

    neurons: Float[Tensor, "d_mlp feature"]
    weights: tuple[Float[Tensor, "_ _"], ...]
    codes: Float[Tensor, "row coarsest"]
    error: float

    def level(self, number: int) -> Float[Tensor, "d_mlp feature"]:
        """The features of a level as neurons; 0 is the finest."""
        out = self.neurons
        for weight in self.weights[:number]:
            out = out @ weight
        return out

    def children(self, level: int, feature: int, *, above: float = 0.15, most: int = 4) -> list[int]:
        """The features of the level below that a feature is mainly made of, the heaviest first.

        Args:
            level: of the feature, from 1 on.
            feature: its number.
            above: share of the heaviest weight that a child has at least.
            most: children.

        Raises:
            ShapeError: a level or feature that is not there.
        """
        if not 1 <= level <= len(self.weights) or not 0 <= feature < self.weights[level - 1].shape[1]:
            raise ShapeError(f"There is no feature {feature} with children at level {level}.")
        weight = self.weights[level - 1][:, feature]
        order = weight.argsort(descending=True)[:most]
        return [int(i) for i in order if weight[i] > 0 and weight[i] >= above * weight.max()]


def refine(
    x: Float[Tensor, "row d_mlp"],
    factors: Factors,
    ranks: Sequence[int],
    *,
    updates: int = 500,
    steps: int = 500,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Hierarchy:
    """Coarser levels on top of some factors, each a factorisation of the codes below it, then all fitted together.

    Args:
        x: what the factors were made of.
        factors: of the finest level.
        ranks: features of each further level, falling.
        updates: of each level's factorisation.
        steps: of Adam, on all levels together.
        learning_rate: of Adam.
        seed: of the starts.

    Raises:
        ShapeError: ranks that do not fall.
    """
    sizes = [factors.codes.shape[1], *ranks]
    if len(sizes) < 2 or any(a <= b for a, b in pairwise(sizes)) or sizes[-1] < 1:
        raise ShapeError(f"Ranks {list(ranks)} must fall, from below {sizes[0]} to at least 1.")
    codes, weights = factors.codes, []
    for number, rank in enumerate(ranks):
        weight, codes = _non_negative(codes, rank, updates, seed + number)
        weights.append(weight)
    return _together(x, factors.neurons, weights, codes, steps, learning_rate)


def _together(
    x: Tensor, neurons: Tensor, weights: Sequence[Tensor], codes: Tensor, steps: int, learning_rate: float
) -> Hierarchy:
    """Adam on the squared error of the whole product; W and Y stay non-negative by projection, Z keeps its zeros."""
    winners = neurons != 0
    parts = [p.clone().requires_grad_() for p in (neurons, *weights, codes)]
    optimizer, total = torch.optim.Adam(parts, lr=learning_rate), x.square().sum()

    def error() -> Tensor:
        out = parts[-1]
        for weight in reversed(parts[1:-1]):
            out = out @ weight.T
        return (x - out @ parts[0].T).square().sum() / total

    for _ in range(steps):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
        with torch.no_grad():
            parts[0].mul_(winners)
            for p in parts[1:]:
                p.clamp_(min=0)
    with torch.no_grad():
        found = float(error())
    z, *w, y = (p.detach() for p in parts)
    return Hierarchy(z, tuple(w), y, found)


def _start(x: Tensor, rank: int, start: str, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if start == "random":
        neurons = torch.randn(x.shape[1], rank, generator=generator)
        return neurons.to(x), torch.rand(len(x), rank, generator=generator).to(x)
    if start == "svd":
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        if rank > len(s):
            raise ShapeError(f"rank={rank}: there are {len(s)} singular values to start from; take 'random'.")
        root = s[:rank].sqrt()
        sign = torch.where(u[:, :rank].sum(0) < 0, -1.0, 1.0).to(x)  # the sign of a singular vector is arbitrary
        return v[:rank].T * (sign * root), (u[:, :rank] * (sign * root)).clamp(min=0) + 1e-3
    if start == "k-means":
        from sklearn.cluster import KMeans

        kind: Any = KMeans  # whose annotations know no number for n_init
        found = kind(rank, n_init=1, max_iter=15, random_state=seed).fit(x.cpu().double().numpy())
        which = torch.from_numpy(found.labels_).long()
        # Not exactly 0, from which the update by factors could never leave.
        return torch.from_numpy(found.cluster_centers_).T.to(x), F.one_hot(which, rank).to(x) + 0.2
    raise InterpError(f"start={start!r}: give 'random', 'k-means' or 'svd'.")


def _solved(x: Tensor, codes: Tensor) -> Tensor:
    """Aᵀ Y (Yᵀ Y + ε)⁻¹."""
    gram = codes.T @ codes
    ridge = _RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, codes.T @ x).T


def _winners(neurons: Tensor, most: int) -> Tensor:
    """Of each column the `most` entries of the largest size."""
    places = neurons.abs().topk(most, dim=0).indices
    return torch.zeros_like(neurons).scatter_(0, places, neurons.gather(0, places))


def _multiplied(codes: Tensor, products: Tensor, gram: Tensor) -> Tensor:
    """The multiplicative update of Y; `products` is A Z, `gram` Zᵀ Z."""
    up = products.clamp(min=0) + codes @ (-gram).clamp(min=0)
    down = (-products).clamp(min=0) + codes @ gram.clamp(min=0)
    return codes * (up / (down + _RIDGE)).sqrt()


def _non_negative(x: Tensor, rank: int, updates: int, seed: int) -> tuple[Tensor, Tensor]:
    """W, Y ≥ 0 with X ≈ Y Wᵀ, for X ≥ 0: the same update for both, as all their products are non-negative."""
    generator = torch.Generator().manual_seed(seed)
    weight, codes = (torch.rand(n, rank, generator=generator).to(x) + 0.1 for n in (x.shape[1], len(x)))
    for _ in range(updates):
        weight = _multiplied(weight, x.T @ codes, codes.T @ codes)
        codes = _multiplied(codes, x @ weight, weight.T @ weight)
    length = codes.norm(dim=0).clamp(min=1e-12)
    return weight * length, codes / length
