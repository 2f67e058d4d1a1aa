"""Steering, judged: every value of the shapes world, three concepts of SmolLM2, and what a steered token costs.

    python benchmarks/steering.py pictures --targets blue,ring --n 24 --out out/steering
    python benchmarks/steering.py texts --concepts sentiment --n 10 --out out/steering
    python benchmarks/steering.py removal --targets red,circle
    python benchmarks/steering.py overhead

`pictures` and `texts` write a `DoseResponse` for each target (`interp.Result.load`), and print the best dose of each
method within the limits: pictures, something else changed in at most 10 %, garbage in at most 5 %; texts, 0.25 nats of
KL on unrelated texts. The dose is chosen on half of the examples, and the numbers are of the other half. No prompt that
is judged, nor what it is steered to, is among those that directions and maps are found in.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean, median

import torch
import typer

import interp
from interp.interventions.edits import Replace, When
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.progress import bar
from interp.shapes.caption import SYNONYMS, caption, full_caption
from interp.shapes.checker import check
from interp.shapes.scene import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, sample_scene
from interp.steering import (
    Measured,
    PictureGoal,
    TextGoal,
    concept,
    counterfactual_map,
    dose_response,
    family,
    language_states,
    manifold,
    one_against_rest,
    paired_states,
    project_out,
    random_concept,
    scenes_for,
    steer,
)
from interp.steering.edit_report import answers_other
from interp.steering.picture_response import value_of
from interp.tasks.concept_texts import CONCEPTS, concept_texts
from interp.tasks.image_metrics import as_bytes

FACTORS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "background": BACKGROUNDS}
COND = When(branch=Branch.COND)
RANK = 8
app = typer.Typer()


def factor_named(target: str) -> str:
    return next(name for name, values in FACTORS.items() if target in values)


def quarters(scenes, grid):
    """[row, n] cells of a site's grid where each scene's first object lies."""
    height, width = grid
    rows = []
    for scene in scenes:
        top, left = divmod(CELLS.index(scene.objects[0].cell), 2)
        ys, xs = range(top * height // 2, (top + 1) * height // 2), range(left * width // 2, (left + 1) * width // 2)
        rows.append([y * width + x for y in ys for x in xs])
    return torch.tensor(rows)


class Pool:
    """States of prompts of one object, and of the same prompts with a value changed, in the same x_t."""

    def __init__(self, model, n: int, judged: set[str], half: tuple[str, str] | None = None) -> None:
        """`judged`: captions to leave out; `half`: (factor, value) that every other scene has and the rest have not."""
        self.model, self.sites = model, list(model.sites("cross_attn_out"))
        random = Random("pool of steering")
        scenes = tuple(sample_scene(random, two=0.0) for _ in range(4 * n))
        if half:
            parts = [scenes_for(*half, 2 * n, 0, having=having) for having in (True, False)]
            kept = [[scene for scene in part if full_caption(scene) not in judged][: n // 2] for part in parts]
            self.scenes = tuple(scene for pair in zip(*kept, strict=True) for scene in pair)
        else:
            self.scenes = tuple(scene for scene in scenes if full_caption(scene) not in judged)[:n]
        n = len(self.scenes)
        made = model.sampling([full_caption(scene) for scene in self.scenes])
        self.sampling = replace(made, seeds=tuple(range(3_000_000, 3_000_000 + n)))
        self.grids = {site: model.grid_of(site, self.sampling) for site in self.sites}

    def pairs(self, targets):
        """Every scene with each of the values."""
        others = [[full_caption(scene.counterfactual(factor_named(t), t)) for scene in self.scenes] for t in targets]
        return self._against(others)

    def taken_out(self, factor: str, target: str, other: str):
        """Scenes with `target` get `other`, the rest stay: what a removal has to learn."""
        changed = [scene.counterfactual(factor, other) for scene in self.scenes]
        pairs = zip(self.scenes, changed, strict=True)
        base, (own,) = self._against(
            [[full_caption(new if value_of(old, factor) == target else old) for old, new in pairs]]
        )
        return base, own

    def _against(self, others):
        return paired_states(self.model, self.sampling, others, self.sites)

    def at_objects(self, measured: Measured, factor: str) -> Measured:
        """The states of the cells that the factor is about."""
        if factor == "background":
            return measured
        height, width = self.grids[measured.site]
        states = measured.states.unflatten(1, (len(self.scenes), height * width))
        cells = quarters(self.scenes, self.grids[measured.site])
        chosen = states[:, torch.arange(len(cells))[:, None], cells]
        example = torch.arange(len(cells)).repeat_interleave(cells.shape[1])
        return replace(measured, states=chosen.flatten(1, 2), example=example, n=len(cells))

    def where(self, scenes, site, factor):
        return {} if factor == "background" else {"positions": quarters(scenes, self.grids[site])}


def picture_methods(pool: Pool, base, changed, factor: str, target: str, scenes, das: Path | None):
    """Every method as a function of the dose; 1 is what its own kind takes for the whole effect."""
    labels = [value_of(scene, factor) for scene in pool.scenes]
    pairs = [i for i, label in enumerate(labels) if label != target]
    maps = [counterfactual_map(base[s], changed[s], rank=RANK, examples=pairs) for s in pool.sites]
    shifts = [counterfactual_map(base[s], changed[s], rank=0, examples=pairs) for s in pool.sites]
    at = {s: pool.at_objects(base[s], factor) for s in pool.sites}
    where = {s: pool.where(scenes, s, factor) for s in pool.sites}
    means = [one_against_rest(at[s], labels, target) for s in pool.sites]
    probes = [one_against_rest(at[s], labels, target, "probe") for s in pool.sites]
    families = [family(at[s], labels) for s in pool.sites]
    randoms = [random_concept(c, 1) for c in means]
    controls = [m.at_random(1) for m in maps]

    def located(dose):
        edits = []
        for one in families:
            state = one.means[:, one.values.index(target)]
            if factor == "background":
                inside = replace(means[pool.sites.index(one.site)])
            else:
                rest = pool.at_objects(base[one.site], "background")
                inside = concept("object", at[one.site], rest)
            gates = inside.replace_where(0.0, above=1 - dose, when=COND)
            edits += [replace(gate, value=state[k]) for k, gate in enumerate(gates) if isinstance(gate, Replace)]
        return edits

    methods = {
        f"affine map, rank {RANK}": lambda d: [e for m in maps for e in m.apply(d, when=COND)],
        f"random map, rank {RANK}": lambda d: [e for m in controls for e in m.apply(d, when=COND)],
        "mean change, everywhere": lambda d: [e for m in shifts for e in m.apply(4 * d, when=COND)],
        "mean difference, told where": lambda d: [e for c in means for e in c.add(4 * d, "gap", when=COND, **where[c.site])],
        "probe, told where": lambda d: [e for c in probes for e in c.add(d, "norm", when=COND, **where[c.site])],
        "random direction, told where": lambda d: [e for c in randoms for e in c.add(4 * d, "gap", when=COND, **where[c.site])],
        "family, told where": lambda d: [e for f in families for e in f.set(target, d, when=COND, **where[f.site])],
        "random family, told where": lambda d: [e for f in families for e in f.at_random(1).set(target, d, when=COND, **where[f.site])],
        "patch replacement": located,
    }  # fmt: skip
    if das is not None:
        methods["DAS subspace, told where"] = das_method(das, families, target, where)
    return methods


def das_method(path: Path, families, target: str, where):
    """The means of the values within the subspace that `align_pictures` found (`found.save`)."""
    found = interp.Result.load(path)
    chosen = []
    for number, name in enumerate(map(str, found.data["site"].values)):
        own = next(f for f in families if str(f.site) == name)
        basis = torch.from_numpy(found.data["basis"].values[number, -1]).float()
        basis = basis[: own.means.shape[-1], ~torch.isnan(basis).any(0)]
        chosen.append(own.within(basis))
    return lambda d: [e for f in chosen for e in f.set(target, d, when=COND, **where[f.site])]


@app.command()
def pictures(
    targets: str = ",".join(value for values in FACTORS.values() for value in values),
    n: int = 24,
    pool: int = 72,
    doses: str = "0.25,0.5,0.75,1,1.25",
    methods: str = "",
    das: Path | None = None,
    distance: bool = True,
    out: Path = Path("out/steering"),
) -> None:
    """Steer to each value; `--methods` names some of them by their first words."""
    torch.set_num_threads(1)
    model, chosen = interp.load("shapes"), targets.split(",")
    out.mkdir(parents=True, exist_ok=True)
    goals = [PictureGoal(scenes_for(factor_named(t), t, n, 1), factor_named(t), t) for t in chosen]
    judged = {full_caption(scene) for goal in goals for scene in (*goal.scenes, *goal.wanted)}
    states, start = Pool(model, pool, judged), time.perf_counter()
    base, changed = states.pairs(chosen)
    manifolds = [manifold(base[site]) for site in states.sites] if distance else []
    print(f"states of {pool} prompts and {len(chosen)} targets: {time.perf_counter() - start:.0f} s", flush=True)
    for target, goal, own in zip(chosen, goals, changed, strict=True):
        factor = goal.factor
        every = picture_methods(states, base, own, factor, target, goal.scenes, das)
        some = {k: m for k, m in every.items() if not methods or any(k.startswith(m) for m in methods.split(","))}
        numbers = [float(dose) for dose in doses.split(",")]
        found = dose_response(model, goal, some, numbers, manifolds=manifolds, progress=bar)
        found.save(out / f"picture_{target}.nc")
        print(found, flush=True)
        for name in map(str, found.data["way"].values):
            for dose in numbers if bool(found.data["dosed"].sel(way=name)) else numbers[:1]:
                one = found.data.sel(way=name, dose=dose)
                by = ", ".join(f"{r} {float(one.success_by.sel(reader=r)):.2f}" for r in ("checker", "judge"))
                print(
                    f"    {name} {dose:g}: success by {by}; all else kept {1 - float(one.damage):.2f}; worst factor "
                    f"kept {float(one.kept.min()):.2f}; garbage {float(one.garbage):.2f}; distance "
                    f"{float(one.distance):.2f}",
                    flush=True,
                )


@app.command()
def removal(
    targets: str = "red,circle,large,white", n: int = 24, pool: int = 72, out: Path = Path("out/steering")
) -> None:
    """Take a value out: asked for in the plain caption, and in other words and orders."""
    torch.set_num_threads(1)
    model = interp.load("shapes")
    out.mkdir(parents=True, exist_ok=True)
    for target in targets.split(","):
        factor = factor_named(target)
        scenes = scenes_for(factor, target, n, 2, having=True)
        rest = scenes_for(factor, target, n, 3)
        states = Pool(model, pool, {full_caption(scene) for scene in (*scenes, *rest)}, (factor, target))
        other = next(value for value in FACTORS[factor] if value != target)
        base, changed = states.taken_out(factor, target, other)
        maps = [counterfactual_map(base[s], changed[s], rank=RANK) for s in states.sites]
        at = {s: states.at_objects(base[s], factor) for s in states.sites}
        random = Random(0)
        worded = {
            "caption": tuple(full_caption(scene) for scene in scenes),
            "other words and order": tuple(reworded(scene, random, target) for scene in scenes),
        }
        methods = removal_methods(states, maps, at, factor, target, scenes)
        for name, prompts in worded.items():
            goal = PictureGoal(scenes, factor, target, remove=True, prompts=prompts)
            found = dose_response(model, goal, methods, [0.0, 1.0], progress=bar)
            found.save(out / f"removal_{target}_{name.split()[0]}.nc")
            for method in methods:
                told = [found.data[m].sel(way=method) for m in ("success", "damage", "garbage")]
                row = "; ".join(
                    f"dose {dose:g}: gone {float(told[0].sel(dose=dose)):.2f}, kept {1 - float(told[1].sel(dose=dose)):.2f}, "
                    f"garbage {float(told[2].sel(dose=dose)):.2f}"
                    for dose in (0.0, 1.0)
                )
                print(f"{target}, {name}, {method}: {row}", flush=True)
        made = model.sampling([full_caption(scene) for scene in rest])
        made = replace(made, seeds=tuple(range(8_000_000, 8_000_000 + n)))
        steered = interp.run(model, made, [e for m in maps for e in m.apply(1.0, when=COND)])
        right = [answers_other(scene, check(p)) for scene, p in zip(rest, as_bytes(steered.images), strict=True)]
        print(f"{target}, prompts without it: everything as asked in {mean(r['others: scene'] for r in right):.2f}")


def removal_methods(states, maps, at, factor, target, scenes):
    labels = [value_of(scene, factor) for scene in states.scenes]
    concepts = [one_against_rest(at[site], labels, target) for site in states.sites]

    def projected(_dose):
        return [e for c in concepts for e in project_out([c], when=COND, **states.where(scenes, c.site, factor))]

    return {
        f"affine map, rank {RANK}": lambda d: [e for m in maps for e in m.apply(d, when=COND)],
        "projected out": lambda d: projected(d) if d else [],
    }


def reworded(scene, random: Random, target: str) -> str:
    """A caption in random order that says everything, and the value by its synonym where it has one."""
    words = caption(scene, random, 1.0).split()
    return " ".join(SYNONYMS.get(word, word) if word == target else word for word in words)


@app.command()
def texts(
    concepts: str = ",".join(CONCEPTS),
    layers: str = "12",
    n: int = 20,
    doses: str = "0,0.1,0.2,0.3,0.4",
    methods: str = "mean,pca,probe,random",
    tokens: int = 30,
    unrelated: int = 24,
    split: str = "held out",
    out: Path = Path("out/steering"),
) -> None:
    """Steer continuations; several layers, joined by +, are steered together, each with its share of the dose.

    Layers and doses are chosen on the split "development".
    """
    torch.set_num_threads(1)
    model = interp.load("smollm2-135m")
    out.mkdir(parents=True, exist_ok=True)
    for name in concepts.split(","):
        data = concept_texts(name, split)
        goal = TextGoal(data.name, data.prompts[:n], data.judge, data.unrelated[:unrelated], data.reworded[:n])
        every, manifolds = {}, []
        for group in layers.split(","):
            sites = [Site("resid_post", int(layer)) for layer in group.split("+")]
            positive, negative = (language_states(model, part, sites) for part in (data.positive, data.negative))
            manifolds = [manifold(p.joined(q)) for p, q in zip(positive, negative, strict=True)]
            for method in methods.split(","):
                kind = "mean" if method == "random" else method
                found = [concept(data.name, p, q, kind) for p, q in zip(positive, negative, strict=True)]
                if method == "random":
                    found = [random_concept(c, 1) for c in found]
                every[f"{method}, layer {group}"] = lambda d, found=found: [
                    e for c in found for e in c.add(d / len(found))
                ]
        numbers = [float(dose) for dose in doses.split(",")]
        given = manifolds if "," not in layers else []
        start = time.process_time()
        result = dose_response(model, goal, every, numbers, max_new_tokens=tokens, progress=bar, manifolds=given)
        print(f"{name}: {time.process_time() - start:.0f} s of processor", flush=True)
        result.save(out / f"text_{name}.nc")
        print(result, flush=True)
        for method in map(str, result.data["way"].values):
            for dose in numbers:
                one = result.data.sel(way=method, dose=dose)
                print(
                    f"    {method} {dose:g}: success {float(one.success):.2f} KL {float(one.damage):.3f} perplexity "
                    f"{float(one.perplexity):.1f} garbage {float(one.garbage):.2f} surprise "
                    f"{float(one.fluency_each.mean()):.2f} | {str(one.text.values[0])[:80]!r}",
                    flush=True,
                )


@app.command()
def overhead(tokens: int = 48, repeats: int = 7, layers: str = "12") -> None:
    """Seconds per generated token with and without edits, alternating; medians."""
    torch.set_num_threads(1)
    model = interp.load("smollm2-135m")
    data = concept_texts("sentiment")
    sites = [Site("resid_post", int(layer)) for layer in layers.split("+")]
    positive, negative = (language_states(model, part, sites) for part in (data.positive, data.negative))
    found = [concept(data.name, p, q) for p, q in zip(positive, negative, strict=True)]
    forms = {
        "add": [e for c in found for e in c.add(0.2)],
        "add, norm kept": [e for c in found for e in c.add(0.2, keep_norm=True)],
        "clamp": [e for c in found for e in c.clamp(1.0)],
    }
    prompt = data.prompts[0]
    taken = {name: [] for name in ("none", *forms)}
    for edits in forms.values():
        steer(model, edits).generate(prompt, max_new_tokens=4)
    for _ in range(repeats):
        for name in taken:
            start = time.process_time()
            interp.generate(model, prompt, forms.get(name, ()), max_new_tokens=tokens)
            taken[name].append((time.process_time() - start) / tokens)
    plain = median(taken["none"])
    print(f"| edits at {len(sites)} layer(s) | processor ms per token | against none |\n|---|--:|--:|")
    for name, seconds in taken.items():
        middle = median(seconds)
        print(f"| {name} | {1e3 * middle:.2f} | {middle / plain - 1:+.1%} |")


if __name__ == "__main__":
    app()
