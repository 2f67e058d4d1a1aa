"""No speed: circuits for indirect object identification in SmolLM2, found on some templates and names, tried on others.

Scores come from training pairs, and so does every choice between methods and selections; the numbers that count are
those of pairs with other templates and other names (`ioi`'s two splits).
"""

from __future__ import annotations

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


def main(
    ways: Annotated[list[str], typer.Option(help="rows of WAYS")] = EVERY,
    train: Annotated[int, typer.Option(help="pairs for scores and choices")] = 16,
    held: Annotated[int, typer.Option(help="held-out pairs")] = 48,
    n_random: Annotated[int, typer.Option(help="random circuits for the small circuit's p")] = 99,
    corruption: str = "S2",
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Print CPR and CMD of every method and selection on both sets of pairs, then the small circuit's report."""
    set_threads(threads)
    import interp
    from interp import circuits

    where, model = machine(), interp.load("smollm2-135m")
    on = interp.tasks.ioi(train, seed, corruption=corruption, split="train")
    off = interp.tasks.ioi(held, seed, corruption=corruption, split="held out")
    rows, scored = [], {}
    for way in ways:
        method, options = WAYS[way]
        scores, took = seconds(lambda m=method, o=options: circuits.score(model, on, m, only_right=True, **o))
        for grow in (False, True):
            for absolute in (True, False):
                how = {"absolute": absolute, "grow": grow, "n_random": 0, "trials": None, "only_right": True}
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
    trials = circuits.Trials(n_random=n_random)
    print(circuits.evaluate(model, off, found, trials=trials, only_right=True, seed=seed))


def _small(result: Any) -> float:
    """Faithfulness at the largest size up to SMALL."""
    return float(result.data["faithfulness"].values[result.data["size"].values <= SMALL][-1])


if __name__ == "__main__":
    typer.run(main)
