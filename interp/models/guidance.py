"""Where the branches of classifier-free guidance lie in a denoiser's batch: measured, never guessed.

Stable Diffusion runs [uncond | cond] as one batch, `DiTPipeline` [cond | null], Flux two calls one after the other,
and without guidance there is one branch only. Guidance takes u + s (c − u), so a unit added to a row of the
denoiser's output (with alternating sign) changes what the scheduler receives by s if the row is conditional, by 1 − s
if it is not.
Adding that unit, to one row after the other, tells which is which, however a pipeline passes its conditions.
A single row that enters with weight 1 is a pipeline without a second branch, whatever its scale (guidance distilled
into the network, as in latent consistency models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError
from interp.models.hooks import Forward, replaced, stepping


class Branch(Enum):
    """A pass of classifier-free guidance."""

    COND = "cond"
    UNCOND = "uncond"


@dataclass(frozen=True, slots=True)
class Guidance:
    """Branches of each call of the denoiser in one step, in the order of their rows.

    `calls == ((UNCOND, COND),)`: one call, whose batch holds the unconditional rows, then the conditional ones.
    """

    calls: tuple[tuple[Branch, ...], ...]

    @property
    def branches(self) -> int:
        """Number of branches."""
        return sum(len(call) for call in self.calls)

    def __str__(self) -> str:
        return "guided " + " then ".join("[" + " | ".join(b.value for b in call) + "]" for call in self.calls)


UNGUIDED = Guidance(((Branch.COND,),))


def measure(sample: Callable[[], Any], network: nn.Module, scheduler: Any, scale: float) -> Guidance:
    """The layout that `sample` uses: it runs one row of a pipeline, guided with `scale`.

    Raises:
        LoadError: a row whose output guidance takes neither with weight `scale` nor with 1 − `scale`.
    """
    reference, sizes = _received(sample, network, scheduler, None)
    calls = []
    if sizes == [1] and _close(_gain(sample, network, scheduler, (0, 0), reference), 1.0):
        return UNGUIDED
    for call, rows in enumerate(sizes):
        found = []
        for row in range(rows):
            gain = _gain(sample, network, scheduler, (call, row), reference)
            if not (_close(gain, scale) or _close(gain, 1 - scale)):
                raise LoadError(
                    f"Row {row} of call {call} enters the guidance of this pipeline with weight {gain.min():.3g} to "
                    f"{gain.max():.3g}; with scale {scale:g} a conditional row has {scale:g}, an unconditional one "
                    f"{1 - scale:g}. Guidance of another kind (rescaled, perturbed attention, three branches) is not "
                    "served."
                )
            found.append(Branch.COND if _close(gain, scale) else Branch.UNCOND)
        calls.append(tuple(found))
    return Guidance(tuple(calls))


def _gain(
    sample: Callable[[], Any], network: nn.Module, scheduler: Any, moved: tuple[int, int], reference: Tensor
) -> Tensor:
    """By how much the scheduler's first row moves, everywhere, with a unit in that row of that call."""
    received, _ = _received(sample, network, scheduler, moved)
    return (received - reference)[0].double() * _signs(reference)


def _signs(x: Tensor) -> Tensor:
    """1, −1, 1, … along the last axis: such a unit changes the spread too, which some guidance rescales."""
    return 1 - 2 * (torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) % 2)


def _close(gain: Tensor, weight: float) -> bool:
    """Whether it is this weight everywhere, as far as half precision can tell."""
    return bool((gain.mean() - weight).abs() < 0.05) and bool((gain - weight).abs().max() < 0.5)


def _received(
    sample: Callable[[], Any], network: nn.Module, scheduler: Any, moved: tuple[int, int] | None
) -> tuple[Tensor, list[int]]:
    """(what the scheduler receives in the first step, rows of each call), a unit added to one row of one call."""
    sizes: list[int] = []
    received: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if moved is None or moved[0] != len(sizes) - 1:
            return x
        unit = torch.zeros_like(x)
        unit[moved[1]] = _signs(x)
        return x + unit

    def moving(forward: Forward) -> Forward:
        return lambda *args, **kwargs: on_output(forward(*args, **kwargs), add)

    def stop(output: Tensor) -> Tensor:
        received.append(output.clone())
        raise _Seen

    try:
        with replaced({network: moving}), stepping(scheduler, stop, lambda: None):
            sample()
    except _Seen:
        pass
    if not received:
        raise LoadError("The pipeline never called its scheduler's step, so its guidance cannot be measured.")
    return received[0], sizes


def on_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a denoiser returned, with its tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return type(output)(sample=change(output.sample))


class _Seen(Exception):
    """Unwinds a call that has served its purpose."""
