"""What a site's states are like: the sample that directions, units of strength and distances are taken from.

Start with `language_states` (texts) or `picture_states` (prompts of a denoiser); both give `Measured`, from which
`interp.steering.concepts` makes concepts and `Manifold` says how far from such states an edited one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, ShapeError
from interp.interventions.denoise import denoise, is_text
from interp.interventions.edits import Positions, When
from interp.interventions.plan import position_grid
from interp.interventions.run import run
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.models.prompts import from_token_lists
from interp.models.site import ATTENTION_PARTS, Site

_AT_ONCE = 32
"""Examples of one run."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """States of one site: one axis of steps (of length 1 in a language model), one of places in all examples.

    Attributes:
        example: of each place, the text or picture that it lies in.
        n: number of examples.
        timesteps: of a denoiser's steps. What is made of these states acts in runs with the same ones.
    """

    site: Site
    states: Float[Tensor, "step place width"]
    example: Int[Tensor, "place"]
    n: int
    timesteps: tuple[float, ...] | None = None

    def pooled(self) -> Float[Tensor, "step example width"]:
        """The mean over the places of each example."""
        total = self.states.new_zeros(len(self.states), self.n, self.states.shape[-1])
        total = total.index_add(1, self.example, self.states)
        return total / torch.bincount(self.example, minlength=self.n)[:, None].to(total)

    def norm(self) -> Float[Tensor, "step"]:
        """The mean Euclidean length of a state."""
        return self.states.norm(dim=-1).mean(-1)

    def of(self, examples: Sequence[int]) -> Measured:
        """The places of some examples, renumbered in this order.

        Raises:
            InterpError: no example, one that was not measured, or one named twice.
        """
        numbers = self.numbers(examples)
        if not len(numbers):
            raise InterpError(f"No examples of the {self.n} at {self.site}: give at least one.")
        rank = numbers.new_full((self.n,), -1)
        rank[numbers] = torch.arange(len(numbers), device=rank.device)
        chosen = rank[self.example] >= 0
        return replace(self, states=self.states[:, chosen], example=rank[self.example[chosen]], n=len(numbers))

    def numbers(self, examples: Sequence[int]) -> Int[Tensor, "example"]:
        """Numbers of examples as a tensor beside the states.

        Raises:
            InterpError: one that was not measured, or one named twice.
        """
        given = [int(one) for one in examples]
        if outside := [one for one in given if not 0 <= one < self.n]:
            raise InterpError(f"Examples of {self.site} are numbered 0 to {self.n - 1}; there is no {outside[0]}.")
        if len(set(given)) < len(given):
            twice = next(one for one in given if given.count(one) > 1)
            raise InterpError(f"Example {twice} of {self.site} is named twice.")
        return torch.tensor(given, dtype=torch.long, device=self.states.device)

    def joined(self, other: Measured) -> Measured:
        """These examples, then the other's.

        Raises:
            ShapeError: another site, or other steps.
        """
        if (other.site, other.timesteps, len(other.states)) != (self.site, self.timesteps, len(self.states)):
            raise ShapeError(
                f"States of {self.site} at {len(self.states)} steps{_at(self.timesteps)} and of {other.site} at "
                f"{len(other.states)}{_at(other.timesteps)} do not belong together."
            )
        states = torch.cat([self.states, other.states], 1)
        example = torch.cat([self.example, other.example + self.n])
        return replace(self, states=states, example=example, n=self.n + other.n)


def _at(timesteps: Sequence[float] | None) -> str:
    return f" ({timesteps[0]:g} to {timesteps[-1]:g})" if timesteps else ""


def language_states(
    model: LanguageModel,
    texts: Sequence[str],
    sites: Sequence[Site | str],
    *,
    tokens: Literal["all", "last"] = "all",
) -> tuple[Measured, ...]:
    """The states of texts at some sites.

    Args:
        tokens: `"all"` but the first (which attention uses as a sink, with a state of a size of its own), or the
            `"last"` of each text.

    Raises:
        InterpError: no texts, one text that is no list, a text of one token, another `tokens`; a site with heads or of
            an attention's inside.
    """
    if isinstance(texts, str):
        raise InterpError(f"One text, {texts[:40]!r}, would be read letter by letter: give a list of texts.")
    if tokens not in ("all", "last"):
        raise InterpError(f"tokens={tokens!r}: 'all' or 'last'.")
    checked = [_plain_site(model, site) for site in sites]
    if not len(texts):
        raise InterpError("No texts: there are no states to measure.")
    prompts = model.prompts(list(texts))
    if (short := (prompts.lengths < 2).nonzero()[:, 0].tolist()) and tokens == "all":
        raise InterpError(f"Text {short[0]}, {texts[short[0]]!r}, has one token, and the first is left out.")
    found: dict[Site, list[Tensor]] = {site: [] for site in checked}
    example = []
    for start in range(0, len(prompts), _AT_ONCE):
        some = prompts.select(range(start, min(start + _AT_ONCE, len(prompts))))
        mask = some.mask.clone()
        mask[:, 0] = False
        if tokens == "last":
            mask = torch.arange(mask.shape[1], device=mask.device) == some.lengths[:, None] - 1
        kept = run(model, some, (), checked, logits=False)
        for site in checked:
            found[site].append(kept[site][mask])
        example.append(start + mask.nonzero()[:, 0])
    where = torch.cat(example)
    return tuple(Measured(site, torch.cat(parts)[None], where, len(texts)) for site, parts in found.items())


def picture_states(
    model: Denoiser,
    sampling: Sampling,
    sites: Sequence[Site | str],
    *,
    positions: dict[Site, Positions] | None = None,
    branch: Branch = Branch.COND,
) -> tuple[Measured, ...]:
    """The states of pictures at some sites, at every step of their denoising.

    Args:
        positions: by site, the cells (or tokens) that count: an int, a list, or a [row, n] tensor; all if not given.

    Raises:
        InterpError: as `denoise`; a site with heads or of an attention's inside.
    """
    checked = [_plain_site(model, site) for site in sites]
    grids: dict[Site, Tensor | None] = dict.fromkeys(checked)
    for site in checked:
        if (asked := (positions or {}).get(site)) is not None:
            height, width = model.grid_of(site, sampling)
            cells = from_token_lists(None, [[0] * (height * width)] * len(sampling))
            grids[site] = position_grid(cells, asked)
    found: dict[Site, list[Tensor]] = {site: [] for site in checked}
    timesteps: tuple[float, ...] = ()
    for start in range(0, len(sampling), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(sampling)))
        kept = denoise(model, sampling.select(rows), (), checked, when=When(branch=branch))
        timesteps = kept.timesteps
        for site in checked:
            x = kept[site]  # [step, branch, row, pos, width], of a text encoder without the steps
            x = x[:, 0] if x.ndim == 5 else x[0][None]
            if (grid := grids[site]) is not None:
                x = x[:, torch.arange(len(rows))[:, None], grid[start : start + len(rows)]]
            found[site].append(x)
    out = []
    for site, parts in found.items():
        states = torch.cat(parts, 1)
        example = torch.arange(len(sampling), device=states.device).repeat_interleave(states.shape[2])
        at = None if is_text(site) else timesteps
        out.append(Measured(site, states.flatten(1, 2), example, len(sampling), at))
    return tuple(out)


def _plain_site(model: LanguageModel | Denoiser, site: Site | str) -> Site:
    found = model.check(site)
    if found.part in ATTENTION_PARTS or model.heads_of(found):
        raise InterpError(f"{found} has heads or keys: take a part with one state for each place.")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Manifold:
    """Where a site's unedited states lie, as one Gaussian for each step.

    Attributes:
        mean: and the inverse of the covariance, shrunk towards a multiple of the identity as Ledoit and Wolf (2004)
            say.
        typical: of each step, the median Mahalanobis distance of states that took no part in the fit.
        timesteps: of a denoiser, those that it was fitted at.
    """

    site: Site
    mean: Float[Tensor, "step width"]
    precision: Float[Tensor, "step width width"]
    typical: Float[Tensor, "step"]
    timesteps: tuple[float, ...] | None = None

    def distance(self, states: Float[Tensor, "step place width"]) -> Float[Tensor, "step place"]:
        """Mahalanobis distance, in units of what is typical of unedited states: 1 is on the manifold.

        Raises:
            ShapeError: states of another width or number of steps.
        """
        if (len(states), states.shape[-1]) != self.mean.shape:
            steps, width = self.mean.shape
            raise ShapeError(f"States {list(states.shape)} for {self.site} of {steps} steps and width {width}.")
        away = (states - self.mean[:, None]).double()
        squared = torch.einsum("spi,sij,spj->sp", away, self.precision.double(), away)
        return (squared.clamp(min=0).sqrt() / self.typical[:, None]).to(states)


def manifold(measured: Measured, seed: int = 0) -> Manifold:
    """Fitted on half of the examples, drawn by `seed`, its typical distance taken on the other half.

    Raises:
        InterpError: fewer than two examples in either half, or fewer places than 3 in one.
    """
    from sklearn.covariance import ledoit_wolf

    half = measured.n // 2
    if half < 2:
        raise InterpError(f"{measured.n} examples of {measured.site}: a manifold needs at least 4.")
    # Drawn, since examples are often given in an order: with the concept first, without it behind.
    drawn = torch.randperm(measured.n, generator=torch.Generator().manual_seed(seed)).tolist()
    fit, rest = measured.of(drawn[:half]), measured.of(drawn[half:])
    if min(fit.states.shape[1], rest.states.shape[1]) < 3:
        raise InterpError(
            f"{measured.n} examples of {measured.site}: a manifold needs at least 4, with places in each."
        )
    means, inverses = [], []
    for step in range(len(fit.states)):
        x = fit.states[step].double().cpu().numpy()
        spread, _ = ledoit_wolf(x)
        means.append(x.mean(0))
        inverses.append(np.linalg.inv(spread))
    like = measured.states
    mean, precision = (torch.from_numpy(np.stack(parts)).to(like) for parts in (means, inverses))
    unscaled = Manifold(measured.site, mean, precision, like.new_ones(len(like)), measured.timesteps)
    return replace(unscaled, typical=unscaled.distance(rest.states).median(-1).values)
