"""All rows of a harvest as sparse codes, to be asked by latent: where is it on, how often, and how strongly?

One pass of the dictionary over the rows; what is kept are the entries of the codes, some sixteen bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.dictionaries.activations import Activations
from interp.dictionaries.dictionary import Dictionary
from interp.errors import ShapeError
from interp.progress import Progress, silent

BINS = 2.0 ** np.arange(-5, 6.01, 0.5)
"""Bounds of the histogram's bins, in units of the standardised activation. The outer ones take the rest."""
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """Entries of codes that are above 0, by latent, and of each latent the strongest first.

    Attributes:
        row, value: of each entry.
        bounds: latent i has the entries `bounds[i]` to `bounds[i + 1]`.
        n_rows: that were encoded, of which entries speak.
    """

    row: Int[np.ndarray, "entry"]
    value: Float[np.ndarray, "entry"]
    bounds: Int[np.ndarray, "bound"]
    n_rows: int

    @property
    def n_latents(self) -> int:
        """Of the dictionary."""
        return len(self.bounds) - 1

    @property
    def count(self) -> Int[np.ndarray, "latent"]:
        """In how many rows each latent is on."""
        return np.diff(self.bounds)

    def share(self, chosen: Bool[np.ndarray, "row"]) -> Float[np.ndarray, "latent"]:
        """In which share of some rows each latent is on."""
        latent = np.repeat(np.arange(self.n_latents), self.count)
        return np.bincount(latent[chosen[self.row]], minlength=self.n_latents) / max(1, int(chosen.sum()))

    def of(self, latent: int) -> tuple[Int[np.ndarray, "on"], Float[np.ndarray, "on"]]:
        """(row, value) wherever a latent is on, the strongest first."""
        own = slice(self.bounds[latent], self.bounds[latent + 1])
        return self.row[own], self.value[own]

    def column(self, latent: int) -> Float[np.ndarray, "row"]:
        """A latent's code in every row."""
        out = np.zeros(self.n_rows, self.value.dtype)
        row, value = self.of(latent)
        out[row] = value
        return out

    def histogram(self, latents: Sequence[int]) -> Int[np.ndarray, "latent bin"]:
        """How often each of these latents is on how strongly; bins lie between `BINS`."""
        out = np.zeros((len(latents), len(BINS) - 1), np.int64)
        for number, latent in enumerate(latents):
            at = np.searchsorted(BINS, self.of(latent)[1], side="right") - 1
            np.add.at(out[number], np.clip(at, 0, len(BINS) - 2), 1)
        return out

    def strongest(self, latent: int, n: int, group: Int[np.ndarray, "row"]) -> Int[np.ndarray, "example"]:
        """The rows in which it is on most strongly, one of each group (a text, a picture); up to n."""
        row, _ = self.of(latent)
        return row[np.sort(np.unique(group[row], return_index=True)[1])[:n]]

    def spread(
        self, latent: int, quantiles: Sequence[float], group: Int[np.ndarray, "row"]
    ) -> Int[np.ndarray, "example"]:
        """Rows in which it is on more strongly than in these shares of the rows where it is on; of groups that differ.

        What is strongest shows a latent at its clearest. Most of the time it is on more weakly, and may mean something
        else there.
        """
        row, _ = self.of(latent)
        found: list[int] = []
        taken: set[int] = set()
        for quantile in quantiles:
            start = round((1 - quantile) * (len(row) - 1)) if len(row) else 0
            # The nearest entry below whose group is new.
            for entry in range(start, len(row)):
                if int(group[row[entry]]) not in taken:
                    found.append(int(row[entry]))
                    taken.add(int(group[row[entry]]))
                    break
        return np.array(found, np.int64)


@torch.no_grad()
def coded_rows(dictionary: Dictionary, activations: Activations, progress: Progress = silent) -> CodedRows:
    """The codes of all rows.

    Raises:
        ShapeError: no rows; rows that do not fit the dictionary, or are not finite (with where).
    """
    if not len(activations):
        raise ShapeError("There are no rows to encode.")
    rows, latents, values = [], [], []
    for start in progress(range(0, len(activations), _AT_ONCE), f"{len(activations)} rows"):
        batch = activations.batch(torch.arange(start, min(start + _AT_ONCE, len(activations))))
        codes = dictionary.encode(batch.x.float(), batch.bins)
        on = codes.values > 0
        rows.append((codes.rows[on] + start).numpy())
        latents.append(codes.latents[on].numpy())
        values.append(codes.values[on].float().numpy())
    row, latent, value = np.concatenate(rows), np.concatenate(latents), np.concatenate(values)
    order = np.lexsort((row, -value, latent))
    bounds = np.concatenate([[0], np.bincount(latent, minlength=dictionary.n_latents).cumsum()])
    return CodedRows(row[order], value[order], bounds, len(activations))
