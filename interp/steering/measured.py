"""What a site's states are like: the sample that directions, units of strength and distances are taken from.

Start with `language_states` (texts) or `picture_states` (prompts of a denoiser); both give `Measured`, from which
`interp.steering.concepts` makes concepts and `Manifold` says how far from such states an edited one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, ShapeError
from interp.interventions.denoise import denoise
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
    """

    site: Site
    states: Float[Tensor, "step place width"]
    example: Int[Tensor, "place"]
    n: int

    def pooled(self) -> Float[Tensor, "step example width"]:
        """The mean over the places of each example."""
        total = self.states.new_zeros(len(self.states), self.n, self.states.shape[-1])
        total = total.index_add(1, self.example, self.states)
        return total / torch.bincount(self.example, minlength=self.n)[:, None].to(total)

    def norm(self) -> Float[Tensor, "step"]:
        """The mean Euclidean length of a state."""
        return self.states.norm(dim=-1).mean(-1)

    def of(self, examples: Sequence[int]) -> Measured:
        """The places of some examples, renumbered in this order."""
        rank = torch.full((self.n,), -1)
        rank[list(examples)] = torch.arange(len(examples))
        chosen = rank[self.example] >= 0
        return Measured(self.site, self.states[:, chosen], rank[self.example[chosen]], len(examples))

    def joined(self, other: Measured) -> Measured:
        """These examples, then the other's.

        Raises:
            ShapeError: another site, or another number of steps.
        """
        if other.site != self.site or len(other.states) != len(self.states):
            raise ShapeError(
                f"States of {self.site} at {len(self.states)} steps and of {other.site} at {len(other.states)} do not "
                "belong together."
            )
        states = torch.cat([self.states, other.states], 1)
        return Measured(self.site, states, torch.cat([self.example, other.example + self.n]), self.n + other.n)


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
        InterpError: no texts, a text of one token, another `tokens`; a site with heads or of an attention's inside.
    """
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
    for start in range(0, len(sampling), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(sampling)))
        kept = denoise(model, sampling.select(rows), (), checked, when=When(branch=branch))
        for site in checked:
            x = kept[site]  # [step, branch, row, pos, width], of a text encoder without the steps
            x = x[:, 0] if x.ndim == 5 else x[0][None]
            if (grid := grids[site]) is not None:
                x = x[:, torch.arange(len(rows))[:, None], grid[start : start + len(rows)]]
            found[site].append(x)
    out = []
    for site, parts in found.items():
        states = torch.cat(parts, 1)
        example = torch.arange(len(sampling)).repeat_interleave(states.shape[2])
        out.append(Measured(site, states.flatten(1, 2), example, len(sampling)))
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
    """

    site: Site
    mean: Float[Tensor, "step width"]
    precision: Float[Tensor, "step width width"]
    typical: Float[Tensor, "step"]

    def distance(self, states: Float[Tensor, "step place width"]) -> Float[Tensor, "step place"]:
        """Mahalanobis distance, in units of what is typical of unedited states: 1 is on the manifold."""
        away = (states - self.mean[:, None]).double()
        squared = torch.einsum("spi,sij,spj->sp", away, self.precision.double(), away)
        return (squared.clamp(min=0).sqrt() / self.typical[:, None]).to(states)


def manifold(measured: Measured) -> Manifold:
    """Fitted on the first half of the examples, its typical distance taken on the other half.

    Raises:
        InterpError: fewer than two examples in either half, or fewer places than 3 in one.
    """
    from sklearn.covariance import ledoit_wolf

    half = measured.n // 2
    fit, rest = measured.of(range(half)), measured.of(range(half, measured.n))
    if half < 2 or min(fit.states.shape[1], rest.states.shape[1]) < 3:
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
    unscaled = Manifold(measured.site, mean, precision, like.new_ones(len(like)))
    return Manifold(measured.site, mean, precision, unscaled.distance(rest.states).median(-1).values)
