"""Activations brought to zero mean and unit variance, per site and step bin, and back.

A site is shifted by its mean and divided by *one* number, the root mean variance of its channels: so lengths and angles
within it stay what they are, a direction found afterwards is a direction of the model, and the shift and scale can be
folded into an encoder and decoder exactly. Afterwards the mean squared length of a row is the number of its channels.
Several sites side by side (a crosscoder) are scaled each by its own number; steps of denoising, whose activations
differ in size, by those of their bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over rows, from which means and variances follow; of several sets of rows they add up.

    Attributes:
        count: rows per bin.
        total: sum of the rows of a bin.
        squares: of every channel, the sum of its squares.
    """

    count: Float[Tensor, "bin"]
    total: Float[Tensor, "bin width"]
    squares: Float[Tensor, "bin width"]

    @classmethod
    def of(cls, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None, n_bins: int = 1) -> Moments:
        """The moments of rows, in float64."""
        bins = torch.zeros(len(x), dtype=torch.long, device=x.device) if bins is None else bins
        x, empty = x.double(), x.new_zeros(n_bins, x.shape[1], dtype=torch.float64)
        count = torch.bincount(bins, minlength=n_bins).double()
        return cls(count, empty.index_add(0, bins, x), empty.index_add(0, bins, x.square()))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)


class Standardisation(nn.Module):
    """Mean and scale of some sites, by step bin.

    Args:
        mean: of each bin; several sites stand side by side.
        scale: of each bin and site.
        sites: names of the sites; one, if nothing is said.
        widths: channels of each site.
        steps: the denoising steps of each bin; `None`: there is one bin for everything.

    Raises:
        ShapeError: widths that do not add up, another number of bins than of step sets, a scale that is not positive
            and finite.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        mean: Float[Tensor, "bin width"],
        scale: Float[Tensor, "bin site"],
        sites: Sequence[str] = ("",),
        widths: Sequence[int] | None = None,
        steps: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.widths = (mean.shape[1],) if widths is None else tuple(widths)
        self.steps = None if steps is None else tuple(tuple(bin_) for bin_ in steps)
        if sum(self.widths) != mean.shape[1] or not len(self.widths) == len(self.sites) == scale.shape[1]:
            raise ShapeError(
                f"Sites {list(self.sites)} of widths {list(self.widths)} do not make the {mean.shape[1]} channels of "
                f"the mean and the {scale.shape[1]} scales."
            )
        if len(mean) != len(scale) or len(mean) != (1 if self.steps is None else len(self.steps)):
            raise ShapeError(f"{len(mean)} means and {len(scale)} scales for the step bins {self.steps}.")
        if not (scale > 0).all() or not scale.isfinite().all() or not mean.isfinite().all():
            raise ShapeError(f"Scales must be positive and finite; got {scale.tolist()}. Is a site constant?")
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())

    @classmethod
    def identity(cls, width: int, site: str = "", dtype: torch.dtype = torch.float32) -> Standardisation:
        """Leaves activations as they are."""
        return cls(torch.zeros(1, width, dtype=dtype), torch.ones(1, 1, dtype=dtype), (site,))

    @classmethod
    def from_moments(
        cls,
        moments: Moments,
        sites: Sequence[str] = ("",),
        widths: Sequence[int] | None = None,
        steps: Sequence[Sequence[int]] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Standardisation:
        """From sums over rows.

        Raises:
            ShapeError: a bin with fewer than two rows, or a site that is constant in a bin.
        """
        if moments.count.min() < 2:
            few = [i for i, n in enumerate(moments.count.tolist()) if n < 2]
            raise ShapeError(f"Bins {few} have fewer than 2 rows, so no variance; harvest more, or fewer bins.")
        mean = moments.total / moments.count[:, None]
        variance = (moments.squares / moments.count[:, None] - mean.square()).clamp(min=0)
        split = variance.split(tuple(widths or (mean.shape[1],)), dim=1)
        scale = torch.stack([part.mean(1).sqrt() for part in split], dim=1)
        return cls(mean.to(dtype), scale.to(dtype), sites, widths, steps)

    @property
    def width(self) -> int:
        """Channels of all sites together."""
        return self.mean.shape[1]

    @property
    def n_bins(self) -> int:
        """Step bins; 1 where nothing depends on a step."""
        return len(self.mean)

    def bin_of(self, step: int) -> int:
        """The bin of a denoising step.

        Raises:
            ShapeError: a step in no bin.
        """
        for number, steps in enumerate(self.steps or ()):
            if step in steps:
                return number
        if self.steps is None:
            return 0
        raise ShapeError(f"Step {step} is in no bin; there are {[list(s) for s in self.steps]}.")

    def apply_to(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Tensor:
        """Standardised rows.

        Raises:
            ShapeError: rows of another width; several bins, and none is given for each row.
        """
        mean, scale = self._each(x, bins)
        return (x.to(mean.dtype) - mean) / scale

    def undo(self, x: Float[Tensor, "row width"], bins: Int[Tensor, "row"] | None = None) -> Tensor:
        """Rows in the activations' own units.

        Raises:
            ShapeError: as `apply_to`.
        """
        mean, scale = self._each(x, bins)
        return x * scale + mean

    def channel_scale(self, bin_: int = 0) -> Float[Tensor, "width"]:
        """What one standardised unit is in the activation's units, channel by channel."""
        widths = torch.tensor(self.widths, device=self.scale.device)
        return torch.repeat_interleave(self.scale[bin_], widths)

    def _each(self, x: Tensor, bins: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.width:
            where = " + ".join(
                f"{site or 'the site'} ({width})" for site, width in zip(self.sites, self.widths, strict=True)
            )
            raise ShapeError(f"Activations are {list(x.shape)}; needed are rows of {self.width}: {where}.")
        if self.n_bins == 1:
            return self.mean[0], self.channel_scale()
        if bins is None or len(bins) != len(x):
            given = "no bins" if bins is None else f"{len(bins)} bins"
            raise ShapeError(f"{given} for {len(x)} rows: name the step bin of each, of {self.n_bins}.")
        widths = torch.tensor(self.widths, device=self.scale.device)
        return self.mean[bins], torch.repeat_interleave(self.scale, widths, dim=1)[bins]

    def extra_repr(self) -> str:
        """For the repr."""
        where = ", ".join(site or "a site" for site in self.sites)
        return f"{where}: {self.width} channels, {self.n_bins} step bins"
