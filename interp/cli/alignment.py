"""`interp align` and `interp abstraction`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.shared import Html, Json, Model, Out, Png, deliver, errors_told, numbers


def align(
    task: Annotated[
        str, typer.Option(help="ioi-position, ioi-identity, subject-number, price-left, addition-carry, …")
    ] = "ioi-position",
    layers: Annotated[str | None, typer.Option(help="8:20 (without the last), or 3,8,13; all if not given.")] = None,
    regions: Annotated[str | None, typer.Option(help="last, giver, …: names of the task's; all if not given.")] = None,
    rank: Annotated[str, typer.Option(help="Coordinates per variable, one or several: 1,4,16.")] = "4",
    part: Annotated[
        str, typer.Option(help="The state to align: resid_pre, resid_post, mlp_out, attn_out …")
    ] = "resid_pre",
    n: Annotated[int, typer.Option(help="Examples that maps are fitted to.")] = 256,
    held_out: Annotated[int, typer.Option(help="Examples, with other values, that they are judged on.")] = 128,
    steps: Annotated[int, typer.Option(help="Of training.")] = 200,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 16,
    screen: Annotated[
        int, typer.Option(help="Places (layer and region) that go on after a short training at all; 0: all of them.")
    ] = 4,
    screen_steps: Annotated[int, typer.Option(help="Of the short training, at the highest rank.")] = 20,
    controls: Annotated[bool, typer.Option(help="Run the controls, without which an IIA says little.")] = True,
    among_answers: Annotated[
        bool, typer.Option(help="The answer is the best of the task's, not of the vocabulary.")
    ] = False,
    only_right: Annotated[bool, typer.Option(help="Leave out examples that the model gets wrong.")] = True,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder to go on from.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the examples, the maps' starts and the shuffle.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Where does the model hold a variable of a causal model? Interchange accuracy by layer, region and rank."""
    import interp
    from interp import alignment
    from interp.progress import bar, silent
    from interp.tasks.causal_models import interchange

    with errors_told():
        train, test = interchange(task, n, seed, "train"), interchange(task, held_out, seed + 1, "held out")
        result = alignment.align(
            interp.load(model), train, test, part=part, layers=None if layers is None else numbers("--layers", layers),
            regions=None if regions is None else regions.split(","), ranks=numbers("--rank", rank),
            training=alignment.Training(steps=steps, batch=batch, seed=seed),
            screening=alignment.Screening(screen, screen_steps) if screen else None,
            controls=alignment.CONTROLS if controls else (), among_answers=among_answers, only_right=only_right,
            seed=seed, checkpoint=checkpoint, progress=silent if as_json else bar,
        )  # fmt: skip
        deliver(result, "Alignment", html, as_json, out, png)


def abstraction(
    found: Annotated[list[Path], typer.Argument(help="What `interp align --out` wrote, one file for each variable.")],
    task: Annotated[str, typer.Option(help="One of the causal model's: subject-number, country-capital …")],
    n: Annotated[int, typer.Option(help="Held-out examples for every set of variables.")] = 64,
    train: Annotated[
        int, typer.Option(help="Examples that the control with random weights is fitted to; 0 leaves it out.")
    ] = 128,
    among_answers: Annotated[
        bool, typer.Option(help="The answer is the best of the task's, not of the vocabulary.")
    ] = False,
    only_right: Annotated[bool, typer.Option(help="Leave out examples that the model gets wrong.")] = True,
    seed: Annotated[int, typer.Option(help="Draws the examples; not that of the searches.")] = 100,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Does the model compute as a whole causal model does? Every set of variables exchanged, and where that fails."""
    import interp
    from interp import alignment
    from interp.progress import bar, silent
    from interp.tasks.causal_models import INTERCHANGES
    from interp.tasks.pairs import check_choice

    with errors_told():
        check_choice("interchange task", task, INTERCHANGES)
        family = INTERCHANGES[task]
        searches = [alignment.Alignment.load(path) for path in found]
        aligned = [one.aligned() for one in searches]
        sets = list(alignment.subsets([variable for one in aligned for variable in one.variables]))
        held_out = [family.generate(n, seed, variables=some, split="held out") for some in sets]
        known = [family.generate(train, seed, variables=some, split="train") for some in sets] if train else []
        result = alignment.language_abstraction(
            interp.load(model), family.model(), aligned, held_out, train=known,
            training=alignment.Training(**searches[0].provenance["training"]), among_answers=among_answers,
            only_right=only_right, seed=seed, progress=silent if as_json else bar,
        )  # fmt: skip
        deliver(result, "Causal abstraction", html, as_json, out, png)
