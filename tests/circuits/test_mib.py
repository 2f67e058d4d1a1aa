"""Circuit files of EAP-IG: they survive a round trip, and files of other models are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from circuits.exact import exact, pairs

from interp.circuits.mib import read_mib, write_mib
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.score import random_scores
from interp.circuits.select import top_n
from interp.errors import LoadError


@pytest.fixture(params=["gpt2", "llama", "gpt_neox"])
def written(request, tmp_path):
    model = exact(request.param)
    found = top_n(random_scores(model, pairs()), 40)
    write_mib(found, tmp_path / "circuit.json")
    return model, found, tmp_path / "circuit.json"


def edited(path, change):
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def test_round_trip(written):
    model, found, path = written
    again = read_mib(path, model)
    assert isinstance(again, Circuit)
    assert (again.edges == found.edges).all() and again.graph == found.graph
    np.testing.assert_allclose(again.scores, found.scores, rtol=0, atol=1e-12)
    assert "file circuit.json" in repr(again)


def test_scores_alone(written):
    model, found, path = written
    write_mib(random_scores(model, pairs()), path)
    again = read_mib(path, model)
    assert isinstance(again, EdgeScores) and "its prompts are not known" in repr(again)
    np.testing.assert_allclose(again.scores, found.scores, rtol=0, atol=1e-12)


def test_the_file_is_what_eap_ig_reads(written):
    model, found, path = written
    whole = json.loads(path.read_text())
    assert whole["cfg"] == {
        "n_layers": 3, "n_heads": 4, "parallel_attn_mlp": model.family.parallel, "d_model": 24,
    }  # fmt: skip
    # An edge for every query head: n_l = 1, 6, 11 senders before the layers, 16 before the logits.
    assert len(whole["edges"]) == 18 * 13 + (0 if model.family.parallel else 3 * 4) + 16
    assert "input->a1.h3<k>" in whole["edges"] and set(whole["edges"]["m0->logits"]) == {"score", "in_graph"}
    assert {name for name, node in whole["nodes"].items() if node["in_graph"]} == set(found.nodes)
    if model.n_kv_heads == 2:
        at = found.graph.index("input->a1.kv1<k>")
        shared = [whole["edges"][f"input->a1.h{head}<k>"] for head in (2, 3)]
        assert shared[0] == shared[1] == {"score": found.scores[at] / 2, "in_graph": bool(found.edges[at])}


def test_files_of_other_tools_may_be_sparse(written):
    model, _, path = written

    def change(whole):
        del whole["interp"], whole["cfg"]["d_model"]
        whole["edges"] = {"m0->logits": {"score": 2.0, "in_graph": True}, "input->m0": {"in_graph": True}}

    edited(path, change)
    again = read_mib(path, model)
    assert again.names == ["input->m0", "m0->logits"] and np.nansum(again.scores) == 2.0


def test_refusals(written, tmp_path):
    model, _, path = written
    original = path.read_text()

    def refused(match, change):
        path.write_text(original)
        edited(path, change)
        with pytest.raises(LoadError, match=match):
            read_mib(path, model)

    refused("of another model: n_heads is 5 there, 4", lambda x: x["cfg"].update(n_heads=5))
    refused("parallel_attn_mlp", lambda x: x["cfg"].update(parallel_attn_mlp=not model.family.parallel))
    refused("whose weights are not those", lambda x: x["interp"].update(weights="0" * 16))
    refused("has no edge 'm9->logits'", lambda x: x["edges"].update({"m9->logits": {"score": 0.0, "in_graph": True}}))
    refused("finite 'score'", lambda x: x["edges"].update({"m0->logits": {"score": None, "in_graph": True}}))
    refused("finite 'score'", lambda x: x["edges"].update({"m0->logits": 3}))
    refused("needs the objects", lambda x: x.pop("nodes"))
    if model.n_kv_heads == 2:
        refused(
            "only some of them are in the circuit",
            lambda x: x["edges"]["input->a1.h2<k>"].update(in_graph=not x["edges"]["input->a1.h3<k>"]["in_graph"]),
        )
    path.write_text("{")
    with pytest.raises(LoadError, match="is not JSON"):
        read_mib(path, model)
    with pytest.raises(LoadError, match="no circuit file at"):
        read_mib(tmp_path / "nothing.json", model)
