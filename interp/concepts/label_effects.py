"""Does a latent do what its label says? The interventional test of a name, in pictures of the shapes world.

A latent called "red" that is taken out of the denoiser while it draws something red should cost the red, and nothing
else. So scenes of one object that have the value are drawn twice with the same noise: as they are, and with the latent
silenced in every cell, at every step of the conditional branch. Of the pictures that showed the value, `lost` is the
share that no longer do, and `kept` the share in which all else that was right still is.

The control: other latents of the same dictionary, labelled otherwise, silenced in the same pictures. A name holds if
its latent costs the value more often than they do.

When it misleads: a concept that is held by several latents survives the loss of one, so a latent may fail the test and
have the right name; and a latent whose loss breaks the picture loses every value (`kept` tells).

Source: the interventional mode of Huang et al. 2023 (arXiv:2309.10312), for pictures, with removal as the intervention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from interp.dictionaries.dictionary import Dictionary
from interp.errors import InterpError, PairError, nearest
from interp.interventions.edits import Edit, Latents, Modulate, When
from interp.interventions.sweep import sweep
from interp.models.denoiser import Denoiser
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.shapes.caption import full_caption
from interp.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, sample_scene
from interp.statistics import ratio_interval
from interp.tasks.image_metrics import Shows

FACTORS: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "background": BACKGROUNDS,
}  # fmt: skip
"""Factors whose values a picture can lose."""


@dataclass(frozen=True, repr=False, eq=False)
class LabelEffects(Result):
    """What silencing a latent costs.

    `.data` holds by `latent`: `tested`, its label; `n_shown`, pictures that showed the label's value; of those, `lost`,
    the share that no longer do, with its 95 % interval `lost_low`, `lost_high`, and `kept`, the share in which all else
    that was right still is; `lost_by_others` and `lost_by_others_most`, mean and maximum of `lost` for other latents.
    `holds`: the interval lies above what any of the others costs.
    """

    @property
    def title(self) -> str:
        """One line that states what was tested."""
        p = self.provenance
        return f"Silencing {self.data.sizes['latent']} labelled latents at {p['site']} · {p['model']}"

    def summary(self) -> str:
        """A line per latent, those that cost most first."""
        data = self.data
        lines = [
            f"LabelEffects: {self.title}",
            f"  {int(data['holds'].sum())} of {data.sizes['latent']} cost their label's value more often than each of "
            f"{self.provenance['others']} others does",
        ]
        for i in np.argsort(-np.nan_to_num(data["lost"].values), kind="stable"):
            one = {str(name): column.values[i] for name, column in data.data_vars.items()}
            lines.append(
                f"  latent {int(data['latent'][int(i)])}, {one['tested']!r}: lost in {one['lost']:.2f} "
                f"[{one['lost_low']:.2f}, {one['lost_high']:.2f}] of {one['n_shown']}, all else kept in "
                f"{one['kept']:.2f}; others {one['lost_by_others']:.2f}, at most {one['lost_by_others_most']:.2f}"
            )
        return "\n".join(lines)


def label_effects(
    model: Denoiser,
    dictionary: Dictionary,
    site: Site | str,
    labels: Mapping[int, str],
    *,
    n: int = 16,
    others: int = 4,
    bin_: int = 0,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> LabelEffects:
    """Silence each labelled latent, and some others, in pictures that show its label's value.

    Args:
        model: of the shapes world.
        dictionary: of the site; of a kind whose latents are on by themselves (`Dictionary.unit`).
        labels: by latent a shape, colour, size or background; of a `Labels` result for instance
            `{latent: label}` of those that were kept.
        n: scenes of each latent.
        others: latents with other labels of the same mapping that are silenced for comparison; all, if there are not
            as many.
        bin_: step bin of the dictionary.
        seed: of scenes, noises and others.
        **settings: of the sampling: `steps`, `guidance` … as in `Denoiser.sampling`.

    Raises:
        InterpError: no label; fewer than one scene or other; labels that are all the same; as `Dictionary.unit`.
        PairError: a label that is no value of a factor.
        SiteError: a site that the model does not have.
        ShapeError: a latent that is not there.
    """
    import xarray as xr

    place = model.check(site)
    if not labels or n < 1 or others < 1:
        raise InterpError(f"{len(labels)} labels, n={n}, others={others}: each is at least 1.")
    if len(set(labels.values())) < 2:
        raise InterpError("All labels are the same: there are no latents to compare with.")
    factor = {latent: _factor(label) for latent, label in labels.items()}
    edits = {latent: _silenced(place, dictionary, latent, bin_) for latent in labels}
    rows = []
    for latent, label in progress(list(labels.items()), f"{len(labels)} latents"):
        random = Random(f"{seed} {latent}")
        scenes = _scenes(random, factor[latent], label, n)
        rest = [name for name in (*FACTORS, "cell") if name != factor[latent]]
        metrics = [Shows(scenes, [factor[latent]], "target"), *(Shows(scenes, [name], name) for name in rest)]
        rivals = [other for other in labels if labels[other] != label]
        rivals = random.sample(rivals, min(others, len(rivals)))
        seeds = tuple(1_000_000 * (seed + 1) + i for i in range(n))
        base = replace(model.sampling([full_caption(scene) for scene in scenes], seeds=0, **settings), seeds=seeds)
        swept = sweep(model, base, [[edits[one]] for one in (latent, *rivals)], metrics)
        rows.append(_counted(swept, rest))
    columns = {name: ("latent", np.array([row[name] for row in rows])) for name in rows[0]}
    columns["holds"] = ("latent", columns["lost_low"][1] > columns["lost_by_others_most"][1])
    columns["tested"] = ("latent", np.array(list(labels.values()), dtype=object))
    about = provenance(
        experiment="label effects", model=model.name, weights=model.weights_hash, site=str(place), n=n, others=others,
        seed=seed, settings={name: repr(value) for name, value in settings.items()},
    )  # fmt: skip
    return LabelEffects(xr.Dataset(columns, {"latent": list(labels)}), about)


def _factor(label: str) -> str:
    for factor, values in FACTORS.items():
        if label in values:
            return factor
    every = [value for values in FACTORS.values() for value in values]
    raise PairError(f"No picture can lose {label!r}; give a value of a factor." + nearest(label, every))


def _silenced(site: Site, dictionary: Dictionary, latent: int, bin_: int) -> Edit:
    unit = dictionary.unit(latent, bin_)
    like = unit.read.new_tensor
    one = Latents(unit.read[None], unit.write[None], like([unit.bias]), like([unit.threshold]))
    return Modulate(site, one, 0.0, when=When(branch=Branch.COND))


def _scenes(random: Random, factor: str, value: str, n: int) -> tuple[Scene, ...]:
    """Scenes of one object that have the value."""
    found: list[Scene] = []
    while len(found) < n:
        scene = sample_scene(random, two=0.0)
        if value == (scene.background if factor == "background" else getattr(scene.objects[0], factor)):
            found.append(scene)
    return tuple(found)


def _counted(swept: Any, rest: list[str]) -> dict[str, float]:
    """Of the first variant, and of the others."""
    shown = swept.base["target"].numpy() > 0.5
    lost = (swept.values["target"].numpy() < 0.5) & shown  # [variant, scene]
    if not shown.any():
        columns = ("lost", "lost_low", "lost_high", "kept", "lost_by_others", "lost_by_others_most")
        return {**dict.fromkeys(columns, np.nan), "n_shown": 0}
    kept = np.ones_like(lost)
    for name in rest:
        kept &= (swept.values[name].numpy() > 0.5) | (swept.base[name].numpy() < 0.5)
    share, low, high = ratio_interval(lost[0].astype(float), shown.astype(float))
    theirs = lost[1:, shown].mean(1)
    return {
        "lost": float(share), "lost_low": float(low), "lost_high": float(high),
        "kept": float(kept[0, shown].mean()), "lost_by_others": float(theirs.mean()),
        "lost_by_others_most": float(theirs.max()), "n_shown": int(shown.sum()),
    }  # fmt: skip
