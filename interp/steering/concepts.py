"""A concept as one direction of a site, with the numbers that give strengths their units; and the edits it makes.

`concept` finds the direction between two sets of states (`interp.steering.measured`); `concept_of_latent` takes a
dictionary's unit. Each method of `Concept` returns a list of edits of the waist, so concepts are combined by joining
lists: `interp.steer(model, happy.add(0.3), french.clamp(1.0))`.

| unit of a strength | an activation of the latent that is larger by |
|---|---|
| `"norm"` | what moves a state by that many mean lengths of the site's states |
| `"std"` | that many standard deviations of the activation over the states |
| `"gap"` | that many differences between its means over positive and over negative states |

When they mislead: the mean difference takes in whatever goes with the concept in the texts that were compared; the
probe's weights read the concept and are no direction of writing; the first component of paired differences is what the
pairs differ in most, which may be something else.

Sources: mean differences, Rimsky et al. 2024 (arXiv:2312.06681); components of paired differences, Zou et al. 2023
(arXiv:2310.01405), who centre the differences, where we do not, so that their mean counts; clamped latents, Templeton
et al. 2024; multiplied above a threshold, SAeUron (Cywiński & Deja 2025, arXiv:2501.18052), whose residual has the
wrong sign in the released code; here only the change is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest
from interp.interventions.edits import Add, Edit, Gate, Latents, Modulate, Replace, Swap, Value, When
from interp.kernels.directions import difference_of_means, probe
from interp.models.site import Site
from interp.steering.measured import Measured

UNITS = ("norm", "std", "gap")


@runtime_checkable
class Latent(Protocol):
    """What a dictionary tells of one of its units."""

    @property
    def read(self) -> Float[Tensor, "width"]:
        """Its row of the encoder."""
        ...

    @property
    def write(self) -> Float[Tensor, "width"]:
        """Its row of the decoder."""
        ...

    @property
    def bias(self) -> float:
        """Of the encoder, with what its input is centred by folded in."""
        ...

    @property
    def threshold(self) -> float:
        """Below which it is silent; 0 for a ReLU."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """One latent of a site, in one or in all steps.

    Attributes:
        latents: of each step one; a single one serves every step (and every token of a language model).
        norm: of each step, the mean length of the site's states.
        mean: and std, of the latent's activation over those states.
        low: and high, its mean over negative and over positive examples.
        method: how it was found.
        timesteps: of a denoiser, those that it was measured at; a run at others is refused.
    """

    name: str
    site: Site
    latents: tuple[Latents, ...]
    norm: Float[Tensor, "step"]
    mean: Float[Tensor, "step"]
    std: Float[Tensor, "step"]
    low: Float[Tensor, "step"]
    high: Float[Tensor, "step"]
    method: str
    timesteps: tuple[float, ...] | None = None

    @property
    def directions(self) -> Float[Tensor, "step width"]:
        """What it writes, of unit length."""
        write = torch.cat([one.write for one in self.latents])
        return write / write.norm(dim=-1, keepdim=True)

    def amount(self, strength: float, unit: str) -> Float[Tensor, "step"]:
        """A strength as a change of the latent's activation.

        Raises:
            InterpError: an unknown unit, or a gap of a concept that has none.
        """
        if unit == "norm":
            return strength * self.norm / torch.cat([one.write for one in self.latents]).norm(dim=-1)
        if unit == "std":
            return strength * self.std
        if unit != "gap":
            raise InterpError(f"Strengths have no unit {unit!r}." + nearest(str(unit), UNITS))
        if torch.isnan(self.high - self.low).any():
            raise InterpError(
                f"{self.name} was found without positive and negative examples: it has no gap. Use 'std'."
            )
        return strength * (self.high - self.low)

    def level(self, at: float, unit: str) -> Float[Tensor, "step"]:
        """A value of the activation: with `"gap"` 0 is that of negative examples and 1 that of positive ones.

        With `"std"` it counts from the mean, with `"norm"` from 0.
        """
        start = {"gap": self.low, "std": self.mean, "norm": torch.zeros_like(self.mean)}
        return start.get(unit, self.mean) + self.amount(at, unit)

    # -- edits ------------------------------------------------------------------------------------

    def add(self, strength: float, unit: str = "norm", **where: Any) -> list[Edit]:
        """Add along the direction: x ← x + amount · write.

        Args:
            where: `positions`, `rows`, `when`, `gate`, `keep_norm`, as of the edits; so for all methods here.
        """
        change = self.amount(strength, unit)
        return self._each(lambda k, one: Add(self.site, one.write[0], float(change[k])), where)

    def clamp(self, at: float, unit: str = "gap", **where: Any) -> list[Edit]:
        """The activation becomes `at` (`level`), whatever it was."""
        level = self.level(at, unit)
        return self._each(lambda k, one: Modulate(self.site, one, 0.0, float(level[k])), where)

    def multiply(self, gain: float, above: float | None = None, unit: str = "std", **where: Any) -> list[Edit]:
        """The activation is multiplied where it exceeds `above` (`level`); `None`: where the latent is active.

        Below its own threshold a dictionary's unit is silent, whatever `above` says.
        """

        def edit(k: int, one: Latents) -> Edit:
            if above is not None:
                one = replace(one, threshold=_bound(one, self.level(above, unit)[k : k + 1].to(one.read)))
            return Modulate(self.site, one, gain)

        return self._each(edit, where)

    def swap(self, other: Concept, **where: Any) -> list[Edit]:
        """What there is of this concept is written as the other: x ← x − a (write − other's write).

        Raises:
            InterpError: a concept of another site, or measured at other steps.
        """
        if not alike(self, other):
            raise InterpError(
                f"{self.name} at {self.site} ({len(self.latents)} steps) and {other.name} at {other.site} "
                f"({len(other.latents)}) cannot be swapped: one place and the same steps."
            )
        return self._each(
            lambda k, one: Modulate(self.site, replace(one, write=one.write - other.latents[k].write), 0.0), where
        )

    def replace_where(self, value: Value, above: float, unit: str = "gap", **where: Any) -> list[Edit]:
        """Patch replacement: the concept says where, and the whole state is replaced there by `value`.

        Args:
            value: of `Replace`: a state [width], a run, or `UnderPrompt`: what another prompt has there.
            above: the activation (`level`) from which on a place is the concept's; never below the threshold of a
                dictionary's unit.

        Raises:
            InterpError: `gate` or `keep_norm`; a random concept, which reads what the concept reads.
        """
        if "gate" in where or "keep_norm" in where:
            raise InterpError("replace_where gates by the concept itself, and replaces a state with its norm.")
        if self.method == "random":
            raise InterpError(
                f"{self.name} writes elsewhere but reads the same, so it would replace the same places. The control of "
                "a replacement is another value, or a concept of shuffled examples."
            )
        level = self.level(above, unit)

        def edit(k: int, one: Latents) -> Edit:
            bias = 0.0 if one.bias is None else float(one.bias[0])
            return Replace(self.site, value, gate=Gate(one.read[0], float(_bound(one, level[k : k + 1])) - bias))

        return self._each(edit, where)

    def _each(self, make: Callable[[int, Latents], Edit], where: Mapping[str, Any]) -> list[Edit]:
        return each_step(self.site, [make(k, one) for k, one in enumerate(self.latents)], where, self.timesteps)

    def __repr__(self) -> str:
        steps = f", {len(self.latents)} steps" if len(self.latents) > 1 else ""
        return f"Concept({self.name!r} at {self.site}, {self.method}{steps})"


def alike(one: Concept, other: Concept) -> bool:
    """Whether two concepts are of one place, measured at the same steps."""
    return (one.site, len(one.latents), one.timesteps) == (other.site, len(other.latents), other.timesteps)


def _bound(one: Latents, level: Tensor) -> Tensor:
    """A level of activation, where the latent is not silent there."""
    return level if one.threshold is None else torch.maximum(level, one.threshold.to(level))


def each_step(
    site: Site, edits: Sequence[Edit], where: Mapping[str, Any], timesteps: Sequence[float] | None
) -> list[Edit]:
    """One edit for all steps, or one for each, each in its own step.

    Args:
        timesteps: of each step that was measured. The edits name them too, so that a run whose step k has another noise
            level refuses them as edits in no pass.

    Raises:
        InterpError: an argument that these edits do not have; timesteps or noise levels for edits that count steps;
            steps that were not measured, or none at all.
    """
    allowed = [name for name in ("positions", "rows", "when", "gate", "keep_norm") if hasattr(edits[0], name)]
    if strange := [name for name in where if name not in allowed]:
        raise InterpError(
            f"{type(edits[0]).__name__} at {site} takes no {strange[0]!r}." + nearest(strange[0], allowed)
        )
    if len(edits) == 1 and timesteps is None:
        return [replace(edits[0], **where)]
    when = where.get("when") or When()
    if when.timesteps is not None or when.sigmas is not None:
        raise InterpError(f"The concept at {site} differs from step to step: say `steps`, not timesteps or sigmas.")
    steps = range(len(edits)) if when.steps is None else sorted(when.steps)
    if not steps:
        raise InterpError(f"No steps, so nothing would be steered at {site}; leave `steps` out for all {len(edits)}.")
    if outside := [step for step in steps if not 0 <= step < len(edits)]:
        raise InterpError(f"The concept at {site} was measured at steps 0 to {len(edits) - 1}, not at {outside}.")
    at = [None if timesteps is None else (timesteps[k], timesteps[k]) for k in range(len(edits))]
    return [replace(edits[k], **{**where, "when": replace(when, steps=(k,), timesteps=at[k])}) for k in steps]


# -- finding them ----------------------------------------------------------------------------------------------


def concept(name: str, positive: Measured, negative: Measured, method: str = "mean") -> Concept:
    """The direction from negative to positive states.

    Args:
        method: `"mean"`: the difference of the examples' means; `"pca"`: the first component of the differences of
            pairs, positive i minus negative i, about zero; `"probe"`: the weights of a logistic regression.

    Raises:
        InterpError: another method; pairs of unequal number; states that do not differ.
        ShapeError: states of another site.
    """
    if method not in METHODS:
        raise InterpError(f"There is no method {method!r}." + nearest(method, METHODS))
    both = positive.joined(negative)
    high, low = positive.pooled(), negative.pooled()
    directions = torch.stack([METHODS[method](up, down) for up, down in zip(high, low, strict=True)])
    read = lambda states: torch.einsum("s...w,sw->s...", states, directions)  # noqa: E731
    activations = read(both.states)
    return Concept(
        name, both.site, tuple(Latents(d[None], d[None]) for d in directions), both.norm(), activations.mean(-1),
        activations.std(-1), read(low).mean(-1), read(high).mean(-1), method, both.timesteps,
    )  # fmt: skip


def concept_of_latent(
    name: str, latent: Latent, measured: Measured, positive: Sequence[int] = (), negative: Sequence[int] = ()
) -> Concept:
    """A dictionary's unit as a concept.

    Args:
        measured: states of the site, for the units of strength.
        positive: examples of `measured` that have the concept, and negative ones; without both it has no gap.

    Raises:
        ShapeError: rows of another width than the site's.
        InterpError: examples that were not measured.
    """
    width = measured.states.shape[-1]
    if tuple(latent.read.shape) != (width,) or tuple(latent.write.shape) != (width,):
        raise ShapeError(
            f"The latent reads {list(latent.read.shape)} and writes {list(latent.write.shape)}; {measured.site} has "
            f"width {width}."
        )
    like = measured.states
    one = Latents(
        latent.read.to(like)[None], latent.write.to(like)[None], like.new_tensor([latent.bias]),
        like.new_tensor([latent.threshold]),
    )  # fmt: skip
    z = measured.states @ one.read[0] + latent.bias
    activations = torch.where(z > latent.threshold, z, 0)
    nothing = like.new_full((len(like),), torch.nan)
    ends = []
    for chosen in (negative, positive):
        inside = torch.isin(measured.example, measured.numbers(chosen))
        ends.append(activations[:, inside].mean(-1) if len(chosen) else nothing)
    steps = (one,) * len(like)
    return Concept(
        name, measured.site, steps, measured.norm(), activations.mean(-1), activations.std(-1), ends[0], ends[1],
        "latent", measured.timesteps,
    )  # fmt: skip


def project_out(concepts: Sequence[Concept], *, to: str = "low", **where: Any) -> list[Edit]:
    """The space that several concepts of one site span is set to where negative examples lie, or to zero.

    Args:
        to: `"low"` or `"zero"`.

    Raises:
        InterpError: no concept; concepts of several sites or steps; directions that depend linearly on one another;
            concepts that do not read along what they write, so that their levels are no coordinates (a dictionary's
            unit, a random concept); another `to`.
    """
    if to not in ("low", "zero"):
        raise InterpError(f"There is no level {to!r}." + nearest(to, ("low", "zero")))
    if not concepts:
        raise InterpError("No concept: there is nothing to project out.")
    first = concepts[0]
    if not all(alike(c, first) for c in concepts):
        raise InterpError("Concepts that are projected out together belong to one site, measured at the same steps.")
    if slanting := [c.name for c in concepts if not all(_is_coordinate(one) for one in c.latents)]:
        raise InterpError(
            f"{', '.join(slanting)}: what is read is not the coordinate along what is written, so there is no level to "
            "set it to. Use clamp, or a concept that was found between examples."
        )
    edits: list[Edit] = []
    for k in range(len(first.latents)):
        axes = torch.stack([c.directions[k] for c in concepts]).double()
        basis, upper = torch.linalg.qr(axes.T)
        if float(upper.diagonal().abs().min()) < 1e-4:
            raise InterpError(f"{', '.join(c.name for c in concepts)} depend linearly on one another; leave one out.")
        level = torch.stack([c.low[k] if to == "low" else c.low[k] * 0 for c in concepts]).double()
        point = basis @ torch.linalg.solve_triangular(upper.T, level[:, None], upper=False)[:, 0]
        like = first.latents[k].write
        edits.append(Swap(first.site, point.to(like), basis.to(like)))
    return each_step(first.site, edits, where, first.timesteps)


def _is_coordinate(one: Latents) -> bool:
    """Whether a latent's activation is the coordinate of a state along what it writes."""
    return one.bias is None and one.threshold is None and torch.equal(one.read, one.write)


def _mean_difference(high: Tensor, low: Tensor) -> Tensor:
    return difference_of_means(*_labelled(high, low))[:, 0]


def _probe(high: Tensor, low: Tensor) -> Tensor:
    return probe(*_labelled(high, low))[:, 0]


def _paired(high: Tensor, low: Tensor) -> Tensor:
    if len(high) != len(low):
        raise InterpError(f"{len(high)} positive examples and {len(low)} negative ones are no pairs.")
    differences = (high - low).double()
    first = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    return (first if differences.mean(0) @ first >= 0 else -first).to(high)


def _labelled(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([low, high]), torch.tensor([0] * len(low) + [1] * len(high))


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"mean": _mean_difference, "pca": _paired, "probe": _probe}
)
"""Directions from (positive, negative) states [example, width] to a unit vector."""
