"""Fitting alignment maps: seconds per step, against pyvene, TransformerLens and hooks by hand.

    PYVENE_PYTHON=/tmp/pyvene/bin/python python benchmarks/alignment.py

Low-rank DAS on SmolLM2-135M: 16 pairs of 14 tokens, rank 32, float32. A *step* is everything from the map's parameters to
the optimiser: interchange, network, loss, gradient, update. Ours is a step of `interp.alignment.fit`; the base and source
runs, which are done once, stand beside it. The others' steps contain what their training loops do in each. The search is 6
layers × 4 positions, each a cell of one call; pyvene fits one after the other.

Two kinds of pairs: *giver* (base and source differ in the giver's name alone, so that they agree before it, and cells
there are answered without training) and *names* (they differ from the second token on, so that every cell runs).

Everything measured is kept in out/benchmarks/alignment.partial.json at once; with `--resume` what is there is not
measured again. Ends with status 1 if logits differ by more than 1e-3 (float32), or 1e-5 where the base run is ours.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from report import OUT, ROOT, machine, report
from timing import matrix_rate, set_threads

PARTIAL = OUT / "alignment.partial.json"
TEMPLATE = "When {} and {} went to the store, {} gave a drink to"
NAMES = ("Mary", "John", "Tom", "James", "Sarah", "Anna", "Paul", "Mark", "Peter", "Kate", "David", "Jack", "Laura",
         "Emma", "Jane", "Lucy")  # fmt: skip
LAYERS, POSITIONS = (3, 8, 13, 18, 23, 28), (1, 5, 9, 13)
MIDDLE, LAST, GIVER = 7, 13, 9


class Pairs:
    """Base, source and label of some IOI prompts as token ids."""

    def __init__(self, model: Any, kind: str, n: int) -> None:
        import torch

        bases, sources, labels = [], [], []
        for i in range(n):
            a, b, c, d = (NAMES[(i + k) % len(NAMES)] for k in (0, 1, 6, 9))
            bases.append(TEMPLATE.format(a, b, a))
            sources.append(TEMPLATE.format(a, b, b) if kind == "giver" else TEMPLATE.format(c, d, d))
            labels.append(" " + a)
        self.base, self.source = model.prompts(bases), model.prompts(sources)
        if self.base.ids.shape != (n, LAST + 1) or self.source.ids.shape != (n, LAST + 1):
            raise SystemExit(f"prompts of {self.base.ids.shape} and {self.source.ids.shape}, not of 14 tokens")
        self.label = torch.tensor([model.tokenizer(text).input_ids[0] for text in labels])

    def encoded(self) -> Any:
        """As `LanguageContinuation` takes it: regions are positions, by their number."""
        import torch

        from interp.tasks.interchange import Counterfactual, EncodedInterchange, Instance, InterchangeTask

        some = Instance("x", " x", (), {})
        n, width = self.base.ids.shape
        task = InterchangeTask("pairs", ("name",), (Counterfactual(some, (some,), " x"),) * n, "")
        ends = torch.arange(width).expand(2, n, width)
        return EncodedInterchange(task, self.base, (self.source,), self.label, self.label[None], self.label,
                                  tuple(map(str, range(width))), ends)  # fmt: skip


class Bench:
    """What is measured, kept item by item."""

    def __init__(self, resume: bool) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = json.loads(PARTIAL.read_text()) if resume and PARTIAL.exists() else {}

    def item(self, name: str, measure: Callable[[], Any]) -> Any:
        """A measured item, or what is known of it. One that fails is noted and does not end the rest."""
        if name not in self.known:
            print(f"… {name}", flush=True)
            try:
                self.known[name] = measure()
            except (RuntimeError, OSError, ValueError, AttributeError, TypeError) as error:
                print(f"  failed: {type(error).__name__}: {error}", flush=True)
                return None
            PARTIAL.write_text(json.dumps(self.known, indent=1))
        return self.known[name]


def ours(model: Any, pairs: Pairs, cells: list[tuple[int, int]], rank: int, steps: int) -> dict[str, Any]:
    """Seconds of our steps, of the runs before them, operations of a step, and cells that had to be trained."""
    import torch

    from interp.alignment.fit import Cells, Training, fit
    from interp.alignment.language import LanguageContinuation, Place
    from interp.alignment.maps import LowRank
    from interp.models.site import Site

    places = [Place(Site("resid_pre", layer), str(position)) for layer, position in cells]
    start = time.perf_counter()
    ready = LanguageContinuation(model, pairs.encoded(), places)
    before = time.perf_counter() - start
    n = len(places)
    group = Cells(LowRank(model.d_model, rank, cells=n), torch.arange(n), torch.zeros(n, dtype=torch.long),
                  tuple(map(str, places)))  # fmt: skip
    stamps: list[float] = []

    def stamped(items: Any, _: str):
        for item in items:
            stamps.append(time.perf_counter())
            yield item
        stamps.append(time.perf_counter())

    fit([group], ready, pairs.label[None], Training(steps=steps + 2, batch=len(pairs.label), learning_rate=1e-3),
        progress=stamped)  # fmt: skip
    taken = [b - a for a, b in pairwise(stamps)][2:]  # two warm up
    moving = ready.differs.any(1)
    return {"seconds": taken, "before": before, "trained": int(moving.sum()), "cells": n,
            "operations": needed(model, ready, moving)}  # fmt: skip


def needed(model: Any, ready: Any, moving: Any) -> float:
    """Operations of a step: of every live token, each layer's products forward and, by the input, backward."""
    import torch

    from interp.interventions.edits import Replace
    from interp.interventions.plan import compile_variants
    from interp.interventions.schedule import Savings, operations, schedule

    n = len(ready.task)
    variants = []
    for i, place in enumerate(ready.places):
        if moving[i]:
            rows = torch.nonzero(ready.differs[i])[:, 0]
            at = ready.position[i, rows][:, None]
            variants.append([Replace(place.site, 0.0, positions=at, rows=rows.tolist())])
    savings = Savings(skip_noops=False)
    plan = compile_variants(model, ready.task.base, variants)
    rows = schedule(model, plan, ready.ready.base, ready.ready.readout.positions.numpy(), savings)
    assert len(rows) == int(ready.differs.sum()) <= n * len(ready.places)
    return 2 * operations(model, rows, model.d_vocab, 1, savings)


