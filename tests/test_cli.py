"""The commands, on the embedded model, with few layers' worth of work."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from interp import Result
from interp.cli import app

PROMPT = ["The Eiffel Tower is located in the city of", "--subject", "The Eiffel Tower", "--answer", " Paris"]


@pytest.mark.slow
def test_trace_writes_what_it_measured(tmp_path) -> None:
    files = {name: tmp_path / f"t.{name}" for name in ("html", "nc", "png")}
    options = ["--noises", "1", "--html", str(files["html"]), "--out", str(files["nc"]), "--png", str(files["png"])]
    found = CliRunner().invoke(app, ["trace", *PROMPT, *options])
    assert found.exit_code == 0, found.output
    assert "iffel" in found.output
    assert "<html" in files["html"].read_text()[:200]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    result = Result.load(files["nc"])
    assert result.data.sizes["layer"] == 30
    assert float(result.data["probability_clean"]) == pytest.approx(0.70, abs=0.02)


def test_patch_as_json(tmp_path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    from interp.tasks import ioi

    ioi(n=2, seed=0).to_jsonl(pairs)
    found = CliRunner().invoke(app, ["patch", "--task", str(pairs), "--part", "z", "--over", "layer", "--json"])
    assert found.exit_code == 0, found.output
    assert "logit_difference_effect" in json.dumps(json.loads(found.stdout))


@pytest.mark.slow
def test_pictures_are_traced_and_patched(tmp_path) -> None:
    page, file = tmp_path / "red.html", tmp_path / "red.nc"
    options = ["--attribute", "red", "--seeds", "1", "--window", "20", "--html", str(page), "--out", str(file)]
    found = CliRunner().invoke(app, ["trace", "a red circle at top left", "--model", "shapes", *options])
    assert found.exit_code == 0, found.output
    assert "colour_probability" in found.output and "up.1.1" in found.output
    assert page.read_text().count("base64,iVBOR") >= 6  # ours, and plotly.js brings two
    assert Result.load(file).data.sizes["window"] == 1
    options = ["--task", "size", "--n", "1", "--part", "prediction", "--json"]
    found = CliRunner().invoke(app, ["patch", "--model", "shapes", *options])
    assert found.exit_code == 0, found.output
    assert "size_logit_difference_effect" in json.dumps(json.loads(found.stdout))


def test_models_are_listed() -> None:
    found = CliRunner().invoke(app, ["models"])
    assert found.exit_code == 0
    assert "smollm2-135m" in found.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["patch", "--task", "nope"], "There is no task"),
        (["patch", "--model", "shapes", "--task", "colur"], "There is no factor"),
        (["patch", "--model", "shapes", "--matching", "stat"], "There is no matching"),
        (["trace", "a red circle", "--model", "shapes"], "--attribute"),
        (["trace", "A prompt.", "--subject", "x", "--model", "/nowhere/at/all"], "Cannot load"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, message: str) -> None:
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output
