"""Speed: every sweep against one plain hooked forward pass per cell, and against other toolkits.

Everything of an experiment is timed in one run: stretches of naive cells with our calls between them, then the
peers. Where the naive way would take longer than `--naive-seconds`, a random sample of its cells,
spread evenly over the grid, is timed and extrapolated; the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from peers import NAMES, make_peer, run_pyvene
from report import machine, report
from timing import Timing, interleaved, matrix_rate, seconds, set_threads, spread, timed
from workload import (
    ANSWER,
    CLEAN,
    CORRUPTED,
    FACT,
    FACT_ANSWER,
    SUBJECT,
    WRONG_ANSWER,
    Cell,
    Experiment,
    Hooks,
    RomeTrace,
    experiments,
)  # fmt: skip

TARGETS = {
    ("resid_pre", True): 80, ("resid_pre", False): 15, ("heads by position", True): 60,
    ("heads, last position", True): 10, ("heads, all positions", True): 10, ("causal trace", True): 6,
}  # fmt: skip
FLOOR = 0.70
EXPERIMENTS = ["resid_pre", "heads by position", "heads, last position", "heads, all positions", "causal trace"]

PEERS = list(NAMES)


class Bench:
    """The model, the pair, and the settings of a run."""

    def __init__(
        self, layers: Sequence[int] | None, repeats: int, naive_seconds: float, naive_cells: int | None
    ) -> None:
        import interp

        self.model = interp.load("smollm2-135m")
        self.pair = interp.tasks.PromptPair(CLEAN, CORRUPTED, ANSWER, WRONG_ANSWER)
        self.clean, self.corrupted = self.model.prompts(CLEAN), self.model.prompts(CORRUPTED)
        self.answers = tuple(self.model.tokenizer(text).input_ids[0] for text in (ANSWER, WRONG_ANSWER))
        self.layers = list(range(self.model.n_layers) if layers is None else layers)
        self.repeats, self.naive_seconds, self.naive_cells = repeats, naive_seconds, naive_cells
        self.model.weights_hash  # noqa: B018  computed once per model, and no part of a sweep
        self.experiments = experiments(self.clean.ids.shape[1], self.model.n_heads, self.layers)

    def sample(self, cells: Sequence[Cell], naive: Callable[[Sequence[Cell]], Any]) -> list[Cell]:
        """The cells that the naive way computes: all, if that takes less than `naive_seconds`."""
        naive(cells[:2])  # warm up
        _, took = seconds(lambda: naive(spread(cells, 4)))
        affordable = max(4, int(self.naive_seconds / (took / min(4, len(cells)))))
        return spread(cells, min(affordable, self.naive_cells or affordable, len(cells)))


def patching(
    bench: Bench, experiment: Experiment, peers: Sequence[str], peer_cells: int, pyvene: str
) -> tuple[list, list]:
    """Rows of the speed table and of the floor's, for one grid."""
    import interp

    model, cells = bench.model, experiment.cells
    arguments = (model.network, experiment.part, model.n_heads, bench.clean.ids, bench.corrupted.ids)
    hooks, frugal = Hooks(*arguments), Hooks(*arguments, last_only=True)
    sample = bench.sample(cells, lambda some: hooks.values(some, *bench.answers))
    savings = (
        [interp.Savings(), interp.Savings(skip_noops=False)] if experiment.name == "resid_pre" else [interp.Savings()]
    )

    def patch(exact: Any) -> Any:
        return interp.patch(model, bench.pair, experiment.part, exact=exact, **experiment.arguments)

    for exact in savings:
        patch(exact)  # warm up
    oracle, per_cell, timed_calls = interleaved(
        lambda some: hooks.values(some, *bench.answers),
        sample,
        [lambda exact=exact: patch(exact) for exact in savings],
        bench.repeats,
    )
    ours = [(exact, *call) for exact, call in zip(savings, timed_calls, strict=True)]
    naive = per_cell * len(cells)

    few = spread(cells, min(20, len(sample)))
    _, took_frugal = seconds(lambda: frugal.values(few, *bench.answers))
    rows = [
        row(experiment.name, "hooks, one forward pass per cell", cells, sample, naive, naive),
        row(
            experiment.name,
            "hooks, logits of the last token only",
            cells,
            few,
            took_frugal / len(few) * len(cells),
            naive,
        ),
    ]
    floors = []
    for exact, result, timing in ours:
        value = experiment.values(result)
        worst = max(abs(value(cell) - oracle[cell]) for cell in sample)
        way = "interp.patch" if exact.skip_noops else "interp.patch, nothing skipped"
        target = TARGETS.get((experiment.name, exact.skip_noops))
        rows.append(row(experiment.name, way, cells, cells, timing, naive, worst, target))
        cost, plan, run = engine(bench, experiment, exact)
        rows.append(
            row(
                experiment.name,
                f"{way}: its sweep alone, planned and run",
                cells,
                cells,
                plan.median + run.median,
                naive,
            )
        )
        floors.append({
            "experiment": experiment.name, "what": "no-ops skipped" if exact.skip_noops else "nothing skipped",
            "rows run": cost.rows, "GFLOP": cost.operations / 1e9, "_patch": timing, "_plan": plan, "_run": run,
        })  # fmt: skip
    value = experiment.values(ours[-1][1])
    rows += peer_rows(bench, experiment, peers, spread(cells, peer_cells), naive, value, pyvene)
    return rows, floors


