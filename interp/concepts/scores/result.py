"""`DictionaryScores`: the table that `score_dictionary` fills, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InterpError, nearest
from interp.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

HIGH = MappingProxyType(
    {
        "explained": "explained variance", "mcc": "mean correlation", "mean_f1": "mean F1", "coverage": "coverage",
        "disentanglement": "disentanglement", "completeness": "completeness", "informativeness": "informativeness",
        "monosemanticity": "monosemanticity", "decorrelation": "decorrelation",
    }
)  # fmt: skip
"""Scores that are good when they are high, in words."""
_INTERVAL = ("explained", "mcc", "mean_f1", "coverage")


@dataclass(frozen=True, repr=False, eq=False)
class DictionaryScores(Result):
    """Scores of dictionaries and of what stands beside them.

    `.data` holds, by `dictionary`: `role` (dictionary, random, baseline, control, ceiling), `kind`, `n_latents`;
    `explained`, `mcc`, `mean_f1`, `coverage`, each with its 95 % bootstrap interval over groups (`…_low`, `…_high`);
    `l0`, `dead`, `duplicate_atoms`, `duplicate_codes`, `decorrelation`, `monosemanticity`, `density` (latents by
    decade); `disentanglement`, `completeness`, `informativeness`, the last also by factor as `predicted`. By dictionary
    and value: held-out `f1` (with interval) of the best `latent` above its `threshold`; `correlation` of the
    `matched_latent`; `splitting`, and `union_f1` of the latents that it is split over; `absorption`, the share of the
    value's rows on which its `parent` is absorbed; and by `k` `sparse_probing`. NaN: not defined (a probe has no
    atoms), or too seldom.
    """

    @property
    def title(self) -> str:
        """One line that states what was scored."""
        p = self.provenance
        return (
            f"Dictionaries of {', '.join(p['sites'])} against {self.data.sizes['value']} known values · "
            f"{p['n_held_out']} of {p['n_rows']} rows held out"
        )

    def beats_random(self, score: str, dictionary: str) -> bool:
        """Whether a dictionary is better than the random ones: its value, or, where there is one, its whole interval.

        The random dictionaries are those of its own number of latents.

        Raises:
            InterpError: a score that is not one of `HIGH`, or a dictionary that is not there.
        """
        data = self.data
        for wanted, allowed in ((score, list(HIGH)), (dictionary, data["dictionary"].values.tolist())):
            if wanted not in allowed:
                raise InterpError(f"There is no {wanted!r} here." + nearest(wanted, allowed))
        own = data.sel(dictionary=dictionary)
        random = (data["role"] == "random") & (data["n_latents"] == own["n_latents"])
        others = data[f"{score}_high" if score in _INTERVAL else score].values[random.values]
        if np.isnan(others).all():
            return False
        return bool(float(own[f"{score}_low" if score in _INTERVAL else score]) > np.nanmax(others))

    def table(self) -> DataFrame:
        """A row for each contender, a column for each score."""
        data = self.data
        columns: list[str] = ["n_latents", "l0", "dead", "duplicate_atoms", "duplicate_codes", *HIGH]
        frame: DataFrame = data[columns].to_dataframe().loc[:, columns]
        for name in ("splitting", "absorption"):
            values = data[name].values
            known = ~np.isnan(values)
            frame[name] = np.where(
                known.any(1), np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan
            )
        for k in data["k"].values:
            frame[f"probe, k = {k}"] = data["sparse_probing"].sel(k=k).mean("value", skipna=True).values
        return frame

    def plot(self) -> Figure:
        """Bars of the scores against truth, for every contender, with intervals where there are any."""
        import xarray as xr

        from interp.plots import bars

        names = ["mcc", "mean_f1", "coverage"]
        ends = ("", "_low", "_high")
        data, low, high = (
            xr.concat([self.data[name + end] for name in names], xr.DataArray(names, dims="score", name="score"))
            for end in ends
        )
        return bars(
            data, y="dictionary", bar="score", low=low, high=high, title=self.title, unit="dimensionless",
            y_labels=self.data["dictionary"].values.tolist(), bar_labels=[HIGH[name] for name in names],
            quantity="score on held-out rows",
        )  # fmt: skip

    def plot_values(self) -> Figure:
        """A heat map of F1, contenders by values."""
        from interp.plots import heatmap

        data, title = self.data["f1"].isel(dictionary=slice(None, None, -1)), f"{self.title}: F1 of the best latent"
        return heatmap(data, x="value", y="dictionary", title=title, unit="F1", diverging=False)

    def summary(self) -> str:
        """The main scores of every contender, and which of them a random dictionary reaches as well."""
        data, lines = self.data, [f"DictionaryScores: {self.title}"]
        width = max(len(str(name)) for name in data["dictionary"].values)
        lines.append(
            f"  {'':{width}}  {'L0':>6} {'expl.':>6} {'MCC':>5} {'F1':>5} {'cover':>5} {'DCI-D':>5} {'DCI-I':>5}"
        )
        for name in data["dictionary"].values:
            one = data.sel(dictionary=name)
            shown = [
                ("l0", "6.1f"), ("explained", "6.2f"), ("mcc", "5.2f"), ("mean_f1", "5.2f"), ("coverage", "5.2f"),
                ("disentanglement", "5.2f"), ("informativeness", "5.2f"),
            ]  # fmt: skip
            lines.append(f"  {name:{width}}  " + " ".join(f"{float(one[key]):{form}}" for key, form in shown))
        for name in data["dictionary"].values[(data["role"] == "dictionary").values]:
            lost = [words for score, words in HIGH.items() if not self.beats_random(score, str(name))]
            if lost:
                lines.append(f"  {name}: no better than a random dictionary in {', '.join(lost)}")
        return "\n".join(lines)
