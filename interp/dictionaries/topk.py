"""Dictionaries with a given number of latents: per row (TopK), on average (BatchTopK), in nested prefixes (Matryoshka).

| kind | in training | in use |
|---|---|---|
| TopK | the k largest pre-activations of a row | the same |
| BatchTopK | the n · k largest of a batch of n rows | those above a threshold |
| Matryoshka | as BatchTopK; every prefix of the latents must reconstruct | as BatchTopK |

What a choice takes up passes through a ReLU, so a negative pre-activation among the k largest is an entry of value 0.

Sources: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), §2.3 and appendix A;
Bussmann, Leask, Nanda 2024, "BatchTopK Sparse Autoencoders" (arXiv:2412.06410); Bussmann, Nabeshima, Karvonen, Nanda
2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (arXiv:2503.17547).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.dictionaries.codes import Codes
from interp.dictionaries.dictionary import LinearDictionary, Loss, above, unexplained
from interp.dictionaries.standardise import Standardisation
from interp.errors import InterpError, ShapeError
from interp.kernels.sparse_codes import sparse_decode
from interp.kernels.topk_latents import topk_latents

AUX = 1 / 32
"""Weight of the dead latents' loss, that of Gao et al."""


class TopK(LinearDictionary):
    """The k largest pre-activations of each row.

    Args:
        k: latents per row.
        aux: weight of the loss by which dead latents learn what is left over; 0: none.

    Raises:
        ShapeError: k below 1 or above the number of latents; as `LinearDictionary`.
    """

    kind: ClassVar[str] = "topk"

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        k: int,
        *,
        aux: int | float = AUX,
        write: Standardisation | None = None,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, write=write, conditioned=conditioned, seed=seed)
        self.k, self.aux = checked_k(k, n_latents), aux

    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """As `Dictionary.code`."""
        return self.entries(x, bins, self._choose)

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """The unexplained share of the variance, plus `aux` times what the dead latents leave of it."""
        codes = self.code(x, bins)
        out = self.decoded(codes)
        total = share = unexplained(out, target)
        if self.aux and dead.any():
            total = share + self.aux * self.revival(x, target - out, bins, dead)
        return Loss(total, share.detach(), codes)

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return super().settings() | {"k": self.k, "aux": self.aux}

    def _choose(self, z: Tensor) -> tuple[Tensor, Tensor]:
        latents = topk_latents(z, self.k)[1]
        return torch.arange(len(z), device=z.device).repeat_interleave(self.k), latents.flatten()


