"""`interp concepts`: dictionaries of a site, and graphs of their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from interp.cli.shared import Json, Model, Out, Png, console, deliver, errors_told, numbers, say
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.concepts import Atlas, CodedRows, ConceptLevel
    from interp.dictionaries import Dictionary, Store
    from interp.models.denoiser import Denoiser, Sampling
    from interp.models.language_model import LanguageModel
    from interp.models.prompts import Prompts
    from interp.progress import Progress


def fit(
    folder: Annotated[
        Path, typer.Argument(help="For the harvest and the dictionary; a harvest there is gone on with.")
    ],
    site: Annotated[str, typer.Option(help="Whose activations are taken apart, as L15.resid_post.")] = "L15.resid_post",
    kind: Annotated[str, typer.Option(help="Of dictionary: topk, batch_topk or matryoshka.")] = "batch_topk",
    latents: Annotated[int, typer.Option(help="How many.")] = 2048,
    k: Annotated[int, typer.Option(help="Latents that are on per row, on average.")] = 32,
    texts: Annotated[
        Path | None, typer.Option(help="A text file, one text a line; Python's manual if not given.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Texts, or pictures of the shapes world (100 if not given).")] = None,
    steps: Annotated[int, typer.Option(help="Of the training.")] = 1000,
    batch: Annotated[int, typer.Option(help="Rows per step.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the pictures, the atoms, and the order of rows.")] = 0,
    model: Model = "smollm2-135m",
) -> None:
    """Harvest activations and train a dictionary of them."""
    import interp
    from interp import dictionaries as dic
    from interp.progress import bar

    with errors_told():
        if kind not in (chosen := ("topk", "batch_topk", "matryoshka")):
            raise InterpError(f"--kind {kind!r}: these take --k." + nearest(kind, chosen))
        loaded = interp.load(model)
        if isinstance(loaded, interp.LanguageModel):
            store = dic.harvest_texts(loaded, _texts(texts, n), [site], folder / "store", progress=bar)
        elif texts is not None:
            raise InterpError(f"{model} makes pictures; leave out --texts, or give a language model.")
        else:
            from interp.shapes.scene import sample_scenes

            scenes = sample_scenes(100 if n is None else n, seed)
            store = dic.harvest_pictures(loaded, scenes, [site], folder / "store", seed=seed, progress=bar)
        console.print(repr(store), markup=False, highlight=False)
        kinds: dict[str, Any] = dict(dic.KINDS)
        prefixes = {"prefixes": (latents // 16, latents // 4, latents)} if kind == "matryoshka" else {}
        made = kinds[kind](store.standardisation(), latents, k=k, seed=seed, **prefixes)
        training = dic.Training(steps=steps, batch=batch, seed=seed)
        curve = dic.train(made, store.activations(), training, progress=bar)
        console.print(curve.summary(), markup=False, highlight=False)
        dic.save(made, folder / "dictionary", about=dict(curve.provenance))
        console.print(f"wrote {folder / 'dictionary'}", markup=False)


def show(
    folder: Annotated[Path, typer.Argument(help="Of `interp concepts fit`.")],
    latents: Annotated[str | None, typer.Option(help="Numbers, such as 3,17 or 0:100; all if not given.")] = None,
    labels: Annotated[bool, typer.Option(help="Whether labels of a vocabulary are suggested, and tested.")] = True,
    effects: Annotated[bool, typer.Option(help="Whether the effect on the next token is measured.")] = True,
    model: Model = "smollm2-135m",
    html: Annotated[Path | None, typer.Option(help="Write the concept browser here.")] = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Where is each latent on, what is it called, what does it do? As a page to browse."""
    import interp
    from interp import dictionaries as dic
    from interp.concepts import atlas, cell_labels, coded_rows, label_latents, token_effects, token_labels
    from interp.progress import bar, silent

    with errors_told():
        progress = silent if as_json else bar
        store, dictionary = dic.Store.open(folder / "store"), dic.load(folder / "dictionary")
        of_texts = store.about.get("inputs") == "texts"
        loaded = interp.load(model) if of_texts else None
        if loaded is not None and not isinstance(loaded, interp.LanguageModel):
            raise InterpError(f"{folder} holds a harvest of texts, and {model} is no language model.")
        rows = coded_rows(dictionary, store.activations(), progress)
        chosen = None if latents is None else numbers("--latents", latents)
        found = atlas(dictionary, store, loaded, latents=chosen, rows=rows, progress=progress)
        shown = [int(latent) for latent in found.data["latent"].values]
        if labels:
            held = cell_labels(store) if loaded is None else token_labels(store, loaded)
            group = store.label("picture" if loaded is None else "text").numpy()
            found = found.with_(label_latents(rows, held, group, shown, progress=progress))
        if effects and loaded is not None:
            amounts = found.data["mean"].values.tolist()
            found = found.with_(token_effects(loaded, dictionary, store.sites[0], shown, amounts, progress=progress))
        if html is not None:
            found.browse(html)
            say(f"wrote {html}", as_json)
        deliver(found, found.title, None, as_json, out, png)


