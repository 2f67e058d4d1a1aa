"""An atlas of a dictionary: of every latent the places where it is on, and what is known of it.

Of a text, a place is a token with what stands around it; of a picture, a cell with the map of the latent over the whole
picture. Beside the strongest places stand some of ordinary strength: what is strongest shows a latent at its clearest,
and makes it look clearer than it is.

When it misleads: examples suggest a meaning, and a reader always finds one. What a latent is called is a hypothesis;
`interp.concepts.labels` tests it. Only texts and pictures of the harvest can appear.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from interp.concepts.coded_rows import BINS, CodedRows, coded_rows
from interp.concepts.levels import mark_of
from interp.dictionaries.codes import checked_latents
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.store import Store
from interp.errors import InterpError, ShapeError
from interp.models.language_model import LanguageModel
from interp.models.prompts import token_strings
from interp.progress import Progress, silent
from interp.results import Result, provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

QUANTILES = (0.75, 0.5, 0.25)
"""Strengths of the ordinary examples: stronger than in this share of the rows where the latent is on."""


@dataclass(frozen=True, repr=False, eq=False)
class Atlas(Result):
    """Where each latent is on.

    `.data` holds by `latent` (its number in the dictionary): `share` of the rows in which it is on, `strongest` and
    `mean` of its code there (standardised activation), `histogram` [latent, bin] with the bins' lower bounds as
    coordinate `bin`; by `latent` × `example`: `row` of the store, −1 where there are not as many, and `value`.
    `example` names the example: `"strongest 1"` …, `"75 %"` (stronger than in 75 % of the rows where it is on) ….

    Of texts, by `offset` from the token in question: `token`, empty beyond the text's ends, and `activation`. Of
    pictures `pictures` [shown, y, x, rgb], uint8; `picture` [latent, example], the number of one of them; `activation`
    [latent, example, cell_y, cell_x]; `step`, of the denoising.

    `with_` adds what else is known: effects, labels.
    """

    @property
    def title(self) -> str:
        """One line that states what this is an atlas of."""
        p = self.provenance
        return f"{p['kind']}, {p['n_latents']} latents · {p['site']} · {p['model']}"

    @property
    def of_texts(self) -> bool:
        """Whether examples are texts; else they are pictures."""
        return "token" in self.data

    def summary(self) -> str:
        """What was encoded, how many latents are on, how often."""
        p, share = self.provenance, self.data["share"].values
        lines = [
            f"Atlas: {self.title}",
            f"  {self.data.sizes['latent']} latents shown; {p['n_dead']} of the dictionary are on in none of "
            f"{p['n_rows']} rows",
            f"  on in {np.median(share):.2%} of the rows (median; {share.min():.2%} to {share.max():.2%})",
        ]
        if "label" in self.data:
            named = int((self.data["label"] != "").sum())
            lines.append(f"  {named} have a label that held on the other half of the harvest")
        return "\n".join(lines)

    def example(self, latent: int, number: int = 0) -> str:
        """An example in words: the text with the token in question in brackets; of a picture, where and when.

        Raises:
            InterpError: a latent or example that is not shown.
        """
        if latent not in self.data["latent"].values or not 0 <= number < self.data.sizes["example"]:
            raise InterpError(f"The atlas shows no example {number} of latent {latent}.")
        one = self.data.sel(latent=latent).isel(example=number)
        if int(one["row"]) < 0:
            return ""
        if self.of_texts:
            parts = [
                f"[{t}]" if o == 0 else str(t) for o, t in zip(one["offset"].values, one["token"].values, strict=True)
            ]
            return "".join(parts)
        y, x = np.unravel_index(int(one["activation"].values.argmax()), one["activation"].shape)
        return f"picture {int(one['picture'])}, step {int(one['step'])}, cell ({y}, {x})"

    def with_(self, *others: Dataset | Result, **about: Any) -> Atlas:
        """The atlas and more columns by `latent`: those of results such as `token_effects` and `label_latents`.

        Latents that the others do not speak of get NaN, or an empty text.

        Raises:
            InterpError: a name that is there already.
        """
        import xarray as xr

        data, facts = self.data, {**self.provenance, **about}
        for other in others:
            more = other.data if isinstance(other, Result) else other
            if taken := sorted(set(map(str, more.data_vars)) & set(map(str, data.data_vars))):
                raise InterpError(f"The atlas has {', '.join(taken)} already.")
            more = more.reindex(latent=data["latent"], fill_value=_nothing(more))
            data = xr.merge([data, more], compat="override", join="outer")
            if isinstance(other, Result):
                facts[type(other).__name__] = {
                    k: v for k, v in other.provenance.items() if k not in ("versions", "created")
                }
        return Atlas(data, facts)

    def plot(self) -> Figure:
        """How often latents are on, and how strongly: a point each."""
        from interp.plots import points

        return points(
            self.data["share"], self.data["mean"], title=self.title, x="share of rows in which it is on",
            y="mean code where it is on", log_x=True, names=[f"latent {i}" for i in self.data["latent"].values],
        )  # fmt: skip

    def browse(self, path: str | os.PathLike[str], about: Sequence[str] = ()) -> None:
        """Write the concept browser: one HTML file, which needs no network. With a graph: `browse_graph`.

        Args:
            about: paragraphs to begin with.

        Raises:
            OSError: the folder is missing or cannot be written.
        """
        from interp.concepts.page import page_of
        from interp.plots import write_browser

        write_browser(path, self.title, page_of(self, about))


def atlas(
    dictionary: Dictionary,
    store: Store,
    model: LanguageModel | None = None,
    *,
    sites: Sequence[str] = (),
    bins: Sequence[Sequence[int]] | None = None,
    latents: Sequence[int] | None = None,
    n: int = 8,
    quantiles: Sequence[float] = QUANTILES,
    before: int = 12,
    after: int = 6,
    rows: CodedRows | None = None,
    progress: Progress = silent,
) -> Atlas:
    """Examples of every latent of a dictionary, from a harvest.

    Args:
        dictionary: that reads the store's activations.
        store: of `harvest_texts` or `harvest_pictures`.
        model: whose tokens a store of texts holds.
        sites: that the dictionary reads, side by side; the store's only one, if not given.
        bins: sets of denoising steps, as the dictionary was trained with.
        latents: that are shown; all that are on anywhere, if not given.
        n: strongest examples of each, of different texts or pictures.
        quantiles: of the ordinary ones.
        before: tokens that are shown before the one in question; after: behind it.
        rows: the store's codes, if they are known already (`coded_rows`).

    Raises:
        InterpError: a store of texts without a model, or of another model's; no latent is on anywhere.
        ShapeError: rows of another width than the dictionary's; a latent that is not there; n below 1.
        SiteError: a site that was not harvested.
    """
    import xarray as xr

    names = store.checked(tuple(sites))
    texts = store.about.get("inputs") == "texts"
    if texts and model is None:
        raise InterpError("A store of texts holds numbers of tokens; give the model whose tokens they are.")
    if model is not None and store.about.get("weights") != model.weights_hash:
        raise InterpError(f"The store was harvested from {store.about.get('model')}, which is not this {model.name}.")
    if n < 1:
        raise ShapeError(f"n is {n}; give at least one example.")
    coded = rows if rows is not None else coded_rows(dictionary, store.activations(*names, bins=bins), progress)
    if coded.n_rows != len(store) or coded.n_latents != dictionary.n_latents:
        raise ShapeError(
            f"Codes of {coded.n_rows} rows and {coded.n_latents} latents, for a store of {len(store)} and a "
            f"dictionary of {dictionary.n_latents}."
        )
    chosen = coded.count.nonzero()[0] if latents is None else checked_latents(list(latents), coded.n_latents).numpy()
    if not len(chosen):
        raise InterpError(f"No latent is on in any of {len(store)} rows: nothing can be shown.")
    numbers_of = chosen.tolist()
    group = store.label("text" if texts else "picture").numpy()
    found = np.full((len(chosen), n + len(quantiles)), -1, np.int64)
    for number, latent in enumerate(progress(numbers_of, f"examples of {len(chosen)} latents")):
        best, ordinary = coded.strongest(latent, n, group), coded.spread(latent, quantiles, group)
        found[number, : len(best)], found[number, n : n + len(ordinary)] = best, ordinary
    example = [f"strongest {i + 1}" for i in range(n)] + [
        f"{quantile:.0%}".replace("%", " %") for quantile in quantiles
    ]
    numbers = {
        "share": ("latent", coded.count[chosen] / coded.n_rows, {"units": "of rows"}),
        "strongest": ("latent", np.array([max(coded.of(i)[1], default=0.0) for i in numbers_of]), _CODE),
        "mean": ("latent", np.array([coded.of(i)[1].mean() if coded.count[i] else 0.0 for i in numbers_of]), _CODE),
        "histogram": (("latent", "bin"), coded.histogram(numbers_of)),
        "row": (("latent", "example"), found),
    }
    shown = (
        _in_texts(store, model, coded, chosen, found, before, after)
        if texts
        else _in_pictures(store, coded, chosen, found)
    )
    data = xr.Dataset(numbers | shown, {"latent": chosen, "example": example, "bin": BINS[:-1]})
    if texts:
        data = data.assign_coords(offset=np.arange(-before, after + 1))
    about = provenance(
        experiment="atlas", model=store.about.get("model"), weights=store.about.get("weights"), site=" + ".join(names),
        kind=dictionary.kind, dictionary=mark_of(dictionary), n_latents=dictionary.n_latents, n_rows=coded.n_rows,
        n_inputs=store.about.get("n_inputs"),
        n_dead=int((coded.count == 0).sum()), inputs=store.about.get("inputs"),
    )  # fmt: skip
    return Atlas(data, about)


_CODE = {"units": "standardised activation"}


def _in_texts(
    store: Store, model: LanguageModel | None, coded: CodedRows, chosen: Int[np.ndarray, "latent"],
    found: Int[np.ndarray, "latent example"], before: int, after: int,
) -> dict[str, Any]:  # fmt: skip
    """Tokens and activations around each example."""
    assert model is not None
    text, position, token = (store.label(name).numpy() for name in ("text", "position", "token"))
    offset = np.arange(-before, after + 1)
    near = found[..., None] + offset
    at = np.clip(near, 0, len(text) - 1)
    here = (found[..., None] >= 0) & (near == at) & (text[at] == text[found][..., None])
    here &= position[at] - position[found][..., None] == offset  # a text's pieces lie apart
    ids = np.unique(token[at[here]])
    words = np.array([*token_strings(model.tokenizer, ids.tolist()), ""], dtype=object)
    strings = words[np.where(here, np.searchsorted(ids, token[at]).clip(0, len(ids) - 1), len(ids))]
    activation = np.zeros(near.shape, np.float32)
    for number, latent in enumerate(chosen.tolist()):
        column = coded.column(latent)
        activation[number] = np.where(here[number], column[at[number]], 0)
    over = ("latent", "example", "offset")
    return {
        "token": (over, strings),
        "activation": (over, activation, _CODE),
        "value": (over[:2], np.where(found >= 0, activation[..., before], np.nan), _CODE),
    }


def _in_pictures(
    store: Store, coded: CodedRows, chosen: Int[np.ndarray, "latent"], found: Int[np.ndarray, "latent example"]
) -> dict[str, Any]:
    """The pictures of the examples, and the latent in every cell of them."""
    picture, branch, cell, step = (store.label(name).numpy() for name in ("picture", "branch", "cell", "step"))
    height, width = store.about["grid"]
    # Within a picture and branch, steps are innermost and cells around them.
    apart = len(store.kept_steps)
    first = found - cell[found] * apart
    rows = np.where(found[..., None] >= 0, first[..., None] + np.arange(height * width) * apart, 0)
    same = (picture[rows] == picture[found][..., None]) & (step[rows] == step[found][..., None])
    same &= (branch[rows] == branch[found][..., None]) & (cell[rows] == np.arange(height * width))
    if not same[found >= 0].all():
        raise ShapeError(f"{store.folder} does not hold whole pictures, cell by cell.")
    activation = np.zeros(rows.shape, np.float32)
    for number, latent in enumerate(chosen.tolist()):
        activation[number] = np.where(found[number][:, None] >= 0, coded.column(latent)[rows[number]], 0)
    shown, number = np.unique(picture[found[found >= 0]], return_inverse=True)
    which = np.full(found.shape, -1, np.int64)
    which[found >= 0] = number
    over = ("latent", "example")
    return {
        "pictures": (("shown", "y", "x", "rgb"), store.extra("pictures").numpy()[shown]),
        "prompt": ("shown", np.array([store.texts("prompts")[i] for i in shown], dtype=object)),
        "picture": (over, which),
        "step": (over, np.where(found >= 0, step[found], -1)),
        "activation": ((*over, "cell_y", "cell_x"), activation.reshape(*found.shape, height, width), _CODE),
        "value": (
            over,
            np.where(found >= 0, np.take_along_axis(activation, cell[found][..., None], -1)[..., 0], np.nan),
            _CODE,
        ),
    }


def _nothing(data: Dataset) -> dict[Any, Any]:
    """What stands where a variable does not speak of a latent."""
    empty = {"U": "", "O": "", "b": False, "i": -1, "u": 0}
    return {name: empty.get(variable.dtype.kind, np.nan) for name, variable in data.data_vars.items()}