def hooks(model: Any, pairs: Pairs, layer: int, position: int, rank: int, steps: int) -> dict[str, Any]:
    """The same, written by hand: the source captured once, the base rerun with a hook in every step."""
    import torch

    basis = torch.linalg.qr(torch.randn(model.d_model, rank, generator=torch.Generator().manual_seed(0))).Q
    columns = basis.clone().requires_grad_()
    optimizer = torch.optim.Adam([columns], 1e-3)
    block, kept = model.network.model.layers[layer], []

    def capture(_: Any, args: tuple) -> None:
        kept.append(args[0][:, position].detach())

    def edit(_: Any, args: tuple) -> tuple:
        q, r = torch.linalg.qr(columns)
        q = q * r.diagonal().sign()
        x = args[0].clone()
        x[:, position] = x[:, position] + ((kept[0] - x[:, position]) @ q) @ q.T
        return (x, *args[1:])

    handle = block.register_forward_pre_hook(capture)
    with torch.no_grad():
        model.network(pairs.source.ids, use_cache=False)
    handle.remove()
    handle, taken = block.register_forward_pre_hook(edit), []
    try:
        for _ in range(steps + 1):
            start = time.perf_counter()
            logits = model.network(pairs.base.ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, pairs.label).backward()
            optimizer.step()
            taken.append(time.perf_counter() - start)
    finally:
        handle.remove()
    return {"seconds": taken[1:]}


