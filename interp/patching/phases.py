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

from interp.errors import InterpError
from interp.models.denoiser import Denoiser
from interp.patching.pictures import patch_pictures
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval
from interp.tasks.swaps import SWAPPED, PictureTask, swaps

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NAMES = {1: ("all",), 2: ("early", "late"), 3: ("early", "middle", "late")}


@dataclass(frozen=True, repr=False, eq=False)
class PhasesResult(Result):
    """When each attribute is decided.

    `.data` holds, [network, factor, window, pair]: `probability`, the judge's for the value that the window's prompt
    asks for, and `logit_difference` to the other prompt's value (nats); of both `…_without` and `…_throughout`
    [network, factor, pair], with no step and with all steps swapped; and `effect`, `low`, `high`
    [network, factor, window]: the mean over pairs of the change of probability, with its 95 % bootstrap interval.
    `network` is the model and, if there is one, the control.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Prompt swapped in some steps only · {p['n_pairs']} pairs per attribute · {p['model']}"

    def plot(self) -> Figure:
        """A line per attribute over the windows, with intervals; the control's attributes together."""
        import xarray as xr

        from interp.plots import curves

        data = self.data.isel(network=0, drop=True)
        lines = {str(name): data.sel(factor=name, drop=True) for name in data["factor"].values}
        if self.data.sizes["network"] > 1:
            control = self.data.isel(network=1, drop=True)
            changed = (control["probability"] - control["probability_without"]).transpose("window", "factor", "pair")
            flat = changed.values.reshape(changed.sizes["window"], -1)
            low, high = bootstrap_interval(flat, seed=self.provenance["seed"])
            named = {"effect": flat.mean(-1), "low": low, "high": high}
            lines["control, all attributes"] = xr.Dataset(
                {name: ("window", x) for name, x in named.items()}, data[["window"]].coords
            )
        stacked = xr.concat(
            [line[["effect", "low", "high"]].drop_vars("steps", errors="ignore") for line in lines.values()],
            xr.Variable("attribute", list(lines)), coords="minimal", compat="override",
        )  # fmt: skip
        labels = [
            f"{name}: steps {steps}" for name, steps in zip(data["window"].values, data["steps"].values, strict=True)
        ]
        return curves(
            stacked["effect"], x="window", line="attribute", title=self.title, quantity="gain of the swapped value",
            unit="probability", low=stacked["low"], high=stacked["high"], x_labels=labels,
            x_title="steps with the other prompt",
        )  # fmt: skip

    def summary(self) -> str:
        """The gain of each attribute in each window."""
        data, names = self.data, [str(w) for w in self.data["window"].values]
        lines = [f"PhasesResult: {self.title}", "  gain of the swapped value's probability (95 % interval)"]
        lines.append(f"  {'':>24}" + "".join(f"{name:>24}" for name in names))
        for network in data["network"].values:
            for factor in data["factor"].values:
                at = data.sel(network=network, factor=factor)
                cells = [
                    f"{e:+.2f} ({low:+.2f} to {high:+.2f})"
                    for e, low, high in zip(at["effect"].values, at["low"].values, at["high"].values, strict=True)
                ]
                lines.append(f"  {f'{network} {factor}':>24}" + "".join(f"{cell:>24}" for cell in cells))
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
    gain = inner[:, :, 0] - without[:, :, 0][:, :, None]
    for name, x in zip(("effect", "low", "high"), (gain.mean(-1), *bootstrap_interval(gain, seed=seed)), strict=True):
        variables[name] = (axes[:-1], x, {"unit": "probability"})
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
