"""Equality: the sweep's values against hooks, `exact="naive"`, TransformerLens, nnsight and pyvene.

Logit differences of evenly spread cells, and for a few of them all next-token logits, on SmolLM2-135M
and on a tiny GPT-2 with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from peers import NAMES, make_peer, run_pyvene
from report import machine, report
from timing import set_threads, spread
from torch import Tensor
from workload import ANSWER, CLEAN, CORRUPTED, WRONG_ANSWER, Cell, Hooks, experiments

NAIVE, PEER = 5e-5, 1e-4
"""Largest differences allowed, in logits."""


@dataclass(frozen=True)
class Deviation:
    """A metric: the largest difference of the next token's logits from a reference [d_vocab]."""

    reference: Tensor
    name: str = "deviation"
    unit: str = "logits"
    columns: None = None
    positions: None = None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        return (logits[:, -1] - self.reference).abs().amax(-1)


def tiny_gpt2(d_vocab: int) -> torch.nn.Module:
    """A GPT-2 whose random weights are large enough to move its logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=d_vocab, n_embd=48, n_layer=4, n_head=4, n_positions=64)).eval()
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, 0, 1.0 if "wte" in name else 0.2)
    return network


def compare(model: Any, n_cells: int, n_whole: int, pyvene: str | None) -> list[dict[str, Any]]:
    """Rows of the table, for one model."""
    import interp
    from interp.tasks.metrics import LogitDifference

    clean, corrupted = model.prompts(CLEAN), model.prompts(CORRUPTED)
    answers = tuple(model.tokenizer(text).input_ids[0] for text in (ANSWER, WRONG_ANSWER))
    metric = LogitDifference(*(torch.tensor([token]) for token in answers))
    rows = []
    for experiment in experiments(clean.ids.shape[1], model.n_heads, range(model.n_layers)).values():
        cells = spread(experiment.cells, n_cells)
        source = interp.run(model, clean, (), [experiment.part], logits=False)

        def edits(cell: Cell, source: Any = source, part: str = experiment.part) -> list:
            return [interp.Replace(interp.Site(part, cell.layer, cell.head), source, positions=cell.pos)]

        def sweep(cells: list[Cell], metric: Any, exact: Any, edits: Any = edits) -> Tensor:
            swept = interp.sweep(model, corrupted, [edits(cell) for cell in cells], metric, exact=exact)
            return swept.values[metric.name][:, 0]

        hooks = Hooks(model.network, experiment.part, model.n_heads, clean.ids, corrupted.ids)
        by_hooks = torch.tensor(hooks.values(cells, *answers))
        ways = {"no-ops skipped": interp.Savings(), "nothing skipped": interp.Savings(skip_noops=False)}
        found = {name: sweep(cells, metric, exact) for name, exact in ways.items()}

        def add(other: str, difference: float, limit: float, n: int, name: str = experiment.name) -> None:
            rows.append({
                "model": model.name, "experiment": name, "what": other, "cells": n, "largest difference": difference,
                "allowed": limit, "holds": "yes" if difference <= limit else "NO",
            })  # fmt: skip

        for name, values in found.items():
            add(f"sweep, {name} / hooks", float((values - by_hooks).abs().max()), NAIVE, len(cells))
        naive = sweep(cells, metric, "naive")
        add('sweep / exact="naive"', float((found["no-ops skipped"] - naive).abs().max()), NAIVE, len(cells))
        whole = spread(cells, n_whole)
        worst = max(float(sweep([cell], Deviation(hooks.logits(cell)[0]), interp.Savings())[0]) for cell in whole)
        add("sweep / hooks, all logits", worst, NAIVE, len(whole))
        for name in ("transformer_lens", "nnsight", "nnsight_batched"):
            peer = make_peer(
                name, model.network, model.tokenizer, experiment.part, model.n_heads, clean.ids, corrupted.ids, answers
            )
            if peer is None:
                rows.append(
                    {"model": model.name, "experiment": experiment.name, "what": NAMES[name], "holds": "not installed"}
                )
                continue
            theirs = torch.tensor(peer.values(cells))
            add(f"sweep / {NAMES[name]}", float((found["no-ops skipped"] - theirs).abs().max()), PEER, len(cells))
        if pyvene is not None and experiment.part == "resid_pre":
            measured = run_pyvene(pyvene, cells, [], torch.get_num_threads())
            if measured is None:
                rows.append(
                    {
                        "model": model.name,
                        "experiment": experiment.name,
                        "what": NAMES["pyvene"],
                        "holds": "not installed",
                    }
                )
            else:
                theirs = torch.tensor(measured["per_cell"]["values"])
                add(
                    f"sweep / {NAMES['pyvene']}",
                    float((found["no-ops skipped"] - theirs).abs().max()),
                    PEER,
                    len(cells),
                )
    return rows


def main(
    cells: Annotated[int, typer.Option(help="cells per experiment")] = 30,
    whole: Annotated[int, typer.Option(help="of them, cells whose logits are all compared")] = 5,
    threads: int = 2,
    pyvene: Annotated[
        str, typer.Option(envvar="PYVENE_PYTHON", help="interpreter of an environment with pyvene")
    ] = "python",
) -> None:
    """Print the table; the exit status says whether every difference is allowed."""
    set_threads(threads)
    import interp

    where = machine()
    smol = interp.load("smollm2-135m")
    rows = compare(smol, cells, whole, pyvene)
    rows += compare(interp.load(tiny_gpt2(smol.d_vocab), smol.tokenizer, name="tiny gpt2"), cells, whole, None)
    report(
        "equality", "Largest differences, in logits", rows, where=where,
        notes=["Logit differences of the answers, unless all logits are named; float32; cells spread evenly."],
    )  # fmt: skip
    if any(row["holds"] == "NO" for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