def row(
    experiment: str, way: str, cells: Sequence[Cell], done: Sequence[Cell], took: Timing | float, naive: float,
    worst: float | None = None, target: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One line of the speed table."""
    best, median = took if isinstance(took, Timing) else (took, took)
    return {
        "experiment": experiment, "way": way,
        "cells timed": f"all {len(cells)}" if len(done) == len(cells) else f"sampled {len(done)} of {len(cells)}",
        "seconds": median, "best": best, "against hooks": naive / median,
        "target": None if target is None else f"≥ {target}×",
        "largest difference": worst,
    }  # fmt: skip


def engine(bench: Bench, experiment: Experiment, exact: Any) -> tuple[Any, Timing, Timing]:
    """(cost, planning time, running time) of the sweep inside `interp.patch`, through the public calls."""
    import torch

    import interp
    from interp.tasks.metrics import LogitDifference

    model = bench.model
    source = interp.run(model, bench.clean, (), [experiment.part], logits=False)
    metric = LogitDifference(*(torch.tensor([token]) for token in bench.answers))
    variants = [
        [interp.Replace(interp.Site(experiment.part, cell.layer, cell.head), source, positions=cell.pos)]
        for cell in experiment.cells
    ]
    plan, planning = timed(
        lambda: interp.plan_sweep(model, bench.corrupted, variants, metric, exact=exact), bench.repeats
    )
    _, running = timed(plan.run, bench.repeats)
    return plan.cost, planning, running


def peer_rows(
    bench: Bench, experiment: Experiment, peers: Sequence[str], sample: Sequence[Cell], naive: float,
    ours: Callable[[Cell], float], pyvene: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The other toolkits on a sample of the cells."""
    rows, cells = [], experiment.cells

    def add(name: str, done: Sequence[Cell], found: Sequence[float], took: float) -> None:
        worst = max(abs(ours(cell) - value) for cell, value in zip(done, found, strict=True))
        rows.append(row(experiment.name, NAMES[name], cells, done, took / len(done) * len(cells), naive, worst))

    def absent(name: str) -> None:
        rows.append({"experiment": experiment.name, "way": NAMES[name], "cells timed": "not installed"})

    for name in [peer for peer in peers if not peer.startswith("pyvene")]:
        peer = make_peer(
            name, bench.model.network, bench.model.tokenizer, experiment.part, bench.model.n_heads, bench.clean.ids,
            bench.corrupted.ids, bench.answers,
        )  # fmt: skip
        if peer is None:
            absent(name)
            continue
        peer.values(sample[:2])  # warm up
        found, took = seconds(lambda peer=peer: peer.values(sample))
        add(name, sample, found, took)
    if experiment.part == "resid_pre" and (wanted := [peer for peer in peers if peer.startswith("pyvene")]):
        import torch

        layers = spread(bench.layers, 3)
        measured = run_pyvene(pyvene, sample, layers, torch.get_num_threads())
        whole = [cell for cell in cells if cell.layer in layers]
        for name in wanted:
            if measured is None:
                absent(name)
                continue
            part = measured["batched" if name == "pyvene_batched" else "per_cell"]
            add(name, whole if name == "pyvene_batched" else sample, part["values"], part["seconds"])
    return rows


def tracing(bench: Bench) -> list[dict[str, Any]]:
    """The Eiffel Tower trace, against ROME's protocol in batches of eleven rows."""
    import interp
    from interp.tracing.fact import subject_tokens

    def trace() -> Any:
        return interp.trace(bench.model, FACT, subject=SUBJECT, answer=FACT_ANSWER, noises=10, layers=bench.layers)

    result = trace()  # warm up
    ids = bench.model.prompts(FACT).ids
    answer = bench.model.tokenizer(FACT_ANSWER).input_ids[0]
    rome = RomeTrace(
        bench.model.network, ids, subject_tokens(bench.model, FACT, SUBJECT), result.provenance["sigma"], 10
    )

    def naive(cells: Sequence[Cell]) -> list:
        return [rome.probabilities(cell, answer) for cell in cells]

    cells = [Cell(layer, pos) for layer in bench.layers for pos in range(ids.shape[1])]
    sample = bench.sample(cells, naive)
    oracle, per_cell, [(result, timing)] = interleaved(naive, sample, [trace], bench.repeats)
    grid = result.data["probability"]
    worst = max(
        float(abs(grid.sel(layer=cell.layer, pos=cell.pos).values - found.numpy()).max())
        for cell, found in oracle.items()
    )
    whole = per_cell * len(cells)
    return [
        row("causal trace", "hooks, ROME's protocol: 11 rows per cell", cells, sample, whole, whole),
        row("causal trace", "interp.trace", cells, cells, timing, whole, worst, TARGETS["causal trace", True]),
    ]


def main(
    only: Annotated[list[str], typer.Option(help="experiments to run")] = EXPERIMENTS,
    peers: Annotated[list[str], typer.Option(help="peers to compare with, or 'none'")] = PEERS,
    peer_cells: Annotated[int, typer.Option(help="cells that each peer computes")] = 28,
    layers: Annotated[list[int] | None, typer.Option(help="layers of the grids; all if not given")] = None,
    naive_seconds: Annotated[float, typer.Option(help="most seconds of naive cells per experiment")] = 60,
    naive_cells: Annotated[int | None, typer.Option(help="most naive cells per experiment")] = None,
    repeats: int = 5,
    threads: int = 2,
    pyvene: Annotated[
        str, typer.Option(envvar="PYVENE_PYTHON", help="interpreter of an environment with pyvene")
    ] = "python",
) -> None:
    """Print the speed table and the distance to the floor."""
    set_threads(threads)
    where = machine()
    unknown = (set(only) - set(EXPERIMENTS)) | (set(peers) - set(NAMES) - {"none"})
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)}; experiments: {EXPERIMENTS}; peers: {list(NAMES)} or none")
    rate = matrix_rate()
    bench = Bench(layers, repeats, naive_seconds, naive_cells)
    rows, floors = [], []
    for name in only:
        if name == "causal trace":
            rows += tracing(bench)
            continue
        added, costs = patching(bench, bench.experiments[name], [p for p in peers if p != "none"], peer_cells, pyvene)
        rows, floors, rate = rows + added, floors + costs, max(rate, matrix_rate())
    model = f"SmolLM2-135M, {len(bench.layers)} layers × {bench.clean.ids.shape[1]} tokens"
    report(
        "sweeps", f"Speed on {model}", rows, where=where,
        notes=[
            f"Ours: median and best of {repeats} calls, warm, each between two stretches of the hooks' cells; hooks: the "
            "median of the stretches. Samples are spread evenly and extrapolated.",
            "Largest difference: to hooks for ours (logits; probability for the trace), to ours for the peers, over the "
            "cells timed.",
        ],
    )  # fmt: skip
    if floors:
        report(
            "floor",
            f"Distance to the floor: {rate / 1e9:.0f} GFLOP/s of matrix products on {where['threads']} threads",
            [floor_row(floor, rate) for floor in floors], where=where,
            notes=[
                "Floor: operations that the plan says are needed, over the best rate of the blocks' own matrix "
                "products, measured in this run. 'run': the sweep's rows; 'plan and run': with the base run, too.",
                f"Target: ≥ {FLOOR:.0%} on resid_pre with nothing skipped.",
            ],
        )  # fmt: skip


def floor_row(floor: dict[str, Any], rate: float) -> dict[str, Any]:
    """Seconds that the operations must take, over the seconds that they took."""
    least = floor["GFLOP"] * 1e9 / rate
    plan, run, patch = floor["_plan"].best, floor["_run"].best, floor["_patch"].best
    shown = {key: value for key, value in floor.items() if not key.startswith("_")}
    return shown | {
        "floor, s": least, "run, s": run, "plan, s": plan, "whole interp.patch, s": patch,
        "floor / run": f"{least / run:.0%}", "floor / plan and run": f"{least / (plan + run):.0%}",
        "floor / whole": f"{least / patch:.0%}",
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
