"""Make a checkpoint the weights of the package: `python -m interp.shapes.export --run FOLDER --out assets/shapes`.

The checkpoint's architecture does not matter here; a transformer goes to `assets/shapes-dit`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from safetensors import safe_open
from safetensors.torch import load_file

from interp.shapes.packing import pack
from interp.shapes.train import CHECKPOINT


def export(
    run: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of model.safetensors and resume.safetensors.")],
) -> None:
    """Write the averaged weights, and what training needs to continue."""
    path = run / CHECKPOINT
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    pack(out, load_file(path), state)


if __name__ == "__main__":
    typer.run(export)
