"""Loss recovered: how much worse does a model do when a dictionary's reconstruction stands at the site?

Explained variance weighs all directions alike; a model does not. So the reconstruction is put in the activation's
place, and the model's own loss is measured: cross entropy of the next token, or the denoising loss.

    recovered = (ablated − spliced) / (ablated − unedited)

1: as good as the activation itself; 0: as bad as nothing (zero-ablation), or as the mean of all activations
(mean-ablation). Zero lies far off what the model has ever seen and flatters every dictionary; the mean is the fairer
baseline. A ratio of means over examples, as `interp.statistics.recovered`. A random dictionary at the same L0 stands
beside each.

`splice_texts` speaks of a language model, `splice_pictures` of one evaluation of a denoiser at given pictures with
noise (`interp.interventions.noised`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.concepts.scores.coded import random_dictionary
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.finetune import pieces
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Replace
from interp.interventions.noised import noised
from interp.interventions.one_step import OneStep
from interp.interventions.run import run
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel
from interp.models.prompts import from_token_lists
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval, recovered

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_AT_ONCE = 32
Fill = Callable[[Tensor], Tensor]
"""What is put in the place of activations [..., width]."""


@dataclass(frozen=True, repr=False, eq=False)
class SpliceResult(Result):
    """The model's loss with something else at a site.

    `.data` holds by `fill` ("unedited", "zero", "mean", then the dictionaries, each followed by its random one) and
    `example` the `loss`, and its mean `mean_loss` with interval `low`, `high`; by `fill` and `ablation` ("zero",
    "mean") the share `recovered` with its interval `recovered_low`, `recovered_high`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"{p['metric']} of {p['model']} with reconstructions at {p['site']} · {p['n_scored']} {p['examples']}"

    def plot(self) -> Figure:
        """The share of the loss that is recovered, of every dictionary, against both ablations."""
        from interp.plots import bars

        data = self.data.isel(fill=slice(3, None))
        return bars(
            data["recovered"], y="fill", bar="ablation", low=data["recovered_low"], high=data["recovered_high"],
            title=self.title, unit="share", quantity="loss recovered", y_labels=data["fill"].values.tolist(),
            bar_labels=[f"against {name}-ablation" for name in data["ablation"].values],
        )  # fmt: skip

    def summary(self) -> str:
        """Loss, and what is recovered of it."""
        data, lines = self.data, [f"SpliceResult: {self.title}"]
        width = max(len(str(name)) for name in data["fill"].values)
        for name in data["fill"].values:
            one = data.sel(fill=name)
            shares = [f"{float(one['recovered'].sel(ablation=a)):.3f} of {a}" for a in data["ablation"].values]
            shown = "" if name in ("unedited", "zero", "mean") else ", recovered " + ", ".join(shares)
            lines.append(f"  {name:{width}}  {float(one['mean_loss']):.4f}{shown}")
        return "\n".join(lines)


