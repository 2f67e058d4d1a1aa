"""What pyvene's interventions make of states, for `tests/alignment/test_pyvene.py`.

    /path/to/env-with-pyvene/bin/python benchmarks/pyvene_maps.py tests/alignment/pyvene.safetensors

pyvene pins releases that interp cannot live with, so it has an environment of its own, and the tests compare with this
file: the weights of its low-rank rotation, its boundless rotation and its rotation, states, and what came out.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from pyvene.models.interventions import (
    BoundlessRotatedSpaceIntervention,
    LowRankRotatedSpaceIntervention,
    RotatedSpaceIntervention,
)
from safetensors.torch import save_file

WIDTH, RANK, ROWS = 24, 5, 7


@torch.no_grad()
def main(path: str) -> None:
    torch.manual_seed(0)
    base, source = torch.randn(2, ROWS, WIDTH)
    low_rank = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=RANK)
    boundless = BoundlessRotatedSpaceIntervention(embed_dim=WIDTH)
    boundless.set_intervention_boundaries(0.4)
    boundless.set_temperature(torch.tensor(2.5))
    full = RotatedSpaceIntervention(embed_dim=WIDTH)
    full.set_interchange_dim(RANK)
    save_file(
        {
            "base": base,
            "source": source,
            "low_rank.weight": low_rank.rotate_layer.weight.contiguous(),
            "low_rank.swapped": low_rank(base, source).contiguous(),
            "boundless.weight": boundless.rotate_layer.weight.contiguous(),
            "boundless.swapped": boundless(base, source).contiguous(),
            "full.weight": full.rotate_layer.weight.contiguous(),
            "full.swapped": full(base, source).contiguous(),
        },
        path,
        {"made by": f"pyvene {version('pyvene')}, torch {torch.__version__}", "share": "0.4", "temperature": "2.5"},
    )


if __name__ == "__main__":
    main(sys.argv[1])
