"""A circuit as a picture: input below, logits above, every edge upwards, as wide as its score is large.

An edge into a head ends at the left of its box for the query, in the middle for the key, at the right for the value.
Where several heads share a key and value (grouped-query attention), those edges end at a small box of the group, from
which thin lines lead to the heads of the group that the circuit contains. A slider leaves only the strongest edges;
numbers show under the pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Edge(NamedTuple):
    """One edge of a circuit.

    Attributes:
        sender: `input`, `a3.h5` or `m3`.
        receiver: `a3.h5<q>`, `a3.kv1<k>`, `m3` or `logits`.
        score: in the picture's unit.
        error: its standard error; NaN where it is not known.
    """

    sender: str
    receiver: str
    score: float
    error: float = float("nan")


def circuit_graph(edges: Sequence[Edge], *, title: str, unit: str, group: int = 1, quantity: str = "score") -> Figure:
    """Draw the edges of a circuit.

    Args:
        edges: in any order.
        title: what was found, in one sentence; plain text.
        unit: of the scores.
        group: how many heads share a key and value.
        quantity: what a score is.

    Raises:
        ShapeError: no edge; a name that is none; an edge twice, or not upwards; a score that is not finite.
    """
    from interp.plots.circuit_drawing import drawn

    return drawn(edges, title, unit, group, quantity)
