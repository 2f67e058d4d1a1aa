"""Agreement of circuits: by hand, of equals, of strangers, of halves of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from circuits.exact import PLANTED, exact, pairs, planted
from circuits.test_select import GRAPH, scored
from scipy.stats import spearmanr

import interp
from interp.circuits.ablation import Ablation
from interp.circuits.evaluate import evaluate
from interp.circuits.results import Circuit
from interp.circuits.score import eap, random_scores, score
from interp.circuits.select import random_like, top_n
from interp.circuits.stability import Stability, by_ablations, by_prompts, stability
from interp.errors import InterpError, PairError
from interp.tasks.pairs import PromptPair

PAIRS = pairs((7, 5, 6, 7, 6, 5))


def test_by_hand():
    one = scored({"input->m0": 3.0, "m0->logits": -2.0, "a0.h0->m1": 1.0})
    other = scored({"input->m0": -1.0, "m0->m1": 4.0, "a0.h0->m1": 2.0})
    found = stability({"one": one, "other": other}, 2)
    # {input->m0, m0->logits} and {m0->m1, a0.h0->m1} by |score|: nothing shared; of three edges, two of four
    assert found.data["jaccard"].values.tolist() == [[1, 0], [0, 1]] and int(found.data["core"]) == 0
    three = stability({"one": one, "other": other}, 3)
    assert three.mean("jaccard") == pytest.approx(2 / 4) and three.mean("overlap") == pytest.approx(2 / 3)
    assert int(three.data["core"]) == 2
    values = [np.abs(x.scores[GRAPH.edges]) for x in (one, other)]
    assert three.mean("rank") == pytest.approx(spearmanr(*values).statistic)
    # one has (input, mlp) 1, (mlp, logits) 1, (head, mlp) 1; other (input, mlp), (mlp, mlp), (head, mlp)
    # types have 2, 2, 6 and 1 edges: 1/2 + 1/6 shared by chance
    expected = 1 / 2 + 1 / 6
    assert three.mean("random") == pytest.approx(expected / (6 - expected))


def test_the_random_level_is_that_of_random_circuits():
    model = exact("gpt2")
    scores = {"eap": eap(model, PAIRS), "random": random_scores(model, PAIRS)}
    found = stability(scores, 40)
    circuits, generator = [top_n(x, 40) for x in scores.values()], np.random.default_rng(0)
    shared = np.mean([(random_like(circuits[0], generator) & circuits[1].edges).sum() for _ in range(400)])
    assert found.data["random"].values[0, 1] == pytest.approx(shared / (80 - shared), rel=0.1)
    known_nothing = stability({str(seed): random_scores(model, PAIRS, seed=seed) for seed in range(6)}, 40)
    assert known_nothing.mean("jaccard") == pytest.approx(known_nothing.mean("random"), abs=0.05)
    assert abs(known_nothing.mean("rank")) < 0.1


def test_halves_and_draws():
    model = planted()
    halves = by_prompts(model, PAIRS, "eap", repeats=2)
    assert list(halves) == ["half 1a", "half 1b", "half 2a", "half 2b"]
    for repeat in (1, 2):
        prompts = [halves[f"half {repeat}{part}"].provenance["clean"] for part in "ab"]
        assert sorted(prompts[0] + prompts[1]) == sorted(pair.clean for pair in PAIRS.task)
    found = stability(halves, len(PLANTED))
    assert found.mean("jaccard") == 1 and int(found.data["core"]) == len(PLANTED) and found.mean("random") < 0.3
    draws = by_prompts(model, PAIRS, "eap", kind="bootstrap", repeats=3, seed=1)
    assert list(draws) == ["draw 1", "draw 2", "draw 3"]
    assert all(len(x.provenance["clean"]) == len(PAIRS) for x in draws.values())
    rows = [int(clean.split()[1]) for clean in halves["half 1a"].provenance["clean"]]
    np.testing.assert_allclose(halves["half 1a"].scores, score(model, PAIRS.select(rows), "eap").scores, atol=1e-9)


def test_circuits_as_they_are_have_sizes_of_their_own():
    one = scored({"input->m0": 3.0, "m0->logits": -2.0, "a0.h0->m1": 1.0})
    small, large = top_n(one, 2), top_n(one, 3)
    found = stability({"small": small, "large": large, "scores": one}, 1)
    np.testing.assert_allclose(found.data["jaccard"].values, [[1, 2 / 3, 1 / 2], [2 / 3, 1, 1 / 3], [1 / 2, 1 / 3, 1]])
    np.testing.assert_allclose(found.data["overlap"].values, 1)  # each is within the next larger one
    assert found.data["edges"].values.tolist() == [2, 3, 1] and "3 circuits of 1 to 3 edges" in repr(found)
    parts = by_prompts(planted(), PAIRS, "acdc", threshold=1e-4)
    assert all(isinstance(part, Circuit) and part.provenance["method"] == "ACDC" for part in parts.values())
    assert stability(parts).mean("jaccard") > 0.5


def test_faithfulness_under_ablations_is_that_of_evaluate():
    truth = interp.tasks.compiled("induction", n=24)
    found_on, other = truth.task[:12], truth.task[12:]
    scores = by_ablations(truth.model, found_on, "exact", ("resample", "zero"))
    assert [one.provenance["ablation"] for one in scores.values()] == ["resample", "zero"]
    ablations = ("resample", "mean", "zero", Ablation("optimal", found_on, steps=3))
    found = stability(scores, 5, model=truth.model, task=other, ablations=ablations)
    assert found.data["ablation"].values.tolist() == ["resample", "mean", "zero", "optimal"]
    for name, one in scores.items():
        for ablation, kind in zip(ablations, found.data["ablation"].values, strict=True):
            expected = evaluate(truth.model, other, top_n(one, 5), ablation=ablation, trials=None, n_random=0).data
            at = found.data.sel(circuit=name, ablation=kind)
            for variable in ("faithfulness", "low", "high"):
                assert float(at[variable]) == pytest.approx(float(expected[variable][0]), abs=1e-9)
            assert float(at["empty"]) == pytest.approx(float(expected["empty"].mean()), abs=1e-9)
    # The five edges that tell clean from corrupted are enough where the rest is shared, and not where nothing is.
    of = found.data["faithfulness"].sel(circuit="resample")
    assert float(of.sel(ablation="resample")) == pytest.approx(1, abs=1e-4) and float(of.sel(ablation="zero")) < 0.9
    assert "faithfulness, outside of the circuit (" in repr(found) and "resample: resample 1.000" in repr(found)
    assert "Faithfulness of 2 circuits" in found.plot_faithfulness().layout.title.text


def test_it_shows_and_keeps_itself(tmp_path):
    found = stability(by_prompts(exact("gpt2"), PAIRS, "eap"), 20, grow=True)
    assert "Agreement of 2 circuits of 20 edges" in repr(found) and "half 1a · half 1b" in repr(found)
    assert "random circuits" in found.plot().layout.title.text
    found.save(tmp_path / "stability.nc")
    np.testing.assert_array_equal(Stability.load(tmp_path / "stability.nc").data["rank"], found.data["rank"])


def test_refusals():
    model = exact("gpt2")
    one = eap(model, PAIRS)
    with pytest.raises(InterpError, match="at least two scores, or circuits; got 1"):
        stability({"one": one}, 5)
    with pytest.raises(InterpError, match="'other' is of llama, not of gpt2"):
        stability({"one": one, "other": eap(exact("llama"), PAIRS)}, 5)
    with pytest.raises(InterpError, match="'one' holds scores: say of how many edges"):
        stability({"one": one, "two": one})
    with pytest.raises(InterpError, match="give both `model` and `task`, or neither"):
        stability({"one": one, "two": one}, 5, model=model)
    with pytest.raises(InterpError, match=r"different kinds, each once; got \['zero', 'zero'\]"):
        stability({"one": one, "two": one}, 5, model=model, task=PAIRS, ablations=("zero", Ablation("zero")))
    with pytest.raises(InterpError, match="at least two ablations of different kinds"):
        by_ablations(model, PAIRS, "eap", ("zero",))
    with pytest.raises(InterpError, match="eap-ig takes no 'ablation'; eap-ig-activations, eap, exact, edge-masks do"):
        by_ablations(model, PAIRS, "eap-ig")
    with pytest.raises(InterpError, match="Faithfulness was not measured"):
        stability({"one": one, "two": one}, 5).plot_faithfulness()
    with pytest.raises(InterpError, match="A circuit of 0 edges"):
        stability({"one": one, "two": one}, 0)
    with pytest.raises(InterpError, match=r"'bootstrap' \(twice or more\); got 'bootstrap', 1"):
        by_prompts(model, PAIRS, "eap", kind="bootstrap")
    with pytest.raises(PairError, match="A single pair has no halves"):
        by_prompts(model, PromptPair("a", "b", " c", " d"))
