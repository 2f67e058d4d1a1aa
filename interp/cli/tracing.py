"""`interp trace` and `interp patch`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from interp.cli.shared import TASKS, Html, Json, Model, Out, Png, deliver, errors_told, named_task
from interp.errors import InterpError

SWAPS = ("colour", "shape", "size", "cell", "background")


def trace(
    prompt: Annotated[str, typer.Argument(help="The text whose next token is the fact, or that asks for a picture.")],
    subject: Annotated[str | None, typer.Option(help="The words of the text that the fact is about.")] = None,
    attribute: Annotated[str | None, typer.Option(help="Of a picture: the word that is traced.")] = None,
    answer: Annotated[str | None, typer.Option(help="The continuation; the model's own if not given.")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Text: resid_post (default), resid_pre, resid_mid, mlp_out, attn_out. Picture: cross_attn_out "
            "(default), block_out …, or of its text encoder: embed, resid_post …"
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Adjacent layers (1), or steps (half of them), restored together.")
    ] = None,
    matching: Annotated[
        str, typer.Option(help="Of a picture: clean values of the same state, or trajectory.")
    ] = "state",
    seeds: Annotated[int, typer.Option(help="Of a picture: how many draws of the starting noise.")] = 8,
    noises: Annotated[int, typer.Option(help="Noise draws; fewer than ten say little.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the noise and of the intervals.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Causal tracing: which states, restored, bring a fact (or an attribute of a picture) back?"""
    import interp
    from interp.progress import bar, silent

    with errors_told():
        loaded, progress = interp.load(model), silent if as_json else bar
        if isinstance(loaded, interp.Denoiser):
            if attribute is None:
                raise InterpError(f"{model} makes pictures: name the word that is traced with --attribute.")
            result = interp.trace_image(
                loaded, prompt, attribute=attribute, part=part or "cross_attn_out", window=window, seeds=seeds,
                matching=_matching(matching), seed=seed, progress=progress,
            )  # fmt: skip
        else:
            if subject is None:
                raise InterpError(f"{model} is a language model: name the words that the fact is about with --subject.")
            result = interp.trace(
                loaded, prompt, subject=subject, answer=answer, part=part or "resid_post", window=window or 1,
                noises=noises, seed=seed, progress=progress,
            )  # fmt: skip
        deliver(result, "Causal trace", html, as_json, out, png)


def patch(
    task: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(TASKS)} (the first if not given), or a .jsonl or .csv file of pairs; of pictures the "
            f"attribute that is swapped: {', '.join(SWAPS)}."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="The state to patch: resid_pre (default), z, mlp_out …; of pictures cross_attn_out …"),
    ] = None,
    over: Annotated[str | None, typer.Option(help="Axes of the grid: layer,pos or layer,head or …")] = None,
    n: Annotated[int, typer.Option(help="Number of pairs; of a file, all are taken.")] = 8,
    noising: Annotated[
        bool, typer.Option(help="Corrupted values into the clean run, not the other way round.")
    ] = False,
    metric: Annotated[str, typer.Option(help="Of the answer: logit_difference, probability, …")] = "logit_difference",
    matching: Annotated[str, typer.Option(help="Of pictures: values of the same state, or trajectory.")] = "state",
    seed: Annotated[int, typer.Option(help="Draws the pairs; of intervals and tests, too.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Activation patching: which states carry the answer from one prompt to the other?"""
    import interp
    from interp.progress import bar, silent

    with errors_told():
        loaded, progress = interp.load(model), silent if as_json else bar
        axes, direction = None if over is None else over.split(","), "noising" if noising else "denoising"
        if isinstance(loaded, interp.Denoiser):
            pairs = interp.tasks.swaps(n, task or "colour", seed)
            result = interp.patch(
                loaded, pairs, part, over=axes, direction=direction, matching=_matching(matching), metric=metric,
                seed=seed, progress=progress,
            )  # fmt: skip
        else:
            pairs = named_task(task or TASKS[0], n, seed)
            result = interp.patch(
                loaded, pairs, part, over=axes, direction=direction, metric=metric, seed=seed, progress=progress
            )
        deliver(result, "Activation patching", html, as_json, out, png)


def _matching(name: str) -> Literal["state", "trajectory"]:
    if name == "state" or name == "trajectory":
        return name
    raise InterpError(f"There is no matching {name!r}; it is 'state' or 'trajectory'.")
