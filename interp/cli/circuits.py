"""`interp circuit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.shared import TASKS, Html, Model, Png, console, errors_told, named_task, say
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.circuits import Circuit, EdgeScores, Evaluation
    from interp.tasks import Task


def circuit(
    task: Annotated[
        str,
        typer.Option(help=f"{', '.join(TASKS)}, or a .jsonl or .csv file of pairs (of which every third is held out)."),
    ] = TASKS[0],
    method: Annotated[
        str,
        typer.Option(
            help="Scores of edges: eap-ig, eap-ig-activations, eap, exact, edge-masks, information-flow, random; or "
            "acdc, which takes edges away."
        ),
    ] = "eap-ig",
    edges: Annotated[int | None, typer.Option(help="Size of the circuit: 200 if not given.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Instead of a size: every edge whose |score| is at least this. Of acdc, what it must cost to take an "
            "edge away, for it to stay."
        ),
    ] = None,
    grow: Annotated[bool, typer.Option(help="Grow it from the logits, not just the edges of highest |score|.")] = True,
    steps: Annotated[
        int | None, typer.Option(help="Of integrated gradients: 5 if not given; of edge-masks' training: 300.")
    ] = None,
    penalty: Annotated[
        float | None,
        typer.Option(help="Of edge-masks: what an open edge costs, in the metric's unit; 0.01 if not given."),
    ] = None,
    ablation: Annotated[
        str | None,
        typer.Option(
            help="What edges outside carry: resample (the corrupted run; if not given), resample-other, mean or zero. "
            "Of the evaluation, and of methods that know more than one."
        ),
    ] = None,
    n: Annotated[int, typer.Option(help="Pairs that it is found on, and as many to evaluate; of a file, all.")] = 16,
    held_out: Annotated[bool, typer.Option(help="Evaluate on templates and names that it was not found on.")] = True,
    tests: Annotated[
        bool, typer.Option(help="Test it: sufficiency, necessity, minimality, completeness (about 120 passes).")
    ] = True,
    curve: Annotated[bool, typer.Option(help="Evaluate circuits of all sizes, too: CPR and CMD.")] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit_difference, probability, … If not given, logit_difference; acdc and edge-masks then keep the "
            "whole distribution (negative_kl)."
        ),
    ] = None,
    only_right: Annotated[bool, typer.Option(help="Leave out pairs that the model gets wrong.")] = False,
    seed: Annotated[int, typer.Option(help="Draws the pairs, the random circuits and the intervals.")] = 0,
    model: Model = "smollm2-135m",
    html: Html = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print circuit and evaluation as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the circuit here (NetCDF).")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Write its evaluation here (NetCDF).")] = None,
    mib: Annotated[Path | None, typer.Option(help="Write the circuit here as EAP-IG and MIB read it (JSON).")] = None,
    png: Png = None,
) -> None:
    """Find the circuit of a task, and say how far to trust it."""
    import interp
    from interp import circuits
    from interp.circuits.select import check_size
    from interp.progress import bar, silent

    with errors_told():
        found_on, evaluated_on = _halves(task, n, seed, held_out)
        progress = silent if as_json else bar
        given = {"steps": steps, "penalty": penalty, "ablation": ablation, "metric": metric}
        options = _options(method, edges, threshold, curve, given)
        usual = {"seed": seed, "progress": progress, "only_right": only_right}
        options |= {name: value for name, value in usual.items() if name in _takes(method)}
        loaded, scores = interp.load(model), None
        if method == "acdc":
            found = circuits.acdc(loaded, found_on, **options)
        else:
            size = 200 if edges is None else edges
            if threshold is None:
                check_size(circuits.Graph.of(loaded), size)  # before the work
            scores = circuits.score(loaded, found_on, method, **options)
            pick = circuits.greedy if grow else circuits.top_n
            found = pick(scores, size) if threshold is None else circuits.threshold(scores, threshold)
        about = {name: value for name, value in given.items() if name in ("metric", "ablation") and value is not None}
        about |= {"only_right": only_right, "seed": seed, "progress": progress}
        trials = circuits.Trials() if tests else None
        judged = [circuits.evaluate(loaded, evaluated_on, found, trials=trials, **about)]
        if curve and scores is not None:
            judged.append(circuits.evaluate(loaded, evaluated_on, scores, grow=grow, trials=None, **about))
        found = circuits.Circuit(found.data, {**found.provenance, "verdict": judged[0].verdict})
        _deliver_circuit(found, scores, judged, html, as_json, png)
        written = {out: found.save, evaluation: judged[-1].save, mib: lambda path: circuits.write_mib(found, path)}
        for path, write in written.items():
            if path is not None:
                write(path)
                say(f"wrote {path}", as_json)


def _halves(name: str, n: int, seed: int, held_out: bool) -> tuple[Task, Task]:
    """Pairs to find a circuit on and pairs to evaluate it on: of the same task, with nothing in common if held out."""
    from interp.tasks.pairs import part_of

    if not held_out or name in TASKS:
        splits = ("train", "held out") if held_out else ("all", "all")
        first, second = (named_task(name, n, seed, split) for split in splits)
        return first, second
    given = named_task(name, n, seed)
    if len(given) < 3:
        raise InterpError(f"{name} has {len(given)} pairs, too few to hold some out; give three or --no-held-out.")
    return given.select(part_of(range(len(given)), "train")), given.select(part_of(range(len(given)), "held out"))


def _options(
    method: str, edges: int | None, threshold: float | None, curve: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """What was asked of the method, checked before the work.

    Args:
        given: options that only some methods take; None where not given.
    """
    from interp.circuits import Ablation
    from interp.circuits.score import METHODS

    if method not in (*METHODS, "acdc"):
        raise InterpError(f"There is no method {method!r} that finds circuits." + nearest(method, [*METHODS, "acdc"]))
    if edges is not None and threshold is not None:
        raise InterpError(f"--edges {edges} and --threshold {threshold:g} ask for two circuits; give one of them.")
    asked = {name: value for name, value in given.items() if value is not None}
    if method == "acdc":
        if edges is not None:
            raise InterpError(
                "--edges: acdc takes edges away that cost less than --threshold, and how many are left follows; eap-ig "
                "ranks them."
            )
        if threshold is None:
            raise InterpError("acdc needs --threshold: what it must cost, in the metric's unit, to take an edge away.")
        if curve:
            raise InterpError("--curve: acdc finds one circuit and ranks no edges; eap-ig does.")
        asked["threshold"] = threshold
    if "ablation" in asked:
        Ablation.of(asked["ablation"])
        if "ablation" not in _takes(method):  # it is for the evaluation; the method knows the corrupted run alone
            del asked["ablation"]
    for name in (name for name in asked if name not in _takes(method)):
        others = ", ".join(other for other in (*METHODS, "acdc") if name in _takes(other))
        raise InterpError(f"--{name}: {method} takes no such option; methods that do: {others}.")
    return asked


def _takes(method: str) -> set[str]:
    """Names of a method's options."""
    from inspect import Parameter, signature

    from interp.circuits import acdc
    from interp.circuits.score import METHODS

    parameters = signature(acdc if method == "acdc" else METHODS[method]).parameters.values()
    return {one.name for one in parameters if one.kind is Parameter.KEYWORD_ONLY or one.name == "threshold"}


def _deliver_circuit(
    found: Circuit,
    scores: EdgeScores | None,
    judged: list[Evaluation],
    html: Path | None,
    as_json: bool,
    png: Path | None,
) -> None:
    from interp.plots import write_png, write_report

    if as_json:
        parts = [f'"circuit": {found.to_json()}', f'"evaluation": {judged[-1].to_json()}']
        sys.stdout.write("{" + ", ".join(parts) + "}\n")
    else:
        for result in (found, *judged):
            console.print(result.summary(), markup=False, highlight=False)
    graph = found.plot()
    if html is not None:
        sections = [
            (found.title, [found.summary(), judged[0].summary()], graph),
            *((result.title, [result.summary()], result.plot()) for result in judged[1:]),
            *([] if scores is None else [("Where the scores are", [scores.summary()], scores.plot())]),
            ("The edges", [], found.table()),
        ]
        write_report(html, found.title, sections)
        say(f"wrote {html}", as_json)
    if png is not None:
        write_png(graph, png)
        say(f"wrote {png}", as_json)
