"""`DoseResponse`: what steering does at each dose, beside what it does to everything else, against its baselines.

One result for pictures (`interp.steering.picture_response`) and texts (`interp.steering.text_response`). A method is a
function from a dose to edits; every method is asked for the same doses, each in its own unit, so methods are compared
not dose by dose but at equal *damage*: `best` takes of each the dose with the most successes among those whose damage
and garbage stay below a limit, and says so where there is none. It chooses on half of the examples and reports on the
other half: the best of several doses looks better than it is on the examples that it was chosen by (of five doses that
all succeed in 80 %, the best of 24 examples shows 89 %).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from interp.errors import InterpError, nearest
from interp.interventions.edits import Edit, edits_of
from interp.results import Result
from interp.statistics import bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

Method: TypeAlias = Callable[[float], Edit | Sequence[Edit]] | Edit | Sequence[Edit]
"""From a dose to edits; or edits without a dose."""
PROMPT_EDIT = "prompt edit"
"""The name of the baseline that asks for the target in words."""
MEASURES = ("success", "damage", "garbage", "distance")


@dataclass(frozen=True, slots=True)
class Best:
    """The dose of a method with the most successes within the limits, chosen on half of the examples.

    Attributes:
        dose: `None`: the method has none; or none meets the limits, and the numbers are NaN.
        success: and damage and garbage, on the other half.
        low: and high, the 95 % interval of the success (Wilson's of a share, else the bootstrap's).
    """

    method: str
    dose: float | None
    success: float
    low: float
    high: float
    damage: float
    garbage: float

    def __str__(self) -> str:
        if np.isnan(self.success):
            return f"{self.method}: no dose within the limits"
        at = "no dose" if self.dose is None else f"dose {self.dose:g}"
        damage = "" if np.isnan(self.damage) else f", damage {self.damage:.3g}"
        return f"{self.method}: success {self.success:.2f} [{self.low:.2f}, {self.high:.2f}] ({at}{damage})"


@dataclass(frozen=True, repr=False, eq=False)
class DoseResponse(Result):
    """Answers of every example at every dose of every method.

    `.data` holds, of each of `MEASURES`, the values of examples [way, dose, example] (with the suffix `_each`), their
    mean, and `_low`, `_high`, the bootstrap's 95 % interval over examples. `success` and `garbage` are shares; `damage`
    is in the unit that its attributes give (share of pictures in which something else changed; nats of KL on unrelated
    texts); `distance` is how far the edited states lie off the unedited ones' manifold, 1 being typical, NaN where it
    was not asked for. A mean is NaN where one of its values is. A method without a dose is the same at all, and `dosed`
    [way] says so. (Methods lie along `way`, since `method` is an
    argument of xarray's `sel`.) What is particular to pictures or texts is said by the functions that make them.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Steering to {p['target']} · {p['n_scored']} {p['examples']} · {p['model']}"

    def best(self, limit: float | None = None, garbage: float = 0.05) -> dict[str, Best]:
        """Of each method the best dose, chosen on half of the examples (drawn by the experiment's seed).

        Damage that is no number meets no limit, but for the prompt edit, whose damage may be unmeasured.

        Args:
            limit: of the mean damage, in its unit; the experiment's own if not given.
            garbage: of its share.

        Raises:
            InterpError: a limit below 0; a single example.
        """
        limit = float(self.provenance["limit"]) if limit is None else limit
        if limit < 0 or garbage < 0:
            raise InterpError(f"Limits of {limit} and {garbage}: nothing is below 0.")
        if self.data.sizes["example"] < 2:
            raise InterpError("One example: a best dose is chosen on half of the examples and reported on the others.")
        return {str(method): self._best(str(method), limit, garbage) for method in self.data["way"].values}

    def _best(self, method: str, limit: float, garbage: float) -> Best:
        seed = int(self.provenance.get("seed", 0))
        chosen, told = {}, {}
        for name in ("success", "damage", "garbage"):
            values = self.data[f"{name}_each"].sel(way=method).values
            first, second = _halves(values.shape[-1], seed)
            chosen[name], told[name] = values[:, first].mean(-1), values[:, second]
        unmeasured = np.isnan(chosen["damage"]) & (method == PROMPT_EDIT)
        fits = ((chosen["damage"] <= limit + 1e-12) | unmeasured) & (chosen["garbage"] <= garbage + 1e-12)
        if not fits.any():
            return Best(method, None, *(np.nan,) * 5)
        # Of equal successes the one of least damage, which is not always the smallest dose.
        # Of the prompt edit the damage may be unmeasured; `fits` has refused every other NaN.
        at = int(np.lexsort((np.nan_to_num(chosen["damage"]), -chosen["success"], ~fits))[0])
        dose = float(self.data["dose"].values[at]) if bool(self.data["dosed"].sel(way=method)) else None
        success, damage, bad = (float(told[name][at].mean()) for name in ("success", "damage", "garbage"))
        return Best(method, dose, success, *_interval(told["success"][at], seed), damage, bad)

    def summary(self) -> str:
        """The best dose of each method within the limits."""
        limit, unit = float(self.provenance["limit"]), self.data["damage"].attrs["unit"]
        if self.data.sizes["example"] < 2:
            return f"DoseResponse: {self.title}\n  one example: no best dose"
        lines = [
            f"DoseResponse: {self.title}",
            f"  best dose with damage ≤ {limit:g} {unit} and garbage ≤ 0.05,",
            f"  chosen on half of the {self.provenance['examples']}, reported on the other half:",
        ]
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


def _halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of examples; of a single one (an unrelated text) both are it."""
    drawn = np.random.default_rng(seed).permutation(n)
    return (drawn[: n // 2], drawn[n // 2 :]) if n > 1 else (drawn, drawn)


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    if np.isin(values, (0, 1)).all():
        from scipy.stats import binomtest

        share = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        return float(share.low), float(share.high)
    low, high = bootstrap_interval(values, seed=seed)
    return float(low), float(high)


def response_dataset(
    plans: Mapping[str, Planned],
    doses: Sequence[float],
    each: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    extra: Mapping[str, Any],
    coords: Mapping[str, Any],
    seed: int,
) -> Dataset:
    """The variables that every `DoseResponse` has, with means and intervals.

    Args:
        plans: of which only the names, and who has a dose, are kept.
        each: of each measure [way, dose, example or case].
        units: of each measure.
        extra: further variables, as xarray takes them.
    """
    import xarray as xr

    variables: dict[str, Any] = {"dosed": (("way",), [plan.dosed for plan in plans.values()])}
    for name, values in each.items():
        axis = "case" if name == "damage" and values.shape[-1] != each["success"].shape[-1] else "example"
        unit = {"unit": units[name]}
        mean = values.mean(-1)
        ends = [np.where(np.isnan(mean), np.nan, end) for end in bootstrap_interval(values, seed=seed)]
        variables[f"{name}_each"] = (("way", "dose", axis), values, unit)
        variables[name] = (("way", "dose"), mean, unit)
        variables[f"{name}_low"], variables[f"{name}_high"] = ((("way", "dose"), x, unit) for x in ends)
    return xr.Dataset(variables | dict(extra), {"way": list(plans), "dose": list(doses), **coords})


@dataclass(frozen=True, slots=True)
class Planned:
    """The edits of a method at each dose; of one without a dose, once."""

    dosed: bool
    edits: tuple[list[Edit], ...]


def planned(methods: Mapping[str, Method], doses: Sequence[float]) -> tuple[list[float], dict[str, Planned]]:
    """The doses in order, and every method's edits, made and checked before anything runs.

    Raises:
        InterpError: no method, one that is called `PROMPT_EDIT` or makes no edits; no dose, one that is no finite
            number, or one given twice.
    """
    if not methods:
        raise InterpError("No method: give at least one, such as {'mean difference': concept.add}.")
    if PROMPT_EDIT in methods:
        raise InterpError(f"{PROMPT_EDIT!r} is the name of a baseline that is added; call this method another.")
    try:
        numbers = [] if isinstance(doses, str) else sorted(float(dose) for dose in doses)
    except (TypeError, ValueError):
        raise InterpError(f"Doses {doses!r}: give a list of numbers, such as [0, 0.1, 0.2].") from None
    if not numbers or not np.isfinite(numbers).all() or len(set(numbers)) < len(numbers):
        raise InterpError(f"Doses {doses!r}: give a list of at least one number, finite, each once.")
    plans = {}
    for name, method in methods.items():
        made = [method(dose) for dose in numbers] if callable(method) else [method]
        try:
            plans[name] = Planned(callable(method), tuple(edits_of(one) for one in made))
        except InterpError as error:
            raise InterpError(f"Method {name!r} makes no edits: {error}") from None
    return numbers, plans
