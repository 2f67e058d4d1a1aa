"""When is what decided? The prompt swapped in an early, a middle or a late part of the denoising, by attribute.

The whole conditional prediction of a window of steps is that of the other prompt, in the state at hand: patching of
`prediction`, state-matched. What the picture then shows of the swapped attribute says whether these steps decided it.

Pattern of the literature: composition early, appearance later (Tinaz, Fabian & Soltanolkotabi, NeurIPS 2025: spatial
steering succeeds in 80, 23, 25 % at early, middle, late steps, stylistic steering in 78, 93, 69 %). When it misleads:
windows of equally many steps span unequal ranges of noise, so "late" depends on the scheduler; and an attribute can be
decided twice, in which case the later prompt wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError, PairError
from interp.models.denoiser import Denoiser
from interp.patching.pictures import patch_pictures
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval, recovered
from interp.tasks.swaps import SWAPPED, PictureTask, swaps

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NAMES = {1: ("all",), 2: ("early", "late"), 3: ("early", "middle", "late")}


@dataclass(frozen=True, repr=False, eq=False)
class PhasesResult(Result):
    """When each attribute is decided.

    `.data` holds, [network, factor, window, pair]: `probability`, the judge's for the value that the window's prompt
    asks for, and `logit_difference` to the other prompt's value (nats); of both `…_without` and `…_throughout`
    [network, factor, pair], with no step and with all steps swapped. Over pairs, [network, factor, window]: `effect`,
    the mean change of the logit difference (nats), and `share` of the change that all steps make; each with its 95 %
    bootstrap interval (`…_low`, `…_high`). A share is NaN where all steps make no change that is surely one.
    `network` is the model and, if there is one, the control.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Prompt swapped in some steps only · {p['n_pairs']} pairs per attribute · {p['model']}"

    def plot(self) -> Figure:
        """A line per attribute: the share of each window, with intervals (of the control: see `summary`)."""
        from interp.plots import curves

        data = self.data.isel(network=0, drop=True)
        spans = zip(data["window"].values, data["steps"].values, strict=True)
        share, low, high = (data[name].drop_vars("steps") for name in ("share", "share_low", "share_high"))
        return curves(
            share, x="window", line="factor", title=self.title, quantity="effect", unit="share of a swap in all steps",
            low=low, high=high, x_labels=[f"{name}: steps {steps}" for name, steps in spans],
            x_title="steps with the other prompt",
        )  # fmt: skip

    def summary(self) -> str:
        """The effect of each window on each attribute."""
        lines = [f"PhasesResult: {self.title}", "  share of the effect of a swap in all steps (95 % interval); effect"]
        lines.append(f"  {'':>24}" + "".join(f"{window!s:>40}" for window in self.data["window"].values))
        for network in self.data["network"].values:
            for factor in self.data["factor"].values:
                at = self.data.sel(network=network, factor=factor)
                cells = [
                    f"{nats:+.1f} nats"
                    if np.isnan(share)
                    else f"{share:+.2f} ({low:+.2f} to {high:+.2f}); {nats:+.1f} nats"
                    for share, low, high, nats in zip(
                        *(at[name].values for name in ("share", "share_low", "share_high", "effect")), strict=True
                    )
                ]
                lines.append(f"  {f'{network} {factor}':>24}" + "".join(f"{cell:>40}" for cell in cells))
        return "\n".join(lines)


