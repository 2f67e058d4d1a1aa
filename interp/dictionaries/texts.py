"""Texts to harvest activations from: your own, ones that ship with Python, generated ones, or a data set of the hub."""

from __future__ import annotations

from itertools import islice

from interp.errors import InterpError
from interp.tasks.pairs import Task


def python_manual(n: int | None = None, shortest: int = 200) -> list[str]:
    """Paragraphs of Python's language reference, which every Python carries; none comes twice.

    Args:
        n: the first so many; `None`: all.
        shortest: characters that a paragraph has at least.

    Raises:
        InterpError: this Python was built without its manual.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InterpError("This Python has no pydoc_data.topics; give texts of your own.") from error
    parts = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    return list(dict.fromkeys(part for part in parts if len(part) >= shortest))[:n]


def task_texts(*tasks: Task) -> list[str]:
    """The prompts of our own tasks, clean and corrupted, each with its answer: sentences made from templates.

    No text comes twice.
    """
    pairs = [pair for task in tasks for pair in task.pairs]
    texts = [text for p in pairs for text in (p.clean + p.answer, p.corrupted + p.wrong_answer)]
    return list(dict.fromkeys(texts))


def hub_texts(name: str, n: int, *, split: str = "train", column: str = "text", config: str | None = None) -> list[str]:
    """The first texts of a data set of the Hugging Face hub, streamed; needs the package `datasets` and a network.

    Raises:
        InterpError: `datasets` is not installed, or the data set has no such column.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InterpError("hub_texts needs the package 'datasets': pip install datasets.") from error
    rows = load_dataset(name, config, split=split, streaming=True)
    found: list[str] = []
    for row in islice(rows, n):
        if column not in row:
            raise InterpError(f"{name} has no column {column!r}; it has {', '.join(row)}.")
        found.append(row[column])
    return found