def same(model: Any, pairs: Pairs, layer: int, position: int, rank: int, others: Path | None) -> dict[str, float]:
    """Largest differences of our logits and gradient to hooks by hand, and of our logits to pyvene's."""
    import torch
    from safetensors.torch import load_file

    from interp.alignment.fit import Cells
    from interp.alignment.language import LanguageContinuation, Place
    from interp.alignment.maps import LowRank
    from interp.models.site import Site

    ready = LanguageContinuation(model, pairs.encoded(), [Place(Site("resid_pre", layer), str(position))])
    maps = LowRank(model.d_model, rank)
    with torch.no_grad():
        maps.columns.copy_(shared_basis(model.d_model, rank)[None])
    cells, rows = Cells(maps, torch.tensor([0]), torch.tensor([0]), ("cell",)), torch.arange(len(pairs.label))
    logits = ready.outputs(cells.swapped(ready, rows)[0], rows * 0, rows)
    (own,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, pairs.label), maps.columns)

    columns = shared_basis(model.d_model, rank).requires_grad_()
    q, r = torch.linalg.qr(columns)
    q = q * r.diagonal().sign()

    def edit(_: Any, args: tuple) -> tuple:
        x = args[0].clone()
        at = x[:, position]
        x[:, position] = at + ((ready.sources[0][0] - at) @ q) @ q.T
        return (x, *args[1:])

    handle = model.network.model.layers[layer].register_forward_pre_hook(edit)
    plain = model.network(pairs.base.ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    handle.remove()
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(plain, pairs.label), columns)
    found = {
        "logits": float((logits - plain).detach().abs().max()), "range of logits": float(plain.detach().abs().max()),
        "gradient": float((own[0] - expected).abs().max()), "range of gradient": float(expected.abs().max()),
    }  # fmt: skip
    if others is not None and others.exists():
        found["pyvene"] = float((logits.detach() - load_file(others)["logits"]).abs().max())
    return found


def shared_basis(width: int, rank: int) -> Any:
    """The orthonormal start that pyvene gets, too."""
    import torch

    return torch.linalg.qr(torch.randn(width, rank, generator=torch.Generator().manual_seed(3))).Q


