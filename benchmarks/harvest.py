"""Harvesting against the model's own forward passes over the same texts.

    python benchmarks/harvest.py --texts 120

SmolLM2-135M on paragraphs of Python's manual. The *forward rate* is that of the network's own forward passes, with logits,
over batches of the same texts of about equal length; harvesting is the whole of `harvest_texts` into a new store: tokens,
forward passes with captures and without an unembedding, moments, digests, files. Target: at least 80 % of that rate.
"""

from __future__ import annotations

import statistics
import tempfile

import torch
import typer
from report import machine, report
from timing import processor_seconds, set_threads

import interp
from interp.dictionaries.harvest import _batches, harvest_texts
from interp.dictionaries.texts import python_manual
from interp.models.prompts import from_token_lists

SITES = {"one site": ["L15.resid_post"], "three sites": ["L5.resid_post", "L15.mlp_act", "L25.resid_post"]}


def main(texts: int = 120, repeats: int = 3, threads: int = 2) -> None:
    set_threads(threads)
    where = machine()
    model = interp.load("smollm2-135m")
    _ = model.weights_hash  # once per model, and no part of a harvest
    some = python_manual(texts)
    ids = [model.tokenizer(text).input_ids[:128] for text in some]
    batches = [
        from_token_lists(model.tokenizer, [ids[i] for i in batch])
        for batch in _batches(range(len(ids)), [len(row) for row in ids])
    ]
    tokens = sum(map(len, ids))

    @torch.no_grad()
    def forward() -> None:
        for prompts in batches:
            model.forward(prompts)

    def harvest(sites: list[str]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return len(harvest_texts(model, [model.tokenizer.decode(row) for row in ids], sites, folder))

    ways = {"forward passes": forward, **{name: lambda s=sites: harvest(s) for name, sites in SITES.items()}}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, call in ways.items():
            _, wall, processor = processor_seconds(call)
            if number:
                taken[name].append((wall, processor))
    wall, processor = ({n: statistics.median(t[i] for t in times) for n, times in taken.items()} for i in (0, 1))
    rows = [
        {
            "what": name, "tokens per second": round(tokens / wall[name]),
            "share of the forward rate": wall["forward passes"] / wall[name],
            "the same, in processor seconds": processor["forward passes"] / processor[name],
        }
        for name in ways
    ]  # fmt: skip
    report("harvest", f"Harvesting {tokens} tokens of {len(ids)} texts, SmolLM2-135M", rows, where=where)


if __name__ == "__main__":
    typer.run(main)
