"""Random circuits that could be circuits: every edge on a way from the input to the logits.

Edges drawn one by one join badly: of 1,413 of SmolLM2's (2 %), with the types of a circuit for IOI, 31 to 1,014 were on
such a way in 19 draws. The others lead from nodes that nothing reaches or to nodes that nobody reads, and change
nothing. Here a random circuit is drawn

    uniformly from all circuits that have as many edges of every type as C has without its dead ends, and no dead ends

where a type is a kind of sender (input, head, MLP) and of receiver (query, key, value, MLP, logits). Where there are
fewer than ten times as many of those as are drawn, C or one that does the same would turn up among them; then they are
drawn from all with as many edges, of whatever types.

They are drawn by a Markov chain. It exchanges one edge for another one of its type, or lets an idle node of the same
kind take the place of one in use, with all its edges. With V the number of dead ends (senders in use that nothing
reaches, receivers in use that lead nowhere) and E that of the graph's edges, a proposal is accepted with the
probability min(1, E^−ΔV), so the chain is at a set of edges in proportion to E^−V; seen only when V = 0, it is at each
of the circuits above equally often (sets with V > 0 are what it may go through on its way from one to the next). It
runs from C back to a *hub*, and from there once for each random circuit, each time until it has seen V = 0 `_SWEEPS` ·
n times, n the number of edges (and at least `_LEAST` times). A reversible chain runs backwards as it runs forwards, so
if C itself is such a random circuit, C and the others are exchangeable given the hub, and

    p = (1 + #{random circuits at least as faithful as C}) / (1 + #{random circuits})

is exact, however short the chain. A short one makes them resemble C, which can only hide that C is better.

Source: the test is that of Besag & Clifford 1989, "Generalized Monte Carlo significance tests" (Biometrika 76). Shi et
al. 2024 (arXiv:2410.13032) join random paths until the size is met, which favours short ways; the law here has none.
"""

from __future__ import annotations

from math import log

import numpy as np

from interp.circuits.graph import Graph
from interp.circuits.results import Circuit
from interp.circuits.select import edge_types, live_edges

_SWEEPS, _LEAST = 20, 1000
_ENOUGH = 10
_BLOCK = 4096


def connected_like(
    found: Circuit, n: int, generator: np.random.Generator, *, typed: bool = True
) -> list[np.ndarray] | None:
    """N random circuits [sender, receiver] without dead ends, exchangeable with the circuit; the module says how.

    Args:
        typed: with as many edges of every type; otherwise as many.

    Returns:
        `None` if the chain met fewer than 10 (n + 1) circuits: then there are too few.
    """
    live = live_edges(found.graph, found.edges)
    if not live.any():
        return None
    chain = _Chain(found.graph, live, typed, generator)
    length = max(_SWEEPS * len(chain.inside), _LEAST)
    chain.visit(length)
    hub = chain.state()
    drawn = []
    for _ in range(n):
        chain.enter(hub)
        chain.visit(length)
        drawn.append(chain.edges())
    return drawn if len(chain.met) >= _ENOUGH * (n + 1) else None


