"""What maps of several kinds find in small networks that compute hierarchical equality, and in untrained ones.

    python benchmarks/hierarchical_equality.py                       # everything
    python benchmarks/hierarchical_equality.py rotation --runs 10    # one part: rotation revnet wide curve algorithms

No speed, but a reproduction: IIA of the toy of Sutter et al. 2025 (arXiv:2507.08802), beside their published means over
10 networks (5 untrained ones). Half of the coordinates for each variable, as there. Results are kept in
`out/benchmarks/` and drawn on again when all are there (`--again` forgets them).

Ours is smaller: networks see 5.1 million examples (theirs up to 21), maps 0.5 to 0.8 million pairs in 1,000 to 1,500
steps (theirs up to 64 million in 10,000 steps of 6,400).
"""

from __future__ import annotations

from pathlib import Path

import typer
from report import machine, report
from timing import set_threads

from interp.alignment.capacity import Capacity, MakeMap, Trial, capacity
from interp.alignment.fit import Training
from interp.alignment.maps import LowRank
from interp.alignment.revnet import RevNet
from interp.alignment.toy import MlpContinuation, VectorMlp, trained_mlp
from interp.plots import write_png
from interp.tasks.causal_models.equality import VECTOR_VARIABLES, vector_interchange

OUT = Path("out/benchmarks")
PLACES = ("layer 1", "layer 2", "layer 3")
WIDTHS = {"equality": 16, "first argument": 16, "and-or-and": 24, "and-or": 24}
PUBLISHED = {
    ("equality", "rotation"): ("0.84 0.61 0.50", "0.50 0.50 0.50"),
    ("equality", "RevNet 10×16"): ("1.00 1.00 1.00", ""),
    ("equality", "RevNet 1×4"): ("0.94 0.99 0.99", ""),
    ("equality", "RevNet 1×16"): ("0.99 1.00 1.00", ""),
    ("equality", "RevNet 10×128"): ("", "0.67 0.56 0.50"),
    ("first argument", "rotation"): ("0.50 0.50 0.50", ""),
    ("first argument", "RevNet 10×16"): ("0.51 0.51 0.51", ""),
    ("first argument", "RevNet 10×128"): ("", "0.77 0.59 0.54"),
    ("and-or-and", "rotation"): ("0.72 0.66 0.57", ""),
    ("and-or-and", "RevNet 10×24"): ("1.00 1.00 1.00", ""),
    ("and-or", "rotation"): ("0.79 0.77 0.77", ""),
    ("and-or", "RevNet 10×24"): ("0.97 0.93 0.89", ""),
}
"""(trained, untrained), layers 1, 2, 3; means over networks, from the authors' result files."""


def rotation(model: str) -> dict[str, MakeMap]:
    return {"rotation": lambda cells, seed: LowRank(WIDTHS[model], ranks(model), cells=cells, seed=seed)}


def revnet(model: str, blocks: int, hidden: int) -> dict[str, MakeMap]:
    def make(cells: int, seed: int) -> RevNet:
        return RevNet(WIDTHS[model], ranks(model), blocks=blocks, hidden=hidden, cells=cells, seed=seed)

    return {f"RevNet {blocks}×{hidden}": make}


def ranks(model: str) -> tuple[int, ...]:
    return (WIDTHS[model] // 2,) * len(VECTOR_VARIABLES[model])


ROTATING = Training(steps=1000, batch=512, learning_rate=5e-3)
FLEXIBLE = Training(steps=1500, batch=512, learning_rate=3e-3)
PARTS = {
    "rotation": ([("equality", rotation("equality"))], ROTATING, 10),
    "revnet": ([("equality", revnet("equality", 10, 16))], FLEXIBLE, 1),
    "wide": ([("equality", revnet("equality", 10, 128))], FLEXIBLE, 1),
    "curve": (
        [("equality", revnet("equality", 1, 4) | revnet("equality", 1, 16) | revnet("equality", 2, 16)
          | revnet("equality", 5, 16) | revnet("equality", 5, 64))], FLEXIBLE, 1,
    ),
    "algorithms": ([(model, rotation(model)) for model in ("first argument", "and-or-and", "and-or")], ROTATING, 3),
    "algorithms, RevNet": (
        [(model, revnet(model, 10, WIDTHS[model])) for model in ("first argument", "and-or-and", "and-or")], FLEXIBLE, 1,
    ),
}  # fmt: skip
"""Of each part: causal models with maps, how they are trained, and on how many networks."""


def trial(model: str, networks: VectorMlp) -> Trial:
    train = vector_interchange(model, 100_000, seed=1, law="published")
    held_out = vector_interchange(model, 10_000, seed=2, law="published")
    return Trial(
        MlpContinuation(networks, train), train.label.long(), MlpContinuation(networks, held_out), held_out.label.long()
    )


def measured(model: str, maps: dict[str, MakeMap], training: Training, runs: int) -> Capacity:
    trained = trained_mlp(model, seeds=range(runs))
    accuracy = trained.accuracy(vector_interchange(model, 10_000, seed=3))
    print(f"  {model}, accuracy of the networks: {' '.join(f'{x:.4f}' for x in accuracy)}", flush=True)
    untrained = VectorMlp(WIDTHS[model], seeds=range(runs)).requires_grad_(False)
    return capacity(
        [trial(model, trained)], [trial(model, untrained)], maps, training, places=PLACES,
        name=f"{' and '.join(VECTOR_VARIABLES[model])} of {model}",
    )  # fmt: skip


def rows_of(model: str, found: Capacity) -> list[dict[str, str]]:
    def shown(values) -> str:
        return " ".join(f"{x:.2f}" for x in values)

    rows = []
    for name in found.data["map"].values.tolist():
        trained, untrained = PUBLISHED.get((model, name), ("", ""))
        iia, runs = found.data["iia"].sel(map=name), found.data["iia_of_run"].sel(map=name, network="trained")
        rows.append({
            "what": model, "map": name, "numbers": f"{int(found.data['capacity'].sel(map=name)):,}",
            "trained": shown(iia.sel(network="trained").values), "published": trained,
            "least": shown(runs.min("run").values), "most": shown(runs.max("run").values),
            "untrained": shown(iia.sel(network="untrained").values), "untrained, published": untrained,
            "networks": str(found.data.sizes["run"]),
        })  # fmt: skip
    return rows


def main(parts: list[str] = typer.Argument(None), runs: int = 0, again: bool = False, threads: int = 1) -> None:  # noqa: B008
    set_threads(threads)
    where = machine()
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for part, (wanted, training, usual) in PARTS.items():
        for model, maps in wanted:
            path = OUT / f"hierarchical_equality, {part}, {model}.nc"
            if (not parts or part in parts) and (again or not path.exists()):
                measured(model, maps, training, runs or usual).save(path)
            if path.exists():
                found = Capacity.load(path)
                print(found)
                write_png(found.plot(), path.with_suffix(".png"))
                rows += rows_of(model, found)
    report("hierarchical_equality", "IIA at layers 1, 2, 3; half of the coordinates per variable", rows, where=where)


if __name__ == "__main__":
    typer.run(main)
