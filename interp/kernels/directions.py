"""Closed-form directions: where labelled states differ, without asking the network what it does with the difference.

Each takes states and the variable's labels and gives an orthonormal basis, in one computation and without training.
Labels are integers, except for `pls`, whose variable is a number. An alignment puts them beside what it found
(`interp.alignment.directions`), steering adds them to states (`interp.steering.concepts`).

| function | the direction | assumes |
|---|---|---|
| `difference_of_means` | between the means of the labels | the variable shifts states, alike for all |
| `probe` | that a logistic regression reads | it can be read linearly |
| `lda` | that separates the labels best for the spread within them | one spread for all labels |
| `pca` | of most variance, whatever the labels | the variable dominates |
| `kmeans` | between the centres of as many clusters as labels | labels are clusters |
| `pls` | of most covariance with a number | the number is linear in the states |

(`leace`, in `interp.alignment.erasure`, is the closed form that takes a variable out.)

When they mislead: the difference of means takes in whatever goes with the variable, and with *shuffled* labels it still
leans towards what varies most, so its control is an accuracy and not an angle. What a probe reads need not be used,
and where it separates the labels without error its penalty decides. LDA needs more states than units, or its shrinkage
decides. PCA and k-means find what varies most, or clusters of something else, such as positions. PLS finds what the
number goes with (order, length), and does not hold beyond its range.

Why they rank as they do: to *read* a variable and to *write* it need different directions (Haufe et al. 2014,
doi:10.1016/j.neuroimage.2013.10.067). A probe and LDA read: they turn away from what is noise. The difference of means
writes. A swap does both along one basis.

Sources: the set is that of CausalGym (Arora, Jurafsky & Potts 2024, arXiv:2402.12560); partial least squares for
numbers: El-Shangiti et al. 2025 (arXiv:2410.13194). For more than two labels we take the subspace that the differences
span, where they take pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, ShapeError

States = Float[Tensor, "example width"]
Labels = Int[Tensor, "label"]
Basis = Float[Tensor, "width rank"]


def difference_of_means(states: States, labels: Labels) -> Basis:
    """The span of the differences between the labels' means; rank: labels − 1.

    For two labels a unit vector that points from the smaller to the larger label.

    Raises:
        ShapeError: states or labels of another shape, or not finite.
        InterpError: fewer than two labels, or means that do not differ.
    """
    x, y = checked_labels(states, labels)
    return _span(_means(x, y), states, "the labels' means")


def probe(states: States, labels: Labels, *, penalty: float = 1.0) -> Basis:
    """The span of the weights of a logistic regression; rank: labels − 1.

    Args:
        penalty: of the squared weights, in units of the states' mean square: 1/C of scikit-learn, after the states were
            centred and scaled by one number.

    Raises:
        ShapeError, InterpError: as `difference_of_means`; a penalty that is not above 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not penalty > 0:
        raise InterpError(f"A penalty of {penalty}; it must be above 0, or separable labels have no best probe.")
    x, y = checked_labels(states, labels)
    model = LogisticRegression(C=1 / penalty, max_iter=2000)
    with warnings.catch_warnings():  # the direction has long settled when the weights' length has not
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x / max(x.std(), 1e-30), y)
    weights = model.coef_ if len(model.coef_) > 1 else np.concatenate([-model.coef_, model.coef_])
    return _span(weights, states, "the probe's weights")


def lda(states: States, labels: Labels) -> Basis:
    """The span of linear discriminant analysis; rank: labels − 1.

    The spread within labels is shrunk towards a multiple of the identity as Ledoit and Wolf (2004) say.

    Raises:
        ShapeError, InterpError: as `difference_of_means`; states that do not vary within labels, but for rounding.
    """
    from sklearn.covariance import ledoit_wolf

    x, y = checked_labels(states, labels)
    means = _means(x, y)
    within, size = x - means[y], float(states.detach().double().square().mean().sqrt())
    if not np.sqrt(np.square(within).mean()) > 100 * torch.finfo(states.dtype).eps * size:
        raise InterpError("Within labels the states do not vary: there is no spread to weigh their difference by.")
    spread, _ = ledoit_wolf(within, assume_centered=True)
    return _span(np.linalg.lstsq(spread, (means - means.mean(0)).T, rcond=None)[0].T, states, "the discriminants")


def pca(states: States, *, rank: int = 1) -> Basis:
    """The directions of most variance; labels play no part, nor does a sign.

    Raises:
        ShapeError: as `difference_of_means`; a rank above the states' width or number.
    """
    x = _finite(states)
    if not 1 <= rank <= min(x.shape):
        raise ShapeError(f"{rank} principal components of {x.shape[0]} states of width {x.shape[1]}.")
    return _like(np.linalg.svd(x, full_matrices=False)[2][:rank].T, states)


