"""`interp concepts steer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from interp.cli.concepts import opened
from interp.cli.shared import Html, Model, Png, console, doses_of, errors_told
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    import pandas

    from interp.dictionaries import Dictionary, Store
    from interp.models.language_model import LanguageModel
    from interp.steering import Concept


def steer_latent(
    folder: Annotated[Path, typer.Argument(help="Of `interp concepts fit`.")],
    prompt: Annotated[str, typer.Argument(help="A text to continue, or that asks for pictures.")],
    latent: Annotated[int, typer.Option(help="Its number.")],
    doses: Annotated[
        str, typer.Option("--doses", "--dose", help="In the latent's usual code where it is on; of multiply, factors.")
    ] = "1,2,4",
    form: Annotated[str, typer.Option(help="add; clamp, whatever its code was; or multiply, where it is on.")] = "add",
    tokens: Annotated[int, typer.Option(help="New tokens of each continuation.")] = 30,
    n: Annotated[int, typer.Option(help="Pictures.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the draws, the noise and the random direction.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    png: Png = None,
) -> None:
    """Steer by a latent: the model as it is, at each dose, and under a random direction of the same size."""
    import interp
    from interp.plots import picture_grid, write_png, write_report
    from interp.steering import random_concept

    with errors_told():
        if form not in (forms := ("add", "clamp", "multiply")):
            raise InterpError(f"There is no form {form!r}." + nearest(form, forms))
        numbers, loaded = doses_of(doses), interp.load(model)
        of_texts = isinstance(loaded, interp.LanguageModel)
        if of_texts and png is not None:
            raise InterpError(f"{model} writes texts: there is no picture for --png.")
        if not of_texts and png is None and html is None:
            raise InterpError(f"{model} makes pictures: say where they go, with --png or --html.")
        store, dictionary = opened(folder, loaded)
        ours = _concept(store, dictionary, latent, seed)
        ways = {f"latent {latent}": ours, "random direction": random_concept(ours, seed)}
        title = f"{prompt!r}: {form} latent {latent} of {store.sites[0]}"
        where = {} if of_texts else {"when": interp.When(branch=interp.Branch.COND)}
        edits = {
            (way, dose): getattr(one, form)(dose, **({} if form == "multiply" else {"unit": "gap"}), **where)
            for way, one in ways.items() for dose in numbers
        }  # fmt: skip
        if isinstance(loaded, interp.LanguageModel):
            shown = _continuations(loaded, prompt, edits, tokens, seed)
            table = Table("dose", *ways, title=Text(title), show_lines=True)
            for dose, *cells in shown.itertuples(index=False):
                table.add_row(dose, *map(Text, cells))
            console.print(table)
            figure: Any = shown
        else:
            settings = {"steps": store.about["steps"], "guidance": store.about["guidance"]}
            seeds = range(seed, seed + n)
            columns = {"unsteered": interp.run(loaded, prompt, seeds=seeds, **settings).pictures()} | {
                f"{way}, {dose:g}": interp.steer(loaded, some)(prompt, seeds=seeds, **settings)
                for (way, dose), some in edits.items()
            }
            arrays = {name: np.stack([np.asarray(picture) for picture in some]) for name, some in columns.items()}
            figure = picture_grid(arrays, rows=[f"noise {i}" for i in seeds], title=title)
        if html is not None:
            write_report(html, "Steered by a latent", [(title, [], figure)])
        if png is not None:
            write_png(figure, png)
        for path in (html, png):
            if path is not None:
                console.print(f"wrote {path}", markup=False)


def _concept(store: Store, dictionary: Dictionary, latent: int, seed: int) -> Concept:
    """A latent as a concept whose gap is its mean code where it is on, so that a dose of 1 is on as usual.

    Every row of the harvest is an example: those where it is on are the positive ones, as many others are negative.
    """
    import torch

    from interp import Site
    from interp.concepts import coded_rows
    from interp.progress import bar
    from interp.steering import Measured, concept_of_latent

    unit = dictionary.unit(latent)  # before the work: some kinds have none
    on = coded_rows(dictionary, store.activations(), bar).of(latent)[0]
    off = np.setdiff1d(np.arange(len(store)), on)
    if not len(on) or not len(off):
        raise InterpError(f"Latent {latent} is on in {len(on)} of {len(store)} rows, so it has no usual strength.")
    drawn = np.random.default_rng(seed).choice(off, min(len(off), len(on)), replace=False)
    chosen = torch.from_numpy(np.concatenate([on, drawn]))
    states = store.activations().batch(chosen).x.float()
    found = Measured(Site.parse(store.sites[0]), states[None], torch.arange(len(chosen)), len(chosen))
    positive, negative = range(len(on)), range(len(on), len(chosen))
    return concept_of_latent(f"latent {latent}", unit, found, positive, negative)


def _continuations(
    model: LanguageModel, prompt: str, edits: Mapping[tuple[str, float], Any], tokens: int, seed: int
) -> pandas.DataFrame:
    """A row without edits, and one for each dose with a column for each way."""
    import pandas

    import interp

    settings = {"max_new_tokens": tokens, "temperature": 0.7, "seed": seed}
    plain = interp.generate(model, prompt, **settings).texts[0]
    ways, doses = (list(dict.fromkeys(names)) for names in zip(*edits, strict=True))
    rows = [{"dose": "unsteered"} | dict.fromkeys(ways, plain)]
    for dose in doses:
        answered = {way: interp.steer(model, edits[way, dose]).generate(prompt, **settings).texts[0] for way in ways}
        rows.append({"dose": f"{dose:g}"} | answered)
    return pandas.DataFrame(rows)
