"""Do the shapes model's attention maps find the objects, and do the tokens that they point at matter?

Prints the tables of docs/diffusion.md, and writes the numbers and the picture of one scene's maps. Two-object
scenes; the masks are renders of the scenes, which neither the model nor the maps have seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from report import ROOT

import interp
from interp.interventions.edits import Knockout, When
from interp.interventions.sweep import sweep
from interp.models.denoiser import describe_pipeline
from interp.plots import write_png
from interp.shapes.caption import full_caption
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.render import masks
from interp.shapes.scene import CELLS, sample_scenes
from interp.statistics import bootstrap_interval
from interp.tasks.image_metrics import JudgeLogProbability
from interp.tracing import attention_maps

N = 60
# Words of full_caption: "a SIZE COLOUR SHAPE at ROW COLUMN and a SIZE COLOUR SHAPE at ROW COLUMN on a GROUND background"
WORDS = {"size": 1, "colour": 2, "shape": 3, "cell": 5, "the word after it": 7}
SECOND = 8  # words from the first object to the second
EXAMPLE = "a large red circle at top left and a small blue square at bottom right on a white background"


def scenes_of_two(n: int, seed: int = 0):
    """Scenes with two objects."""
    return [scene for scene in sample_scenes(4 * n, seed) if len(scene.objects) == 2][:n]


def untrained():
    """The same architecture with random weights."""
    torch.manual_seed(0)
    return describe_pipeline(new_pipeline(new_text_encoder(), new_unet()), "untrained")


def found(model, scenes) -> dict[str, dict[str, list[float]]]:
    """Per word, agreement with its own object, the other one, and the objects of the next scene; mean per scene."""
    drawn = masks(scenes)
    numbers = [number + SECOND * slot for number in WORDS.values() for slot in (0, 1)]
    own = [slot for _ in WORDS for slot in (0, 1)]
    out = {name: {"own": [], "other": [], "shuffled": []} for name in WORDS}
    for row, scene in enumerate(scenes):
        maps = attention_maps(model, full_caption(scene), words=numbers, seeds=[row])
        against = {
            "own": drawn[row, own],
            "other": drawn[row, [1 - slot for slot in own]],
            "shuffled": drawn[(row + 1) % len(scenes), own],
        }
        for kind, regions in against.items():
            values = maps.agreement(regions).values[0].reshape(len(WORDS), 2).mean(1)
            for name, value in zip(WORDS, values, strict=True):
                out[name][kind].append(float(value))
    return out


def caused(model, scenes) -> dict[str, list[float]]:
    """Probability of the first object's colour when its words are not seen, in all cross-attentions and steps."""
    sampling = model.sampling([full_caption(scene) for scene in scenes], seeds=0)
    first = [scene.objects[0] for scene in scenes]
    metric = JudgeLogProbability("colour", [thing.colour for thing in first], [thing.cell for thing in first])
    sites = model.sites("cross_scores")
    phrase = [1 + word for word in range(7)]  # one token a word, after <begin>
    cut = {
        "colour": [3],
        "the word after it": [8],
        "the phrase": phrase,
        "the phrase and the word after it": [*phrase, 8],
    }

    def without(keys, where=None):
        when = When(branch=interp.Branch.COND)
        return [Knockout(s.layer, keys=keys, attention="cross", when=when, positions=where and where(s)) for s in sites]

    def cells(inside):
        def of(site):
            height, width = model.grid_of(site, sampling)
            rows = []
            for thing in first:
                top, left = divmod(CELLS.index(thing.cell), 2)
                y, x = np.mgrid[:height, :width]
                here = (y // (height // 2) == top) & (x // (width // 2) == left)
                rows.append(np.flatnonzero(here if inside else ~here))
            return torch.tensor(np.array(rows))

        return of

    variants = {name: without(keys) for name, keys in cut.items()}
    variants["the word after it, from the object's quarter"] = without([8], cells(True))
    variants["the word after it, from the other quarters"] = without([8], cells(False))
    result = sweep(model, sampling, list(variants.values()), metric)
    values = result.values[metric.name].exp().tolist()
    return {"nothing": result.base[metric.name].exp().tolist()} | dict(zip(variants, values, strict=True))


def described(values: list[float]) -> str:
    """Mean and interval."""
    low, high = bootstrap_interval(np.array(values))
    return f"{np.mean(values):.3f} ({float(low):.3f}–{float(high):.3f})"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the picture and the numbers.")] = ROOT / "out" / "benchmarks",
) -> None:
    """Measure, print the tables, and draw one scene's maps."""
    torch.set_num_threads(1)
    scenes, model = scenes_of_two(N), interp.load("shapes")
    out.mkdir(parents=True, exist_ok=True)
    write_png(attention_maps(model, EXAMPLE, seeds=1).plot(), out / "attention_maps.png")
    trained, random = found(model, scenes), found(untrained(), scenes)
    print("| word | own object | other object | another scene's | own object, untrained |\n|---|--:|--:|--:|--:|")
    for name in WORDS:
        cells = [
            *(described(trained[name][kind]) for kind in ("own", "other", "shuffled")),
            described(random[name]["own"]),
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    effects = caused(model, scenes)
    print("\n| not seen | P(colour) of the first object |\n|---|--:|")
    for name, values in effects.items():
        print(f"| {name} | {described(values)} |")
    record = {"n": N, "trained": trained, "untrained": random, "colour": effects}
    (out / "attention_maps.json").write_text(json.dumps(record))


if __name__ == "__main__":
    typer.run(main)