def kmeans(states: States, labels: Labels, *, seed: int = 0) -> Basis:
    """The span of the differences between centres of clusters, as many as there are labels; rank: labels − 1.

    Labels give only their number, and of two the sign.

    Raises:
        ShapeError, InterpError: as `difference_of_means`.
    """
    from sklearn.cluster import KMeans

    x, y = checked_labels(states, labels)
    centres = KMeans(int(y.max()) + 1, n_init="auto", random_state=seed).fit(x).cluster_centers_
    basis = _span(centres, states, "the clusters")
    if basis.shape[1] == 1:
        means = _means(x, y) @ basis.double().cpu().numpy()
        basis = basis if means[1] >= means[0] else -basis
    return basis


def pls(states: States, values: Float[Tensor, "value"], *, rank: int = 1) -> Basis:
    """The first components of a partial least squares regression of a number; the first points to larger values.

    Steer along the first (`Add` at the site, in its own units); further ones explain what is left of the number.

    Raises:
        ShapeError: as `difference_of_means`; a rank above the states' width or number.
        InterpError: a number that does not vary, or of which nothing is left to explain before `rank`.
    """
    from sklearn.cross_decomposition import PLSRegression

    x = _finite(states)
    y = _numbers(values, len(x))
    if not 1 <= rank <= min(x.shape):
        raise ShapeError(f"{rank} components of {x.shape[0]} states of width {x.shape[1]}.")
    if not y.std() > 0:
        raise InterpError("The number is the same for every state: nothing to find.")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            weights = PLSRegression(rank, scale=False).fit(x, y).x_weights_
        except UserWarning as error:
            raise InterpError(f"Of the number nothing is left to explain before component {rank}: {error}.") from error
    weights = weights * np.where(weights.T @ x.T @ (y - y.mean()) < 0, -1, 1)
    return _like(weights, states)


METHODS: Mapping[str, Callable[..., Basis]] = MappingProxyType(
    {
        "difference of means": difference_of_means, "probe": probe, "lda": lda,
        "pca": lambda states, labels: pca(states, rank=_n_labels(labels) - 1), "kmeans": kmeans,
    }
)  # fmt: skip
"""Those that answer to integer labels, all of rank labels − 1, by name."""


def _finite(states: Tensor) -> np.ndarray:
    """The states in float64, centred."""
    if states.ndim != 2 or len(states) < 2:
        raise ShapeError(f"States are {list(states.shape)}; give [example, width], at least two.")
    x = states.detach().double().cpu().numpy()
    if not np.isfinite(x).all():
        raise ShapeError("Some states are not finite.")
    return x - x.mean(0)


def checked_labels(states: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centred states in float64, and labels renumbered from 0 in their order.

    Raises:
        ShapeError: states that are not [example, width] or not finite; another number of labels.
        InterpError: fewer than two labels.
    """
    x = _finite(states)
    if labels.shape != (len(x),):
        raise ShapeError(f"Labels are {list(labels.shape)} for {len(x)} states; give one for each.")
    found, y = np.unique(labels.detach().cpu().numpy(), return_inverse=True)
    if len(found) < 2:
        raise InterpError(f"Every label is {found[0]}: there is no difference to find.")
    return x, y


def _numbers(values: Tensor, n: int) -> np.ndarray:
    y = values.detach().double().cpu().numpy()
    if y.shape != (n,) or not np.isfinite(y).all():
        raise ShapeError(f"Values are {list(y.shape)} for {n} states; give a finite number for each.")
    return y


def _n_labels(labels: Labels) -> int:
    return len(labels.unique())


def _means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == label].mean(0) for label in range(y.max() + 1)])


def _span(points: np.ndarray, states: Tensor, what: str) -> Tensor:
    """An orthonormal basis of the differences between points [label, width]; of two, from the first to the second."""
    apart = points - points.mean(0)
    _, sizes, rows = np.linalg.svd(apart, full_matrices=False)
    rank = len(points) - 1
    if not sizes[rank - 1] > 1e-9 * max(1e-30, np.abs(points).max()):
        raise InterpError(
            f"{len(points)} labels, but {what} span only {int((sizes > 1e-9 * sizes[0]).sum())} dimensions."
        )
    basis = rows[:rank].T
    return _like(basis if rank > 1 or (points[1] - points[0]) @ basis[:, 0] > 0 else -basis, states)


def _like(basis: np.ndarray, states: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(basis)).to(states.device, states.dtype)
