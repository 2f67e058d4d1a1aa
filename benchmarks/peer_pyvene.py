"""resid_pre patching by pyvene, in a process of its own; `sweeps.py` and `equality.py` call it.

pyvene 0.1.8 lives in another environment that sees this project's packages (see README.md).
Prints one line of JSON: seconds and logit differences, one call per cell and a layer's cells as rows.
"""

from __future__ import annotations

import json
import time

import typer
from report import package_version
from timing import set_threads


def main(cells: str = "[[3, 9], [20, 13]]", layers: str = "[20]", threads: int = 2) -> None:
    """Time cells ([layer, position] pairs) one by one, and whole layers as rows of one call."""
    if package_version("pyvene") is None:
        print("pyvene is not installed in this environment; benchmarks/README.md says how to make one.")
        return
    import pyvene
    import torch
    from workload import ANSWER, CLEAN, CORRUPTED, WRONG_ANSWER

    import interp

    set_threads(threads)
    torch.set_grad_enabled(False)
    model = interp.load("smollm2-135m")
    clean, corrupted = (model.tokenizer(text, return_tensors="pt") for text in (CLEAN, CORRUPTED))
    answer, wrong = (model.tokenizer(text).input_ids[0] for text in (ANSWER, WRONG_ANSWER))

    def intervenable(layer: int):
        where = pyvene.RepresentationConfig(layer, "block_input", unit="pos", max_number_of_units=1)
        return pyvene.IntervenableModel(pyvene.IntervenableConfig([where], pyvene.VanillaIntervention), model.network)

    def difference(logits) -> list[float]:
        return (logits[:, -1, answer] - logits[:, -1, wrong]).tolist()

    def per_cell() -> list[float]:
        found = []
        for layer, position in json.loads(cells):
            _, out = intervenable(layer)(corrupted, [clean], {"sources->base": position})
            found += difference(out.logits)
        return found

    n = corrupted.input_ids.shape[1]
    rows = [{name: x.repeat(n, 1) for name, x in prompt.items()} for prompt in (corrupted, clean)]
    places = [[[position] for position in range(n)]]

    def batched() -> list[float]:
        found = []
        for layer in json.loads(layers):
            _, out = intervenable(layer)(rows[0], [rows[1]], {"sources->base": (places, places)})
            found += difference(out.logits)
        return found

    intervenable(1)(corrupted, [clean], {"sources->base": 1})  # warm up
    start = time.perf_counter()
    values = per_cell()
    middle = time.perf_counter()
    row_values = batched()
    end = time.perf_counter()
    print(json.dumps({
        "version": package_version("pyvene"),
        "per_cell": {"n": len(values), "seconds": middle - start, "values": values},
        "batched": {"n": len(row_values), "seconds": end - middle, "values": row_values},
    }))  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
