"""The commands, on the embedded model, with few layers' worth of work."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
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


@pytest.fixture
def truth(monkeypatch, tmp_path):
    """A small model of a known circuit in place of the embedded one, and its pairs in a file."""
    import interp
    from interp.tasks import induction_by_hand

    known = induction_by_hand(24)
    monkeypatch.setattr(interp, "load", lambda name: known.model)
    known.task.to_csv(tmp_path / "pairs.csv")
    return known


CIRCUIT = ["circuit", "--edges", "7", "--steps", "2"]


def test_a_circuit_of_a_users_own_prompts(truth, tmp_path) -> None:
    from interp.circuits import Circuit, Evaluation, read_mib

    files = {name: tmp_path / f"c.{name}" for name in ("html", "png", "nc", "json")}
    options = ["--task", str(tmp_path / "pairs.csv"), "--curve", "--mib", str(files["json"]), "--out", str(files["nc"])]
    options += ["--html", str(files["html"]), "--png", str(files["png"]), "--evaluation", str(tmp_path / "e.nc")]
    found = CliRunner().invoke(app, [*CIRCUIT, *options])
    assert found.exit_code == 0, found.output
    circuit, evaluation = Circuit.load(files["nc"]), Evaluation.load(tmp_path / "e.nc")
    assert circuit.edges.sum() == 7 and circuit.provenance["steps"] == 2
    assert circuit.names == read_mib(files["json"], truth.model).names
    # What it was found on and what it was evaluated on are the file's pairs, parted.
    clean = [set(result.provenance["clean"]) for result in (circuit, evaluation)]
    assert not clean[0] & clean[1] and clean[0] | clean[1] == {pair.clean for pair in truth.task.pairs}
    assert evaluation.provenance["n_scored"] == 8 and "cpr" in evaluation.data
    assert evaluation.data.sizes["draw"] == 3
    assert circuit.provenance["verdict"]["notes"][0].startswith("faithfulness") and "tested" in repr(circuit)
    page = files["html"].read_text()
    assert "<html" in page[:200] and "a1.h0 \\u2192 logits" in page and "<td>a1.h0</td><td>logits</td>" in page
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    words = " ".join(found.output.split())
    assert "Circuit of 7 of" in words and "Evaluation: Faithfulness" in words and "CPR" in words and "wrote" in words


def test_a_circuit_as_json(truth, tmp_path) -> None:
    options = ["--task", str(tmp_path / "pairs.csv"), "--json", "--no-held-out", "--no-grow", "--method", "eap"]
    found = CliRunner().invoke(app, ["circuit", "--edges", "7", "--no-tests", *options])
    assert found.exit_code == 0, found.output
    parts = json.loads(found.stdout)
    assert set(parts) == {"circuit", "evaluation"}
    clean = [part["provenance"]["clean"] for part in parts.values()]
    assert clean[0] == clean[1] == [pair.clean for pair in truth.task.pairs]
    assert parts["circuit"]["provenance"]["selection"] == "the 7 highest |score|"
    assert parts["evaluation"]["provenance"]["method"] == "EAP"


def test_acdc_and_edge_masks_find_the_known_circuit(truth, tmp_path) -> None:
    from interp.circuits import Circuit

    pairs = ["circuit", "--task", str(tmp_path / "pairs.csv"), "--no-tests", "--out", str(tmp_path / "c.nc")]
    for method in (
        ["--method", "acdc", "--threshold", "0.01"],
        ["--method", "edge-masks", "--threshold", "0.5", "--penalty", "0.02", "--steps", "80"],
        ["--method", "exact", "--threshold", "0.1"],
    ):
        page = tmp_path / "c.html"
        found = CliRunner().invoke(app, [*pairs, *method, "--html", str(page)])
        assert found.exit_code == 0, found.output
        circuit = Circuit.load(tmp_path / "c.nc")
        assert set(circuit.names) == truth.edges(), method
        assert circuit.provenance["metric"] == ("logit_difference" if "exact" in method else "negative_kl")
        assert ("Where the scores are" in page.read_text()) == ("acdc" not in method)


def test_a_circuit_under_another_ablation(truth, tmp_path) -> None:
    from interp.circuits import Circuit, Evaluation

    files = {"--out": tmp_path / "c.nc", "--evaluation": tmp_path / "e.nc"}
    options = ["--edges", str(len(truth.edges("zero"))), "--no-tests", "--no-grow", "--ablation", "zero"]
    options += [str(x) for pair in files.items() for x in pair]
    for method, by in (("exact", "exact patching, zero ablation"), ("eap-ig", "EAP-IG (inputs) ·")):
        task = ["--task", str(tmp_path / "pairs.csv"), "--method", method]
        found = CliRunner().invoke(app, ["circuit", *task, *options])
        assert found.exit_code == 0, found.output
        circuit, evaluation = Circuit.load(files["--out"]), Evaluation.load(files["--evaluation"])
        assert by in circuit.title and evaluation.provenance["ablation"] == "zero"
        assert (set(circuit.names) == truth.edges("zero")) == (method == "exact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nope"], "There is no task"),
        (["--task", "nope.csv"], "There is no file"),
        (["--task", "few.csv"], "too few to hold some out"),
        (["--task", "bad.csv"], "lacks"),
        (["--task", "pairs.csv", "--method", "eap-gi"], "Did you mean 'eap-ig'"),
        (
            ["--task", "pairs.csv", "--method", "eap", "--steps", "3"],
            "methods that do: eap-ig, eap-ig-activations, edge",
        ),
        (
            ["--task", "pairs.csv", "--penalty", "0.1"],
            "--penalty: eap-ig takes no such option; methods that do: edge-masks",
        ),
        (["--task", "pairs.csv", "--edges", "7", "--threshold", "0.1"], "ask for two circuits; give one of them"),
        (["--task", "pairs.csv", "--method", "acdc"], "acdc needs --threshold"),
        (["--task", "pairs.csv", "--method", "acdc", "--edges", "7"], "acdc takes edges away that cost less"),
        (["--task", "pairs.csv", "--method", "acdc", "--threshold", "1", "--curve"], "acdc finds one circuit"),
        (["--task", "pairs.csv", "--method", "acdc", "--threshold", "1e9"], "no edge stays"),
        (["--task", "pairs.csv", "--threshold", "1e9"], "the circuit is empty"),
        (["--task", "pairs.csv", "--edges", "7", "--ablation", "means"], "Did you mean 'mean'"),
        (["--task", "pairs.csv", "--edges", "100000"], "A circuit of 100000 edges"),
        (["--task", "pairs.csv", "--edges", "7", "--metric", "accuracy"], "no metric 'accuracy' with a gradient"),
        (["--task", "ioi", "--n", "2", "--edges", "7"], "is no word of this model"),
    ],
)
def test_mistakes_about_circuits(truth, tmp_path, monkeypatch, options, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    truth.task[:2].to_csv("few.csv")
    (tmp_path / "bad.csv").write_text("clean,answer\na, b\n")
    found = CliRunner().invoke(app, ["circuit", *options])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split())
    assert "Traceback" not in found.output


ALIGN = ["align", "--task", "subject-number", "--n", "10", "--held-out", "6", "--steps", "3", "--batch", "4"]


def test_a_search_for_a_variable(speaking, monkeypatch, tmp_path) -> None:
    import interp
    from interp.alignment import Alignment

    monkeypatch.setattr(interp, "load", lambda name: speaking)
    files = {name: tmp_path / f"a.{name}" for name in ("html", "nc")}
    options = ["--layers", "0:2", "--regions", "subject,last", "--rank", "1,2", "--no-only-right", "--among-answers"]
    options += ["--html", str(files["html"]), "--out", str(files["nc"]), "--checkpoint", str(tmp_path / "kept")]
    found = CliRunner().invoke(app, [*ALIGN, *options])
    assert found.exit_code == 0, found.output
    result = Alignment.load(files["nc"])
    assert result.data["iia"].shape == (2, 2, 2) and result.data["layer"].values.tolist() == [0, 1]
    words = " ".join(found.output.split())
    assert "best of 8 cells" in words and "shuffled labels" in words and "6 of 6" in words
    assert "<html" in files["html"].read_text()[:200] and (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nope"], "no interchange task 'nope'"),
        (["--layers", "5:2"], "names no number"),
        (["--rank", "one"], "give numbers"),
        (["--layers", "1", "--regions", "object", "--no-only-right"], "no region 'object'"),
    ],
)
def test_mistakes_about_alignments(speaking, monkeypatch, options, message: str) -> None:
    import interp

    monkeypatch.setattr(interp, "load", lambda name: speaking)
    found = CliRunner().invoke(app, [*ALIGN, *options])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split())


def test_a_whole_causal_model_from_searches_that_were_saved(speaking, monkeypatch, tmp_path) -> None:
    import interp
    from interp.alignment import Abstraction

    monkeypatch.setattr(interp, "load", lambda name: speaking)
    common = ["--n", "8", "--held-out", "4", "--steps", "2", "--batch", "4", "--rank", "2", "--no-only-right"]
    for task, layer, region in (("subject-number", "1", "subject"), ("subject-tense", "0", "verb")):
        one = ["align", "--task", task, "--layers", layer, "--regions", region, "--out", str(tmp_path / f"{task}.nc")]
        assert CliRunner().invoke(app, [*one, *common]).exit_code == 0
    given = [str(tmp_path / f"{task}.nc") for task in ("subject-number", "subject-tense")]
    options = ["--task", "subject-number", "--n", "4", "--train", "4", "--no-only-right", "--among-answers"]
    files = ["--html", str(tmp_path / "a.html"), "--out", str(tmp_path / "a.nc"), "--png", str(tmp_path / "a.png")]
    found = CliRunner().invoke(app, ["abstraction", *given, *options, *files])
    assert found.exit_code == 0, found.output
    result = Abstraction.load(tmp_path / "a.nc")
    assert result.data["exchanged"].values.tolist() == ["number", "tense", "number + tense"]
    assert "random model" in result.data["way"].values
    page = (tmp_path / "a.html").read_text()
    assert "Every failure" in page and "Where it fails" in page and (tmp_path / "a.png").stat().st_size
    wrong = CliRunner().invoke(app, ["abstraction", given[0], "--task", "nope"])
    assert wrong.exit_code == 2 and "no interchange task 'nope'" in " ".join(wrong.output.split())


def test_every_task_has_a_name_here_and_a_split() -> None:
    from interp.cli.shared import TASKS, named_task

    for name in TASKS:
        train, held_out = (named_task(name, 3, 0, split) for split in ("train", "held out"))
        assert len(train) == len(held_out) == 3 and train.pairs != held_out.pairs


STEER = ["steer", "--concept", "sea", "--layer", "1", "--doses", "0,0.5", "--n", "2", "--tokens", "3"]


def test_doses_are_judged_or_told(speaking, monkeypatch, tmp_path) -> None:
    import interp
    from interp.steering import DoseResponse

    monkeypatch.setattr(interp, "load", lambda name: speaking)
    files = {name: tmp_path / f"s.{name}" for name in ("html", "nc", "png")}
    written = ["--html", str(files["html"]), "--out", str(files["nc"]), "--png", str(files["png"])]
    found = CliRunner().invoke(app, [*STEER, *written])
    assert found.exit_code == 0, found.output
    result = Result.load(files["nc"])
    assert isinstance(result, DoseResponse)
    assert result.data["way"].values.tolist() == ["mean", "random direction", "prompt edit"]
    assert float(result.data["damage"].sel(way="mean", dose=0.5)) > 0
    assert files["png"].read_bytes().startswith(b"\x89PNG") and "Steering to the sea" in files["html"].read_text()
    told = CliRunner().invoke(app, ["steer", "The cat sat", *STEER[1:]])
    assert told.exit_code == 0, told.output
    assert told.output.count("dose ") == 2
    plain = interp.generate(speaking, "The cat sat", max_new_tokens=3, temperature=0.7).texts[0]
    assert " ".join(plain.split()) in " ".join(told.output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "anger"], "no concept 'anger'"),
        (["--doses", "a,b"], "numbers with commas between"),
        (["--n", "-5"], "on 2 to 48 prompts"),
        (["--n", "100"], "on 2 to 48 prompts"),
        (["--layer", "9"], "3 layers, numbered 0 to 2"),
        (["--method", "pcr"], "no method 'pcr'"),
        (["The cat", "--json"], "belongs to judged doses"),
    ],
)
def test_mistakes_about_doses(speaking, monkeypatch, options, message: str) -> None:
    import interp

    monkeypatch.setattr(interp, "load", lambda name: speaking)
    found = CliRunner().invoke(app, ["steer", "--layer", "1", *options])
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_concepts_are_fitted_and_shown(tmp_path) -> None:
    texts, folder, page = tmp_path / "texts.txt", tmp_path / "out", tmp_path / "concepts.html"
    texts.write_text("\n".join(f"The cat number {i} sat on a mat, and the dog <b>barked</b>." for i in range(60)))
    small = ["--site", "L2.resid_post", "--latents", "32", "--k", "4", "--steps", "5", "--batch", "64"]
    found = CliRunner().invoke(app, ["concepts", "fit", str(folder), "--texts", str(texts), *small])
    assert found.exit_code == 0, found.output
    assert "batch_topk" in found.output
    found = CliRunner().invoke(
        app, ["concepts", "show", str(folder), "--latents", "0:4", "--html", str(page), "--out", str(tmp_path / "a.nc")]
    )
    assert found.exit_code == 0, found.output
    assert "Atlas: batch_topk, 32 latents" in found.output and "<b>" not in page.read_text()
    assert {"promoted", "label", "token"} <= set(Result.load(tmp_path / "a.nc").data)
    wrong = [
        (["fit", str(tmp_path / "b"), "--kind", "topkk"], "Did you mean"), (["show", str(tmp_path / "nowhere")], "nowhere"),
        (["fit", str(tmp_path / "b"), "--texts", str(tmp_path / "none.txt")], "cannot be read"),
        (["show", str(folder), "--latents", "99"], "no latent 99"),
    ]  # fmt: skip
    for command, message in wrong:
        found = CliRunner().invoke(app, ["concepts", *command])
        assert found.exit_code == 2 and message in " ".join(found.output.split()), found.output


@pytest.fixture(scope="module")
def fitted(speaking, tmp_path_factory):
    """A folder of `interp concepts fit` for each of two layers."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "texts.txt").write_text("\n".join(f"Cat number {i} sat, <b>and</b> the dog barked." for i in range(30)))
    small = ["--latents", "16", "--k", "4", "--steps", "4", "--batch", "64", "--texts", str(folder / "texts.txt")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("interp.load", lambda name: speaking)
        for layer in (0, 2):
            options = [str(folder / f"l{layer}"), "--site", f"L{layer}.resid_post", *small]
            found = CliRunner().invoke(app, ["concepts", "fit", *options])
            assert found.exit_code == 0, found.output
    return folder


GRAPH = ["--n", "6", "--examples", "2", "--draws", "4", "--shuffles", "4", "--quantile", "0.5", "--density", "1"]


def test_a_graph_of_two_sites_and_its_page(speaking, fitted, monkeypatch, tmp_path) -> None:
    from interp.concepts import ConceptGraph

    monkeypatch.setattr("interp.load", lambda name: speaking)
    files = {name: tmp_path / f"g.{name}" for name in ("html", "nc")}
    written = ["--html", str(files["html"]), "--out", str(files["nc"]), "--texts", str(fitted / "texts.txt")]
    both = [str(fitted / "l0"), str(fitted / "l2")]
    found = CliRunner().invoke(app, ["concepts", "graph", *both, *GRAPH, "--top", "3", *written])
    assert found.exit_code == 0, found.output
    graph = Result.load(files["nc"])
    assert isinstance(graph, ConceptGraph) and graph.data.sizes["node"] == 6
    assert graph.data["level"].values.tolist() == ["L0.resid_post"] * 3 + ["L2.resid_post"] * 3
    assert "L0.resid_post → L2.resid_post" in found.output
    page = json.loads(re.search(r'id="data">(.*?)</script>', files["html"].read_text("utf-8"), re.DOTALL)[1])
    assert [one["name"] for one in page["graph"]["nodes"]] == graph.names and "<b>" not in files["html"].read_text()
    asked = ["--latents", "1,5/0:2", "--json", "--no-labels"]
    found = CliRunner().invoke(app, ["concepts", "graph", *both, *GRAPH, *asked, *written[-2:]])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["data"]["coords"]["latent"]["values"] == [1, 5, 0, 1]


def test_a_latent_steers_text_beside_a_random_direction(speaking, fitted, monkeypatch, tmp_path) -> None:
    import interp
    from interp.concepts import coded_rows
    from interp.dictionaries import Store, load

    monkeypatch.setattr("interp.load", lambda name: speaking)
    monkeypatch.setattr("interp.cli.latents.console", Console(width=400))
    store, dictionary = Store.open(fitted / "l0" / "store"), load(fitted / "l0" / "dictionary")
    rows = coded_rows(dictionary, store.activations())
    latent = int(np.argmax(rows.count * (rows.count < len(store))))
    steered = ["concepts", "steer", str(fitted / "l0"), "The cat sat", "--latent", str(latent), "--tokens", "4"]
    found = CliRunner().invoke(app, [*steered, "--dose", "2,40", "--html", str(tmp_path / "s.html")])
    assert found.exit_code == 0, found.output
    usual = float(rows.of(latent)[1].mean())  # of the mean code where it is on, twice and forty times
    for dose in (0, 2, 40):
        push = interp.Add(interp.Site("resid_post", 0), dictionary.directions([latent])[0].double(), dose * usual)
        text = interp.generate(speaking, "The cat sat", [push], max_new_tokens=4, temperature=0.7).texts[0]
        assert " ".join(text.split()) in " ".join(found.output.replace("│", " ").split())
    assert "random direction" in found.output and "unsteered" in (tmp_path / "s.html").read_text()
    found = CliRunner().invoke(app, [*steered, "--form", "clamp", "--dose", "0"])
    assert found.exit_code == 0, found.output


def test_graphs_and_latents_of_pictures(monkeypatch, tmp_path) -> None:
    import interp
    from interp.models.load import load
    from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet

    torch.manual_seed(0)
    untrained = replace(load(new_pipeline(new_text_encoder(), new_unet()), name="untrained"), steps=3)
    monkeypatch.setattr("interp.load", lambda name: untrained)
    folder, page, png = str(tmp_path / "f"), tmp_path / "g.html", tmp_path / "s.png"
    small = ["--site", "mid.0.block_out", "--latents", "12", "--k", "3", "--steps", "4", "--batch", "64", "--n", "2"]
    commands = [
        ["fit", folder, *small],
        ["graph", folder, "--steps", "0,1", *GRAPH, "--n", "2", "--top", "2", "--html", str(page), "--no-labels"],
        ["steer", folder, "a red circle", "--latent", "LATENT", "--n", "1", "--dose", "3", "--png", str(png)],
    ]
    for command in commands:
        if "LATENT" in command:
            graph = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])["graph"]
            assert [level["place"] for level in graph["levels"]] == [f"mid.0.block_out at step {i}" for i in (0, 1)]
            command[command.index("LATENT")] = str(graph["nodes"][0]["latent"])
        found = CliRunner().invoke(app, ["concepts", *command])
        assert found.exit_code == 0, found.output
    assert png.read_bytes().startswith(b"\x89PNG")
    for options, message in (
        (["graph", folder, *GRAPH], "a single folder and --steps"),
        (["graph", folder, "--steps", "0,3"], "Step 3 was not harvested; there are [0, 1, 2]"),
        (["steer", folder, "a red circle", "--latent", "0"], "say where they go, with --png or --html"),
    ):
        found = CliRunner().invoke(app, ["concepts", *options])
        assert found.exit_code == 2 and message in " ".join(found.output.split()), found.output
    assert isinstance(untrained, interp.Denoiser)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["graph", "l0", "l2", "--steps", "3,10"], "takes several folders"),
        (["graph", "l0", "l2", "--latents", "3"], "is of 1 levels, and there are 2"),
        (["graph", "l0", "l2", "--latents", "3/99"], "no latent 99"),
        (["graph", "l0", "l2", "--density", "0"], "raise --density"),
        (["graph", "l2", "l0", "--latents", "1/1", "--n", "4", "--quantile", "0.5"], "is not computed after"),
        (["graph", "l0", "nowhere"], "nowhere"),
        (["steer", "l0", "The cat", "--latent", "99"], "no latent 99"),
        (["steer", "l0", "The cat", "--latent", "1", "--form", "clamps"], "Did you mean 'clamp'"),
        (["steer", "l0", "The cat", "--latent", "1", "--dose", "x"], "numbers with commas"),
        (["steer", "l0", "The cat", "--latent", "1", "--png", "x.png"], "there is no picture"),
    ],
)
def test_mistakes_about_graphs_and_latents(speaking, fitted, monkeypatch, options, message: str) -> None:
    monkeypatch.setattr("interp.load", lambda name: speaking)
    monkeypatch.chdir(fitted)
    found = CliRunner().invoke(app, ["concepts", *options])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split()), found.output
