"""What sparse codes and edge scores move by library calls on an H100, next to what they need: counted on paper. No speed.

Bytes are what each call reads and writes, each tensor once per call, at the sizes of an 8B model in bfloat16: 4,096 rows, a
dictionary of 32,768 latents, 32 of them on; edges of 32 layers of 32 heads over prompts of 20 tokens. Time is bytes over
3.0 TB/s, and operations over 790 TFLOP/s where a matrix product makes them.

    python benchmarks/modelled_bytes.py
"""

from __future__ import annotations

from dataclasses import dataclass

from modelled_sweep import BANDWIDTH, BYTES, RATE, Model

ROWS, LATENTS, K, WIDTH = 4096, 32768, 32, 4096
GROUP = 16  # of `topk_latents`
INDEX = 8
POSITIONS = 20


@dataclass(frozen=True)
class Count:
    """Bytes that an operation moves and needs, and the operations of its products."""

    name: str
    moved: float
    needed: float
    operations: float = 0.0

    def line(self) -> str:
        """Its line of the table."""
        product = f"{1e3 * self.operations / RATE:.2f}" if self.operations else ""
        return (
            f"| {self.name} | {self.moved / 1e6:,.0f} | {self.needed / 1e6:,.0f} | {self.moved / self.needed:.2f} | "
            f"{1e3 * self.moved / BANDWIDTH:.2f} | {product} |"
        )


def encode() -> list[Count]:
    """The dense product and the search for the k largest; and what is left of both in kernels that one could write."""
    z, chosen = BYTES * ROWS * LATENTS, ROWS * K * (BYTES + INDEX)
    needed = BYTES * WIDTH * (ROWS + LATENTS) + chosen
    # The product writes z; the maxima of groups read it; k groups of each row are gathered, and searched.
    search = 2 * z / GROUP + 2 * BYTES * ROWS * K * GROUP
    operations = 2.0 * ROWS * LATENTS * WIDTH
    candidates = 2 * ROWS * (LATENTS // 256) * K * (BYTES + 4)  # written and read: k of every 256, with their places
    return [
        Count("topk_encode: product, then `topk_latents`", needed + 2 * z + search, needed, operations),
        Count("a kernel that writes the maxima with z", needed + z + search, needed, operations),
        Count("a kernel that writes 32 candidates of every 256", needed + candidates, needed, operations),
    ]


def decode() -> list[Count]:
    """One sum of atoms for each row, and its gradients, as `embedding_bag` makes them."""
    entries, row = ROWS * K, BYTES * WIDTH
    listed = entries * (BYTES + INDEX)
    forward = entries * row + ROWS * row + listed
    by_value = entries * row + ROWS * row + listed
    by_atom = entries * row + LATENTS * row + 2 * listed
    dense = BYTES * (2 * ROWS * LATENTS) + row * (LATENTS + ROWS)  # the codes written out and read
    return [
        Count("sparse_decode: `embedding_bag`", forward, forward),
        Count("its gradient by the values", by_value, by_value),
        Count("its gradient by the atoms, sorted by latent", by_atom, by_atom - listed),
        Count("a dense product instead", dense, forward, 2.0 * ROWS * LATENTS * WIDTH),
    ]


def edges(model: Model) -> list[Count]:
    """Edge scores of one pair: a product for each block of receivers, as its gradient arrives; or all at the end."""
    state = BYTES * POSITIONS * model.width
    moved = operations = 0.0
    senders = 1 + model.layers * (model.heads + 1)
    receivers = model.layers * (model.heads + 2 * model.kv_heads + 1)
    needed = (senders + receivers) * state
    for layer in range(model.layers):
        below = 1 + layer * (model.heads + 1)  # senders: the embedding, heads and MLPs of the layers below
        for read, block in ((below, model.heads + 2 * model.kv_heads), (below + model.heads, 1)):
            moved += (read + block) * state
            operations += 2.0 * read * block * POSITIONS * model.width
    return [
        Count("edge_scores: a product for each block of receivers", moved, needed, operations),
        Count(f"one product; {receivers * state / 1e6:.0f} MB of gradients kept", needed, needed, operations),
    ]


def main() -> None:
    """Print the table of docs/kernels.md."""
    print("| operation | MB moved | MB needed | ratio | ms of bytes | ms of products |")
    print("|---|--:|--:|--:|--:|--:|")
    for count in [*encode(), *decode(), *edges(Model())]:
        print(count.line())


if __name__ == "__main__":
    main()
