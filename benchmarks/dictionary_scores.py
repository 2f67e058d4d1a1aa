"""Dictionaries of the shapes UNet against the known factors, beside every baseline.

    python benchmarks/dictionary_scores.py --out out/scores

Scenes of variant A are rendered, brought to one noise level, and shown to the denoiser once with their captions; a row is
a quarter of a picture, with one object or none. Dictionaries are trained on the cells of other pictures; those of several
sites are crosscoders. The control is the same with a model of random weights. Activations and dictionaries are kept in the
folder, and made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import typer
from report import machine
from timing import set_threads

import interp
from interp import dictionaries as dic
from interp.concepts.scores import atom_stability, score_dictionary, splice_pictures
from interp.interventions.noised import noised
from interp.interventions.one_step import OneStep
from interp.models.denoiser import Denoiser
from interp.plots import write_png
from interp.shapes.caption import full_caption
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.render import render
from interp.shapes.scene import factors_of, sample_scenes
from interp.tasks.known_factors import quarters

SITES = ("down.1.0.cross_attn_out", "up.1.0.cross_attn_out", "up.1.1.cross_attn_out", "up.1.1.block_out")
TIMESTEP = 499
TRAINING_SEED, SCORING_SEED = 1, 3
"""Sites, timestep and sizes were chosen on scenes of seed 2."""


def untrained() -> Denoiser:
    torch.manual_seed(0)
    return interp.load(new_pipeline(new_text_encoder(), new_unet()))


def cells(model: Denoiser, n: int, seed: int, sites: Sequence[str], timestep: int) -> torch.Tensor:
    """Activations [picture · cell, channel] of rendered scenes; sites side by side."""
    scenes = sample_scenes(n, seed)
    parts = []
    for start in range(0, n, 100):
        some = scenes[start : start + 100]
        given = noised(model, render(some), timestep, seed=1000 * seed + start)
        sampling = model.sampling([full_caption(scene) for scene in some], seeds=0)
        parts.append(torch.cat([OneStep(model, sampling, given.states, site).values for site in sites], -1))
    return torch.cat(parts).flatten(0, 1)


def kept(path: Path, make) -> torch.Tensor:
    from safetensors.torch import load_file, save_file

    if not path.exists():
        save_file({"x": make().contiguous()}, path)
    return load_file(path)["x"]


def trained(folder: Path, made, x: torch.Tensor, training: dic.Training) -> dic.Dictionary:
    if (folder / "dictionary.json").exists():
        return dic.load(folder)
    curve = dic.train(made, dic.InMemory(x), training)
    print(folder.name, curve.summary().splitlines()[-1].strip(), flush=True)
    dic.save(made, folder)
    return made


def contenders(read: dic.Standardisation, size: int, k: int, seed: int) -> dict[str, dic.Dictionary]:
    prefixes = [size // 16, size // 4, size]
    return {
        f"TopK {size}": dic.TopK(read, size, k, seed=seed),
        f"BatchTopK {size}": dic.BatchTopK(read, size, k, seed=seed),
        f"Matryoshka {size}": dic.Matryoshka(read, size, k, prefixes=prefixes, seed=seed),
    }


def main(
    out: Path = Path("out/scores"),
    pictures: int = 1500,
    scored: int = 600,
    sizes: str = "128,256,512",
    k: int = 10,
    steps: int = 3000,
    batch: int = 512,
    learning_rate: float = 2e-3,
    threads: int = 1,
    sites: str = ",".join(SITES),
    timestep: int = TIMESTEP,
    data_only: bool = False,
) -> None:
    set_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model = interp.load("shapes")
    places = sites.split(",")
    mark = f"{'+'.join(places)}-{timestep}"
    x = kept(
        out / f"train-{mark}-{pictures}.safetensors", lambda: cells(model, pictures, TRAINING_SEED, places, timestep)
    )
    held = kept(
        out / f"score-{mark}-{scored}.safetensors", lambda: cells(model, scored, SCORING_SEED, places, timestep)
    )
    control = [
        kept(
            out / f"{name}-untrained-{mark}-{n}.safetensors",
            lambda n=n, s=s: cells(untrained(), n, s, places, timestep),
        )
        for name, n, s in (("train", pictures, TRAINING_SEED), ("score", scored, SCORING_SEED))
    ]
    if data_only:
        return
    widths = [model.width_of(model.check(site)) for site in places]
    reads = [dic.Standardisation.from_moments(dic.Moments.of(rows), places, widths) for rows in (x, control[0])]
    training = dic.Training(steps=steps, batch=batch, learning_rate=learning_rate, dead_after=50_000)
    name = f"{mark}-k{k}-s{steps}-lr{learning_rate:g}"
    found = {}
    widest = max(int(size) for size in sizes.split(","))
    for size in map(int, sizes.split(",")):
        for label, made in contenders(reads[0], size, k, seed=0).items():
            found[label] = trained(out / f"{label} {name}", made, x, training)
    label = f"BatchTopK {widest}"
    again = {f"{label}, seed 0": found[label]}
    for seed in (1,):
        other = dic.BatchTopK(reads[0], widest, k, seed=seed)
        plan = dic.Training(steps=steps, batch=batch, learning_rate=learning_rate, dead_after=50_000, seed=seed)
        again[f"{label}, seed {seed}"] = trained(out / f"{label} seed {seed} {name}", other, x, plan)
    null = trained(out / f"untrained {widest} {name}", dic.BatchTopK(reads[1], widest, k), control[0], training)

    scenes = sample_scenes(scored, SCORING_SEED)
    grid = round(np.sqrt(len(held) // scored))
    picture, cell = np.divmod(np.arange(len(held)), grid * grid)
    known = quarters([factors_of(scene) for scene in scenes], picture, cell, (grid, grid))
    scores = score_dictionary(found, dic.InMemory(held), known, untrained=(null, dic.InMemory(control[1])))
    scores.save(out / f"scores-{name}.nc")
    print(scores)
    for end in ("low", "high"):
        print(
            scores.data[[f"{score}_{end}" for score in ("mcc", "mean_f1", "coverage")]]
            .to_dataframe()
            .round(3)
            .to_string()
        )
    print(scores.table().round(3).to_string())
    for label in found:
        for score in ("f1", "union_f1"):
            x = scores.data[score].sel(dictionary=label)
            print(label, score, {str(v): round(float(x.sel(value=v)), 2) for v in x["value"].values})
    write_png(scores.plot(), out / f"scores-{name}.png")
    print(atom_stability(again))
    print(machine())
    if len(places) > 1:
        return  # the loss is measured with a reconstruction at one site
    some = sample_scenes(128, SCORING_SEED + 1)
    spliced = splice_pictures(model, found, [full_caption(scene) for scene in some], render(some), timestep)
    spliced.save(out / f"splice-{name}.nc")
    print(spliced)


if __name__ == "__main__":
    typer.run(main)
