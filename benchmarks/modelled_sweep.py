"""What a sweep of an 8B model should take on an H100, counted on paper: fused and unfused, so that a card can contradict it.

Every term is bytes over 3.0 TB/s or operations over 790 bf16 TFLOP/s, the rates that have been measured on such cards;
a matrix product takes the longer of the two. Launches, the host's planning and everything else are left out, on both sides,
so both are bounds from below. The sweep: residual-stream patching at every layer and at the last positions of one prompt,
4,000 variants, in passes of 16,384 live tokens.

    python benchmarks/modelled_sweep.py
"""

from __future__ import annotations

from dataclasses import dataclass

BANDWIDTH, RATE = 3.0e12, 790e12
BYTES = 2  # of bfloat16


@dataclass(frozen=True)
class Model:
    """Sizes of Llama 3.1 8B."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    d_head: int = 128
    mlp: int = 14336
    vocabulary: int = 128256

    @property
    def weights(self) -> int:
        """Of a layer."""
        kv = 2 * self.kv_heads * self.d_head
        return self.width * (2 * self.heads * self.d_head + kv) + 3 * self.width * self.mlp


@dataclass(frozen=True)
class Seconds:
    """Of a whole sweep, by what they are spent on."""

    products: float
    elementwise: float
    attention: float
    edits: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.elementwise + self.attention + self.edits


def sweep(model: Model, prompt: int, positions: int, tokens: int, fused: bool) -> Seconds:
    """The packed sweep over every layer and the last `positions` of a prompt; `tokens` live ones per pass."""
    products = elementwise = attention = edits = 0.0
    kv = 2 * model.kv_heads * model.d_head * BYTES  # bytes of a token's keys and values
    live = positions * (positions + 1) // 2  # tokens of the rows that join at one layer: the row of position p has p
    for entry in range(model.layers):
        deep = model.layers - entry
        passes = live / tokens
        operations, bytes_ = 2 * model.weights * tokens, BYTES * model.weights
        products += deep * passes * max(operations / RATE, bytes_ / BANDWIDTH)
        # Norms (two: read, write), residual sums (two: two reads, a write), the gated product (two reads, a write).
        elementwise += deep * live * BYTES * (10 * model.width + 3 * model.mlp) / BANDWIDTH
        attention += deep * _attention(model, prompt, positions, live, kv, fused)
        # One edit a row, where it joins. Unfused: the stream is copied (read, write), the states gathered, put together
        # and scattered; fused: the value is read and written.
        state = BYTES * model.width
        edits += (positions * 2 * state if fused else 2 * live * state + positions * 8 * state) / BANDWIDTH
    return Seconds(products, elementwise, attention, edits)


def _attention(model: Model, prompt: int, positions: int, live: int, kv: int, fused: bool) -> float:
    """Seconds of one layer's attention for the rows of one entry."""
    own = live * (2 * model.heads * model.d_head * BYTES + kv)  # queries, output, own keys and values
    keys = live * (prompt - positions / 3)  # a token of a row of p sees the prompt but for about half the row
    operations = 4 * model.heads * model.d_head * keys
    if fused:  # the prefix, once per tile of 16 tokens, from the cache: not counted; the weights' second half is
        return max(own / BANDWIDTH, 1.5 * operations / RATE)
    # A copy of the prompt's keys and values per row (write, read), and, since a mask over grouped heads goes to a kernel
    # without groups, one of the repeated heads (write, read).
    groups = model.heads // model.kv_heads
    copies = positions * prompt * kv * (2 + 2 * groups)
    return max((own + copies) / BANDWIDTH, operations / RATE)


def whole_passes(model: Model, prompt: int, variants: int) -> float:
    """Seconds of a forward pass per variant, batched, at the rate of the card, without its logits."""
    return variants * prompt * model.layers * 2 * model.weights / RATE


def main() -> None:
    """Print the table of docs/kernels.md."""
    model, positions = Model(), 125
    variants = model.layers * positions
    print("| prompt | way | products | elementwise | attention | edits | seconds | gain of the kernels |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for prompt in (125, 1024, 4096, 16384):
        print(
            f"| {prompt} | a batched forward pass per variant | {whole_passes(model, prompt, variants):.1f} | | | | | |"
        )
        unfused, fused = (sweep(model, prompt, positions, 16384, way) for way in (False, True))
        for name, found in (("packed, PyTorch calls", unfused), ("packed, kernels", fused)):
            gain = f"{unfused.total / fused.total:.2f}×" if found is fused else ""
            parts = (found.products, found.elementwise, found.attention, found.edits, found.total)
            print(f"| {prompt} | {name} | {' | '.join(f'{part:.3g}' for part in parts)} | {gain} |")


if __name__ == "__main__":
    main()
