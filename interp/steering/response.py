"""`DoseResponse`: what steering does at each dose, beside what it does to everything else, against its baselines.

One result for pictures (`interp.steering.picture_response`) and texts (`interp.steering.text_response`). A method is a
function from a dose to edits; every method is asked for the same doses, each in its own unit, so methods are compared
not dose by dose but at equal *damage*: `best` takes of each the dose with the most successes among those whose damage
and garbage stay below a limit, and says so where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from interp.errors import InterpError, nearest
from interp.interventions.edits import Edit
from interp.results import Result
from interp.statistics import bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

Method: TypeAlias = Callable[[float], Sequence[Edit]] | Sequence[Edit]
"""From a dose to edits; or edits without a dose."""
MEASURES = ("success", "damage", "garbage", "distance")


@dataclass(frozen=True, slots=True)
class Best:
    """The dose of a method with the most successes within the limits.

    Attributes:
        dose: `None`: no dose meets the limits, and the other numbers are NaN.
    """

    method: str
    dose: float | None
    success: float
    damage: float
    garbage: float

    def __str__(self) -> str:
        if self.dose is None:
            return f"{self.method}: no dose within the limits"
        return f"{self.method}: success {self.success:.2f} at dose {self.dose:g} (damage {self.damage:.3g})"


@dataclass(frozen=True, repr=False, eq=False)
class DoseResponse(Result):
    """Answers of every example at every dose of every method.

    `.data` holds, of each of `MEASURES`, the values of examples [way, dose, example] (with the suffix `_each`), their
    mean, and `_low`, `_high`, the bootstrap's 95 % interval over examples. `success` and `garbage` are shares; `damage`
    is in the unit that its attributes give (share of pictures in which something else changed; nats of KL on unrelated
    texts); `distance` is how far the edited states lie off the unedited ones' manifold, 1 being typical, NaN where it
    was not asked for. A method without a dose is the same at all. (Methods lie along `way`, since `method` is an
    argument of xarray's `sel`.) What is particular to pictures or texts is said by the functions that make them.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Steering to {p['target']} · {p['n_scored']} {p['examples']} · {p['model']}"

    def best(self, limit: float | None = None, garbage: float = 0.05) -> dict[str, Best]:
        """Of each method the best dose.

        Args:
            limit: of the mean damage, in its unit; the experiment's own if not given.
            garbage: of its share.

        Raises:
            InterpError: a limit below 0.
        """
        limit = float(self.provenance["limit"]) if limit is None else limit
        if limit < 0 or garbage < 0:
            raise InterpError(f"Limits of {limit} and {garbage}: nothing is below 0.")
        found = {}
        for method in map(str, self.data["way"].values):
            of = {name: self.data[name].sel(way=method).values for name in ("success", "damage", "garbage")}
            # What was not measured (the damage of a prompt edit) limits nothing.
            fits = ~(of["damage"] > limit + 1e-12) & ~(of["garbage"] > garbage + 1e-12)
            if not fits.any():
                found[method] = Best(method, None, np.nan, np.nan, np.nan)
                continue
            # Of equal successes the one of least damage, which is not always the smallest dose.
            order = np.lexsort((np.nan_to_num(of["damage"]), -of["success"], ~fits))
            at = int(order[0])
            dose = float(self.data["dose"].values[at])
            found[method] = Best(method, dose, *(float(of[name][at]) for name in ("success", "damage", "garbage")))
        return found

    def summary(self) -> str:
        """The best dose of each method within the limits."""
        limit, unit = float(self.provenance["limit"]), self.data["damage"].attrs["unit"]
        lines = [f"DoseResponse: {self.title}", f"  best dose with damage ≤ {limit:g} {unit} and garbage ≤ 0.05:"]
        return "\n".join([*lines, *(f"  {best}" for best in self.best().values())])

    def plot(self, measure: str = "success") -> Figure:
        """A measure over the dose, a line for each method, with intervals.

        Raises:
            InterpError: no such measure.
        """
        from interp.plots import curves

        if measure not in MEASURES:
            raise InterpError(f"There is no measure {measure!r}." + nearest(measure, MEASURES))
        values = self.data[measure]
        return curves(
            values, x="dose", line="way", low=self.data[f"{measure}_low"], high=self.data[f"{measure}_high"],
            title=self.title, unit=values.attrs["unit"], quantity=measure, baseline=None,
        )  # fmt: skip

    def plot_trade_off(self) -> Figure:
        """Success against damage, a line for each method along its doses: higher and further left is better."""
        from interp.plots import trade_off

        success, damage = self.data["success"], self.data["damage"]
        return trade_off(
            damage, success, line="way", along="dose", low=self.data["success_low"], high=self.data["success_high"],
            limit=float(self.provenance["limit"]), title=self.title, x_title=f"damage ({damage.attrs['unit']})",
            y_title=f"success ({success.attrs['unit']})",
        )  # fmt: skip


def response_dataset(
    methods: Sequence[str],
    doses: Sequence[float],
    each: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    extra: Mapping[str, Any],
    coords: Mapping[str, Any],
    seed: int,
) -> Dataset:
    """The variables that every `DoseResponse` has, with means and intervals.

    Args:
        each: of each measure [way, dose, example or case].
        units: of each measure.
        extra: further variables, as xarray takes them.
    """
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, values in each.items():
        axis = "case" if name == "damage" and values.shape[-1] != each["success"].shape[-1] else "example"
        unit = {"unit": units[name]}
        low, high = bootstrap_interval(values, seed=seed)
        counted = ~np.isnan(values)
        mean = np.where(counted, values, 0).sum(-1) / np.where(counted.any(-1), counted.sum(-1), np.nan)
        variables[f"{name}_each"] = (("way", "dose", axis), values, unit)
        variables[name] = (("way", "dose"), mean, unit)
        variables[f"{name}_low"], variables[f"{name}_high"] = ((("way", "dose"), x, unit) for x in (low, high))
    return xr.Dataset(variables | dict(extra), {"way": list(methods), "dose": list(doses), **coords})


def checked_doses(doses: Sequence[float], methods: Mapping[str, Any]) -> list[float]:
    """The doses as numbers.

    Raises:
        InterpError: no method, no dose, one that is not finite, or one given twice.
    """
    if not methods:
        raise InterpError("No method: give at least one, such as {'mean difference': concept.add}.")
    numbers = [float(dose) for dose in doses]
    if not numbers or not np.isfinite(numbers).all() or len(set(numbers)) < len(numbers):
        raise InterpError(f"Doses {numbers}: give at least one, finite, each once.")
    return sorted(numbers)


def edits_at(method: Method, dose: float) -> list[Edit]:
    """The edits of a method at a dose."""
    return list(method) if isinstance(method, Sequence) else list(method(dose))
