"""Edits: what to change, where, at which positions of which prompts. Values, never callbacks.

An edit says everything about itself, so that it can be checked before a forward pass, compiled into
arrays, and applied by one kernel to any number of rows at once (`interp.interventions.plan`). Edits act
in list order. None of them writes into its input.

Common arguments:
    site: where (`interp.models.site`); `head=None` means every head.
    positions: token positions; an int, a list for every prompt, or a [batch, n] tensor with each prompt's
        own. Negative ones count from the prompt's end. `None`: all tokens of the prompt. For
        `attn_scores` and `attn_pattern` these are query positions.
    rows: indices of the prompts concerned; `None`: all.
    units: indices on the last axis (neurons, for `mlp_act`); `None`: all.
    when: generated steps concerned, in `generate` only; `None`: every step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from interp.interventions.captured import Run
from interp.models.site import Site

Positions: TypeAlias = int | Sequence[int] | Tensor | None
Value: TypeAlias = float | Tensor | Run
"""A number; a tensor that broadcasts to [row, position, (head,) width]; or a run, whose activation at
the same site, row and position is taken (a run of one prompt serves every row)."""


@dataclass(frozen=True, slots=True)
class When:
    """Generated steps: 0 is the pass over the prompt, `k` the pass that reads the k-th new token."""

    steps: Collection[int]


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """x ← value. Activation patching, when the value is a run."""

    site: Site
    value: Value
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """x ← x + scale · value, in the activation's own units. Steering; noise."""

    site: Site
    value: Value
    scale: float = 1.0
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """x ← factor · x."""

    site: Site
    factor: float
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ablate:
    """x ← 0, a mean, or another prompt's value.

    Args:
        kind: `"zero"`; `"mean"`: the mean of `over` over its prompts and all their tokens, or, with
            `per_position`, over its prompts at each position; `"resample"`: the value at the same
            position of another prompt of `over`, drawn without fixed points by `seed`.
        over: the run that means or resamples are taken from; it must have captured the site.
    """

    site: Site
    kind: Literal["zero", "mean", "resample"] = "zero"
    over: Run | None = None
    per_position: bool = False
    seed: int = 0
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Swap:
    """x ← x + R Rᵀ (source − x): interchange of the subspace spanned by the columns of R.

    Args:
        source: as `value` of `Replace`.
        basis: R, [width, rank], orthonormal columns. Gradients flow to it in `differentiable`.
    """

    site: Site
    source: Value
    basis: Tensor
    positions: Positions = None
    rows: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Knockout:
    """Cut attention edges: these queries no longer see these keys; the rest of the row is renormalised.

    Args:
        layer: the layer.
        keys: key positions, like `positions` an int, a list, or a [batch, n] tensor. A query must keep at
            least one visible key. In `generate` new tokens may be named too, from (prompt length) on.
        positions: query positions; `None`: every query (in `generate`, every one that is read at the steps
            of `when`).
        head: a query head, `None` for all.
    """

    layer: int
    keys: int | Sequence[int] | Tensor
    positions: Positions = None
    head: int | None = None
    rows: Sequence[int] | None = None
    when: When | None = None

    @property
    def site(self) -> Site:
        """The scores that the cut edges belong to."""
        return Site("attn_scores", self.layer, self.head)


Edit: TypeAlias = Replace | Add | Scale | Ablate | Swap | Knockout
