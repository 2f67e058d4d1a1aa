"""The kernels compiled ahead of time: nothing spills, and nothing got worse than what docs/kernels.md says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
TABLE = ROOT / "benchmarks" / "compiled_kernels.json"


def rows():
    return json.loads(TABLE.read_text("utf-8"))


def checked(*options):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "benchmarks/compiled_kernels.py", "--check", *options]
    return subprocess.run(command, cwd=ROOT, env=clean | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_no_kernel_spills_and_edits_move_what_they_need():
    assert {row["target"] for row in rows()} == {"sm_80", "sm_90", "gfx942"}
    for row in rows():
        assert row["spills"] == 0, row
        if row["kernel"].startswith("edit_places"):
            assert row["needed"] < row["moved"] <= 1.1 * row["needed"], row


@pytest.mark.slow
def test_nothing_is_worse_than_the_table():
    done = checked("--dtypes", "bf16", "--targets", "sm_90", "gfx942")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is worse" in done.stdout


def test_what_is_worse_is_said():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from compiled_kernels import Row, worse
    finally:
        sys.path.pop(0)
    old = Row("k", "bf16", "sm_90", 100, 0, 1000, 6.0, 6.0)
    assert worse(old, old) == []
    new = Row("k", "bf16", "sm_90", 111, 8, 1101, 6.1, 6.0)
    assert worse(new, old) == ["spills 0 → 8", "moves 6.0 → 6.1 bytes", "registers 100 → 111", "shared 1000 → 1101"]
