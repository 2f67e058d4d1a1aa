"""`steer`: a model with edits at work, for as long as one likes.

    steered = interp.steer(model, happy.add(0.4))
    steered.generate("I think that"), steered("a red circle", seeds=range(4))

goes through the waist like every other call. As a block it also steers whatever else calls the network, a Hugging Face
`generate` or an evaluation harness:

    with interp.steer(model, happy.add(0.4)):
        model.network.generate(**model.tokenizer("I think that", return_tensors="pt"), max_new_tokens=30)

Inside the block the model's other functions (`interp.run`, `sweep` …) are refused, since they would be steered twice,
or in part; the methods of what `steer` returned are not, and steer once. A block in which nothing ran is an error: its
edits did not fire. Hooks are gone when it ends, however it ends. Of a denoiser the block steers nothing by itself,
because edits need to know the step and the branch of guidance: a pipeline that is called there is refused, loudly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.captured import DenoisingRun, Run
from interp.interventions.denoise import denoise
from interp.interventions.edits import Ablate, Edit, edits_of
from interp.interventions.generate import Generation, generate, stream
from interp.interventions.plan import Plan, compile_variants
from interp.interventions.run import Captures, Places, run
from interp.models.denoiser import Denoiser
from interp.models.hooks import held, released, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import from_token_lists
from interp.models.site import ATTENTION_PARTS, Site

_Kind = TypeVar("_Kind", bound="_Steered")


@overload
def steer(model: LanguageModel, *edits: Edit | Sequence[Edit]) -> SteeredText: ...


@overload
def steer(model: Denoiser, *edits: Edit | Sequence[Edit]) -> SteeredPictures: ...


def steer(model: LanguageModel | Denoiser, *edits: Edit | Sequence[Edit]) -> SteeredText | SteeredPictures:
    """The model with edits at work: several concepts are several lists, applied in order.

    Args:
        edits: single edits, or lists of them as `Concept`'s methods return.

    Raises:
        InterpError: no edit, or something that is none.
        SiteError: a place that the model does not have.
    """
    flat = edits_of(edits)
    if not flat:
        raise InterpError("Nothing to steer by: give edits, such as concept.add(0.5).")
    for edit in flat:
        model.check(edit.site)
    return SteeredText(model, flat) if isinstance(model, LanguageModel) else SteeredPictures(model, flat)


class _Steered(ABC):
    """Edits, and the block in which the network belongs to them."""

    def __init__(self, model: Any, edits: Sequence[Edit]) -> None:
        self.model, self.edits = model, tuple(edits)
        self._block: ExitStack | None = None
        self._own = False
        """Whether a method of ours runs, which applies the edits itself."""

    def __enter__(self: _Kind) -> _Kind:
        with ExitStack() as block:
            block.enter_context(held(self.model.network))
            self._attach(block)
            self._block = block.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._block is not None
        block, self._block = self._block, None
        block.__exit__(kind, error, trace)

    @abstractmethod
    def _attach(self, block: ExitStack) -> None:
        """What a block hangs on the network, to be gone with `block`."""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While a method runs, hooks of the block let everything pass."""
        before, self._own = self._own, True
        try:
            with released(self.model.network):
                yield
        finally:
            self._own = before

    def __repr__(self) -> str:
        places = ", ".join(map(str, dict.fromkeys(edit.site for edit in self.edits)))
        return f"{type(self).__name__}({self.model.name}: {len(self.edits)} edits at {places})"


class SteeredText(_Steered):
    """A language model with edits at work; see `steer`."""

    model: LanguageModel

    def generate(self, inputs: Any, capture: Captures = (), **settings: Any) -> Generation:
        """`interp.generate` with the edits."""
        with self._alone():
            return generate(self.model, inputs, self.edits, capture, **settings)

    def stream(self, inputs: Any, **settings: Any) -> Iterator[tuple[str, ...]]:
        """The new text of each prompt, piece by piece; see `interp.interventions.generate.stream`."""
        with self._alone():
            return self._told(stream(self.model, inputs, self.edits, **settings))

    def _told(self, pieces: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        while True:
            with self._alone():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def run(self, inputs: Any, capture: Captures = (), **settings: Any) -> Run:
        """`interp.run` with the edits."""
        with self._alone():
            return run(self.model, inputs, self.edits, capture, **settings)

    def _attach(self, block: ExitStack) -> None:
        """Hooks that edit every token of every forward pass, whoever calls it."""
        for edit in self.edits:
            if edit.site.part in ATTENTION_PARTS or edit.positions is not None or edit.rows is not None or edit.when:
                raise InterpError(
                    f"The edit at {edit.site} acts at some places only, or inside an attention; a block steers every "
                    "token of every call alike. Use the methods of what `steer` returned instead."
                )
            if not _is_constant(edit):
                raise InterpError(
                    f"The edit at {edit.site} writes another value at each position of a run; a block steers every "
                    "token of every call alike. Give a number, a tensor or a mean over all tokens."
                )
        with released(self.model.network):
            plan = compile_variants(self.model, from_token_lists(None, [[0]]), [self.edits])
        block.enter_context(tapped(_Everywhere(plan, self).watchers(self.model), None))


def _is_constant(edit: Edit) -> bool:
    """Whether what an edit writes does not depend on the position."""
    if isinstance(edit, Ablate):
        return edit.kind == "zero" or (edit.kind == "mean" and not edit.per_position)
    return all(isinstance(getattr(edit, name, 0.0), int | float | Tensor) for name in ("value", "source"))


class _Everywhere(Places):
    """The edits of a single token, at every token that passes."""

    def __init__(self, plan: Plan, steered: SteeredText) -> None:
        super().__init__(plan, set(), {}, 1)
        self.steered = steered

    def visit(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit one [batch, pos, …] activation."""
        if self.steered._own:
            return None
        flat = x.flatten(0, 1)
        for op in self.plan.sites[site]:
            flat = op.tiled(len(flat)).apply(flat, np.repeat(np.arange(len(flat)), len(op)))
        return flat.view(x.shape)


class SteeredPictures(_Steered):
    """A denoiser with edits at work; see `steer`."""

    model: Denoiser

    def __call__(self, inputs: Any, **settings: Any) -> list[Any]:
        """The pictures as PIL images: `steered("a red circle", seeds=range(4))`; settings as of `Denoiser.sampling`."""
        return self.run(inputs, **settings).pictures()

    def run(
        self, inputs: Any, capture: Sequence[Site | str] = (), *, when: Any = None, **settings: Any
    ) -> DenoisingRun:
        """`interp.run` with the edits."""
        with self._alone():
            return denoise(self.model, self.model.sampling(inputs, **settings), self.edits, capture, when=when)

    def _attach(self, block: ExitStack) -> None:
        def refuse(_x: Tensor) -> None:
            if not self._own:
                raise InterpError(
                    f"{self.model.name} was called inside a block of `interp.steer` but not through what it returned, "
                    "so nothing would be steered. Write `with interp.steer(…) as steered: steered(prompts)`."
                )

        block.enter_context(tapped([("the denoiser", self.model.tap(Site("latents")), refuse)], None))
