"""The affine map that comes nearest to what another prompt would do, as latents that a dose can be given of.

The same picture in the making, x_t, is shown to the denoiser under a prompt and under one that differs in the concept
alone. At a site the first gives h and the second h*; over many prompts and all places the change h* − h is regressed on
h, by ridge regression of reduced rank:

    h* − h ≈ Σ_i (h · read_i + bias_i) write_i + shift

A constant vector, the mean difference, is its case of rank 0: `shift` alone. With a few latents the map knows where the
object is, and what it is now, because h says so: it changes red where there is red, and leaves the background alone.
`strength` 1 applies it; less or more goes part of the way, or beyond. Start with `paired_states`, then
`counterfactual_map`.

When it misleads: it is fitted on unedited states, and applied where blocks before it are edited too; outside the
prompts it was fitted on it extrapolates, and `strength` above 1 always does.

The closed form of `interp.edit_concept` (UCE and its kin) solves the same problem for what the prompt's tokens say, as
weights; here it is solved for the states of the picture, by step, and is an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Edit, Latents, Modulate, Replace, When
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import UNGUIDED, Branch
from interp.models.site import Site
from interp.steering.concepts import each_step
from interp.steering.controls import random_rotation
from interp.steering.measured import Measured

_AT_ONCE = 32


def paired_states(
    model: Denoiser,
    sampling: Sampling,
    others: Sequence[Sequence[str]],
    sites: Sequence[Site | str],
    *,
    branch: Branch = Branch.COND,
) -> tuple[dict[Site, Measured], list[dict[Site, Measured]]]:
    """States under a sampling's prompts, and under other prompts in the same x_t, at every step and all positions.

    Args:
        others: prompts of every row, once for each concept: the base is run once for all of them.

    Returns:
        Of each site the states of the base, and the same of each of `others`.

    Raises:
        PairError: not as many prompts as rows.
        InterpError: as `denoise`.
    """
    for prompts in others:
        if len(prompts) != len(sampling):
            raise PairError(f"{len(prompts)} other prompts for {len(sampling)} rows.")
    checked, latents = [model.check(site) for site in sites], Site("latents")
    base: dict[Site, list[Tensor]] = {site: [] for site in checked}
    changed: list[dict[Site, list[Tensor]]] = [{site: [] for site in checked} for _ in others]
    timesteps: tuple[float, ...] = ()
    for start in range(0, len(sampling), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(sampling)))
        some = sampling.select(rows)
        found = denoise(model, some, (), [*checked, latents])
        timesteps = found.timesteps
        for site in checked:
            base[site].append(found[site][:, found.branches.index(branch)])
        for prompts, kept in zip(others, changed, strict=True):
            # Where the latents are given, the other branch of guidance decides nothing: it need not run. (Where there
            # is none, the scale may be an input of the denoiser, and stays.)
            asked = replace(some, prompts=tuple(prompts[row] for row in rows))
            if branch is Branch.COND and asked.negative is None and model.layout(asked) != UNGUIDED:
                asked = replace(asked, guidance=1.0)
            same = denoise(model, asked, [Replace(latents, found)], checked, when=When(branch=branch))
            for site in checked:
                kept[site].append(same[site][:, 0])
    return _measured(base, timesteps), [_measured(kept, timesteps) for kept in changed]


def _measured(parts: dict[Site, list[Tensor]], timesteps: tuple[float, ...]) -> dict[Site, Measured]:
    out = {}
    for site, found in parts.items():
        states = torch.cat(found, 1)  # [step, row, pos, width]
        example = torch.arange(states.shape[1], device=states.device).repeat_interleave(states.shape[2])
        out[site] = Measured(site, states.flatten(1, 2), example, states.shape[1], timesteps)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class CounterfactualMap:
    """An affine change of a site's states, in each step.

    Attributes:
        latents: of each step, what is read and written. The last one reads nothing: its activation is 1, and it writes
            the shift.
        explained: of each step, the share of the change's mean square that the map explains on the states it was fitted
            on.
        timesteps: those that were measured.
    """

    site: Site
    latents: tuple[Latents, ...]
    explained: Float[Tensor, "step"]
    timesteps: tuple[float, ...] | None = None

    def apply(self, strength: float = 1.0, **where: Any) -> list[Edit]:
        """Go part of the way: x ← x + strength · (what the other prompt would change, as far as the map knows).

        Args:
            where: `positions`, `rows`, `when`, `gate`, `keep_norm`, as of the edits.
        """
        edits = [Modulate(self.site, one, 1.0 + strength) for one in self.latents]
        return each_step(self.site, edits, where, self.timesteps)

    def at_random(self, seed: int = 0) -> CounterfactualMap:
        """The control: it reads the same, and writes as much in a space of no meaning (`interp.steering.controls`).

        What it explains of the change is not known, so `explained` is NaN.
        """
        turn = random_rotation(self.latents[0].write, seed)
        latents = tuple(replace(one, write=one.write @ turn) for one in self.latents)
        return replace(self, latents=latents, explained=self.explained * torch.nan)


def counterfactual_map(
    base: Measured, other: Measured, *, rank: int = 8, ridge: float = 1e-2, examples: Sequence[int] | None = None
) -> CounterfactualMap:
    """Fit the map from the states of pairs (`paired_states`).

    Args:
        rank: latents of each step, at most the width; 0 is the mean difference.
        ridge: in units of the mean variance of a coordinate.
        examples: those to fit on; all if not given.

    Raises:
        ShapeError: states that do not correspond.
        InterpError: a rank outside 0 … width, a ridge that is not above 0.
    """
    if (base.site, base.timesteps) != (other.site, other.timesteps) or base.states.shape != other.states.shape:
        raise ShapeError(
            f"States of {base.site} {list(base.states.shape)} and {other.site} {list(other.states.shape)}."
        )
    width = base.states.shape[-1]
    if not 0 <= rank <= width or not ridge > 0:
        raise InterpError(f"rank={rank}, ridge={ridge}: a rank of 0 to {width}, and a ridge above 0.")
    if examples is not None:
        base, other = base.of(examples), other.of(examples)
    latents, explained = [], []
    for h, wanted in zip(base.states.double(), other.states.double(), strict=True):
        change = wanted - h
        shift, centred = change.mean(0), h - h.mean(0)
        gram = centred.T @ centred / len(h)
        ridged = gram + ridge * gram.diagonal().mean() * torch.eye(width, dtype=gram.dtype, device=gram.device)
        full = torch.linalg.solve(ridged, centred.T @ (change - shift) / len(h))  # change ≈ centred @ full
        # Reduced rank: the predictions' largest principal components.
        axes = torch.linalg.eigh(full.T @ gram @ full).eigenvectors[:, width - rank :]
        read, write = (full @ axes).T, axes.T
        bias = -(read @ h.mean(0))
        left = (change - shift - (h @ read.T + bias) @ write).square().sum()
        explained.append(1 - left / change.square().sum().clamp(min=1e-30))
        whole = (
            torch.cat([read, read.new_zeros(1, width)]),
            torch.cat([write, shift[None]]),
            torch.cat([bias, bias.new_ones(1)]),
        )
        latents.append(Latents(*(part.to(base.states) for part in whole)))
    return CounterfactualMap(base.site, tuple(latents), torch.stack(explained).to(base.states), base.timesteps)
