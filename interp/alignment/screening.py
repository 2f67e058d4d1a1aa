"""Which places are worth a full search? Short trainings at all of them, for machines on which all is too much.

The cost of a search is places × ranks × (the fit and the controls that are trained) × steps. Most places hold nothing,
and a few steps of training tell which: maps of one rank are trained at every place, without controls, and the places
of the lowest loss go on. All maps see the same examples in the same order, so that their losses compare. The choice
looks at training examples alone; what is reported of the chosen places is of maps trained anew, on held-out examples.

When it misleads: a place whose map learns slowly is missed. Every loss is in the result (`Alignment.plot_screening`);
where the last chosen place is hardly better than the first that was left out, choose more places or take more steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.fit import Cells, Training, fit
from interp.errors import InterpError
from interp.progress import Progress


@dataclass(frozen=True, slots=True)
class Screening:
    """How places are chosen.

    Attributes:
        places: that go on.
        steps: of each place's short training, on a schedule of its own; its other settings are the search's.

    Raises:
        InterpError: less than one of either.
    """

    places: int = 4
    steps: int = 20

    def __post_init__(self) -> None:
        if min(self.places, self.steps) < 1:
            raise InterpError(f"Screening(places={self.places}, steps={self.steps}): give at least one of each.")


def screen(
    cells: Cells, continuation: Continuation, label: Int[Tensor, "example"], training: Training, screening: Screening,
    *, progress: Progress, checkpoint: Path | None,
) -> Float[np.ndarray, "place"]:  # fmt: skip
    """The loss of each place's map over the last third of its short training, in nats; NaN where nothing differs.

    Args:
        cells: one for each place, in order; they are trained.
        label: what the network is to answer.
    """
    short = replace(training, steps=screening.steps, patience=None)
    (fitted,) = fit([cells], continuation, label[None], short, progress=progress, checkpoint=checkpoint)
    return fitted.loss[:, -max(1, screening.steps // 3) :].mean(1)


def chosen(losses: Float[np.ndarray, "place"], n: int) -> Int[np.ndarray, "chosen"]:
    """The places of the n lowest losses, and those where nothing is trained and so nothing is saved; in order.

    A place whose training broke off has no loss, and as it is not known to hold nothing it goes on, too.
    """
    ranked = np.argsort(losses, kind="stable")[: min(n, int(np.isfinite(losses).sum()))]
    return np.sort(np.concatenate([ranked, np.flatnonzero(~np.isfinite(losses))]))
