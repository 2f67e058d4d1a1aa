"""How long things take: experiments wrap their loops in a `Progress`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Wraps a sequence and yields its items."""

    def __call__(self, items: Sequence[Any], description: str, /) -> Iterable[Any]:
        """The items, one by one, while showing how far they are."""
        ...


def silent(items: Sequence[T], description: str, /) -> Iterable[T]:
    """No display."""
    return items


def bar(items: Sequence[T], description: str, /) -> Iterable[T]:
    """A progress bar in a terminal or notebook; nothing for a loop of one step."""
    if len(items) < 2:
        return items
    from rich.progress import track

    return track(items, description)
