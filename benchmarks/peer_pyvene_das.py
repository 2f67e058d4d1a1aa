"""Steps of low-rank DAS by pyvene, in a process of its own; `alignment.py` calls it.

pyvene 0.1.8 lives in another environment that sees this project's packages (see README.md). Reads token ids, labels and
one orthonormal basis from a file of safetensors; prints one line of JSON: seconds of each step of each cell, after one
that warms up, and the logits of the first cell's first interchange, in a second file.
"""

from __future__ import annotations

import json
import time

import typer
from report import package_version
from timing import set_threads


def main(data: str, logits: str, cells: str = "[[15, 13]]", steps: int = 3, threads: int = 2) -> None:
    """Train one rotation per cell ([layer, position]) for some steps."""
    if package_version("pyvene") is None:
        print("pyvene is not installed in this environment; benchmarks/README.md says how to make one.")
        return
    import pyvene
    import torch
    from safetensors.torch import load_file, save_file

    import interp

    set_threads(threads)
    model = interp.load("smollm2-135m")
    given = load_file(data)
    base, source = ({"input_ids": given[name], "attention_mask": torch.ones_like(given[name])}
                    for name in ("base", "source"))  # fmt: skip
    found, first = [], None
    for layer, position in json.loads(cells):
        where = pyvene.RepresentationConfig(
            layer, "block_input", unit="pos", max_number_of_units=1, low_rank_dimension=given["basis"].shape[1]
        )
        config = pyvene.IntervenableConfig([where], pyvene.LowRankRotatedSpaceIntervention)
        intervenable = pyvene.IntervenableModel(config, model.network)
        intervenable.disable_model_gradients()
        (intervention,) = intervenable.interventions.values()
        intervention.rotate_layer.weight = given["basis"]
        optimizer = torch.optim.Adam(intervenable.get_trainable_parameters(), lr=1e-3)
        places = [[[position]] * len(given["base"])]
        taken = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            _, out = intervenable(base, [source], {"sources->base": (places, places)})
            last = out.logits[:, -1]
            loss = torch.nn.functional.cross_entropy(last, given["label"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - start)
            first = last.detach().clone() if first is None else first
        found.append(taken[1:])
    assert first is not None
    save_file({"logits": first.contiguous()}, logits)
    print(json.dumps({"version": package_version("pyvene"), "seconds": found}))


if __name__ == "__main__":
    typer.run(main)