def pyvene(
    model: Any, pairs: Pairs, cells: list[tuple[int, int]], rank: int, steps: int, threads: int, logits: Path
) -> dict[str, Any] | None:
    """Seconds of pyvene's steps of each cell; None where it is not installed."""
    from safetensors.torch import save_file

    python = os.environ.get("PYVENE_PYTHON")
    if python is None:
        return None
    data = OUT / "alignment.safetensors"
    save_file({"base": pairs.base.ids.contiguous(), "source": pairs.source.ids.contiguous(), "label": pairs.label,
               "basis": shared_basis(model.d_model, rank).contiguous()}, data)  # fmt: skip
    command = [
        python, "-W", "ignore", str(Path(__file__).with_name("peer_pyvene_das.py")), str(data), str(logits),
        "--cells", json.dumps(cells), "--steps", str(steps), "--threads", str(threads),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if not last[0].startswith("{"):
        raise RuntimeError(f"pyvene: {done.stdout[-300:]} {done.stderr[-1500:]}")
    return json.loads(last[0])


def fit_das(model: Any, pairs: Pairs, layer: int, position: int, rank: int, steps: int) -> dict[str, Any] | None:
    """Seconds of a step of TransformerLens's `fit_das`: what more epochs of one batch take; None without it."""
    import copy
    import importlib.util

    import torch

    if importlib.util.find_spec("transformer_lens") is None:
        return None
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.tools.analysis.interchange import fit_das as fit

    network = copy.deepcopy(model.network)
    bridge = build_bridge_from_module(network, type(network).__name__, hf_config=network.config,
                                      tokenizer=model.tokenizer).eval()  # fmt: skip
    at, taken = torch.full((len(pairs.label),), position), []
    for epochs in (1, 1 + steps):
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            fit(bridge, f"blocks.{layer}.hook_in", pairs.base.ids, pairs.source.ids, pairs.label,
                lambda bridge, ids: bridge(ids)[:, -1], rank=rank, base_positions=at, source_positions=at,
                epochs=epochs, batch_size=len(pairs.label))  # fmt: skip
        taken.append(time.perf_counter() - start)
    return {"seconds": [(taken[1] - taken[0]) / steps]}


def main(
    pairs: Annotated[int, typer.Option(help="Pairs, all in one batch.")] = 16,
    layer: Annotated[int, typer.Option(help="Of the single fits.")] = 15,
    rank: Annotated[int, typer.Option(help="Of all maps.")] = 32,
    steps: Annotated[int, typer.Option(help="Timed steps of ours and of hooks; peers do a third of them.")] = 9,
    threads: Annotated[int, typer.Option(help="Threads of everybody's products.")] = 2,
    only: Annotated[str, typer.Option(help="last, middle, grid, or all of them.")] = "last,middle,grid",
    peers: Annotated[bool, typer.Option(help="Measure pyvene and TransformerLens, too.")] = True,
    resume: Annotated[bool, typer.Option(help="Keep what an earlier run has measured.")] = False,
) -> None:
    """Measure, compare, report."""
    where, bench = machine(), Bench(resume)
    set_threads(threads)
    import interp

    model = interp.load("smollm2-135m")
    sets = {kind: Pairs(model, kind, pairs) for kind in ("giver", "names")}
    few, logits = max(1, steps // 3), OUT / "alignment.logits.safetensors"
    rate = bench.item("rate", matrix_rate)
    rows: list[dict[str, Any]] = []

    def row(what: str, way: str, found: dict[str, Any] | None, against: float | None) -> float | None:
        """A line of the table; returns seconds per step."""
        if found is None:
            rows.append({"what": what, "way": way, "s per step": None})
            return None
        each = found["seconds"]
        one = statistics.median(each) if not isinstance(each[0], list) else sum(map(statistics.median, each))
        line = {"what": what, "way": way, "s per step": one, "ours is … × faster": against and one / against}
        if "operations" in found:
            line |= {"best": min(each), "GFLOP": found["operations"] / 1e9,
                     "share of the floor": found["operations"] / rate / one, "base and source runs, s": found["before"],
                     "cells trained": f"{found['trained']} of {found['cells']}"}  # fmt: skip
        rows.append(line)
        return one

    for place, position in (("last", LAST), ("middle", MIDDLE)):
        if place not in only:
            continue
        what, some = f"layer {layer}, {place} position ({position} of {LAST})", sets["names"]
        mine = row(what, "ours", bench.item(f"{place} ours", lambda p=position, s=some: ours(
            model, s, [(layer, p)], rank, 3 * steps)), None)  # fmt: skip
        row(what, "hooks by hand", bench.item(f"{place} hooks", lambda p=position, s=some: hooks(
            model, s, layer, p, rank, few)), mine)  # fmt: skip
        if peers:
            row(what, "TransformerLens fit_das", bench.item(f"{place} fit_das", lambda p=position, s=some: fit_das(
                model, s, layer, p, rank, few)), mine)  # fmt: skip
            row(what, "pyvene", bench.item(f"{place} pyvene", lambda p=position, s=some: pyvene(
                model, s, [(layer, p)], rank, few, threads, logits)), mine)  # fmt: skip
    if "grid" in only:
        cells = [(a, p) for a in LAYERS for p in POSITIONS]
        for kind, some in sets.items():
            what = f"{len(LAYERS)} layers × {len(POSITIONS)} positions, {kind} differs"
            mine = row(what, "ours, one call", bench.item(f"grid {kind} ours", lambda s=some: ours(
                model, s, cells, rank, steps)), None)  # fmt: skip
            if peers:  # what it runs does not depend on the tokens
                row(what, "pyvene, one fit after the other", bench.item("grid pyvene", lambda s=some: pyvene(
                    model, s, cells, rank, 1, threads, OUT / "alignment.other.safetensors")), mine)  # fmt: skip
    compared = bench.item("same", lambda: same(model, sets["names"], layer, LAST, rank, None))
    if compared and logits.exists() and "last pyvene" in bench.known:
        place = MIDDLE if "middle pyvene" in bench.known else LAST  # the latest call's logits are there
        compared |= same(model, sets["names"], layer, place, rank, logits)
    notes = [f"matrix rate {rate / 1e9:.0f} GFLOP/s on {threads} threads", f"largest differences: {compared}"]
    report("alignment", "Fitting alignment maps, SmolLM2-135M", rows, notes=notes, where=where)
    if not compared or compared["logits"] > 1e-3 or compared["gradient"] > 1e-5 * max(1, compared["range of gradient"]):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
