"""The Triton kernels on a GPU: every one checked against its reference, and timed against eager PyTorch and torch.compile.

    python benchmarks/gpu.py                                  # on a GPU: check and time everything
    python benchmarks/gpu.py --only swap_subspace --width 4096
    TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny        # without one: the checks alone, at tiny sizes

Each line is one operation at one size. "Largest difference" is against the reference in float64, over its largest number.
GB/s counts the bytes that the operation needs (docs/kernels.md), so that it can be held against the card's bandwidth.
"By hand" is what hooks do: a Python loop with one indexed assignment per edit; for latents, the whole dictionary encoded. The last lines are a whole sweep of
SmolLM2-135M, once by the kernels and once by PyTorch calls. Ends with exit status 1 if a kernel disagrees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import typer
from report import machine, report

from interp.kernels import apply_edits, edit_latents, path, prefix_attention, swap_subspace
from interp.kernels.segment_attention import Segment

ALLOWED = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of the largest number: two units in the last place of the two short types."""


def clock(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, the GPU's work included; the first calls warm up and compile."""
    taken = []
    for repeat in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken += [time.perf_counter() - start] if repeat >= 3 else []
    return statistics.median(taken)


def line(
    op: str, size: str, found: torch.Tensor, exact: torch.Tensor, ways: dict[str, Callable[[], Any]], bytes_: float,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table: what the kernel gave, and the time of every way, the kernel's first."""
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    row: dict[str, Any] = {
        "what": op, "size": size, "type": str(found.dtype).removeprefix("torch."), "largest difference": error,
        "agrees": "yes" if error <= ALLOWED[found.dtype] else "NO",
    }  # fmt: skip
    if found.device.type == "cuda":
        seconds = {name: clock(way, found.device, repeats) for name, way in ways.items()}
        row |= {f"{name} (µs)": 1e6 * took for name, took in seconds.items()}
        first, *others = seconds.values()
        row |= {"GB/s": bytes_ / first / 1e9, "against the best other": min(others) / first}
    return row


def edits(device: torch.device, dtype: torch.dtype, tokens: int, width: int, repeats: int) -> dict[str, Any]:
    """One edit for each of an eighth of the tokens, replaced, added and scaled in turn, into a matrix of one's own."""
    from interp.kernels.fused.apply_edits import apply_edits as fused

    generator = torch.Generator().manual_seed(0)
    n = max(1, tokens // 8)
    x = torch.randn(tokens, 1, width, generator=generator).to(device, dtype)
    operand = torch.randn(n, width, generator=generator).to(device, dtype)
    token, group = torch.randperm(tokens, generator=generator)[:n], torch.zeros(n, dtype=torch.long)
    keep = torch.tensor([0.0, 1.0, 0.5]).repeat(n // 3 + 1)[:n]
    exact = apply_edits.vectorised(x.double(), token, group, keep, operand.double())

    def by_hand() -> torch.Tensor:
        for i, (t, k) in enumerate(zip(token.tolist(), keep.tolist(), strict=True)):
            x[t, 0] = operand[i] if k == 0 else k * x[t, 0] + operand[i]
        return x

    found = fused(x, token, group, keep, operand)
    ways = {
        "kernel": partial(fused, x, token, group, keep, operand, owned=True),
        "eager": partial(apply_edits.vectorised, x, token, group, keep, operand, owned=True),
        "compiled": partial(torch.compile(apply_edits.vectorised, dynamic=True), x, token, group, keep, operand),
        "by hand": by_hand,
    }
    size = f"{n} of {tokens} × {width}"
    return line("apply_edits", size, found, exact, ways, 3 * n * width * x.element_size(), repeats)


def swaps(device: torch.device, dtype: torch.dtype, tokens: int, width: int, repeats: int) -> dict[str, Any]:
    """A subspace of rank 32 of every token exchanged, with the gradient of all of it."""
    from interp.kernels.fused.swap_subspace import swap_subspace as fused

    generator = torch.Generator().manual_seed(0)
    rank = min(32, width)
    x, source = (torch.randn(*s, generator=generator).to(device, dtype) for s in ((tokens, 1, width), (tokens, width)))
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q.to(device, dtype)
    token, group = torch.arange(tokens), torch.zeros(tokens, dtype=torch.long)
    exact = swap_subspace.vectorised(x.double(), token, group, source.double(), basis.double())

    def step(way: Callable[..., torch.Tensor]) -> torch.Tensor:
        own = basis.clone().requires_grad_()
        out = way(x, token, group, source, own)
        out.backward(x)
        return out.detach()

    eager = swap_subspace.vectorised
    ways = {
        "kernel": partial(step, fused),
        "eager": partial(step, eager),
        "compiled": partial(step, torch.compile(eager, dynamic=True)),
    }
    bytes_ = 11 * tokens * width * x.element_size()  # forward 4 (with the copy of x), backward 7
    return line("swap_subspace, step", f"{tokens} × {width}, rank {rank}", step(fused), exact, ways, bytes_, repeats)


def latents(device: torch.device, dtype: torch.dtype, tokens: int, width: int, repeats: int) -> dict[str, Any]:
    """16 latents changed at every token, JumpReLU, in a matrix of one's own."""
    from interp.kernels.fused.edit_latents import edit_latents as fused

    generator = torch.Generator().manual_seed(0)
    n, dictionary = 16, 8 * width

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    # What is read is exact in float32: no order of adding decides which latents are on.
    x, encoder = ((4 * normal(*s)).round().div(4).to(device, dtype) for s in ((tokens, 1, width), (dictionary, width)))
    atoms = (normal(dictionary, width) / width**0.5).to(device, dtype)
    bias, threshold = (torch.full((n,), value).to(device, dtype) for value in (0.25, 0.53125))
    gain, offset = normal(tokens, n).to(device, dtype), torch.zeros(tokens, n).to(device, dtype)
    token, group = torch.arange(tokens), torch.zeros(tokens, dtype=torch.long)
    own = encoder[:n], atoms[:n], bias, threshold, gain, offset
    exact = edit_latents.vectorised(x.double(), token, group, *(t.double() for t in own))

    def by_hand() -> torch.Tensor:
        z = x[:, 0] @ encoder.T
        active = torch.where(z > threshold[0], z, 0)
        changed = active.clone()
        changed[:, :n] *= gain
        return x + (changed - active)[:, None] @ atoms

    eager = edit_latents.vectorised
    call = (x, token, group, *own)
    found = fused(*call)
    ways = {
        "kernel": partial(fused, *call, owned=True),
        "eager": partial(eager, *call, owned=True),
        "compiled": partial(torch.compile(eager, dynamic=True), *call),
        "by hand": by_hand,
    }
    size, bytes_ = f"{n} of {dictionary}, {tokens} × {width}", (2 * tokens + 2 * n) * width * x.element_size()
    return line("edit_latents", size, found, exact, ways, bytes_, repeats)


def attention(device: torch.device, dtype: torch.dtype, rows: int, prefix: int, repeats: int) -> dict[str, Any]:
    """Rows of 16 tokens behind one prefix, 32 query heads, 8 key heads of 128 (of 16 at tiny sizes)."""
    from interp.kernels.fused.prefix_attention import prefix_attention as fused

    generator = torch.Generator().manual_seed(0)
    heads, kv_heads, d_head, length = (32, 8, 128, 16) if prefix > 100 else (4, 2, 16, 3)
    tokens = rows * length
    shapes = [(tokens, heads, d_head), *2 * [(tokens, kv_heads, d_head)], *2 * [(1, prefix + length, kv_heads, d_head)]]
    tensors = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    layout = prefix_attention.PackedRows.of([Segment(slice(0, tokens), rows, prefix, length, 0)], device)
    options = {"scaling": d_head**-0.5}
    with torch.no_grad():
        exact = prefix_attention.segmented(*(t.double() for t in tensors), layout, **options)
    eager = torch.no_grad()(prefix_attention.segmented)
    ways = {"kernel": partial(fused, *tensors, layout, **options), "eager": partial(eager, *tensors, layout, **options)}
    if device.type == "cuda":
        ways["flex_attention"] = flexible(tensors, rows, prefix, length, d_head**-0.5)
    bytes_ = sum(t.nbytes for t in tensors) + tensors[0].nbytes
    found, size = ways["kernel"](), f"{rows} rows of {length} behind {prefix}"
    return line("prefix_attention", size, found, exact, ways, bytes_, repeats)


def flexible(
    tensors: list[torch.Tensor], rows: int, prefix: int, length: int, scaling: float
) -> Callable[[], torch.Tensor]:
    """The same by PyTorch's FlexAttention: prefix and own keys side by side, with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value, prefix_key, prefix_value = tensors
    keys, values = (torch.cat([p[0, :prefix], own]) for p, own in ((prefix_key, key), (prefix_value, value)))

    def shown(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        own = k - prefix
        return (k < prefix) | ((own // length == q // length) & (own <= q))

    mask = create_block_mask(shown, None, None, len(query), len(keys), device=str(query.device))
    call = torch.compile(flex_attention)
    q, k, v = (t.transpose(0, 1)[None] for t in (query, keys, values))
    return lambda: call(q, k, v, block_mask=mask, scale=scaling, enable_gqa=True)[0].transpose(0, 1)


def sweeps(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Residual patching of SmolLM2-135M at every layer and position of a pair, by both ways."""
    import interp
    from interp.models.smollm2 import load_smollm2

    network, tokenizer = load_smollm2()[:2]
    rows, pair = [], interp.tasks.ioi(n=1, seed=0)
    for dtype in (torch.float32, torch.bfloat16):
        model = interp.load(network.to(device, dtype), tokenizer, name="smollm2-135m")
        choice, values = path.FUSED_FROM.copy(), {}
        for way, smallest in (("kernel", choice), ("eager", dict.fromkeys(choice, 2**62))):
            path.FUSED_FROM.update(smallest)
            call = partial(interp.patch, model, pair, "resid_pre")
            values[way] = (call().data, clock(call, device, repeats))
        path.FUSED_FROM.update(choice)
        rows.append({
            "what": "interp.patch, resid_pre", "size": "SmolLM2-135M", "type": str(dtype).removeprefix("torch."),
            "kernel (µs)": 1e6 * values["kernel"][1], "eager (µs)": 1e6 * values["eager"][1],
            "against the best other": values["eager"][1] / values["kernel"][1],
        })  # fmt: skip
    return rows


def main(only: str = "", width: int = 4096, repeats: int = 20, tiny: bool = False) -> None:
    """Check and time the kernels."""
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    if device.type == "cpu" and not tiny:
        print("No GPU here. TRITON_INTERPRET=1 and --tiny check the kernels without one.")
        return
    where = machine()
    where["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: Triton's interpreter"
    tokens = [64] if tiny else [128, 2048, 16384]
    rows = [(5, 20)] if tiny else [(128, 128), (128, 4096), (1024, 1024)]
    width = 96 if tiny else width
    calls = [partial(edits, tokens=n, width=width) for n in tokens if only in ("", "apply_edits")]
    calls += [partial(swaps, tokens=n, width=width) for n in tokens if only in ("", "swap_subspace")]
    calls += [partial(latents, tokens=n, width=width) for n in tokens if only in ("", "edit_latents")]
    calls += [partial(attention, rows=n, prefix=prefix) for n, prefix in rows if only in ("", "prefix_attention")]
    # Triton's interpreter multiplies the bits of bfloat16 (triton issue 11584).
    types = ALLOWED if device.type == "cuda" else (torch.float32, torch.float16)
    table = [call(device=device, dtype=dtype, repeats=repeats) for dtype in types for call in calls]
    if device.type == "cuda" and not only:
        table += sweeps(device, repeats)
    report("gpu", f"The kernels on {where['gpu']}", table, where=where)
    if any(row.get("agrees") == "NO" for row in table):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
