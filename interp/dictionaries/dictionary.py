"""What every dictionary answers: activations → sparse codes → activations.

    x̃ = standardised x            c = encode(x̃), sparse and non-negative            x̂ = undo( Σᵢ cᵢ aᵢ + b )

with unit-length *atoms* aᵢ. An autoencoder writes what it reads. A *transcoder* reads one site and writes another; a
*crosscoder* reads and writes several, side by side: both are the same classes with other standardisations, `read` and
`write`, and so is a *time-conditioned* dictionary, whose latents have a gain and a shift for each step bin.

A dictionary is trained by `interp.dictionaries.train`, which asks it for `loss` and nothing else.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.dictionaries.activations import check_finite
from interp.dictionaries.codes import Codes, checked_latents
from interp.dictionaries.standardise import Standardisation
from interp.errors import InterpError, ShapeError
from interp.kernels.sparse_codes import sparse_decode, sparse_encode
from interp.kernels.topk_latents import topk_latents

CHUNK_ROWS = 512
"""Rows whose dense pre-activations exist at once, where a choice needs only its own row. Smaller parts read the
weights too often: product and search of 2,048 rows, by processor time of one CPU thread, take at 4,608 latents, in
parts of 113, 512, 910, 2,048 rows, 1.52, 1, 1.04, 1.08; at 36,864, in parts of 113, 256, 512, 1,024 rows, 1.18, 1.11,
1, 1.05."""


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Of one batch.

    Attributes:
        total: what is minimised.
        unexplained: ‖x − x̂‖² per channel of standardised activations: the share of the variance that is not explained.
        codes: without gradients.
    """

    total: Float[Tensor, ""]
    unexplained: Float[Tensor, ""]
    codes: Codes


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A latent alone, in the units of the activation x that is read and written.

    Its code is z = x · read + bias where that exceeds the threshold, and 0 elsewhere; it adds code · write.

    Attributes:
        read, write: rows of the site's width.
        bias, threshold: in units of the code.
    """

    read: Float[Tensor, "width"]
    write: Float[Tensor, "width"]
    bias: float
    threshold: float


class Dictionary(nn.Module, ABC):
    """Sparse codes of activations, and activations of sparse codes.

    Args:
        read: of the sites whose activations are encoded.
        n_latents: how many there are.
        write: of the sites that are reconstructed; those that are read, if not given.
        seed: of the initial atoms, drawn uniformly from the sphere.

    Raises:
        ShapeError: no latent; other step bins in `write` than in `read`.
    """

    kind: ClassVar[str]
    atoms: Tensor
    offset: Tensor

    def __init__(
        self, read: Standardisation, n_latents: int, *, write: Standardisation | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if n_latents < 1:
            raise ShapeError(f"A dictionary of {n_latents} latents; give at least one.")
        if write is not None and write.n_bins != read.n_bins:
            raise ShapeError(f"{read.n_bins} step bins are read and {write.n_bins} written; they must be the same.")
        self.read = copy.deepcopy(read)  # others may hold it too, and moving this one must not move theirs
        self.write = self.read if write is None else copy.deepcopy(write)
        self.autoencodes, self.n_latents = write is None, n_latents
        atoms = torch.randn(n_latents, self.write.width, generator=torch.Generator().manual_seed(seed))
        self.atoms = nn.Parameter(F.normalize(atoms, dim=1))
        self.offset = nn.Parameter(torch.zeros(self.write.width))

    # -- use ------------------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*row width"], bins: Int[Tensor, "*row"] | None = None) -> Codes:
        """The codes of activations, row by row (leading axes are flattened). Differentiable.

        Args:
            x: in their own units.
            bins: the step bin of each row, where there are several (`read.bin_of`).

        Raises:
            ShapeError: rows of another width, bins that do not fit, or values that are not finite (with where).
        """
        rows = x.reshape(-1, x.shape[-1])
        check_finite(rows)
        flat = None if bins is None else bins.reshape(-1)
        return self.code(self.read.apply_to(rows, flat), flat)

    def decode(self, codes: Codes, bins: Int[Tensor, "row"] | None = None) -> Float[Tensor, "row width"]:
        """The activations that codes stand for, in the units of what is written. Differentiable.

        Raises:
            ShapeError: codes of another dictionary's width; bins that do not fit.
        """
        if codes.n_latents != self.n_latents:
            raise ShapeError(f"Codes of {codes.n_latents} latents, and a dictionary of {self.n_latents}.")
        return self.write.undo(self.decoded(codes), bins)

    def forward(self, x: Float[Tensor, "*row width"], bins: Int[Tensor, "*row"] | None = None) -> Tensor:
        """x̂, in the shape of x (but for the width of what is written)."""
        out = self.decode(self.encode(x, bins), None if bins is None else bins.reshape(-1))
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def directions(self, latents: Any = None, bin_: int = 0) -> Float[Tensor, "chosen width"]:
        """What one unit of each latent adds to the activation, in its own units.

        Raises:
            ShapeError: a latent that is not there.
        """
        chosen = self.atoms if latents is None else self.atoms[checked_latents(latents, self.n_latents)]
        return chosen.detach() * self.write.channel_scale(bin_)

    def unit(self, latent: int, bin_: int = 0) -> Unit:
        """A latent alone: what `interp.steering.concept_of_latent` steers by, and edits of the waist are made of.

        Raises:
            InterpError: a kind whose latents are not on by themselves: in TopK it depends on all others whether one is,
                in MatchingPursuit also how strongly, and in Gated on a gate that reads another direction. Add along
                `directions` instead.
            ShapeError: a latent or step bin that is not there.
        """
        raise InterpError(
            f"Whether a latent of {self.kind} is on does not follow from one product and one threshold; use BatchTopK, "
            "Matryoshka or JumpReLU, or add along `directions`."
        )

    # -- what a kind defines --------------------------------------------------------------------------

    @abstractmethod
    def code(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Codes:
        """Codes of standardised rows, as they are in use. Differentiable."""

    @abstractmethod
    def loss(
        self,
        x: Float[Tensor, "row width"],
        target: Float[Tensor, "row out"],
        bins: Int[Tensor, "row"] | None,
        dead: Bool[Tensor, "latent"],
        progress: float,
    ) -> Loss:
        """The loss of standardised rows.

        Args:
            x: what is read.
            target: what is to be written; x itself, of an autoencoder.
            dead: latents that have not been on for long.
            progress: of the training, from 0 to 1.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the class is to be called with, beside `read`, `write` and `n_latents`; JSON-able."""

    def decoded(self, codes: Codes) -> Float[Tensor, "row width"]:
        """Standardised rows of codes."""
        return sparse_decode(codes.values, codes.latents, codes.offsets, self.atoms) + self.offset

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "chosen"], directions: Float[Tensor, "chosen width"]) -> list[Tensor]:
        """Begin latents anew along directions of what is read; returns the parameters whose rows were changed."""
        if not self.autoencodes:
            raise InterpError("Latents are begun anew along what is read, which here is not what is written.")
        self.atoms[latents] = F.normalize(directions.to(self.atoms), dim=1)
        return [self.atoms]

    def calibrate(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> None:
        """After training, set what is measured on standardised rows; of most kinds nothing."""

    def extra_repr(self) -> str:
        """For the repr."""
        return f"{self.kind}, {self.n_latents} latents"


class LinearDictionary(Dictionary, ABC):
    """A dictionary whose latents are chosen by pre-activations, affine in the activation.

        z = W (x̃ − b) + c,   where b is the decoder's offset (of an autoencoder; else 0)

    Args:
        conditioned: give every latent a gain and a shift for each step bin: z ← gain · z + shift. The atoms are shared,
            so that a latent means the same direction at every step, and may be on at some steps only.

    Raises:
        ShapeError: as `Dictionary`; `conditioned` with a single step bin.
    """

    encoder: Tensor
    bias: Tensor

    def __init__(
        self,
        read: Standardisation,
        n_latents: int,
        *,
        write: Standardisation | None = None,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(read, n_latents, write=write, seed=seed)
        if self.autoencodes:
            start = self.atoms.detach().clone()
        else:
            start = torch.randn(n_latents, read.width, generator=torch.Generator().manual_seed(seed + 1))
        self.encoder = nn.Parameter(F.normalize(start, dim=1))
        self.bias = nn.Parameter(torch.zeros(n_latents))
        self.conditioned = conditioned
        if conditioned:
            if read.n_bins == 1:
                raise ShapeError("A conditioned dictionary needs several step bins; this standardisation has one.")
            self.log_gain = nn.Parameter(torch.zeros(read.n_bins, n_latents))
            self.shift = nn.Parameter(torch.zeros(read.n_bins, n_latents))

    def settings(self) -> dict[str, Any]:
        """As `Dictionary.settings`."""
        return {"conditioned": self.conditioned}

    def thresholds(self) -> Float[Tensor, "latent"] | None:
        """Above which z is a code, where each latent has a threshold of its own; `None`: it has none."""
        return None

    @torch.no_grad()
    def unit(self, latent: int, bin_: int = 0) -> Unit:
        """As `Dictionary.unit`."""
        (i,) = checked_latents([latent], self.n_latents).tolist()
        thresholds = self.thresholds()
        if thresholds is None:
            return super().unit(latent, bin_)
        if not 0 <= bin_ < self.read.n_bins:
            raise ShapeError(f"There is no step bin {bin_}: the dictionary has {self.read.n_bins}, numbered from 0.")
        # W ((x − mean) / scale − b) + c, and then gain and shift.
        row = self.encoder[i] / self.read.channel_scale(bin_)
        bias = self.bias[i] - row @ self.read.mean[bin_]
        if self.autoencodes:
            bias = bias - self.encoder[i] @ self.offset
        if self.conditioned:
            gain = self.log_gain[bin_, i].exp()
            row, bias = gain * row, gain * bias + self.shift[bin_, i]
        return Unit(row, self.directions([i], bin_)[0], float(bias), max(0.0, float(thresholds[i])))

    def centred(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """x̃ − b."""
        return x - self.offset if self.autoencodes else x

    def preactivations(self, centred: Float[Tensor, "row width"], bins: Tensor | None) -> Float[Tensor, "row latent"]:
        """z, dense."""
        return self._by_step(F.linear(centred, self.encoder, self.bias), bins)

    def entries(
        self,
        x: Float[Tensor, "row width"],
        bins: Tensor | None,
        choose: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        at_once: bool = False,
    ) -> Codes:
        """Codes whose entries are chosen from z without a graph, and whose values have the gradients of z's entries.

        Args:
            choose: the (row, latent) pairs of a part of z, sorted by row.
            at_once: give `choose` all rows at once, and not as many as a cache holds.
        """
        centred = self.centred(x).detach()
        part = max(1, len(x)) if at_once else CHUNK_ROWS
        rows, latents, values = [], [], []
        with torch.no_grad():
            for start in range(0, len(x), part):
                own = None if bins is None else bins[start : start + part]
                plain = F.linear(centred[start : start + part], self.encoder, self.bias)
                row, latent = choose(self._by_step(plain, own))
                values.append(plain[row, latent])
                rows.append(row + start)
                latents.append(latent)
            none = torch.zeros(0, dtype=torch.long, device=x.device)
            row, latent = torch.cat([*rows, none]), torch.cat([*latents, none])
            offsets = F.pad(torch.bincount(row, minlength=len(x)).cumsum(0), (1, 0))
        known = torch.cat([*values, x.new_zeros(0)])
        centre = self.offset if self.autoencodes else None
        z = sparse_encode(known, latent, offsets, x, self.encoder, self.bias, centre)
        if self.conditioned:
            assert bins is not None
            z = z * self.log_gain[bins[row], latent].exp() + self.shift[bins[row], latent]
        return Codes(z.relu(), latent, offsets, self.n_latents)

    def revival(
        self,
        x: Float[Tensor, "row width"],
        left: Float[Tensor, "row out"],
        bins: Tensor | None,
        dead: Bool[Tensor, "latent"],
    ) -> Float[Tensor, ""]:
        """How badly the dead latents alone explain what the living ones leave over, from 0 (well) to about 1.

        `left` is that rest. Of each row, the k dead latents with the largest pre-activations take part, k being half
        the width, or all there are. They are few latents and many entries, so this one product is dense.

        Source: Gao et al. 2024 (arXiv:2406.04093), appendix A.2. The error is divided by its own mean square, as in
            their code.
        """
        (latents,) = dead.nonzero(as_tuple=True)
        z = F.linear(self.centred(x), self.encoder[latents], self.bias[latents])
        if self.conditioned:
            assert bins is not None
            z = z * self.log_gain[bins][:, latents].exp() + self.shift[bins][:, latents]
        k = min(len(latents), max(1, self.write.width // 2))
        chosen = torch.zeros_like(z, dtype=torch.bool).scatter_(1, topk_latents(z.detach(), k)[1], True)
        explained = (z.relu() * chosen) @ self.atoms[latents]
        left = left.detach()
        return F.mse_loss(explained, left) / left.square().mean().clamp(min=1e-12)

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "chosen"], directions: Float[Tensor, "chosen width"]) -> list[Tensor]:
        """As `Dictionary.reset`; the encoder gets a fifth of the mean length of the other latents' rows, the bias 0.

        Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling.
        """
        changed = super().reset(latents, directions)
        living = torch.ones(self.n_latents, dtype=torch.bool, device=self.encoder.device)
        living[latents] = False
        length = self.encoder[living].norm(dim=1).mean() if living.any() else self.encoder.new_ones(())
        self.encoder[latents] = 0.2 * length * self.atoms[latents]
        self.bias[latents] = 0.0
        return [*changed, self.encoder, self.bias]

    def _by_step(self, z: Tensor, bins: Tensor | None) -> Tensor:
        if not self.conditioned:
            return z
        if bins is None:
            raise ShapeError("A conditioned dictionary needs the step bin of each row.")
        return z * self.log_gain[bins].exp() + self.shift[bins]


def above(z: Float[Tensor, "row latent"], threshold: Float[Tensor, "*latent"]) -> tuple[Tensor, Tensor]:
    """Row and latent of every pre-activation that is above a threshold, row by row."""
    row, latent = (z > threshold).nonzero(as_tuple=True)
    return row, latent


def unexplained(out: Float[Tensor, "*row width"], target: Float[Tensor, "*row width"]) -> Float[Tensor, ""]:
    """‖x − x̂‖² per channel of standardised rows, whose variance per channel is 1."""
    return F.mse_loss(out, target)  # one pass, where a difference and its square are three
