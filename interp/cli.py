"""The command line: the experiments, with their results as tables, pages and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

import typer
from rich.console import Console
from rich.table import Table

from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    import plotly.graph_objects

    from interp.results import Result

app = typer.Typer(
    help="Causal, mechanistic interpretability: trace facts, patch activations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
TASKS = ("ioi", "facts", "pronouns", "agreement", "induction")

Model = Annotated[str, typer.Option(help="An embedded model, a hub id, or a folder.")]
Html = Annotated[Path | None, typer.Option(help="Write a self-contained page here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Out = Annotated[Path | None, typer.Option(help="Write the result here (NetCDF; interp.Result.load reads it).")]
Png = Annotated[Path | None, typer.Option(help="Write the picture here.")]


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
        write_report(html, heading, [(result.title, [result.summary()], result.plot())])
    if png is not None:
        write_png(result.plot(), png)
    for path in (out, html, png):
        if path is not None and not as_json:
            console.print(f"wrote {path}", markup=False)


@app.command()
def trace(
    prompt: Annotated[str, typer.Argument(help="The text whose next token is the fact, or that asks for a picture.")],
    subject: Annotated[str | None, typer.Option(help="The words of the text that the fact is about.")] = None,
    attribute: Annotated[str | None, typer.Option(help="Of a picture: the word that is traced.")] = None,
    answer: Annotated[str | None, typer.Option(help="The continuation; the model's own if not given.")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Text: resid_post (default), resid_pre, resid_mid, mlp_out, attn_out. Picture: cross_attn_out …"
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Adjacent layers (1), or steps (5), restored together.")] = None,
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
                loaded, prompt, attribute=attribute, part=part or "cross_attn_out", window=window or 5, seeds=seeds,
                seed=seed, progress=progress,
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
    task: Annotated[str, typer.Option(help=f"{', '.join(TASKS)}, or a .jsonl or .csv file of pairs.")] = "ioi",
    part: Annotated[str, typer.Option(help="The state to patch, such as resid_pre, z, mlp_out.")] = "resid_pre",
    over: Annotated[str | None, typer.Option(help="Axes of the grid: layer,pos or layer,head or …")] = None,
    n: Annotated[int, typer.Option(help="Number of pairs; of a file, all are taken.")] = 8,
    noising: Annotated[
        bool, typer.Option(help="Corrupted values into the clean run, not the other way round.")
    ] = False,
    metric: Annotated[str, typer.Option(help="Of the answer: logit_difference, probability, …")] = "logit_difference",
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
        pairs = _task(task, n, seed)
        result = interp.patch(
            interp.load(model), pairs, part, over=None if over is None else over.split(","),
            direction="noising" if noising else "denoising", metric=metric, seed=seed,
            progress=silent if as_json else bar,
        )  # fmt: skip
        _deliver(result, "Activation patching", html, as_json, out, png)


def _task(name: str, n: int, seed: int):
    from interp import tasks

    if name in TASKS:
        return getattr(tasks, name)(n=n, seed=seed)
    path = Path(name)
    if path.suffix in (".jsonl", ".csv"):
        return tasks.Task.from_jsonl(path) if path.suffix == ".jsonl" else tasks.Task.from_csv(path)
    raise InterpError(f"There is no task {name!r}, and it is no .jsonl or .csv file." + nearest(name, TASKS))


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
    """Trace the Eiffel Tower fact and patch IOI on SmolLM2-135M; writes demo.html and PNGs."""
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
        sections = []
        for name, result in {"trace": fact, "knockout": cut, "ioi_resid": stream, "ioi_heads": heads}.items():
            console.print(result.summary(), markup=False, highlight=False)
            console.print()
            figure = result.plot()
            write_png(figure, out / f"{name}.png")
            result.save(out / f"{name}.nc")
            sections.append((result.title, [result.summary()], figure))
        _print_top_heads(heads)
        write_report(out / "demo.html", "interp: where SmolLM2-135M keeps a fact, and its IOI heads", sections)
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
