"""Where things may be: what no linter checks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from interp.alignment.screening import chosen

PACKAGE = Path(__file__).parents[1] / "interp"
SOURCES = sorted(PACKAGE.rglob("*.py"))
VAGUE = {"utils.py", "util.py", "helpers.py", "base.py", "common.py", "misc.py"}
HEAVY = {
    "diffusers", "gguf", "kaleido", "netCDF4", "nnsight", "pandas", "plotly", "safetensors", "scipy", "sklearn",
    "statsmodels", "transformer_lens", "transformers", "triton", "typer", "xarray",
}  # fmt: skip


def test_hooks_are_registered_in_one_file() -> None:
    registering = {path for path in SOURCES if re.search(r"register_\w*hook\(", path.read_text("utf-8"))}
    assert registering == {PACKAGE / "models" / "hooks.py"}


def test_no_file_has_a_name_that_could_hold_anything() -> None:
    assert SOURCES
    assert not [path for path in SOURCES if path.name in VAGUE]


def test_annotated_shapes_are_checked_in_this_run() -> None:
    with pytest.raises(TypeCheckError, match="place"):
        chosen(np.zeros((2, 2)), 1)


def imported(statement: str) -> tuple[float, set[str]]:
    """Seconds that `statement` takes in a fresh interpreter that holds torch, and the packages that it adds."""
    code = f"""
import json, sys, time, torch
before, start = set(sys.modules), time.perf_counter()
{statement}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({{name.split(".")[0] for name in set(sys.modules) - before}})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    seconds, added = json.loads(done.stdout)
    return seconds, set(added)


def test_import_interp_adds_no_heavy_library() -> None:
    assert not imported("import interp")[1] & HEAVY


def test_the_list_of_heavy_libraries_would_be_noticed() -> None:
    assert imported("import pandas")[1] & HEAVY == {"pandas"}


@pytest.mark.slow
def test_import_interp_adds_less_than_0_3_seconds_to_torch() -> None:
    assert min(imported("import interp")[0] for _ in range(5)) < 0.3