def splice_texts(
    model: LanguageModel,
    dictionaries: Dictionary | Mapping[str, Dictionary],
    texts: Sequence[str],
    *,
    context: int = 64,
    first: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> SpliceResult:
    """Cross entropy of the next token, in nats, with reconstructions at the site; an example is a piece of text.

    Args:
        texts: cut into pieces of `context` tokens; what is left of a text is dropped.
        first: position from which activations are replaced, and predictions counted.

    Raises:
        InterpError: no dictionary; one of several sites or step bins, or that writes another site; dictionaries of
            different sites; `first` that leaves no prediction.
        SiteError: a site that the model does not have.
        ShapeError: a dictionary of another width.
        PairError: no text of `context` tokens; an ablation that does not hurt.
    """
    named, name = _of_one_site(dictionaries)
    site = model.check(name)
    heads = 1 if site.head is not None else model.heads_of(site) or 1
    _check_width(named, heads * (model.width_of(site) or 0), site, model.name)
    if not 0 <= first < context - 1:
        raise InterpError(f"first={first}, context={context}: no position is left that predicts a token.")
    cut = pieces(model, texts, context)
    places = list(range(first, context))
    fills: dict[str, Fill] = {}
    losses: dict[str, list[Tensor]] = {}
    for start in progress(range(0, len(cut), _AT_ONCE), f"{len(cut)} pieces of text"):
        prompts = from_token_lists(model.tokenizer, cut[start : start + _AT_ONCE], device=model.device)
        with torch.no_grad():
            base = run(model, prompts, capture=[site])
            x = base[site][:, first:]
            fills = fills or _fills(named, x.flatten(2).flatten(0, 1), seed)
            for fill, make in fills.items():
                logits = base.logits
                if fill != "unedited":
                    value = make(x.flatten(2)).to(x.dtype).reshape(x.shape)
                    logits = run(model, prompts, [Replace(site, value, positions=places)]).logits
                assert logits is not None
                said = logits[:, first:-1].log_softmax(-1)
                nats = -said.gather(-1, prompts.ids[:, first + 1 :, None])[..., 0]
                losses.setdefault(fill, []).append(nats.mean(1).double().cpu())
    about = {"metric": "cross entropy", "examples": "pieces of text", "unit": "nats per token", "context": context}
    return _result(model, site, named, losses, about, seed)


def splice_pictures(
    model: Denoiser,
    dictionaries: Dictionary | Mapping[str, Dictionary],
    prompts: Sequence[str],
    pictures: np.ndarray,
    timestep: int,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> SpliceResult:
    """The denoising loss with reconstructions at the site; an example is a picture.

    Args:
        prompts: of each picture.
        pictures: RGB, uint8 [row, height, width, 3].
        timestep: of the schedule that the model was trained with.
        seed: of the noise, and of the random dictionary.

    Raises:
        InterpError: as `splice_texts`; as `interp.interventions.noised.noised`.
        SiteError: a site where no value can be put.
        ShapeError: a dictionary of another width; not as many prompts as pictures.
        PairError: an ablation that does not hurt.
    """
    named, name = _of_one_site(dictionaries)
    given = noised(model, pictures, timestep, seed)
    sampling = model.sampling(list(prompts), seeds=0)
    step = OneStep(model, sampling, given.states, name)
    _check_width(named, step.values.flatten(2).shape[-1], step.site, model.name)
    fills = _fills(named, step.values.flatten(2).flatten(0, 1), seed)
    losses: dict[str, list[Tensor]] = {}
    for start in progress(range(0, step.n, _AT_ONCE), f"{step.n} pictures"):
        rows = torch.arange(start, min(start + _AT_ONCE, step.n))
        for fill, make in fills.items():
            with torch.no_grad():
                predicted = step.prediction[rows]
                if fill != "unedited":
                    x = step.values[rows]
                    predicted = step(make(x.flatten(2)).to(x.dtype).reshape(x.shape), rows)
                error = (predicted - given.target[rows]).square().flatten(1).mean(1)
            losses.setdefault(fill, []).append(error.double().cpu())
    about = {"metric": "denoising loss", "examples": "pictures", "unit": "mean square", "timestep": timestep}
    return _result(model, step.site, named, losses, about, seed)


def _of_one_site(dictionaries: Dictionary | Mapping[str, Dictionary]) -> tuple[dict[str, Dictionary], str]:
    named = {dictionaries.kind: dictionaries} if isinstance(dictionaries, Dictionary) else dict(dictionaries)
    if not named:
        raise InterpError("No dictionary to splice in; give at least one.")
    for name, one in named.items():
        if not one.autoencodes or len(one.read.sites) != 1 or one.read.n_bins != 1:
            raise InterpError(f"{name}: a spliced dictionary reads and writes one site, with one step bin.")
        if name in ("unedited", "zero", "mean"):
            raise InterpError(f"{name!r} is the name of a baseline; call the dictionary something else.")
    sites = {one.read.sites[0] for one in named.values()}
    if len(sites) > 1:
        raise InterpError(f"Dictionaries of different sites, {', '.join(sorted(sites))}; splice them one by one.")
    return named, sites.pop()


def _check_width(named: Mapping[str, Dictionary], width: int, site: Site, model: str) -> None:
    for name, one in named.items():
        if one.read.width != width:
            raise ShapeError(f"{site} of {model} is {width} wide, the dictionary {name!r} {one.read.width}.")


def _fills(named: Mapping[str, Dictionary], rows: Float[Tensor, "row width"], seed: int) -> dict[str, Fill]:
    """What takes the activations' place; the mean is that of the first dictionary's standardisation."""
    mean = next(iter(named.values())).read.mean[0]
    fills: dict[str, Fill] = {"unedited": lambda x: x, "zero": torch.zeros_like, "mean": mean.expand_as}
    for name, one in named.items():
        k = max(1, round(float(one.encode(rows.to(one.atoms.dtype)).l0().float().mean())))
        for label, which in ((name, one), (f"{name}: random, k = {k}", random_dictionary(one, k, seed))):
            fills[label] = _through(which)
    return fills


def _through(dictionary: Dictionary) -> Fill:
    """Reconstructions, in the dictionary's own precision."""
    return lambda x: dictionary(x.to(dictionary.atoms.dtype))


def _result(
    model: LanguageModel | Denoiser,
    site: Site,
    named: Mapping[str, Dictionary],
    losses: Mapping[str, Sequence[Tensor]],
    about: Mapping[str, Any],
    seed: int,
) -> SpliceResult:
    import xarray as xr

    loss = np.stack([torch.cat(list(parts)).numpy() for parts in losses.values()])
    if not np.isfinite(loss).all():
        bad = list(losses)[int((~np.isfinite(loss)).any(1).argmax())]
        raise InterpError(f"With {bad!r} at {site} the loss is not finite.")
    low, high = bootstrap_interval(loss, seed=seed)
    shares = np.full((3, len(loss), 2), np.nan)
    for number, ablation in enumerate(("zero", "mean")):
        corrupted = loss[list(losses).index(ablation)]
        if corrupted.mean() <= loss[0].mean():
            raise PairError(f"{ablation}-ablation of {site} does not raise the {about['metric']}: nothing to recover.")
        shares[..., number] = recovered(
            loss, loss[0], corrupted, f"{about['metric']} under {ablation}-ablation", seed=seed
        )
    both = ("fill", "ablation")
    data = xr.Dataset(
        {
            "loss": (("fill", "example"), loss, {"units": about["unit"]}),
            **{
                name: ("fill", x, {"units": about["unit"]})
                for name, x in {"mean_loss": loss.mean(1), "low": low, "high": high}.items()
            },
            **{
                name: (both, x, {"units": "dimensionless"})
                for name, x in zip(("recovered", "recovered_low", "recovered_high"), shares, strict=True)
            },
        },
        {"fill": list(losses), "ablation": ["zero", "mean"], "example": np.arange(loss.shape[1])},
    )
    record = provenance(
        experiment="loss with spliced reconstructions", model=model.name, weights=model.weights_hash, site=str(site),
        kinds={name: one.kind for name, one in named.items()}, seed=seed, n_attempted=loss.shape[1],
        n_scored=loss.shape[1], **about,
    )  # fmt: skip
    return SpliceResult(data, record)