def phases(
    model: Denoiser,
    *,
    factors: Sequence[str] = SWAPPED,
    n: int = 12,
    windows: int | Sequence[range] = 3,
    control: Denoiser | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    budget: int | None = None,
    progress: Progress = silent,
    seed: int = 0,
) -> PhasesResult:
    """Swap the prompt in one window of steps at a time, for every attribute of the shapes world.

    Args:
        model: one that reads captions of the shapes world and draws what its judge can read.
        factors: of `interp.tasks.swaps.SWAPPED`.
        n: pairs for each attribute, each with noise of its own.
        windows: in how many equal parts the steps are cut, or the windows themselves.
        control: a model in which nothing may be found, such as the same architecture before training.
        steps: of denoising, as in `Denoiser.sampling`; guidance likewise.
        budget: as in `interp.sweep`; so is progress.
        seed: of the pairs and of the bootstrap.

    Raises:
        PairError: an unknown factor, `n` below 1.
        InterpError: more windows than steps.
    """
    import xarray as xr

    count = model.sampling("a circle", steps=steps, guidance=guidance).steps
    if isinstance(windows, int):
        if not 1 <= windows <= count:
            raise InterpError(f"{windows} windows of {count} steps; from 1 to {count}.")
        cuts = [np.array_split(np.arange(count), windows)[i] for i in range(windows)]
        names = _NAMES.get(windows, tuple(f"{i + 1} of {windows}" for i in range(windows)))
        spans = [range(int(cut[0]), int(cut[-1]) + 1) for cut in cuts]
    else:
        spans = list(windows)
        names = tuple(f"{span[0]}–{span[-1]}" for span in spans)
    networks = [model, *([] if control is None else [control])]
    tasks = [swaps(n, factor, seed) for factor in factors]
    # The run without a swap and the swap in all steps are the two ends of the same sweep.
    found = [
        [_measured(network, task, [*spans, range(count)], steps, guidance, budget, progress, seed) for task in tasks]
        for network in networks
    ]
    values = np.array([[[each[m] for m in ("probability", "logit_difference")] for each in row] for row in found])
    inner, whole = values[:, :, :, 1:-1], values[:, :, :, -1]
    without = values[:, :, :, 0]
    axes = ("network", "factor", "window", "pair")
    ends = ("network", "factor", "pair")
    variables: dict[str, Any] = {}
    for i, (m, unit) in enumerate((("probability", "probability"), ("logit_difference", "nats"))):
        variables[m] = (axes, inner[:, :, i], {"unit": unit})
        variables[f"{m}_without"] = (ends, without[:, :, i], {"unit": unit})
        variables[f"{m}_throughout"] = (ends, whole[:, :, i], {"unit": unit})
    gain = inner[:, :, 1] - without[:, :, 1][:, :, None]
    means = (gain.mean(-1), *bootstrap_interval(gain, seed=seed))
    for name, x in zip(("effect", "effect_low", "effect_high"), means, strict=True):
        variables[name] = (axes[:-1], x, {"unit": "nats"})
    shares = [
        [_share(inner[i, j, 1], whole[i, j, 1], without[i, j, 1], factor, seed) for j, factor in enumerate(factors)]
        for i in range(len(networks))
    ]
    for name, x in zip(("share", "share_low", "share_high"), np.moveaxis(np.array(shares), 2, 0), strict=True):
        variables[name] = (axes[:-1], x, {"unit": "share of a swap in all steps"})
    coords = {
        "network": [network.name if i == 0 else f"control ({network.name})" for i, network in enumerate(networks)],
        "factor": list(factors), "window": list(names), "pair": list(range(n)),
        "steps": ("window", [f"{span[0]}–{span[-1]}" for span in spans]),
    }  # fmt: skip
    record = provenance(
        experiment="prompt swaps by phase", model=model.name, weights=model.weights_hash,
        control=None if control is None else control.weights_hash, factors=list(factors), n_pairs=n, n_steps=count,
        guidance=guidance, scheduler=type(model.pipeline.scheduler).__name__, seed=seed,
        clean={task.factor: [pair.clean for pair in task] for task in tasks},
        corrupted={task.factor: [pair.corrupted for pair in task] for task in tasks},
        n_attempted=n * len(factors), n_scored=n * len(factors),
    )  # fmt: skip
    return PhasesResult(xr.Dataset(variables, coords), record)


def _share(inner: np.ndarray, whole: np.ndarray, without: np.ndarray, factor: str, seed: int) -> np.ndarray:
    """[3, window]: the share and its interval; NaN where there is no gap to share."""
    try:
        return np.array(recovered(inner, whole, without, factor, seed=seed))
    except PairError:
        return np.full((3, len(inner)), np.nan)


def _measured(
    model: Denoiser, task: PictureTask, spans: Sequence[range], steps: int | None, guidance: float | None,
    budget: int | None, progress: Progress, seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Of both metrics, [without, windows…, pair]: of the value that the window's prompt asks for."""
    patched = patch_pictures(
        model, task, "prediction", window=spans, steps=steps, guidance=guidance, budget=budget, progress=progress,
        seed=seed,
    )  # fmt: skip
    data = patched.data.isel(seed=0)
    return {
        m: np.vstack([data[f"{task.factor}_{m}_corrupted"].values[None], data[f"{task.factor}_{m}"].values])
        for m in ("probability", "logit_difference")
    }
