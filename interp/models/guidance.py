"""Where the branches of classifier-free guidance lie in a denoiser's batch: measured, never guessed.

Stable Diffusion runs [uncond | cond] as one batch, `DiTPipeline` [cond | null], Flux two calls one after the other,
and without guidance there is one branch only. Guidance takes u + s (c − u), so a unit added to a row of the
denoiser's output changes what the scheduler receives by s if the row is conditional, by 1 − s if it is not.
Adding that unit, to one row after the other, tells which is which, however a pipeline passes its conditions.
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
    for call, rows in enumerate(sizes):
        found = []
        for row in range(rows):
            moved, _ = _received(sample, network, scheduler, (call, row))
            weight = float((moved - reference)[0].double().mean())
            branch = {round(scale): Branch.COND, round(1 - scale): Branch.UNCOND}.get(round(weight))
            if branch is None or abs(weight - round(weight)) > 0.05:
                raise LoadError(
                    f"Row {row} of call {call} enters the guidance of this pipeline with weight {weight:.3g}; with "
                    f"scale {scale:g} a conditional row has {scale:g}, an unconditional one {1 - scale:g}. Guidance "
                    "of another kind (rescaled, perturbed attention, three branches) is not served."
                )
            found.append(branch)
        calls.append(tuple(found))
    return Guidance(tuple(calls))


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
        unit[moved[1]] = 1
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