def graph(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Of `interp concepts fit`, in the order of computation; of pictures one, with --steps."),
    ],
    latents: Annotated[
        str | None, typer.Option(help="Of each level, such as 3,17/5,77; the most frequent if not given.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many latents a level has, if they are not given.")] = 8,
    density: Annotated[float, typer.Option(help="Those are on in at most this share of the rows.")] = 0.1,
    steps: Annotated[str | None, typer.Option(help="Of denoising, one for each level, such as 3,10.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A text file, one text a line; Python's manual if not given.")
    ] = None,
    n: Annotated[int, typer.Option(help="Texts, or prompts of the harvest of pictures.")] = 40,
    context: Annotated[int, typer.Option(help="Tokens of each text that are read.")] = 48,
    examples: Annotated[int, typer.Option(help="Places at which each parent is clamped.")] = 24,
    draws: Annotated[int, typer.Option(help="Directions of chance for each parent.")] = 25,
    shuffles: Annotated[int, typer.Option(help="Exchanges of examples, of the statistical null.")] = 25,
    quantile: Annotated[float, typer.Option(help="Of its null, above which a weight counts.")] = 0.99,
    labels: Annotated[
        bool, typer.Option(help="Whether the page suggests labels of a vocabulary, and tests them.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of places, directions and exchanges; of pictures the first noise.")] = 0,
    model: Model = "smollm2-135m",
    html: Annotated[Path | None, typer.Option(help="Write the concept browser here, with the graph drawn.")] = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Which concepts compose which? Edges between the latents of several sites, or of several steps of denoising."""
    import interp
    from interp.concepts import Clamping, browse_graph
    from interp.progress import bar, silent

    with errors_told():
        progress, loaded = silent if as_json else bar, interp.load(model)
        harvests = [opened(folder, loaded) for folder in folders]
        of_texts = isinstance(loaded, interp.LanguageModel)
        if of_texts == (steps is not None) or (len(folders) > 1 and not of_texts):
            raise InterpError("A graph of texts takes several folders, one of pictures a single folder and --steps.")
        at = [None] * len(harvests) if steps is None else numbers("--steps", steps)
        levels, rows = _levels(harvests * (1 if of_texts else len(at)), at, latents, top, density, progress)
        inputs = (
            _cut(loaded, _texts(texts, n), context) if isinstance(loaded, interp.LanguageModel)
            else _sampled(loaded, harvests[0][0], n, seed)
        )  # fmt: skip
        found = interp.concept_graph(
            loaded, inputs, levels, quantile=quantile, shuffles=shuffles,
            clamping=Clamping(examples, draws=draws, seed=seed), progress=progress,
        )  # fmt: skip
        if html is not None:
            browse_graph(html, found, _atlases(loaded, harvests, levels, rows, labels, progress))
            say(f"wrote {html}", as_json)
        deliver(found, found.title, None, as_json, out, png)


def opened(folder: Path, loaded: Any) -> tuple[Store, Dictionary]:
    """What `interp concepts fit` left.

    Raises:
        InterpError: a harvest of another model; a folder without one.
    """
    from interp import dictionaries as dic

    store, dictionary = dic.Store.open(folder / "store"), dic.load(folder / "dictionary")
    if store.about.get("weights") != loaded.weights_hash:
        raise InterpError(f"{folder} was harvested from {store.about.get('model')}, which is not this {loaded.name}.")
    return store, dictionary


def _levels(
    harvests: Sequence[tuple[Store, Dictionary]], at: Sequence[int | None], latents: str | None, top: int,
    density: float, progress: Progress,
) -> tuple[list[ConceptLevel], dict[str, CodedRows]]:  # fmt: skip
    """A level of each dictionary at its step, with the latents asked for; and by site the codes of its harvest."""
    from interp.concepts import ConceptLevel, coded_rows

    asked = [None] * len(harvests) if latents is None else latents.split("/")
    if len(asked) != len(harvests):
        raise InterpError(f"--latents {latents!r} is of {len(asked)} levels, and there are {len(harvests)}.")
    for (store, _), step in zip(harvests, at, strict=True):
        if step is not None and step not in store.kept_steps:
            raise InterpError(f"Step {step} was not harvested; there are {store.kept_steps}.")
    levels: list[ConceptLevel] = []
    rows: dict[str, CodedRows] = {}
    for (store, dictionary), step, some in zip(harvests, at, asked, strict=True):
        site = store.sites[0]
        if site not in rows:
            rows[site] = coded_rows(dictionary, store.activations(), progress)
        if some is None:
            step_of = store.label("step").numpy() if step is not None else None
            share = rows[site].share(np.ones(len(store), bool) if step_of is None else step_of == step)
            common = [i for i in np.argsort(-share, kind="stable").tolist() if 0 < share[i] <= density]
            if not common:
                raise InterpError(f"No latent of {site} is on in at most {density:g} of the rows; raise --density.")
            chosen = sorted(common[:top])
        else:
            chosen = numbers("--latents", some)
        levels.append(ConceptLevel(site if step is None else f"step {step}", dictionary, chosen, step))
    return levels, rows


def _cut(model: LanguageModel, texts: Sequence[str], context: int) -> Prompts:
    """The first tokens of texts."""
    from interp.models.prompts import from_token_lists

    whole = [model.tokenizer(text).input_ids[:context] for text in texts]
    return from_token_lists(model.tokenizer, [ids for ids in whole if len(ids) > 1], device=model.device)


def _sampled(model: Denoiser, store: Store, n: int, seed: int) -> Sampling:
    """The first prompts of a harvest, each in a noise of its own, with its steps and guidance."""
    prompts = store.texts("prompts")[:n]
    given = model.sampling(prompts, steps=store.about["steps"], guidance=store.about["guidance"])
    return replace(given, seeds=tuple(range(seed, seed + len(given))))


def _atlases(
    model: Any, harvests: Sequence[tuple[Store, Dictionary]], levels: Sequence[ConceptLevel],
    rows: Mapping[str, CodedRows], labels: bool, progress: Progress,
) -> dict[str, Atlas]:  # fmt: skip
    """The atlas of every level; steps of one dictionary share theirs."""
    from interp.concepts import atlas, cell_labels, label_latents, token_labels

    found: dict[str, Atlas] = {}
    for store, dictionary in harvests:
        own = [level for level in levels if level.dictionary is dictionary]
        shown, coded = sorted({int(i) for level in own for i in level.latents}), rows[store.sites[0]]
        of_texts = store.about.get("inputs") == "texts"
        made = atlas(dictionary, store, model if of_texts else None, latents=shown, rows=coded, progress=progress)
        if labels:
            held = token_labels(store, model) if of_texts else cell_labels(store)
            group = store.label("text" if of_texts else "picture").numpy()
            made = made.with_(label_latents(coded, held, group, shown, progress=progress))
        found |= {level.name: made for level in own}
    return found


def _texts(path: Path | None, n: int | None) -> list[str]:
    from interp.dictionaries import python_manual

    if path is None:
        return python_manual(n)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"--texts {path} cannot be read as text: {error}.") from error
    found = [line.strip() for line in lines if line.strip()][:n]
    if not found:
        raise InterpError(f"{path} holds no text.")
    return found
