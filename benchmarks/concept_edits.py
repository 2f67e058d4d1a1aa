"""Choices of a closed-form edit on the shapes model: where, which tokens, how much ridge; then reports of several edits.

    python benchmarks/concept_edits.py choices --n 16
    python benchmarks/concept_edits.py reports --n 60 --out out/edits

`choices` draws pictures by the edited model only and reads them with the checker: target shown, and everything else as
it was, in prompts that name the concept (kept) and in prompts that do not (others).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import typer

import interp
from interp.shapes.checker import check
from interp.steering.edit_report import answers_named, answers_other, drawn, factor_of, report_prompts

KV = ("cross_k", "cross_v")
TEXT = ("text.0.attn_out", "text.0.mlp_out", "text.1.attn_out", "text.1.mlp_out")
UP = tuple(f"up.{address}.{part}" for address in ("0.0", "0.1", "1.0", "1.1") for part in KV)
CHOICES = [
    *(dict(where=KV, ridge=ridge) for ridge in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)),
    *(dict(where=KV, keep_weight=weight) for weight in (0.0, 10.0)),
    *(dict(where=KV, tokens="last", ridge=ridge) for ridge in (1e-2, 1e-3, 1e-4)),
    dict(where=("cross_k",)), dict(where=("cross_v",)), dict(where=UP),
    *(dict(where=(site,)) for site in TEXT), dict(where=TEXT), dict(where=("text.0.attn_out",), tokens="last"),
]  # fmt: skip
app = typer.Typer()


@app.command()
def choices(n: int = 16, pairs: str = "red:blue,circle:square") -> None:
    model = interp.load("shapes")
    print("| edit | where | tokens | ridge | keep weight | seconds | norm | target shown | kept | others |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for concept, target in (pair.split(":") for pair in pairs.split(",")):
        factor = factor_of(concept, target)
        scenes, prompts = report_prompts(concept, factor, n, 7)
        for choice in CHOICES:
            start = time.perf_counter()
            edited = interp.edit_concept(model, concept, target, **choice)
            seconds = time.perf_counter() - start
            pictures = drawn(edited, prompts, 7_000_000, None, None)
            shown, kept, others = [], [], []
            for row, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
                if row < n:
                    answers = answers_named(scene, check(picture), concept, target, factor)
                    shown.append(answers.pop("target shown"))
                    answers.pop("concept gone")
                    kept.append(all(answers.values()))
                else:
                    others.append(answers_other(scene, check(picture))["others: scene"])
            where = (
                "all " + ", ".join(KV)
                if choice["where"] == KV
                else "`up` " + ", ".join(KV)
                if choice["where"] == UP
                else ", ".join(choice["where"])
            )
            print(
                f"| {concept} → {target} | {where} | {choice.get('tokens', 'all')} | {choice.get('ridge', 1e-3):g} "
                f"| {choice.get('keep_weight', 1.0):g} | {seconds:.2f} | {edited.norm:.1f} "
                f"| {np.mean(shown):.0%} | {np.mean(kept):.0%} | {np.mean(others):.0%} |",
                flush=True,
            )


@app.command()
def reports(
    n: int = 60,
    out: Path = Path("out/edits"),
    pairs: str = "red:blue,purple:yellow,circle:square,large:small,white:black",
) -> None:
    model = interp.load("shapes")
    out.mkdir(parents=True, exist_ok=True)
    for concept, target in (pair.split(":") for pair in pairs.split(",")):
        start = time.perf_counter()
        edited = interp.edit_concept(model, concept, target)
        print(f"{concept} → {target}: {time.perf_counter() - start:.2f} s", flush=True)
        found = interp.edit_report(edited, n=n)
        found.save(out / f"{concept}_{target}.nc")
        print(found, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
