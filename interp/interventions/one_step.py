"""`OneStep`: a denoiser at fixed states x_t, differentiable in what is put at one site.

What a swap of a subspace does over a whole denoising loop cannot be trained through the loop; one evaluation of the
denoiser can. States, timesteps and prompts are fixed, so everything before the edited block is computed once: each call
runs only the stages from the edited one on, with gradients to the value put there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from interp.errors import InterpError, ShapeError, SiteError
from interp.interventions.denoise import is_text, select_arguments, select_rows
from interp.models.denoiser import Denoiser, Sampling, refuse_silenced
from interp.models.guidance import Branch
from interp.models.hooks import Forward, Watcher, replaced, tapped
from interp.models.site import ATTENTION_PARTS, Site

_CHUNK = 64
"""Rows whose unedited states are computed at once."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Noisy pictures, as a denoiser receives them.

    Attributes:
        x: x_t of every row.
        time: the timestep that the pipeline tells the denoiser, of every row.
    """

    x: Float[Tensor, "row ..."]
    time: Num[Tensor, "row"]

    def __len__(self) -> int:
        return len(self.x)

    def joined(self, other: States) -> States:
        """These rows, then the other's."""
        return States(torch.cat([self.x, other.x]), torch.cat([self.time, other.time]))

    def repeat(self, n: int) -> States:
        """All rows, `n` times over."""
        return States(self.x.repeat(n, *(1,) * (self.x.ndim - 1)), self.time.repeat(n))


def trajectory(model: Denoiser, sampling: Sampling, steps: Sequence[int]) -> States:
    """The states that a sampling passes through at some steps: all rows at the first, then at the second.

    Raises:
        InterpError: no step, or one that the sampling does not have.
    """
    if not steps or not all(0 <= step < sampling.steps for step in steps):
        raise InterpError(f"Steps {list(steps)}: name some of 0 to {sampling.steps - 1}.")
    calls = _calls(model, sampling, max(steps) + 1)
    chosen = [calls[step] for step in steps]
    return States(torch.cat([_x(*call) for call in chosen]), torch.cat([_time(*call) for call in chosen]))


def settable(model: Denoiser, site: Site | str) -> Site:
    """The site, if `OneStep` can put values there.

    Raises:
        SiteError: no such site, or one that is no part of the denoiser's blocks, or scores or a pattern.
    """
    found = model.check(site)
    if is_text(found) or found.layer is None or found.part in (*ATTENTION_PARTS, "block_update"):
        raise SiteError(f"{found}: values can be put at parts of a denoiser's blocks, and not there.")
    return found


class OneStep:
    """The denoiser's conditional branch at some states.

    Args:
        prompts: (or class labels) of every row, with the options of the pipeline's call; its seeds and steps play no
            part.
        states: as many.
        site: where values will be put: a part of a block, not the scores of an attention.

    Attributes:
        values: the site's activations, [row, pos, width] (or [row, pos, head, d_head]).
        prediction: what the denoiser makes of the unedited rows, [row, …].

    Raises:
        ShapeError: not as many prompts as states.
        SiteError: as `settable`.
    """

    def __init__(self, model: Denoiser, prompts: Sampling, states: States, site: Site | str) -> None:
        self.model, self.site, self.n = model, settable(model, site), len(states)
        if len(prompts) != len(states):
            raise ShapeError(f"{len(prompts)} prompts for {len(states)} states; give as many.")
        self._before = model.stages[: model.stage_of(self.site)]
        self._arguments = _with_states(_calls(model, prompts, 1)[0], states)
        found = [self._unedited(torch.arange(self.n)[i : i + _CHUNK]) for i in range(0, self.n, _CHUNK)]
        self.values, self.prediction, self._served = (_behind(parts) for parts in zip(*found, strict=True))

    @torch.no_grad()
    def _unedited(self, rows: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Activations at the site, prediction, and what the stages before the site's return."""
        values: list[Tensor] = []
        served: list[Any] = []

        def keeping(forward: Forward) -> Forward:
            def called(*args: Any, **kwargs: Any) -> Any:
                served.append(forward(*args, **kwargs))
                return served[-1]

            return called

        with replaced(dict.fromkeys(self._before, keeping)):
            prediction = self._run(rows, lambda x: values.append(x.clone()))
        return values[0], prediction, served

    def __call__(self, value: Float[Tensor, "..."], rows: Int[Tensor, "row"]) -> Float[Tensor, "row ..."]:
        """The prediction for these rows with `value` as the site's activations.

        Raises:
            ShapeError: a value of another shape than theirs.
        """
        if value.shape != (len(rows), *self.values.shape[1:]):
            raise ShapeError(
                f"The value for {self.site} is {list(value.shape)}; {[len(rows), *self.values.shape[1:]]} was expected."
            )
        served = iter(select_rows(self._served, rows, self.n))
        with replaced(dict.fromkeys(self._before, lambda _: lambda *args, **kwargs: next(served))):
            return self._run(rows, lambda _: value)

    def _run(self, rows: Tensor, watch: Watcher) -> Tensor:
        """The network's output for some rows, with a watcher at the site."""
        args, kwargs = select_arguments(*self._arguments, rows, self.n)
        with tapped([(str(self.site), self.model.tap(self.site), watch)], len(rows)):
            output = self.model.network(*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output.sample


class _Enough(Exception):
    """Enough calls were seen."""


@torch.no_grad()
def _calls(model: Denoiser, sampling: Sampling, steps: int) -> list[tuple[tuple, dict]]:
    """What the pipeline gives the denoiser's conditional branch in its first steps."""
    refuse_silenced(model.network, model.name)
    layout, seen = model.layout(sampling), []
    call, place = next((c, b.index(Branch.COND)) for c, b in enumerate(layout.calls) if Branch.COND in b)
    size, number = len(sampling) * len(layout.calls[call]), [0]
    rows = torch.arange(place * len(sampling), (place + 1) * len(sampling))
    embeds = {k: x for calls in layout.calls for branch in calls for k, x in model.embeddings(sampling, branch).items()}

    def watching(forward: Forward) -> Forward:
        def called(*args: Any, **kwargs: Any) -> Any:
            if number[0] % len(layout.calls) == call:
                seen.append(select_arguments(args, kwargs, rows, size))
                if len(seen) == steps:
                    raise _Enough
            number[0] += 1
            return forward(*args, **kwargs)

        return called

    try:
        with replaced({model.network: watching}):
            model.pipeline(**model.arguments(sampling, embeds))
    except _Enough:
        return seen
    raise InterpError(f"{model.name} called its denoiser {len(seen)} times, not {steps}.")


def _x(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"]


def _time(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    time = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"])
    return time.reshape(-1).expand(len(_x(args, kwargs)))


def _with_states(call: tuple[tuple, dict], states: States) -> tuple[tuple, dict]:
    """A call of the denoiser at other states."""
    args, kwargs = call
    if _x(args, kwargs).shape != states.x.shape:
        raise ShapeError(
            f"States of {list(states.x.shape)} for a denoiser that receives {list(_x(args, kwargs).shape)} of these "
            "prompts."
        )
    new = {"hidden_states": states.x, "sample": states.x, "timestep": states.time}
    return (states.x, states.time)[: len(args)] + args[2:], kwargs | {k: x for k, x in new.items() if k in kwargs}


def _behind(parts: Sequence[Any]) -> Any:
    """Outputs of some rows, then of the next: every tensor in them, joined along its first axis."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple | list):
        return type(first)(_behind(each) for each in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        return type(first)(**{key: _behind([part[key] for part in parts]) for key in first})
    return first
