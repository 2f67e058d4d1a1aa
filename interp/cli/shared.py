"""What all commands share: options, how mistakes are told, and how results are printed, drawn and written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer
from rich.console import Console

from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from interp.tasks import Task

console = Console()
TASKS = ("ioi", "facts", "capitals", "pronouns", "agreement", "greater-than", "docstring", "induction")

Model = Annotated[str, typer.Option(help="An embedded model, a hub id, or a folder.")]
Html = Annotated[Path | None, typer.Option(help="Write a self-contained page here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Out = Annotated[Path | None, typer.Option(help="Write the result here (NetCDF; interp.Result.load reads it).")]
Png = Annotated[Path | None, typer.Option(help="Write the picture here.")]


@contextmanager
def errors_told() -> Iterator[None]:
    """Say what was wrong with the input, without a traceback."""
    try:
        yield
    except InterpError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from error


@runtime_checkable
class Plotted(Protocol):
    """A result with a title and a picture."""

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        ...

    def summary(self) -> str:
        """What was found, in some lines."""
        ...

    def plot(self) -> plotly.graph_objects.Figure:
        """What was found, as a picture."""
        ...

    def save(self, path: Path) -> None:
        """Write it as NetCDF."""

    def to_json(self) -> str:
        """All of it."""
        ...


@runtime_checkable
class _WithFailures(Protocol):
    """A result that knows on what it fails."""

    def failures(self) -> pandas.DataFrame: ...
    def plot_failures(self) -> plotly.graph_objects.Figure: ...


@runtime_checkable
class _WithPictures(Protocol):
    """A result that keeps pictures."""

    def plot_pictures(self) -> plotly.graph_objects.Figure: ...


@runtime_checkable
class _WithScreening(Protocol):
    """A result that may have looked closely at a few places only."""

    @property
    def was_screened(self) -> bool: ...
    def plot_screening(self) -> plotly.graph_objects.Figure: ...


def deliver(
    result: Plotted, heading: str, html: Path | None, as_json: bool, out: Path | None, png: Path | None
) -> None:
    """Print a result, and write what else was asked for: the result, its page, its picture."""
    from interp.plots import write_png, write_report

    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        console.print(result.summary(), markup=False, highlight=False)
    if out is not None:
        result.save(out)
    if html is not None:
        write_report(html, heading, sections_of(result))
    if png is not None:
        write_png(result.plot(), png)
    for path in (out, html, png):
        if path is not None and not as_json:
            console.print(f"wrote {path}", markup=False)


def sections_of(result: Plotted) -> list[tuple[str, list[str], Any]]:
    """What a page shows: heading, paragraphs, and a figure or table."""
    shown: list[tuple[str, list[str], Any]] = [(result.title, [result.summary()], result.plot())]
    if isinstance(result, _WithPictures):
        shown.append(("Pictures", [], result.plot_pictures()))
    if isinstance(result, _WithScreening) and result.was_screened:
        shown.append(("Which places were searched", [], result.plot_screening()))
    if isinstance(result, _WithFailures) and len(wrong := result.failures()):
        shown += [("Where it fails", [], result.plot_failures()), ("Every failure", [], wrong)]
    return shown


def say(line: str, as_json: bool) -> None:
    """Print a line, unless standard output is for JSON."""
    if not as_json:
        console.print(line, markup=False)


def named_task(name: str, n: int, seed: int, split: str = "all") -> Task:
    """The task of that name, or of that file.

    Raises:
        InterpError: neither.
    """
    from interp import tasks

    if name in TASKS:
        return getattr(tasks, name.replace("-", "_"))(n=n, seed=seed, split=split)
    path = Path(name)
    if path.suffix in (".jsonl", ".csv"):
        return tasks.Task.from_jsonl(path) if path.suffix == ".jsonl" else tasks.Task.from_csv(path)
    raise InterpError(f"There is no task {name!r}, and it is no .jsonl or .csv file." + nearest(name, TASKS))


def numbers(option: str, text: str) -> list[int]:
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


def doses_of(text: str) -> list[float]:
    """The numbers that `0,0.5` names.

    Raises:
        InterpError: no numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InterpError(f"--doses {text!r}: numbers with commas between them, such as 0,0.1,0.2.") from None
