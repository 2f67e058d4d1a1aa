"""The command line: the experiments, with their results as tables, pages and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from interp.circuits import Circuit, EdgeScores, Evaluation
    from interp.concepts import Atlas, CodedRows, ConceptLevel
    from interp.dictionaries import Dictionary, Store
    from interp.models.denoiser import Denoiser, Sampling
    from interp.models.language_model import LanguageModel
    from interp.models.prompts import Prompts
    from interp.results import Result
    from interp.steering import Concept
    from interp.tasks import Task

app = typer.Typer(
    help="Causal, mechanistic interpretability: trace facts, patch activations, find circuits, steer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
concepts = typer.Typer(help="Dictionaries of a site: train one, look at its concepts.", no_args_is_help=True)
app.add_typer(concepts, name="concepts")
console = Console()
TASKS = ("ioi", "facts", "capitals", "pronouns", "agreement", "greater-than", "docstring", "induction")
SWAPS = ("colour", "shape", "size", "cell", "background")

Model = Annotated[str, typer.Option(help="An embedded model, a hub id, or a folder.")]
Html = Annotated[Path | None, typer.Option(help="Write a self-contained page here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Out = Annotated[Path | None, typer.Option(help="Write the result here (NetCDF; interp.Result.load reads it).")]
Png = Annotated[Path | None, typer.Option(help="Write the picture here.")]


DEMO_PROMPT = "a large red circle at top left on a white background"


@contextmanager
def _told() -> Iterator[None]:
    """Say what was wrong with the input, without a traceback."""
    try:
        yield
    except InterpError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from error


@runtime_checkable
class _Plotted(Protocol):
    """A result with a title and a picture."""

    @property
    def title(self) -> str: ...
    def summary(self) -> str: ...
    def plot(self) -> plotly.graph_objects.Figure: ...
    def save(self, path: Path) -> None: ...
    def to_json(self) -> str: ...


@runtime_checkable
class _WithFailures(Protocol):
    """A result that knows on what it fails."""

    def failures(self) -> pandas.DataFrame: ...
    def plot_failures(self) -> plotly.graph_objects.Figure: ...


@runtime_checkable
class _WithPictures(Protocol):
    """A result that keeps pictures."""

    def plot_pictures(self) -> plotly.graph_objects.Figure: ...


def _deliver(
    result: _Plotted, heading: str, html: Path | None, as_json: bool, out: Path | None, png: Path | None
) -> None:
    from interp.plots import write_png, write_report

    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        console.print(result.summary(), markup=False, highlight=False)
    if out is not None:
        result.save(out)
    if html is not None:
        write_report(html, heading, _sections(result))
    if png is not None:
        write_png(result.plot(), png)
    for path in (out, html, png):
        if path is not None and not as_json:
            console.print(f"wrote {path}", markup=False)


def _sections(result: _Plotted) -> list[tuple[str, list[str], Any]]:
    """What a page shows: heading, paragraphs, and a figure or table."""
    sections: list[tuple[str, list[str], Any]] = [(result.title, [result.summary()], result.plot())]
    if isinstance(result, _WithPictures):
        sections.append(("Pictures", [], result.plot_pictures()))
    if isinstance(result, _WithFailures) and len(wrong := result.failures()):
        sections += [("Where it fails", [], result.plot_failures()), ("Every failure", [], wrong)]
    return sections


@app.command()
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

    with _told():
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
        _deliver(result, "Causal trace", html, as_json, out, png)


@app.command()
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

    with _told():
        loaded, progress = interp.load(model), silent if as_json else bar
        axes, direction = None if over is None else over.split(","), "noising" if noising else "denoising"
        if isinstance(loaded, interp.Denoiser):
            pairs = interp.tasks.swaps(n, task or "colour", seed)
            result = interp.patch(
                loaded, pairs, part, over=axes, direction=direction, matching=_matching(matching), metric=metric,
                seed=seed, progress=progress,
            )  # fmt: skip
        else:
            pairs = _task(task or TASKS[0], n, seed)
            result = interp.patch(
                loaded, pairs, part, over=axes, direction=direction, metric=metric, seed=seed, progress=progress
            )
        _deliver(result, "Activation patching", html, as_json, out, png)


def _matching(name: str) -> Literal["state", "trajectory"]:
    if name == "state" or name == "trajectory":
        return name
    raise InterpError(f"There is no matching {name!r}; it is 'state' or 'trajectory'.")


@app.command()
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

    with _told():
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
                _say(f"wrote {path}", as_json)


def _halves(name: str, n: int, seed: int, held_out: bool) -> tuple[Task, Task]:
    """Pairs to find a circuit on and pairs to evaluate it on: of the same task, with nothing in common if held out."""
    from interp.tasks.pairs import part_of

    if not held_out or name in TASKS:
        splits = ("train", "held out") if held_out else ("all", "all")
        first, second = (_task(name, n, seed, split) for split in splits)
        return first, second
    given = _task(name, n, seed)
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
        _say(f"wrote {html}", as_json)
    if png is not None:
        write_png(graph, png)
        _say(f"wrote {png}", as_json)


@app.command()
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

    with _told():
        train, test = interchange(task, n, seed, "train"), interchange(task, held_out, seed + 1, "held out")
        result = alignment.align(
            interp.load(model), train, test, part=part, layers=None if layers is None else _numbers("--layers", layers),
            regions=None if regions is None else regions.split(","), ranks=_numbers("--rank", rank),
            training=alignment.Training(steps=steps, batch=batch, seed=seed),
            controls=alignment.CONTROLS if controls else (), among_answers=among_answers, only_right=only_right,
            seed=seed, checkpoint=checkpoint, progress=silent if as_json else bar,
        )  # fmt: skip
        _deliver(result, "Alignment", html, as_json, out, png)


@app.command()
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

    with _told():
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
        _deliver(result, "Causal abstraction", html, as_json, out, png)


def _numbers(option: str, text: str) -> list[int]:
    """The numbers that `8:20` (without the last) or `1,4,16` name.

    Raises:
        InterpError: it names none.
    """
    try:
        if ":" in text:
            first, last = (int(end) for end in text.split(":"))
            found = list(range(first, last))
        else:
            found = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InterpError(f"{option} {text!r}: give numbers, as in 3,8,13, or a range, as in 8:20.") from error
    if not found:
        raise InterpError(f"{option} {text!r} names no number; a range stops before its end.")
    return found


def _say(line: str, as_json: bool) -> None:
    if not as_json:
        console.print(line, markup=False)


def _task(name: str, n: int, seed: int, split: str = "all") -> Task:
    from interp import tasks

    if name in TASKS:
        return getattr(tasks, name.replace("-", "_"))(n=n, seed=seed, split=split)
    path = Path(name)
    if path.suffix in (".jsonl", ".csv"):
        return tasks.Task.from_jsonl(path) if path.suffix == ".jsonl" else tasks.Task.from_csv(path)
    raise InterpError(f"There is no task {name!r}, and it is no .jsonl or .csv file." + nearest(name, TASKS))


@app.command()
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

    with _told():
        numbers, data = _doses(doses), concept_texts(concept)
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
        _deliver(result, result.title, html, as_json, out, png)


def _doses(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InterpError(f"--doses {text!r}: numbers with commas between them, such as 0,0.1,0.2.") from None


@concepts.command()
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

    with _told():
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


@concepts.command()
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

    with _told():
        told = silent if as_json else bar
        store, dictionary = dic.Store.open(folder / "store"), dic.load(folder / "dictionary")
        of_texts = store.about.get("inputs") == "texts"
        loaded = interp.load(model) if of_texts else None
        if loaded is not None and not isinstance(loaded, interp.LanguageModel):
            raise InterpError(f"{folder} holds a harvest of texts, and {model} is no language model.")
        rows = coded_rows(dictionary, store.activations(), told)
        chosen = None if latents is None else _numbers("--latents", latents)
        found = atlas(dictionary, store, loaded, latents=chosen, rows=rows, progress=told)
        shown = [int(latent) for latent in found.data["latent"].values]
        if labels:
            held = cell_labels(store) if loaded is None else token_labels(store, loaded)
            group = store.label("picture" if loaded is None else "text").numpy()
            found = found.with_(label_latents(rows, held, group, shown, progress=told))
        if effects and loaded is not None:
            amounts = found.data["mean"].values.tolist()
            found = found.with_(token_effects(loaded, dictionary, store.sites[0], shown, amounts, progress=told))
        if html is not None:
            found.browse(html)
            _say(f"wrote {html}", as_json)
        _deliver(found, found.title, None, as_json, out, png)


@concepts.command()
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

    with _told():
        told, loaded = silent if as_json else bar, interp.load(model)
        opened = [_opened(folder, loaded) for folder in folders]
        of_texts = isinstance(loaded, interp.LanguageModel)
        if of_texts == (steps is not None) or (len(folders) > 1 and not of_texts):
            raise InterpError("A graph of texts takes several folders, one of pictures a single folder and --steps.")
        at = [None] * len(opened) if steps is None else _numbers("--steps", steps)
        levels, rows = _levels(opened * (1 if of_texts else len(at)), at, latents, top, density, told)
        inputs = (
            _cut(loaded, _texts(texts, n), context) if isinstance(loaded, interp.LanguageModel)
            else _sampled(loaded, opened[0][0], n, seed)
        )  # fmt: skip
        found = interp.concept_graph(
            loaded, inputs, levels, quantile=quantile, shuffles=shuffles,
            clamping=Clamping(examples, draws=draws, seed=seed), progress=told,
        )  # fmt: skip
        if html is not None:
            browse_graph(html, found, _atlases(loaded, opened, levels, rows, labels, told))
            _say(f"wrote {html}", as_json)
        _deliver(found, found.title, None, as_json, out, png)


def _opened(folder: Path, loaded: Any) -> tuple[Store, Dictionary]:
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
    opened: Sequence[tuple[Store, Dictionary]], at: Sequence[int | None], latents: str | None, top: int,
    density: float, told: Any,
) -> tuple[list[ConceptLevel], dict[str, CodedRows]]:  # fmt: skip
    """A level of each dictionary at its step, with the latents asked for; and by site the codes of its harvest."""
    from interp.concepts import ConceptLevel, coded_rows

    asked = [None] * len(opened) if latents is None else latents.split("/")
    if len(asked) != len(opened):
        raise InterpError(f"--latents {latents!r} is of {len(asked)} levels, and there are {len(opened)}.")
    for (store, _), step in zip(opened, at, strict=True):
        if step is not None and step not in store.kept_steps:
            raise InterpError(f"Step {step} was not harvested; there are {store.kept_steps}.")
    levels: list[ConceptLevel] = []
    rows: dict[str, CodedRows] = {}
    for (store, dictionary), step, some in zip(opened, at, asked, strict=True):
        site = store.sites[0]
        if site not in rows:
            rows[site] = coded_rows(dictionary, store.activations(), told)
        if some is None:
            step_of = store.label("step").numpy() if step is not None else None
            share = rows[site].share(np.ones(len(store), bool) if step_of is None else step_of == step)
            common = [i for i in np.argsort(-share, kind="stable").tolist() if 0 < share[i] <= density]
            if not common:
                raise InterpError(f"No latent of {site} is on in at most {density:g} of the rows; raise --density.")
            chosen = sorted(common[:top])
        else:
            chosen = _numbers("--latents", some)
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
    model: Any, opened: Sequence[tuple[Store, Dictionary]], levels: Sequence[ConceptLevel],
    rows: Mapping[str, CodedRows], labels: bool, told: Any,
) -> dict[str, Atlas]:  # fmt: skip
    """The atlas of every level; steps of one dictionary share theirs."""
    from interp.concepts import atlas, cell_labels, label_latents, token_labels

    found: dict[str, Atlas] = {}
    for store, dictionary in opened:
        own = [level for level in levels if level.dictionary is dictionary]
        shown, coded = sorted({int(i) for level in own for i in level.latents}), rows[store.sites[0]]
        of_texts = store.about.get("inputs") == "texts"
        made = atlas(dictionary, store, model if of_texts else None, latents=shown, rows=coded, progress=told)
        if labels:
            held = token_labels(store, model) if of_texts else cell_labels(store)
            group = store.label("text" if of_texts else "picture").numpy()
            made = made.with_(label_latents(coded, held, group, shown, progress=told))
        found |= {level.name: made for level in own}
    return found


@concepts.command("steer")
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

    with _told():
        if form not in (forms := ("add", "clamp", "multiply")):
            raise InterpError(f"There is no form {form!r}." + nearest(form, forms))
        numbers, loaded = _doses(doses), interp.load(model)
        of_texts = isinstance(loaded, interp.LanguageModel)
        if of_texts and png is not None:
            raise InterpError(f"{model} writes texts: there is no picture for --png.")
        if not of_texts and png is None and html is None:
            raise InterpError(f"{model} makes pictures: say where they go, with --png or --html.")
        store, dictionary = _opened(folder, loaded)
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
        told = {way: interp.steer(model, edits[way, dose]).generate(prompt, **settings).texts[0] for way in ways}
        rows.append({"dose": f"{dose:g}"} | told)
    return pandas.DataFrame(rows)


@app.command()
def models() -> None:
    """Models that need no hub, and the families that are supported."""
    from interp.models.families import FAMILIES, REFUSED
    from interp.models.load import EMBEDDED
    from interp.models.pipelines import FAMILIES as PIPELINES

    table = Table("what", "names", title="interp.load")
    table.add_row("embedded", ", ".join(EMBEDDED))
    table.add_row("families, with every saving", ", ".join(FAMILIES))
    table.add_row("diffusion pipelines", ", ".join(PIPELINES))
    table.add_row("others", "by TransformerLens's adapters (interp\\[lens]); whole forward passes")
    table.add_row("refused", "\n".join(f"{kind}: {why}" for kind, why in REFUSED.items()))
    console.print(table)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("out")) -> None:
    """Trace a fact and patch IOI on SmolLM2-135M, trace a picture of the shapes model; writes demo.html and PNGs."""
    import interp
    from interp.plots import write_png, write_report
    from interp.progress import bar

    with _told():
        out.mkdir(parents=True, exist_ok=True)
        console.print("Loading SmolLM2-135M (the first time, its GGUF is converted once) …")
        model = interp.load("smollm2-135m")
        prompt, subject = "The Eiffel Tower is located in the city of", "The Eiffel Tower"
        fact = interp.trace(model, prompt, subject=subject, answer=" Paris", progress=bar)
        cut = interp.knockout(model, prompt, subject=subject, answer=" Paris", progress=bar)
        # Positions of different sentences do not correspond, so the stream is patched on one pair; a head
        # at the last token means the same in every sentence, so many pairs tell what is reliable.
        pair = interp.tasks.PromptPair(
            "When Mary and John went to the store, John gave a drink to",
            "When Mary and John went to the store, Mary gave a drink to",
            " Mary",
            " John",
        )
        stream = interp.patch(model, pair, "resid_pre", progress=bar)
        heads = interp.patch(model, interp.tasks.ioi(n=24, seed=0), "z", positions=-1, progress=bar)
        painter = interp.load("shapes")
        red = interp.trace_image(painter, DEMO_PROMPT, attribute="red", seeds=3, progress=bar)
        results: dict[str, _Plotted] = {
            "trace": fact, "knockout": cut, "ioi_resid": stream, "ioi_heads": heads, "red": red
        }  # fmt: skip
        sections = []
        for name, result in results.items():
            console.print(result.summary(), markup=False, highlight=False)
            console.print()
            result.save(out / f"{name}.nc")
            for number, section in enumerate(_sections(result)):
                write_png(section[-1], out / f"{name}{'_pictures' if number else ''}.png")
                sections.append(section)
        _print_top_heads(heads)
        write_report(out / "demo.html", "interp: a fact and a circuit of SmolLM2-135M, a colour of a picture", sections)
        console.print(f"wrote {out / 'demo.html'} and {len(sections)} pictures", markup=False)


def _print_top_heads(result: Result) -> None:
    table = Table(
        "head",
        "effect (logits)",
        "95 % interval",
        "adjusted p",
        title="IOI: heads at the last token with the largest effect",
    )
    data = result.data
    effect = data["logit_difference_effect"].stack(cell=("layer", "head"))
    for cell in effect[abs(effect).argsort().values[::-1][:8]]["cell"].values:
        layer, head = (int(i) for i in cell)
        at = {"layer": layer, "head": head}
        low, high, p = (float(data[f"logit_difference_{name}"].sel(at)) for name in ("low", "high", "p"))
        value = float(data["logit_difference_effect"].sel(at))
        table.add_row(f"L{layer}H{head}", f"{value:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.2g}")
    console.print(table)


if __name__ == "__main__":
    app()
