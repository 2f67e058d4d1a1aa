"""Speed and memory of edge scores on SmolLM2: exact effects of all edges, and EAP-IG, against hooks and the peers.

The floor of the exact effects is the operations that the sweep's plans count, over the machine's best rate of the
blocks' own matrix products, measured in the same run. EAP-IG runs in a process of its own for every way, so that peaks
of memory do not mix.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from report import ROOT, machine, report
from resident import peak, reset_peak, resident, trim
from timing import matrix_rate, processor_seconds, set_threads, spread
from workload import ANSWER, CLEAN, CORRUPTED, WRONG_ANSWER

FLOOR, FASTER, ABOVE = 0.6, 8.0, 1.5  # targets; the last in GB
PARTS = ["exact", "eap-ig"]


def exact(naive_edges: int, peer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the exact effects of all edges on one pair."""
    import torch
    from naive_circuits import PathPatch

    import interp

    model = interp.load("smollm2-135m")
    pair = interp.tasks.PromptPair(CLEAN, CORRUPTED, ANSWER, WRONG_ANSWER)
    graph = interp.circuits.Graph.of(model)
    rate = matrix_rate(clock=time.process_time)
    operations = counting_operations()
    scores, took, cpu = processor_seconds(lambda: interp.circuits.exact_edges(model, pair))
    rate = max(rate, matrix_rate(clock=time.process_time))  # others may have slowed one of the two
    floor = sum(operations) / rate
    ids = [model.prompts(text).ids for text in (CLEAN, CORRUPTED)]
    answers = tuple(model.tokenizer(text).input_ids[0] for text in (ANSWER, WRONG_ANSWER))
    with torch.no_grad():
        hand = PathPatch(model.network, *ids, answers)
    sample = spread(np.argwhere(graph.edges).tolist(), naive_edges)
    before = hand.value()
    values, _, naive = processor_seconds(lambda: [before - hand.value(i, graph.receivers[j]) for i, j in sample])
    worst = max(abs(value - float(scores.scores[i, j])) for value, (i, j) in zip(values, sample, strict=True))
    per_edge, whole = naive / len(sample), naive / len(sample) * graph.n_edges
    rows = [
        {"way": "interp.circuits.exact_edges, one call", "edges": graph.n_edges, "edges timed": "all", "seconds": took,
         "processor seconds": cpu, "against hooks": whole / cpu, "largest difference": worst, "TFLOP": sum(operations) / 1e12,
         "GFLOP per processor second": rate / 1e9, "floor, processor seconds": floor, "floor / run": f"{floor / cpu:.0%}", "target": f"≥ {FLOOR:.0%}"},
        {"way": "hooks, one forward pass per edge", "edges": graph.n_edges, "edges timed": f"sampled {len(sample)}",
         "processor seconds": whole, "against hooks": 1.0, "seconds per edge": per_edge},
    ]  # fmt: skip
    if peer:
        whole_peer = peer["per_edge"] * peer["edges"]
        rows.append({
            "way": "EAP-IG's repository, `exact`", "edges": peer["edges"], "edges timed": f"sampled {peer['exact_edges']}",
            "processor seconds": whole_peer, "against hooks": whole / whole_peer, "seconds per edge": peer["per_edge"],
        })  # fmt: skip
    return rows


def counting_operations() -> list[float]:
    """A list that grows by the planned operations of every sweep of `exact_edges` from now on."""
    module, counted = import_module("interp.circuits.exact"), []
    plan_sweep = module.plan_sweep

    def counting(*given: Any, **options: Any) -> Any:
        plan = plan_sweep(*given, **options)
        counted.append(plan.cost.operations)
        return plan

    module.plan_sweep = counting
    return counted


def eap_ig(way: str, pairs: int, steps: int, points: str, threads: int, out: str) -> None:
    """Inside the process of one way: time and peak of EAP-IG; scores [sender, receiver] go to a file."""
    import torch

    set_threads(threads)
    from naive_circuits import split_inputs

    import interp

    model = interp.load("smollm2-135m")
    model.weights_hash  # noqa: B018  reading it computes and keeps the hash, outside of what is timed
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[points]

    def scores(n: int, steps: int) -> Any:
        if way == "interp":
            return interp.circuits.eap_ig(model, interp.tasks.ioi(n), steps=steps, points=points).scores
        encoded = interp.tasks.ioi(n).encode(model)
        answers = torch.stack([encoded.answer, encoded.wrong_answer], 1)
        prompts = encoded.clean.ids, encoded.corrupted.ids, encoded.clean.lengths
        return split_inputs(model.network, *prompts, answers, steps, lambda step: (step + offset) / steps).numpy()

    scores(2, 1)  # warm up
    trim()
    reset_peak()
    before = resident()
    found, took, cpu = processor_seconds(lambda: scores(pairs, steps))
    above = peak() - before
    np.save(out, found)
    print(json.dumps({"seconds": took, "processor": cpu, "above": above}))


def inside(way: str, folder: Path, setting: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """What `eap_ig` found in a process of its own."""
    path = folder / f"{way}.npy"
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--inside",
        json.dumps({"way": way, "out": str(path), **setting}),
    ]
    return json.loads(last_line(command)), np.load(path)


