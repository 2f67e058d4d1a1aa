"""How often a shapes model draws what it is asked for: `python -m interp.shapes.evaluate --out FOLDER`.

Prompts say everything (in random order and words), so every factor has a right answer. Each picture is read by the
checker and by the judge; where both agree with the prompt there is little doubt, and where they differ from one
another the table says how often.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import UInt8
from PIL import Image

from interp.shapes.architecture import architecture_named
from interp.shapes.caption import caption
from interp.shapes.checker import check
from interp.shapes.judge import load_judge
from interp.shapes.reading import Reading, compare, ideal
from interp.shapes.render import SIDE
from interp.shapes.scene import VARIANTS, Scene, sample_scene

FACTORS = ("background", "cells", "shape", "colour", "size", "binding", "scene")


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, with Wilson's 95 % interval."""

    right: int
    of: int

    def interval(self) -> tuple[float, float]:
        """Lower and upper bound of the share."""
        z, n, p = 1.96, self.of, self.right / self.of
        centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    def record(self) -> dict[str, float]:
        """As JSON has it."""
        low, high = self.interval()
        return {"share": self.right / self.of, "low": low, "high": high, "right": self.right, "of": self.of}


def draw(
    pipeline: Any, prompts: Sequence[str], seed: int, steps: int, guidance: float
) -> UInt8[np.ndarray, "batch 32 32 3"]:
    """One picture per prompt. Prompt i starts from the noise of seed + i, whatever the other prompts are."""
    pictures = []
    for start in range(0, len(prompts), 50):
        some = list(prompts[start : start + 50])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
        images = pipeline(
            some, generator=generators, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
        ).images
        pictures.append(np.rint(images * 255).astype(np.uint8))
    return np.concatenate(pictures)


def evaluation_set(n: int, seed: int, variant: str = "A") -> tuple[list[Scene], list[str]]:
    """`n` scenes, every other one with two objects, and a caption of each that omits nothing."""
    random = Random(f"evaluation {seed}")
    scenes = [sample_scene(random, VARIANTS[variant], two=float(row % 2)) for row in range(n)]
    return scenes, [caption(scene, random, 1.0, VARIANTS[variant]) for scene in scenes]


def shares(seen: Sequence[Reading], wanted: Sequence[Reading]) -> dict[str, dict[str, Share]]:
    """`{"single" or "two": {factor: share}}` of agreement."""
    table = {}
    for name, count in {"single": 1, "two": 2}.items():
        rows = [(s, w) for s, w in zip(seen, wanted, strict=True) if sum(cell is not None for cell in w.cells) == count]
        answers: dict[str, list[bool]] = {factor: [] for factor in FACTORS}
        for s, w in rows:
            for factor, right in compare(s, w).items():
                answers[factor] += right
        table[name] = {factor: Share(sum(right), len(right)) for factor, right in answers.items() if right}
    return table


def agreement(one: Sequence[Reading], other: Sequence[Reading]) -> dict[str, Share]:
    """By factor, how often two readers see the same; cells where both see an object count for its leaves."""
    cells = [pair for a, b in zip(one, other, strict=True) for pair in zip(a.cells, b.cells, strict=True)]
    both = [(x, y) for x, y in cells if x is not None and y is not None]
    same: dict[str, list[bool]] = {
        "background": [a.background == b.background for a, b in zip(one, other, strict=True)],
        "cells": [(x is None) == (y is None) for x, y in cells],
    }
    for leaf in ("shape", "colour", "size"):
        same[leaf] = [getattr(x, leaf) == getattr(y, leaf) for x, y in both]
    same["scene"] = [a == b for a, b in zip(one, other, strict=True)]
    return {factor: Share(sum(agree), len(agree)) for factor, agree in same.items() if agree}


def sheet(pictures: UInt8[np.ndarray, "batch 32 32 3"], columns: int = 10, zoom: int = 3) -> Image.Image:
    """Pictures side by side, row by row, with a gap."""
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (SIDE + 2), columns * (SIDE + 2), 3), 200, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (SIDE + 2) + 1, number % columns * (SIDE + 2) + 1
        canvas[top : top + SIDE, left : left + SIDE] = picture
    return Image.fromarray(canvas).resize((canvas.shape[1] * zoom, canvas.shape[0] * zoom), Image.Resampling.NEAREST)


def markdown(report: dict[str, dict[str, dict[str, Share]]], agreed: dict[str, Share] | None) -> str:
    """The accuracy table: a row per factor, a column per reader and number of objects."""
    columns = [(reader, count) for reader in report for count in ("single", "two")]
    lines = ["| factor | " + " | ".join(f"{count}, {reader}" for reader, count in columns) + " | readers agree |"]
    lines.append("|---|" + "--:|" * (len(columns) + 1))
    for factor in FACTORS:
        cells = [_percent(report[reader][count].get(factor)) for reader, count in columns]
        lines.append(f"| {factor} | {' | '.join(cells)} | {_percent(agreed.get(factor) if agreed else None)} |")
    return "\n".join(lines) + "\n"


def _percent(share: Share | None) -> str:
    if share is None:
        return "–"
    low, high = share.interval()
    return f"{share.right / share.of:.1%} ({low:.1%}–{high:.1%})"


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of accuracy.json, accuracy.md and samples.png.")],
    architecture: Annotated[str, typer.Option(help="unet or dit.")] = "unet",
    weights: Annotated[Path | None, typer.Option(help="Folder of the weights; those of interp if not given.")] = None,
    n: Annotated[int, typer.Option(help="Prompts, half of them with two objects.")] = 1_000,
    steps: Annotated[int | None, typer.Option(help="Of denoising; the model's own if not given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Its scale; the model's own if not given.")] = None,
    seed: int = 0,
    judged: Annotated[bool, typer.Option(help="Ask the judge as well as the checker.")] = True,
) -> None:
    """Draw, read, count."""
    out.mkdir(parents=True, exist_ok=True)
    scenes, prompts = evaluation_set(n, seed)
    pipeline = architecture_named(architecture).load(weights)
    own: Any = inspect.signature(type(pipeline).__call__).parameters
    asked = {
        "steps": own["num_inference_steps"].default if steps is None else steps,
        "guidance": own["guidance_scale"].default if guidance is None else guidance,
    }
    pictures = draw(pipeline, prompts, seed, **asked)
    wanted = [ideal(scene) for scene in scenes]
    readings = {"checker": [check(picture) for picture in pictures]}
    if judged:
        readings["judge"] = load_judge().judge(pictures).readings()
    report = {reader: shares(seen, wanted) for reader, seen in readings.items()}
    agreed = agreement(readings["checker"], readings["judge"]) if judged else None
    record = {
        "architecture": architecture, "n": n, "seed": seed, **asked,
        "accuracy": {r: {c: {f: s.record() for f, s in t.items()} for c, t in of.items()} for r, of in report.items()},
        "agreement": {factor: share.record() for factor, share in (agreed or {}).items()},
    }  # fmt: skip
    (out / "accuracy.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (out / "accuracy.md").write_text(markdown(report, agreed), "utf-8")
    sheet(pictures[:80]).save(out / "samples.png")


if __name__ == "__main__":
    typer.run(evaluate)
