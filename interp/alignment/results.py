"""What a search for an aligned variable found, with the controls beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError
from interp.results import Result

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

    from interp.alignment.joint import Aligned
    from interp.alignment.maps import Subspace

FITS = ("task", "shuffled labels", "random model")
"""What maps were fitted to."""
CONTROLS = ("full swap", "random rotation", "shuffled labels", "random model")
"""What an IIA stands beside: the whole state exchanged; a random subspace of the same rank; maps fitted to labels that
a coin decides, and judged by such labels; maps fitted to the same task on a network of random weights."""


@dataclass(frozen=True, repr=False, eq=False)
class Alignment(Result):
    """Interchange intervention accuracy (IIA) of a variable over places, on examples that no map has seen.

    `.data` holds over `layer` × `region` × `rank` (per variable): `iia`, the share of held-out examples on which the
    network answers as the causal model does under the interchange, with its 95 % interval `low` to `high` (bootstrap
    over examples), and `train_iia` on those it was fitted to; with `control` in front `control_iia`; example by example
    `correct` and `control_correct`; over `fit` × … × `step` the training `loss`, in nats. All are NaN at places that a
    screening left out. Over `layer` × `region`: `trained` (where it is false, base and sources agree on every training
    example, and the base run answers), `moved`, the share of held-out examples whose states differ, and `screened`, the
    loss of the short training by which places were chosen (NaN without one). Over `example`: `base_correct`, whether
    the base run gives the label. Of maps that are subspaces, `basis` holds the columns, those of the variables side by
    side. Of maps with learned boundaries the `boundary`, over … × `step` × `variable`, and the `temperature`, over … ×
    `step`, both in coordinates and as they were before the step.
    """

    @property
    def title(self) -> str:
        """One line that states what was searched for."""
        p = self.provenance
        return f"{' and '.join(p['variables'])} of {p['task']}, by {p['kind']} · {p['model']}"

    @property
    def best(self) -> dict[str, Any]:
        """Layer, region and rank of the highest IIA (of equal ones the lowest rank, then the earliest)."""
        values = self.data["iia"].transpose("rank", "layer", "region")
        rank, layer, region = (int(i) for i in np.unravel_index(int(np.nanargmax(values.values)), values.shape))
        at = {"layer": values["layer"][layer], "region": values["region"][region], "rank": values["rank"][rank]}
        return {name: value.item() for name, value in at.items()}

    @property
    def was_screened(self) -> bool:
        """Whether short trainings chose the places that maps were fitted at."""
        return bool(self.data["screened"].notnull().any())

    @property
    def margin(self) -> xarray.DataArray:
        """IIA above the highest control, the full swap (a ceiling, not a rival) left out."""
        rivals = self.data["control_iia"].drop_sel(control="full swap", errors="ignore")
        return self.data["iia"] - rivals.max("control") if rivals.sizes["control"] else self.data["iia"]

    def basis(self, layer: int, region: str, rank: int) -> Subspace:
        """The subspace that was found at a place.

        Raises:
            InterpError: a place that was not searched, or maps that are no subspaces.
        """
        import torch

        from interp.alignment.maps import Subspace

        if "basis" not in self.data:
            raise InterpError(f"Maps of the kind {self.provenance['kind']} are no subspaces.")
        columns = self._fitted({"layer": layer, "region": region, "rank": rank})["basis"].values
        n = rank * len(self.provenance["variables"])
        return Subspace(torch.from_numpy(columns[:, :n].copy()), (rank,) * len(self.provenance["variables"]))

    def aligned(self, layer: int | None = None, region: str | None = None, rank: int | None = None) -> Aligned:
        """The variables with the subspace that was found at a place, for `language_abstraction`.

        Layer, region and rank are those of the best cell where they are not given.

        Raises:
            InterpError: as `basis`.
        """
        from interp.alignment.joint import Aligned
        from interp.alignment.language import Place
        from interp.models.site import Site

        at = self._at(layer, region, rank)
        place = Place(Site(self.provenance["part"], at["layer"]), at["region"])
        return Aligned(tuple(self.provenance["variables"]), place, self.basis(**at))

    def summary(self) -> str:
        """The best cell with its controls, the margin, and what was left out."""
        p, best = self.provenance, self.best
        here = self.data.sel(best)
        n, searched = self.data.sizes["example"], int(self.data["iia"].notnull().sum())
        lines = [
            f"Alignment: {self.title}",
            f"  IIA on {n} held-out examples, answers among {p['answers']}; without an interchange "
            f"{float(self.data['base_correct'].mean()):.3f}",
            f"  best of {searched} cells: {p['part']} of layer {best['layer']} at {best['region']!r}, rank "
            f"{best['rank']}: {float(here['iia']):.3f} [{float(here['low']):.3f}, {float(here['high']):.3f}]; on the "
            f"{p['n_train']} examples of its training {float(here['train_iia']):.3f}",
        ]
        controls = [f"{name} {float(here['control_iia'].sel(control=name)):.3f}" for name in here["control"].values]
        lines.append("  beside it: " + (", ".join(controls) or "NO CONTROL was run"))
        if missing := [name for name in CONTROLS if name not in here["control"].values]:
            lines.append(f"  NOT run: {', '.join(missing)}")
        if controls and float(self.margin.sel(best)) <= 0:
            lines.append("  NOT above its controls: what is shown there is the method, not the network")
        if self.was_screened:
            losses, went = self.data["screened"], self.data["iia"].notnull().any("rank")
            on, left = losses.where(went), losses.where(~went)
            lines.append(
                f"  screened {int(losses.count())} places by the loss of {p['screening']['steps']} steps at rank "
                f"{int(self.data['rank'].max())}: {int(on.count())} went on ({float(on.max()):.2f} nats at most), "
                f"{int(left.count())} did not ({float(left.min()):.2f} at least)"
            )
        still = int((~self.data["trained"]).sum())
        if still:
            lines.append(
                f"  {still} of {self.data['trained'].size} places: base and sources agree; the base run answers"
            )
        lines += [f"  stopped: {why}" for why in p["stopped"][:4]]
        lines.append(
            f"  kept {p['n_train']} of {p['n_train_attempted']} and {n} of {p['n_attempted']} examples: "
            + ("those whose base and sources the model answers rightly" if p["only_right"] else "all")
        )
        return "\n".join(lines)

    def plot(self, rank: int | None = None) -> Figure:
        """IIA over layer × region beside its controls, at one rank (the best cell's, if none is given)."""
        import xarray as xr

        from interp.plots import heatmap

        rank = self._searched(self.best["rank"] if rank is None else rank)
        maps = [self.data["iia"].sel(rank=rank)]
        names = [*self.data["control"].values]
        maps += [self.data["control_iia"].sel(rank=rank, control=name).drop_vars("control") for name in names]
        data = xr.concat(maps, xr.Variable("by", ["fit", *names]))
        title = f"Interchange accuracy on held-out examples, rank {rank}: {self.title}"
        return heatmap(data, x="region", y="layer", facet="by", title=title, unit="IIA", diverging=False)

    def plot_screening(self) -> Figure:
        """What the short trainings by which places were chosen had reached, over layer × region; the chosen outlined.

        Raises:
            InterpError: every place was searched.
        """
        from interp.plots import heatmap

        if not self.was_screened:
            raise InterpError("No place was left out by a screening; `plot` shows them all.")
        steps, most = self.provenance["screening"]["steps"], int(self.data["rank"].max())
        title = f"Log probability of the label after {steps} steps at rank {most}, the chosen outlined: {self.title}"
        return heatmap(
            -self.data["screened"], x="region", y="layer", title=title, unit="nats", diverging=False,
            marks=self.data["iia"].notnull().any("rank"),
        )  # fmt: skip

    def plot_training(self, rank: int | None = None) -> Figure:
        """The training loss of each layer at the best cell's region: a line per layer, smoothed over 40 stretches."""
        from interp.plots import curves

        rank = self._searched(self.best["rank"] if rank is None else rank)
        losses = self.data["loss"].sel(fit="task", rank=rank, region=self.best["region"])
        window = max(1, losses.sizes["step"] // 40)
        smooth = losses.coarsen(step=window, boundary="trim").mean()
        return curves(
            smooth, x="step", line="layer", title=f"Training at {self.best['region']!r}, rank {rank}: {self.title}",
            unit="nats", quantity="cross-entropy", bars=False, baseline=None,
        )  # fmt: skip

    def plot_boundaries(self, layer: int | None = None, region: str | None = None, rank: int | None = None) -> Figure:
        """Where each variable's coordinates end in the course of training; the band is ± the mask's temperature.

        Layer, region and rank are those of the best cell where they are not given.

        Raises:
            InterpError: maps without boundaries, or a place that was not searched.
        """
        from interp.plots import curves

        if "boundary" not in self.data:
            raise InterpError(f"Maps of the kind {self.provenance['kind']} learn no boundaries; Boundless does.")
        at = self._at(layer, region, rank)
        here = self._fitted(at)
        ends, soft = (here[name].drop_vars(list(at)) for name in ("boundary", "temperature"))
        ends, width = ends.transpose("variable", "step"), float(self.provenance["width"])
        return curves(
            ends, x="step", line="variable", line_labels=self.provenance["variables"],
            low=(ends - soft).clip(min=0), high=(ends + soft).clip(max=width), unit="coordinates",
            quantity="end of block", baseline=None,
            title=f"Boundaries in {width:.0f} coordinates, layer {at['layer']} at {at['region']!r}: {self.title}",
        )  # fmt: skip

    def _at(self, layer: int | None, region: str | None, rank: int | None) -> dict[str, Any]:
        """The best cell, but for what is given."""
        given = {"layer": layer, "region": region, "rank": rank}
        return self.best | {name: value for name, value in given.items() if value is not None}

    def _fitted(self, at: dict[str, Any]) -> xarray.Dataset:
        """What was found in a cell."""
        where = f"Layer {at['layer']}, region {at['region']!r}, rank {at['rank']}"
        try:
            here = self.data.sel(at)
        except KeyError as error:
            raise InterpError(f"{where}: no such cell was searched.") from error
        if here["iia"].isnull():
            raise InterpError(f"{where}: no map was fitted there; the screening left it out. Choose more places.")
        return here

    def _searched(self, rank: Any) -> int:
        if rank not in self.data["rank"].values:
            raise InterpError(
                f"Rank {rank} was not searched; there are {', '.join(map(str, self.data['rank'].values))}."
            )
        return int(rank)
