"""Speed on the shapes model: every part of every block in one evaluation of the denoiser, and a block × step trace.

Each is timed against one hooked run per cell, written with plain hooks (`naive_pictures.py`), and against our own
`exact="naive"`; and against the floor. Where the naive way would take longer than `--naive-seconds`, a sample of its
cells, spread evenly, is timed and extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from naive_pictures import Loop, Patched, place
from report import machine, report
from timing import matrix_rate, seconds, set_threads, spread, timed

CLEAN = "a large red circle at top left on a white background"
CORRUPTED = "a large blue circle at top left on a white background"
TARGETS = {"one evaluation": 3, "block × step trace": 4}
SEED = 0


@dataclass(frozen=True)
class Distance:
    """Minus the root mean square distance to a picture."""

    target: Any
    name: str = "closeness"
    unit: str = "of full range"

    def values(self, images: Any, example: Any) -> Any:
        return -(images - self.target).square().mean((1, 2, 3)).sqrt()


class Bench:
    """One experiment: places × steps, each written from the clean prompt into the corrupted run, in the same state."""

    def __init__(self, name: str, steps: int, parts: Sequence[str] | None) -> None:
        import torch

        import interp
        from interp.models.site import ATTENTION_MAPS

        self.name, self.model = name, interp.load("shapes")
        self.base = self.model.sampling(CORRUPTED, seeds=SEED, steps=steps)
        clean = interp.run(self.model, CLEAN, seeds=SEED, steps=steps)
        self.metric = Distance(clean.images)
        self.sites = [
            interp.Site(part, address)
            for address, block in self.model.blocks.items()
            for part in block.taps
            if (part not in ATTENTION_MAPS if parts is None else part in parts)  # plain hooks do not reach a map
        ]
        self.cells = [(site, step) for site in self.sites for step in range(steps)]
        self.loop = Loop(self.model.pipeline, steps, self.base.guidance, SEED)
        with torch.no_grad():
            self.clean_words = self.loop.embeddings(CLEAN)[0]
        self.everyone = torch.zeros(1, dtype=torch.long)

    def naive(self, cells: Sequence[Any]) -> list[float]:
        """One hooked run per cell; the donor is one more line of the denoiser, in the step of the cell."""
        return [self._naive(site, step) for site, step in cells]

    def _naive(self, site: Any, at: int) -> float:
        where = place(self.loop.unet, site.layer, site.part)

        def at_step(step: int, x: Any, timestep: Any) -> Any:
            if step != at:
                return nullcontext()
            with Patched(where) as donor:
                self.loop.unet(x, timestep, encoder_hidden_states=self.clean_words)
            return Patched(where, donor.kept)

        picture = self.loop.picture(CORRUPTED, at_step)
        return float(self.metric.values(picture, self.everyone))

    def plan(self, cells: Sequence[Any], exact: Any = None) -> Any:
        """Our sweep over some cells."""
        import interp

        variants = [
            [interp.Replace(site, interp.UnderPrompt(CLEAN), when=interp.When(steps=[step], branch=interp.Branch.COND))]
            for site, step in cells
        ]
        settings = {} if exact is None else {"exact": exact}
        return interp.plan_sweep(self.model, self.base, variants, self.metric, **settings)

    def rows(self, naive_seconds: float, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of the table, and of the floor's."""
        n = len(self.cells)
        self.naive(self.cells[:2])
        _, took = seconds(lambda: self.naive(spread(self.cells, 4)))
        sample = spread(self.cells, max(4, min(n, int(naive_seconds / took * min(4, n)))))
        before, took_before = seconds(lambda: self.naive(sample[::2]))
        self.plan(self.cells[:2]).run()  # warm up
        swept, ours = timed(lambda: self.plan(self.cells).run(), repeats)
        after, took_after = seconds(lambda: self.naive(sample[1::2]))
        few = spread(self.cells, max(2, len(sample) // 4))
        plain, took_plain = seconds(lambda: self.plan(few, "naive").run())
        naive = (took_before + took_after) / len(sample) * n
        value = dict(zip(self.cells, swept.values["closeness"][:, 0].tolist(), strict=True))
        oracle = dict(zip(sample[::2] + sample[1::2], before + after, strict=True))
        worst = max(abs(value[cell] - found) for cell, found in oracle.items())
        plain_worst = max(
            abs(value[cell] - found) for cell, found in zip(few, plain.values["closeness"][:, 0].tolist(), strict=True)
        )
        head = {"experiment": f"{self.name}: {len(self.sites)} places × {self.base.steps} steps"}
        timed_cells = f"all {n}" if len(sample) == n else f"sampled {len(sample)} of {n}"
        table = [
            head | {"way": "hooks, one run per cell", "cells timed": timed_cells, "seconds": naive, "against hooks": 1.0},
            head
            | {
                "way": 'interp.sweep, exact="naive"', "cells timed": f"sampled {len(few)} of {n}",
                "seconds": took_plain / len(few) * n, "against hooks": naive / (took_plain / len(few) * n),
                "largest difference": plain_worst,
            },
            head
            | {
                "way": "interp.sweep", "cells timed": f"all {n}", "seconds": ours.best, "median": ours.median,
                "against hooks": naive / ours.best, "target": f"≥ {TARGETS[self.name]}×", "largest difference": worst,
            },
        ]  # fmt: skip
        plan = self.plan(self.cells)
        base = plan.cost.naive_operations / n  # of the base run, whose donor is one more line in every step
        floor = {
            "experiment": self.name, "rows run": plan.cost.rows, "GFLOP": (plan.cost.operations + 1.5 * base) / 1e9,
            "GFLOP, naive": plan.cost.naive_operations / 1e9, "seconds": ours.best,
        }  # fmt: skip
        return table, floor


def main(
    naive_seconds: Annotated[float, typer.Option(help="most seconds of naive cells per experiment")] = 60,
    repeats: int = 3,
    threads: int = 2,
    steps: Annotated[int, typer.Option(help="of the block × step trace")] = 20,
) -> None:
    """Print the speed table and the distance to the floor."""
    set_threads(threads)
    where = machine()
    rate = matrix_rate()
    benches = [Bench("one evaluation", 1, None), Bench("block × step trace", steps, ["cross_attn_out"])]
    table, floors = [], []
    for bench in benches:
        rows, floor = bench.rows(naive_seconds, repeats)
        table += rows
        rate = max(rate, matrix_rate())
        floors.append(floor)
    report(
        "pictures", "Speed on the shapes model, one prompt and seed, state-matched", table, where=where,
        notes=[
            f"Ours: planning, base run and rows; best and median of {repeats} calls, warm. Half of the hooks' cells "
            "before ours, half after. Largest difference: to ours, in the root mean square distance of pictures.",
        ],
    )  # fmt: skip
    for floor in floors:
        floor["floor, s"] = floor["GFLOP"] * 1e9 / rate
        floor["floor / run"] = f"{floor['floor, s'] / floor['seconds']:.0%}"
    report(
        "pictures_floor", f"Distance to the floor: {rate / 1e9:.0f} GFLOP/s of matrix products", floors, where=where,
        notes=["Floor: operations that the plan says are needed, and the base run's, over the best matrix rate."],
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
