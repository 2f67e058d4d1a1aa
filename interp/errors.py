"""The errors a user can meet: one family, so that `except InterpError` means "my input, my model or my file".

Every message says what was asked, what was found, what is allowed, and the nearest fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InterpError(Exception):
    """Base of every error that interp raises on purpose."""


class SiteError(InterpError):
    """A place that does not exist, or that this model cannot serve."""


class PairError(InterpError):
    """A prompt, pair, answer or subject that an experiment cannot use."""


class SceneError(InterpError):
    """A scene of the shapes world that cannot exist."""


class ShapeError(InterpError):
    """A tensor of the wrong shape, or with values that are not finite."""


class UnfiredError(InterpError):
    """An edit or a capture whose place the forward pass never reached."""


class LoadError(InterpError):
    """A model, cache or result file that cannot be read, or cannot be trusted."""


def nearest(wanted: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the closest allowed names, then all of them."""
    names = [str(name) for name in allowed]
    close = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return f"{hint} Allowed: {', '.join(names)}."
