"""No speed: circuits for indirect object identification in SmolLM2, found on some templates and names, tried on others.

Scores come from training pairs, and so does every choice between methods and selections; the numbers that count are
those of pairs with other templates and other names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from report import machine, report
from timing import seconds, set_threads

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "eap": ("eap", {}),
    "eap, denoising": ("eap", {"direction": "denoising"}),
    "eap-ig, 5 steps": ("eap-ig", {"steps": 5}),
    "eap-ig, 20 steps": ("eap-ig", {"steps": 20}),
    "eap-ig, 5 steps, log probability": ("eap-ig", {"steps": 5, "metric": "log_probability"}),
    "eap-ig-activations, 2 steps": ("eap-ig-activations", {"steps": 2}),
    "random": ("random", {}),
}
"""Methods and their options, by the names they have in the table."""
EVERY = list(WAYS)
SMALL = 0.02
"""Share of the edges of the circuit that is tested against random ones."""


def split(n_train: int, n_held: int, corruption: str, seed: int) -> tuple[Any, Any]:
    """Training and held-out pairs: no template and no name in both.

    Every other template (and of the sorted names every other one) is for training.
    """
    from interp.tasks import Task, ioi
    from interp.tasks.ioi import NAMES, TEMPLATES

    forms = [re.compile(re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(template)) + "$") for template in TEMPLATES]
    names = set(NAMES)
    pools: list[list[Any]] = [[], []]
    whole = ioi(60 * (n_train + n_held), seed, corruption=corruption)
    for pair in whole.pairs:
        template = next(i for i, form in enumerate(forms) if form.match(pair.clean))
        sides = {
            NAMES.index(word) % 2 for word in re.findall(r"\w+", pair.clean + " " + pair.corrupted) if word in names
        }
        if sides == {template % 2}:
            pools[template % 2].append(pair)
    parts = [pool[:n] for pool, n in zip(pools, (n_train, n_held), strict=True)]
    if [len(part) for part in parts] != [n_train, n_held]:
        raise RuntimeError(f"only {[len(pool) for pool in pools]} pairs")
    return tuple(
        Task(f"{whole.name}, {what}", tuple(part), whole.source, seed)
        for what, part in zip(("training", "held out"), parts, strict=True)
    )  # pyright: ignore[reportReturnType]  two parts, which zip does not know


def main(
    ways: Annotated[list[str], typer.Option(help="rows of WAYS")] = EVERY,
    train: Annotated[int, typer.Option(help="pairs for scores and choices")] = 16,
    held: Annotated[int, typer.Option(help="held-out pairs")] = 48,
    n_random: Annotated[int, typer.Option(help="random circuits for the small circuit's p")] = 39,
    corruption: str = "S2",
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Print CPR and CMD of every method and selection on both sets of pairs, then the small circuit's report."""
    set_threads(threads)
    import interp
    from interp import circuits

    where, model = machine(), interp.load("smollm2-135m")
    on, off = split(train, held, corruption, seed)
    rows, scored = [], {}
    for way in ways:
        method, options = WAYS[way]
        scores, took = seconds(lambda m=method, o=options: circuits.score(model, on, m, only_right=True, **o))
        for grow in (False, True):
            for absolute in (True, False):
                how = {"absolute": absolute, "grow": grow, "n_random": 0, "only_right": True}
                inside, outside = (circuits.evaluate(model, task, scores, **how) for task in (on, off))
                label = f"{'greedy' if grow else 'top'}, {'|score|' if absolute else 'score'}"
                scored[way, label] = scores, inside, absolute, grow
                small = int((inside.data["size"] <= SMALL).sum()) - 1
                rows.append({
                    "what": way, "selection": label, "seconds": took,
                    **{f"{key}, {which}": float(one.data[key.lower()])
                       for key in ("CMD", "CPR") for which, one in (("training", inside), ("held out", outside))},
                    f"faithfulness at {SMALL:.0%}, training": float(inside.data["faithfulness"][small]),
                    f"faithfulness at {SMALL:.0%}, held out": float(outside.data["faithfulness"][small]),
                    "_curve": outside.data["faithfulness"].values.tolist(),
                })  # fmt: skip
                print(rows[-1], flush=True)
    notes = [
        f"{train} training pairs, {held} held out, corruption {corruption}; pairs that the model gets wrong left out."
    ]
    report("ioi_circuit", "Circuits for IOI in SmolLM2", rows, notes=notes, where=where)
    best = {
        "CMD": min(scored, key=lambda key: float(scored[key][1].data["cmd"])),
        "CPR": max(scored, key=lambda key: float(scored[key][1].data["cpr"])),
        "small": max(scored, key=lambda key: -abs(1 - _small(scored[key][1]))),
    }
    print("chosen on training pairs:", best)
    scores, _, absolute, grow = scored[best["small"]]
    pick = circuits.greedy if grow else circuits.top_n
    found = pick(scores, int(SMALL * scores.graph.n_edges), absolute=absolute)
    print(found, circuits.prune(found), sep="\n")
    print(circuits.evaluate(model, off, found, n_random=n_random, only_right=True, seed=seed))


def _small(result: Any) -> float:
    """Faithfulness at the largest size up to SMALL."""
    return float(result.data["faithfulness"].values[result.data["size"].values <= SMALL][-1])


if __name__ == "__main__":
    typer.run(main)