class BatchChosen(LinearDictionary, ABC):
    """Chosen over a batch in training, and by a threshold θ in use.

    θ is the mean over batches of the smallest value that was chosen (Bussmann et al. 2024), measured by `calibrate`
    once training has ended, on the weights that it ended with; the authors average over the last steps.
    """

    threshold: Tensor

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        k: int | float,
        *,
        aux: int | float = AUX,
        write: Standardisation | None = None,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, write=write, conditioned=conditioned, seed=seed)
        self.k, self.aux = checked_k(k, n_latents), aux
        self.register_buffer("threshold", torch.full((), torch.nan))

    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """As `Dictionary.code`.

        Raises:
            InterpError: there is no threshold yet.
        """
        threshold = self.thresholds()
        return self.entries(x, bins, lambda z: above(z, threshold))

    def thresholds(self) -> Float[Tensor, "latent"]:
        """As `LinearDictionary.thresholds`: θ for all."""
        if self.threshold.isnan():
            raise InterpError("This dictionary has no threshold yet: train it, or call `calibrate`.")
        return self.threshold.expand(self.n_latents)

    def batch_code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """Codes as they are in training, each row's latents in ascending order."""
        return self.entries(x, bins, self._choose, at_once=True)

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> None:
        """Measure the threshold on standardised rows, taken in batches of up to 4,096."""
        smallest = []
        for start in range(0, len(x), 4096):
            part = slice(start, start + 4096)
            values = self.batch_code(x[part], None if bins is None else bins[part]).values
            smallest.append(values[values > 0].min() if (values > 0).any() else values.new_zeros(()))
        self.threshold.copy_(torch.stack(smallest).mean())

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return super().settings() | {"k": self.k, "aux": self.aux}

    def _choose(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n = min(z.numel(), round(self.k * len(z)))
        flat = topk_latents(z.reshape(1, -1), n)[1][0].sort().values
        return flat // self.n_latents, flat % self.n_latents


class BatchTopK(BatchChosen):
    """The n · k largest pre-activations of a batch of n rows: k per row on average.

    Args:
        k: latents per row, on average over the batch.
        aux: as `TopK`.

    Raises:
        ShapeError: as `TopK`.
    """

    kind: ClassVar[str] = "batch_topk"

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """As `TopK.loss`."""
        codes = self.batch_code(x, bins)
        out = self.decoded(codes)
        total = share = unexplained(out, target)
        if self.aux and dead.any():
            total = share + self.aux * self.revival(x, target - out, bins, dead)
        return Loss(total, share.detach(), codes)


class Matryoshka(BatchChosen):
    """BatchTopK whose prefixes are dictionaries too: the first latents must reconstruct alone, and so do more of them.

        loss = Σ over prefixes m of ‖x − (Σ_{i<m} cᵢ aᵢ + b)‖² / width, divided by the number of prefixes

    The codes of a prefix are those of the whole, cut off. (The authors sum over prefixes; the mean keeps the learning
    rate's meaning.) All prefixes together take one sparse product: parts between two bounds are decoded apart and added
    up.

    Args:
        k: latents per row, on average, of the whole.
        prefixes: ascending sizes; the last one is the whole.
        aux: as `TopK`; of the whole.

    Raises:
        ShapeError: prefixes that do not ascend to the number of latents; as `TopK`.
    """

    kind: ClassVar[str] = "matryoshka"

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        k: int | float,
        *,
        prefixes: Sequence[int],
        aux: int | float = AUX,
        write: Standardisation | None = None,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, k, aux=aux, write=write, conditioned=conditioned, seed=seed)
        self.prefixes = tuple(int(m) for m in prefixes)
        if not self.prefixes or [0, *self.prefixes] != sorted({0, *self.prefixes}) or self.prefixes[-1] != n_latents:
            raise ShapeError(f"Prefixes must ascend from above 0 to {n_latents}; got {list(self.prefixes)}.")

    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """As the class says, plus `aux` as in `TopK.loss`; `unexplained` is that of the whole."""
        codes = self.batch_code(x, bins)
        outs = self.by_prefix(codes)
        total = unexplained(outs, target[:, None].expand_as(outs))
        whole = outs[:, -1]
        if self.aux and dead.any():
            total = total + self.aux * self.revival(x, target - whole, bins, dead)
        return Loss(total, unexplained(whole, target).detach(), codes)

    def by_prefix(self, codes: Codes) -> Float[Tensor, "row prefix width"]:
        """Standardised reconstructions of every prefix; the latents of each row must ascend, as those of `code` do."""
        levels = len(self.prefixes)
        bounds = torch.tensor(self.prefixes, device=codes.latents.device)
        level = torch.bucketize(codes.latents, bounds, right=True)
        counts = torch.bincount(codes.rows * levels + level, minlength=len(codes) * levels)
        offsets = F.pad(counts.cumsum(0), (1, 0))
        parts = sparse_decode(codes.values, codes.latents, offsets, self.atoms)
        return parts.view(len(codes), levels, -1).cumsum(1) + self.offset

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return super().settings() | {"prefixes": list(self.prefixes)}


def checked_k(k: int | float, n_latents: int) -> Any:
    """The number of latents per row.

    Raises:
        ShapeError: below 1, or above the number of latents.
    """
    if not 1 <= k <= n_latents:
        raise ShapeError(f"k={k} of {n_latents} latents: give a number from 1 to {n_latents}.")
    return k