class _Chain:
    """A set of edges that changes step by step; `inside` its edges, `outside` by type the others.

    Attributes:
        met: fingerprints of circuits without dead ends that were visited.
    """

    def __init__(self, graph: Graph, edges: np.ndarray, typed: bool, generator: np.random.Generator) -> None:
        self.graph, self.generator, self.met = graph, generator, set()
        places = np.argwhere(graph.edges)
        self.sender, self.receiver = places[:, 0].tolist(), places[:, 1].tolist()
        self.number = np.full(edges.shape, -1)
        self.number[graph.edges] = np.arange(len(places))
        self.inside: list[int] = []
        self.types: list[int] = []
        self.outside: list[list[int]] = []
        for kind, some in enumerate(edge_types(graph) if typed else [graph.edges]):
            own = self.number[some & edges].tolist()
            self.inside += own
            self.types += [kind] * len(own)
            self.outside.append(self.number[some & ~edges].tolist())
        self.fed = [np.flatnonzero(row).tolist() for row in graph.feeds]
        self.feeding = [np.flatnonzero(column).tolist() for column in graph.feeds.T]
        letters = np.array([name[0] for name in graph.senders])
        self.alike = [np.flatnonzero(letters == letter).tolist() for letter in letters]
        self.print = generator.integers(2**63, size=len(places)).tolist()
        self._count()

    def _count(self) -> None:
        """Edges that leave each node, enter each receiver and reach each node; nodes in use that a receiver feeds."""
        nodes, receivers = len(self.graph.nodes), len(self.graph.receivers)
        self.leaving, self.reaching, self.entering = [0] * nodes, [0] * nodes, [0] * receivers
        self.leading = [0] * receivers
        self.leading[-1] = 1  # the logits are always read
        self.dead, self.fingerprint = 0, 0
        for edge in self.inside:
            self.dead += self._add(edge)
            self.fingerprint ^= self.print[edge]

    def state(self) -> tuple[list[int], list[list[int]]]:
        """What `enter` comes back to."""
        return self.inside.copy(), [edges.copy() for edges in self.outside]

    def enter(self, state: tuple[list[int], list[list[int]]]) -> None:
        """Go on from another state."""
        self.inside, self.outside = state[0].copy(), [edges.copy() for edges in state[1]]
        self._count()

    def edges(self) -> np.ndarray:
        """Bool [sender, receiver]."""
        found = np.zeros(self.graph.edges.shape, dtype=bool)
        found[[self.sender[edge] for edge in self.inside], [self.receiver[edge] for edge in self.inside]] = True
        return found

    def visit(self, times: int) -> None:
        """Go on until so many moments without dead ends have passed."""
        n, price = len(self.inside), log(len(self.sender))
        nodes = min(0.5, 8 / n)  # how often a node is proposed: that takes n times as long
        block = min(_BLOCK, 2 * times)
        while True:
            slots = self.generator.integers(n, size=block).tolist()
            kinds, places, chances = self.generator.random((3, block))
            which, lucks = (kinds < nodes).tolist(), np.log(chances).tolist()
            for slot, whole, place, luck in zip(slots, which, places.tolist(), lucks, strict=True):
                if whole:
                    self._rename(self.sender[self.inside[slot]], place)
                elif others := self.outside[self.types[slot]]:
                    at = int(place * len(others))
                    old, new = self.inside[slot], others[at]
                    more = self._remove(old) + self._add(new)
                    if more <= 0 or luck < -more * price:
                        self.inside[slot], others[at] = new, old
                        self.dead += more
                        self.fingerprint ^= self.print[old] ^ self.print[new]
                    else:
                        self._remove(new)
                        self._add(old)
                if not self.dead:
                    self.met.add(self.fingerprint)
                    times -= 1
                    if not times:
                        return

    def _rename(self, old: int, place: float) -> None:
        """Let an idle node take the place of one in use. No dead end comes or goes, and the way back is as likely."""
        new = self.alike[old][int(place * len(self.alike[old]))]
        own = [receiver for receiver in self.feeding[old] if receiver not in self.feeding[new]]
        others = [receiver for receiver in self.feeding[new] if receiver not in self.feeding[old]]
        if self.leaving[new] or any(self.entering[receiver] for receiver in others):
            return
        for receiver, other in zip(own, others, strict=True):
            # A shared key or value that is read by more than this head cannot follow it.
            beside = [node for node in (*self.fed[receiver], *self.fed[other]) if node not in (old, new)]
            if self.entering[receiver] and any(self.leaving[node] for node in beside):
                return
        instead = dict(zip(own, others, strict=True))
        moved: list[tuple[int, int]] = []
        for slot, edge in enumerate(self.inside):
            sender, receiver = self.sender[edge], self.receiver[edge]
            if sender == old or receiver in instead:
                other = int(self.number[new if sender == old else sender, instead.get(receiver, receiver)])
                if other < 0:
                    return
                moved.append((slot, other))
        for slot, edge in moved:
            before, others = self.inside[slot], self.outside[self.types[slot]]
            self.dead += self._remove(before) + self._add(edge)
            self.inside[slot], others[others.index(edge)] = edge, before
            self.fingerprint ^= self.print[before] ^ self.print[edge]

    def _add(self, edge: int) -> int:
        """Put an edge in; how many dead ends more there are."""
        sender, receiver, more = self.sender[edge], self.receiver[edge], 0
        self.leaving[sender] += 1
        if self.leaving[sender] == 1:
            more += sender > 0 and not self.reaching[sender]
            for feeding in self.feeding[sender]:
                self.leading[feeding] += 1
                more -= self.leading[feeding] == 1 and self.entering[feeding] > 0
        self.entering[receiver] += 1
        more += self.entering[receiver] == 1 and not self.leading[receiver]
        for node in self.fed[receiver]:
            self.reaching[node] += 1
            more -= self.reaching[node] == 1 and self.leaving[node] > 0
        return more

    def _remove(self, edge: int) -> int:
        """Take an edge out; how many dead ends more there are."""
        sender, receiver, more = self.sender[edge], self.receiver[edge], 0
        for node in self.fed[receiver]:
            self.reaching[node] -= 1
            more += not self.reaching[node] and self.leaving[node] > 0
        self.entering[receiver] -= 1
        more -= not self.entering[receiver] and not self.leading[receiver]
        self.leaving[sender] -= 1
        if not self.leaving[sender]:
            for feeding in self.feeding[sender]:
                self.leading[feeding] -= 1
                more += not self.leading[feeding] and self.entering[feeding] > 0
            more -= sender > 0 and not self.reaching[sender]
        return more
