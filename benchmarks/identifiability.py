"""Are concepts found one by one? With and without the price of an edge, on hierarchies whose truth is known.

    python benchmarks/identifiability.py                      # five kinds of hierarchy and three controls, 5 seeds each
    python benchmarks/identifiability.py latent_continuous    # some of them

No speed. Each finished part is kept in `out/benchmarks/identifiability/` and not measured again (`--again` forgets
them); the table of docs/concept_graphs.md is what the whole prints.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from report import machine, report
from timing import set_threads

from interp.concepts.hierarchies import ConceptHierarchy, latent_hierarchy, selection_hierarchy
from interp.concepts.identifiability import IdentifiabilityResult, identifiability

OUT = Path("out/benchmarks/identifiability")
ROWS = 3000
KINDS: dict[str, Callable[..., ConceptHierarchy]] = {
    "latent_continuous": latent_hierarchy,
    "latent_discrete": partial(latent_hierarchy, discrete=True),
    "selection_continuous": selection_hierarchy,
    "selection_continuous_tight": partial(selection_hierarchy, agreement=0.3),
    "selection_discrete": partial(selection_hierarchy, discrete=True),
}
PARTS = {name: dict(make=make, shuffled=False) for name, make in KINDS.items()}
PARTS |= {"latent_continuous_shuffled": dict(make=latent_hierarchy, shuffled=True)}
PARTS |= {
    f"latent_{kind}_dense": dict(make=partial(KINDS[f"latent_{kind}"], dense=True), shuffled=False)
    for kind in ("continuous", "discrete")
}


def measured(name: str, make: Callable[..., ConceptHierarchy], shuffled: bool, seeds: int) -> IdentifiabilityResult:
    path = OUT / f"{name}.nc"
    if path.exists():
        return IdentifiabilityResult.load(path)
    found = identifiability(
        lambda seed: make(ROWS, seed=seed), seeds=range(seeds), shuffled=shuffled, name=name.replace("_", " ")
    )
    found.save(path)
    return found


def main(
    parts: Annotated[list[str] | None, typer.Argument()] = None, seeds: int = 5, threads: int = 1, again: bool = False
) -> None:
    set_threads(threads)
    where = machine()
    if again:
        shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in parts or list(PARTS):
        data = measured(name, **PARTS[name], seeds=seeds).data
        for level in data["level"].values:
            both = {who: data.sel(level=level, learner=who) for who in ("minimal", "unconstrained")}
            row = {"what": name.replace("_", " "), "level": str(level)}
            for who, at in both.items():
                row[f"{who}: correlation"] = spread(at["correlation"])
                row[f"{who}: R²"] = f"{float(at['r2'].mean()):.3f}"
                row[f"{who}: R², all"] = f"{float(at['r2_all'].mean()):.3f}"
                row[f"{who}: edge F1"] = f"{float(at['edge_f1'].mean()):.2f}"
            rows.append(row)
    report("identifiability", f"Concepts found one by one: {seeds} seeds", rows, where=where)


def spread(values) -> str:
    return f"{float(values.mean()):.3f} ({float(values.min()):.3f}–{float(values.max()):.3f})"


if __name__ == "__main__":
    typer.run(main)