def run_peer(
    python: str, folder: Path, setting: dict[str, Any], edges: int
) -> tuple[dict[str, Any] | None, np.ndarray]:
    """What `peer_eap_ig.py` found with this interpreter; None if the reference is not installed there."""
    path = folder / "peer.npy"
    options = {"pairs": setting["pairs"], "steps": setting["steps"], "threads": setting["threads"], "edges": edges}
    command = [python, "-W", "ignore", str(Path(__file__).with_name("peer_eap_ig.py")), "--scores", str(path)]
    line = last_line(command + [part for name, value in options.items() for part in (f"--{name}", str(value))])
    if not line.startswith("{"):
        return None, np.empty(0)
    return {**json.loads(line), "exact_edges": edges}, np.load(path)


def last_line(command: list[str]) -> str:
    """The last line that a command prints."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def grouped(scores: np.ndarray, graph: Any) -> np.ndarray:
    """Scores of a graph in which every query head has its own key and value input, added up over each group."""
    width, heads, kv_heads = 3 * graph.n_heads + 1, graph.n_heads, graph.n_kv_heads
    parts = []
    for layer in range(graph.n_layers):
        own = scores[:, layer * width : (layer + 1) * width]
        shared = own[:, heads : 3 * heads].reshape(len(own), 2 * kv_heads, heads // kv_heads).sum(2)
        parts += [own[:, :heads], shared, own[:, 3 * heads :]]
    return np.concatenate([*parts, scores[:, -1:]], 1)


def agreement(ours: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of two arrays of scores: cosine, shared share of the 200 strongest, largest difference."""
    top = [set(np.argsort(-np.abs(x), kind="stable")[:200].tolist()) for x in (ours, other)]
    cosine = float(ours @ other / np.linalg.norm(ours) / np.linalg.norm(other))
    return {"cosine": cosine, "top 200 shared": len(top[0] & top[1]) / 200, "largest difference": float(np.abs(ours - other).max())}  # fmt: skip


def main(
    only: Annotated[list[str], typer.Option(help="parts to run")] = PARTS,
    pairs: int = 16,
    steps: int = 5,
    naive_edges: Annotated[int, typer.Option(help="edges of the hooks, one forward pass each")] = 200,
    peer_edges: Annotated[int, typer.Option(help="edges of the reference's exact effects")] = 20,
    threads: int = 2,
    peer: Annotated[str, typer.Option(envvar="EAP_IG_PYTHON", help="interpreter with HookedTransformer")] = "",
    inside_: Annotated[str | None, typer.Option("--inside", hidden=True)] = None,
) -> None:
    """Print both tables."""
    if inside_ is not None:
        eap_ig(**json.loads(inside_))
        return
    set_threads(threads)
    where = machine()
    import interp

    graph = interp.circuits.Graph.of(interp.load("smollm2-135m"))
    theirs, rows = None, []
    with tempfile.TemporaryDirectory() as name:
        folder, setting = Path(name), {"pairs": pairs, "steps": steps, "points": "left", "threads": threads}
        if "eap-ig" in only:
            found, scores = inside("interp", folder, setting)
            ours, kept = scores[graph.edges], {"pairs": pairs, "steps": steps}
            rows.append({"way": "interp.circuits.eap_ig", **kept, **timing(found, found)})
            hand, scores = inside("by hand", folder, setting)
            rows.append({"way": "PyTorch by hand, split inputs", **kept, **timing(hand, found)})
            rows[-1] |= agreement(ours, grouped(scores, graph)[graph.edges])
        if peer:
            theirs, scores = run_peer(peer, folder, setting, peer_edges)
        if theirs and rows:
            rows.append({"way": "EAP-IG's repository, HookedTransformer", **kept, **timing(theirs, found)})
            rows[-1] |= agreement(ours, grouped(-scores, graph)[graph.edges])
    if rows:
        notes = [
            f"Ratios are of processor time. All with the reference code's points, α = (k − 1)/steps. Targets: ≥ {FASTER:g}× faster than the reference, "
            f"≤ {ABOVE:g} GB above the model, cosine ≥ 0.995, ≥ 0.9 of the 200 strongest edges shared. The others' edges "
            "into the keys and values of a group's queries are added up; the reference's score is the negative of ours.",
        ]
        report("circuits_eap_ig", f"EAP-IG, {pairs} IOI pairs, {steps} steps", rows, notes=notes, where=where)
    if "exact" in only:
        rows = exact(naive_edges, theirs)
        notes = [
            "One pair of 14 tokens that differ in one. Ratios are of processor time; that of sampled edges is extrapolated "
            "to all. Floor: operations over the best rate of the "
            "blocks' own products, by the same clock.",
        ]
        report("circuits_exact", "Exact effects of all edges", rows, notes=notes, where=where)


def timing(found: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Seconds, processor time against ours, and memory."""
    return {"seconds": found["seconds"], "processor seconds": found["processor"], "times ours": found["processor"] / ours["processor"], "GB above the model": found["above"] / 1e9}  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
