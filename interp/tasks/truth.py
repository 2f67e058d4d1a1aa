"""Ground truth: a model whose circuit is known, the task that it solves, and the edges that do the work.

An edge goes from a *sender* (`input`, the embedding of token and position; `a2.h0`, a head's result; `m2`, an MLP's
output) to a *receiver* (`a3.h0<q>`, `<k>`, `<v>`, what a head's projections read; `m3`, what an MLP reads; `logits`,
what the unembedding reads). Names are those of EAP-IG's and MIB's circuit files: `"input->a0.h1<v>"`.

What a circuit is depends on what the edges outside it carry:

- `"resample"`: what they carried in the corrupted run. Positions and constants are alike in both runs, so edges that
  carry nothing else are not in the circuit;
- `"zero"`: nothing. Then these edges are in the circuit as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from interp.errors import InterpError, nearest
from interp.models.language_model import LanguageModel
from interp.tasks.pairs import Task

ABLATIONS = ("resample", "zero")


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """A model with a known circuit.

    Attributes:
        name: of the program or construction.
        says: what it computes, in one line.
        model: as `interp.load` makes it.
        task: pairs on which the circuit does its work.
        circuits: by ablation, the true edges.
        carried: by edge, the variables that travel along it, where they have names; edges that carry something and yet
            are in no circuit are idle.
        unseen: true edges that show no effect when each is patched alone, by the way of patching: `"noising"` (the
            clean run, one edge corrupted), `"denoising"` (the corrupted run, one edge clean) or `"zero"` (the clean
            run, one edge gone). Whatever looks at one edge at a time in that way cannot find them.
    """

    name: str
    says: str
    model: LanguageModel
    task: Task
    circuits: Mapping[str, frozenset[str]]
    carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unseen: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def edges(self, ablation: str = "resample") -> frozenset[str]:
        """The true edges under an ablation of the others.

        Raises:
            InterpError: an ablation for which no truth is known.
        """
        if ablation not in self.circuits:
            raise InterpError(
                f"{self.name}: no circuit is known under ablation {ablation!r}; there is one under "
                f"{', '.join(map(repr, self.circuits))}." + nearest(ablation, self.circuits)
            )
        return self.circuits[ablation]

    @property
    def all_edges(self) -> tuple[str, ...]:
        """Every edge of the model's graph, true or not, in the order of a forward pass."""
        return every_edge(self.model.n_layers, self.model.n_heads)

    def labels(self, ablation: str = "resample") -> dict[str, bool]:
        """Per edge of the graph, whether it is true: what an AUC is computed against."""
        true = self.edges(ablation)
        return {edge: edge in true for edge in self.all_edges}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(edges)} under {ablation}" for ablation, edges in self.circuits.items())
        return (
            f"GroundTruth({self.name!r}: {self.says}; {self.model.n_layers} layers, {self.model.n_heads} heads; "
            f"true edges of {len(self.all_edges)}: {sizes})"
        )


def every_edge(n_layers: int, n_heads: int) -> tuple[str, ...]:
    """The edges of a transformer whose MLP reads its layer's heads, in the order of a forward pass."""
    senders, edges = ["input"], []
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        edges += [f"{sender}->{head}<{part}>" for head in heads for part in "qkv" for sender in senders]
        senders += heads
        edges += [f"{sender}->m{layer}" for sender in senders]
        senders.append(f"m{layer}")
    return (*edges, *(f"{sender}->logits" for sender in senders))
