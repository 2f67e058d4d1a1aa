"""No speed: whether methods that score edges find circuits that are known, and claim none where there is none.

The first table is the area under the ROC curve of every method's |score| on every model of `interp.tasks` whose true
circuit is known; the second says on how many negatives each method would claim a circuit (`interp.circuits.claim`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import typer
from report import machine, report
from timing import set_threads

NEGATIVES = ["induction", "two_hop", "trigram", "majority", "planted"]
"""Truth models of 46 edges and more: on the smallest graphs random circuits are too often the true one."""


def makers(n: int) -> dict[str, Callable[[], Any]]:
    """Every model of a known circuit, with n pairs."""
    from interp import tasks

    programs = {name: (lambda name=name: tasks.compiled(name, n)) for name in tasks.PROGRAMS}
    gates = {f'gate("{kind}")': (lambda kind=kind: tasks.gate(kind, n)) for kind in ("and", "or")}
    return (
        programs
        | gates
        | {"induction_by_hand": lambda: tasks.induction_by_hand(n), "planted": lambda: tasks.planted(n)}
    )


def ways(methods: list[str] | None) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """(function, options) of every method, in both directions where it has them; EAP-IG also otherwise."""
    from interp import circuits
    from interp.circuits.score import METHODS

    nodes = {"nodes: exact": circuits.exact_nodes, "nodes: attribution": circuits.attribution_patching}
    found = {}
    for name, function in (dict(METHODS) | nodes).items():
        if methods and name not in methods:
            continue
        more = [{"steps": 5}, {"points": "shifted", "steps": 5}, {"steps": 20}] if name.startswith("eap-ig") else [{}]
        directed = "direction" in inspect.signature(function).parameters
        for options in more:
            for direction in ({"direction": "noising"}, {"direction": "denoising"}) if directed else ({},):
                label = ", ".join([name, *direction.values(), *(f"{value} {key}" for key, value in options.items())])
                found[label] = function, options | direction
    return found


def orders(truths: dict[str, Any], methods: list[str] | None) -> list[dict[str, Any]]:
    """AUC of every method on every model: means, the models that are no programs, and where it is not 1."""
    from interp.circuits import auc
    from interp.errors import InterpError
    from interp.tasks import PROGRAMS

    rows = []
    for label, (function, options) in ways(methods).items():
        found: dict[str, float] = {}
        for name, truth in truths.items():
            with suppress(InterpError):  # on some graphs of one layer every node is true
                found[name] = auc(function(truth.model, truth.task, **options), truth)
        programs = [found[name] for name in PROGRAMS if name in found]
        below = [f"{name} {found[name]:.2f}" for name in PROGRAMS if found.get(name, 1) < 0.9995]
        rows.append({
            "what": label, "mean of all": _mean(list(found.values())), "mean of programs": _mean(programs),
            "programs below 1": f"{len(below)} of {len(programs)}" if len(below) > 4 else ", ".join(below) or "none",
            **{name: found.get(name) for name in truths if name not in PROGRAMS}, "_all": found,
        })  # fmt: skip
    return rows


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def claims(truths: dict[str, Any], methods: list[str] | None, seeds: int) -> list[dict[str, Any]]:
    """How often each method claims a circuit of the true one's size: on the model itself, reset, with answers shuffled."""
    from interp.circuits import claim, reset, shuffled_answers
    from interp.circuits.score import METHODS

    rows = []
    for method in methods or list(METHODS):
        if method not in METHODS:
            continue
        options = {"steps": 20} if method.startswith("eap-ig") else {}
        row: dict[str, Any] = {"what": method}
        for where in ("the model itself", "reset", "answers shuffled"):
            made, likely = [], 0
            for truth in truths.values():
                for seed in range(1 if where == "the model itself" else seeds):
                    model = reset(truth.model, seed) if where == "reset" else truth.model
                    task = shuffled_answers(truth.task, seed) if where == "answers shuffled" else truth.task
                    found = claim(model, task, method, len(truth.edges()), seed=seed, **options)
                    made.append(found.holds)
                    alone = (found.evaluation.verdict["reasons"] if found.evaluation is not None else [""]) or [
                        found.why
                    ]
                    likely += len(alone) == 1 and ("coins" in alone[0] or "than chance" in alone[0])
            row[where] = f"{sum(made)} of {len(made)}"
            if where != "the model itself":
                row[f"{where}: but for the model's own answers"] = likely
        rows.append(row)
    return rows


def main(
    only: Annotated[list[str] | None, typer.Option(help="models; all if not given")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="methods; all if not given")] = None,
    pairs: int = 32,
    seeds: Annotated[int, typer.Option(help="reset models, and shuffles, of each model")] = 4,
    threads: int = 1,
) -> None:
    """Print both tables; the exit status says whether nothing was claimed where nothing is."""
    set_threads(threads)
    where = machine()
    truths = {name: make() for name, make in makers(pairs).items() if not only or name in only}
    notes = [
        "Truth under resample ablation. Nodes are true if a true edge leaves them. Options that a row does not name are "
        "the method's defaults.",
    ]
    report(
        "circuit_truth", f"AUC over the true circuits, {pairs} pairs", orders(truths, methods), notes=notes, where=where
    )
    large = {
        name: make() for name, make in makers(2 * pairs).items() if name in NEGATIVES and (not only or name in only)
    }
    if not large:
        return
    rows = claims(large, methods, seeds)
    notes = [
        f"{', '.join(large)}; scores from {pairs} pairs, tried on {pairs} others; EAP-IG with 20 steps. 'But for the "
        "model's own answers': cases in which only the model's being right no more often than coins forbade the claim.",
    ]
    report("circuit_claims", "Circuits claimed", rows, notes=notes, where=where)
    if any(not row[kind].startswith("0 ") for row in rows for kind in ("reset", "answers shuffled")):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
