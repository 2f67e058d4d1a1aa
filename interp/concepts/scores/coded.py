"""Who is scored: a dictionary, and what stands beside it, each as sparse codes of the same rows.

| contender | a latent is |
|---|---|
| a dictionary | its own |
| random dictionary | TopK with as many atoms, drawn from the sphere and never trained, at the same L0 |
| PCA, ICA | the positive or the negative part of a component |
| raw channels | the positive or the negative part of a channel, centred |
| supervised probe | a logistic regression's probability of one value: the ceiling, for it is told the truth |
| untrained model | of a dictionary that was trained on a model with random weights |

A code is never negative; what has a sign gives two latents. PCA and ICA see the rows of the half that chooses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float

from interp.dictionaries.activations import Activations, Batch
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.topk import TopK

Role: TypeAlias = Literal["dictionary", "random", "baseline", "control", "ceiling"]
SparseRows: TypeAlias = Any
"""A scipy CSR array, [row, latent]."""
LINEAR = ("PCA", "ICA", "raw channels")
"""Baselines that are linear in the activations."""
_CHUNK = 4096
_ICA_ROWS = 8192
"""Rows that ICA is fitted on, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Rows of activations, as a contender sees them.

    Attributes:
        name: of the contender.
        role: what it is there for.
        codes: [activation, latent], scipy CSR, not negative.
        atoms: what a unit of each latent adds to the standardised activation; `None` for a probe.
        error: ‖x − x̂‖² of each activation, standardised; `None` for a probe.
        total: ‖x − mean‖² of each activation.
        kind: of dictionary.
        autoencodes: whether atoms live where the activations do; of a transcoder they do not.
    """

    name: str
    role: Role
    codes: SparseRows
    atoms: Float[np.ndarray, "latent width"] | None
    error: Float[np.ndarray, "activation"] | None
    total: Float[np.ndarray, "activation"] | None
    kind: str = ""
    autoencodes: bool = True

    @property
    def n_latents(self) -> int:
        """How many there are."""
        return self.codes.shape[1]


@torch.no_grad()
def coded(name: str, dictionary: Dictionary, activations: Activations, role: Role = "dictionary") -> Coded:
    """What a dictionary makes of activations.

    Raises:
        ShapeError: rows that do not fit the dictionary.
    """
    from scipy.sparse import csr_array, vstack

    parts, errors, targets = [], [], []
    for batch in _batches(activations, dictionary):
        x = dictionary.read.apply_to(batch.x, batch.bins)
        target = x if batch.target is None else dictionary.write.apply_to(batch.target, batch.bins)
        codes = dictionary.code(x, batch.bins)
        errors.append((target - dictionary.decoded(codes)).square().sum(1).double().cpu().numpy())
        targets.append(target.double().cpu().numpy())
        entries = tuple(part.cpu().numpy() for part in (codes.values, codes.latents, codes.offsets))
        parts.append(csr_array(entries, shape=(len(codes), codes.n_latents)))
    whole: Any = vstack(parts, format="csr")
    whole.sum_duplicates()
    whole.eliminate_zeros()
    target = np.concatenate(targets)
    total = np.square(target - target.mean(0)).sum(1)
    return Coded(
        name, role, whole, dictionary.atoms.cpu().numpy(), np.concatenate(errors), total, dictionary.kind,
        dictionary.autoencodes,
    )  # fmt: skip


def random_dictionary(dictionary: Dictionary, k: int, seed: int = 0) -> TopK:
    """A dictionary of the same places and size whose atoms were drawn and never trained, k latents on per row.

    Source: the control of "Sanity Checks for Sparse Autoencoders" (arXiv:2602.14111). An untrained TopK reads with its
        own atoms.

    Raises:
        ShapeError: k below 1 or above the number of latents.
    """
    write = None if dictionary.autoencodes else dictionary.write
    return TopK(dictionary.read, dictionary.n_latents, k, write=write, seed=1_000_003 + seed).to(dictionary.atoms)


def standardised(dictionary: Dictionary, activations: Activations) -> Float[np.ndarray, "activation width"]:
    """What the dictionary reads, in its own units."""
    return np.concatenate(
        [dictionary.read.apply_to(b.x, b.bins).cpu().numpy() for b in _batches(activations, dictionary)]
    )


def linear(
    name: str, x: Float[np.ndarray, "activation width"], chosen: Bool[np.ndarray, "activation"], seed: int = 0
) -> Coded:
    """A baseline of `LINEAR`, fitted on the chosen activations. It explains everything, by as many latents as it has.

    ICA is scikit-learn's FastICA on up to 8,192 rows; where it does not converge in 200 iterations, the last one
    counts.
    """
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning

    mean = x[chosen].mean(0)
    if name == "raw channels":
        z, components = x - mean, np.eye(x.shape[1], dtype=x.dtype)
    else:
        fitted = x[chosen]
        if name == "ICA":
            few = np.random.default_rng(seed).permutation(len(fitted))[:_ICA_ROWS]
            rank = int(np.linalg.matrix_rank(fitted[few] - fitted[few].mean(0)))  # it cannot whiten what does not vary
            model: Any = FastICA(rank, random_state=seed, whiten="unit-variance")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(fitted[few])
            components = model.mixing_.T
        else:
            model = PCA(random_state=seed).fit(fitted)
            components = model.components_
        z = model.transform(x)
    error = np.square(x - mean - z @ components).sum(1).astype(float)
    total = np.square(x - x.mean(0)).sum(1).astype(float)
    return Coded(name, "baseline", _both_signs(z), np.concatenate([components, -components]), error, total)


def probe(
    x: Float[np.ndarray, "row width"], wanted: Bool[np.ndarray, "row value"], chosen: Bool[np.ndarray, "row"]
) -> Coded:
    """A latent for each value: the probability that a logistic regression, fitted on the chosen rows, gives it.

    Its penalty is scikit-learn's default, on channels of unit variance. A value that all chosen rows have, or none,
    gets a latent that is never on.
    """
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = np.zeros(wanted.shape)
    for value in range(wanted.shape[1]):
        y = wanted[chosen, value]
        if y.any() and not y.all():
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[chosen], y)
            out[:, value] = model.predict_proba(x)[:, 1]
    return Coded("supervised probe", "ceiling", csr_array(out), None, None, None)


def _both_signs(z: Float[np.ndarray, "row unit"]) -> SparseRows:
    from scipy.sparse import csr_array

    return csr_array(np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis=1))


def _batches(activations: Activations, dictionary: Dictionary) -> Iterator[Batch]:
    """All rows, in order, where the dictionary is."""
    device = dictionary.atoms.device
    for start in range(0, len(activations), _CHUNK):
        batch = activations.batch(torch.arange(start, min(start + _CHUNK, len(activations))))
        target, bins = (None if part is None else part.to(device) for part in (batch.target, batch.bins))
        yield Batch(batch.x.to(device), target, bins)
