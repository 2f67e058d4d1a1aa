"""`interp steer`."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli.shared import Html, Json, Model, Out, Png, console, deliver, doses_of, errors_told
from interp.errors import InterpError


def steer(
    prompt: Annotated[
        str | None, typer.Argument(help="A text to continue at each dose; without it doses are judged.")
    ] = None,
    concept: Annotated[str, typer.Option(help="sentiment, french or sea.")] = "sentiment",
    layer: Annotated[int, typer.Option(help="Whose output (resid_post) is steered.")] = 12,
    method: Annotated[str, typer.Option(help="How the direction is found: mean, pca or probe.")] = "mean",
    doses: Annotated[str, typer.Option(help="In mean lengths of a state; 0 is the model as it is.")] = "0,0.1,0.2,0.3",
    n: Annotated[int, typer.Option(help="Prompts that doses are judged on.")] = 20,
    tokens: Annotated[int, typer.Option(help="New tokens of each continuation.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the draws and of the random direction.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Json = False,
    out: Out = None,
    png: Png = None,
) -> None:
    """Steer text along the direction of a concept: what does each dose bring, and what does it damage?"""
    import interp
    from interp.progress import bar, silent
    from interp.steering import TextGoal, dose_response, language_states, random_concept
    from interp.steering import concept as between
    from interp.tasks.concept_texts import concept_texts

    with errors_told():
        numbers, data = doses_of(doses), concept_texts(concept)
        if prompt is None and not 2 <= n <= len(data.prompts):
            raise InterpError(f"--n {n}: doses are judged on 2 to {len(data.prompts)} prompts.")
        loaded = interp.load(model)
        if not isinstance(loaded, interp.LanguageModel):
            raise InterpError(f"{model} makes pictures; they are steered from Python: docs/steering.md.")
        site = interp.Site("resid_post", layer)
        sides = (language_states(loaded, texts, [site])[0] for texts in (data.positive, data.negative))
        found = between(data.name, *sides, method=method)
        if prompt is not None:
            if beside := [o for o, on in (("--json", as_json), ("--out", out), ("--html", html), ("--png", png)) if on]:
                raise InterpError(f"{beside[0]} belongs to judged doses: leave out the prompt.")
            for dose in numbers:
                console.print(f"dose {dose:g}:", style="bold", end=" ")
                settings = {"max_new_tokens": tokens, "temperature": 0.7, "seed": seed}
                for piece in interp.steer(loaded, found.add(dose)).stream(prompt, **settings):
                    console.print(piece[0], end="", markup=False, highlight=False)
                console.print()
            return
        goal = TextGoal(data.name, data.prompts[:n], data.judge, data.unrelated, data.reworded[:n])
        methods = {method: found.add, "random direction": random_concept(found, seed).add}
        result = dose_response(
            loaded, goal, methods, numbers, max_new_tokens=tokens, seed=seed, progress=silent if as_json else bar
        )
        deliver(result, result.title, html, as_json, out, png)
