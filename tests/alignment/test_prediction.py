"""Prediction of correctness on a tiny language model, against runs and edits written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from interp.alignment import LowRank, Place, Prediction, Subspace, predict_correctness
from interp.alignment.correctness import SCORES
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.site import Site
from interp.tasks.causal_models.ioi import ioi_model
from interp.tasks.causal_models.number import number_interchange, number_model
from interp.tasks.interchange import InterchangeTask

SITE = Site("resid_pre", 1)
PLACE = Place(SITE, "subject")


@pytest.fixture(scope="module")
def one() -> Subspace:
    return Subspace.random(24, 3, seed=5)


@pytest.fixture(scope="module")
def train() -> InterchangeTask:
    return number_interchange(60, 0, split="train")


@pytest.fixture(scope="module")
def tests(train) -> dict[str, InterchangeTask]:
    return {"in": number_interchange(40, 7, split="train"), "out": number_interchange(30, 8, split="held out")}


@pytest.fixture(scope="module")
def found(speaking, one, train, tests) -> Prediction:
    return predict_correctness(speaking, number_model(), one, PLACE, train, tests, n_bases=6, among_answers=True)


def answered(speaking, task: InterchangeTask, answers: torch.Tensor) -> list[tuple[str, int, int, Any]]:
    """Of each distinct base: its text, the model's answer among some, the right one, its setting."""
    found = {}
    for example in task:
        text = example.base.text
        logits = run(speaking, [text]).logits[0, -1]
        right = speaking.tokenizer(text + example.base.answer).input_ids[-1]
        found.setdefault(text, (text, int(answers[logits[answers].argmax()]), right, example.base.setting))
    return list(found.values())


def verbs(speaking) -> torch.Tensor:
    ids = [speaking.tokenizer(f"The keys{verb}").input_ids[-1] for verb in (" is", " are", " was", " were")]
    return torch.tensor(sorted(ids))


def test_right_and_wrong_are_those_of_single_runs(speaking, train, tests, found: Prediction) -> None:
    known = {example.base.text for example in train}
    for split, task in tests.items():
        rows = [row for row in answered(speaking, task, verbs(speaking)) if row[0] not in known]
        here = found.data["split_of"].values == split
        assert found.data["text"].values[here].tolist() == [text for text, *_ in rows]
        assert found.data["right"].values[here].tolist() == [answer == right for _, answer, right, _ in rows]
        assert int(found.data["n"].sel(split=split)) == len(rows)
        assert int(found.data["n_wrong"].sel(split=split)) == sum(answer != right for _, answer, right, _ in rows)


def test_a_simulation_is_edits_by_hand(speaking, one, train, tests, found: Prediction) -> None:
    """Bases: the first right training prompts, singular and plural taking turns; each run once per prompt."""
    model, tokenizer = number_model(), speaking.tokenizer
    right = [row for row in answered(speaking, train, verbs(speaking)) if row[1] == row[2]]
    by_value = {v: [row for row in right if model.run(row[3])["number"] == v] for v in ("singular", "plural")}
    assert min(map(len, by_value.values())) >= 3
    bases = [row for v in by_value for row in by_value[v][:3]]

    def subject(text: str, setting: Any) -> int:
        end = text.index(f" {setting['subject']} ") + 1 + len(setting["subject"])
        return len(tokenizer(text[:end]).input_ids) - 1

    for number, (text, answer, _, setting) in enumerate(answered(speaking, tests["in"], verbs(speaking))[:4]):
        state = run(speaking, [text], (), [SITE])[SITE][0, subject(text, setting)]
        own, informed = [], []
        for base, _, _, base_setting in bases:
            at = subject(base, base_setting)
            before = run(speaking, [base], (), [SITE])[SITE][0, at]
            after = before + (state - before) @ one.basis[0].double() @ one.basis[0].double().T
            edited = run(speaking, [base], [Replace(SITE, after[None, None], positions=at)]).logits[0, -1]
            p = dict(zip(verbs(speaking).tolist(), edited[verbs(speaking)].softmax(-1).tolist(), strict=True))
            told = {v: model.run(base_setting, {"number": v})["answer"] for v in ("singular", "plural")}
            would = {v: model.run(setting, {"number": v})["answer"] for v in ("singular", "plural")}
            token = {v: p[tokenizer(f"The keys{said}").input_ids[-1]] for v, said in told.items()}
            said = tokenizer.decode([answer])
            own.append(max([token[v] for v in would if would[v] == said], default=0.0))
            informed.append(token[model.run(setting)["number"]])
        value = found.data["value"].isel(prompt=number)
        assert abs(float(value.sel(score="simulation, own answer")) - np.mean(own)) < 1e-9
        assert abs(float(value.sel(score="simulation, right value")) - np.mean(informed)) < 1e-9
        logits = run(speaking, [text]).logits[0, -1, verbs(speaking)]
        assert abs(float(value.sel(score="top probability")) - float(logits.log_softmax(-1).max())) < 1e-9


def test_it_is_shown_saved_and_reproducible(speaking, one, train, tests, found: Prediction, tmp_path) -> None:
    text = repr(found)
    for piece in (*SCORES, "random subspace", "shuffled labels", "gain over", "in ", "out ", "wrong", "'subject'", "rank 3",
                  "each text once"):  # fmt: skip
        assert piece in text, piece
    found.save(tmp_path / "prediction.nc")
    assert Prediction.load(tmp_path / "prediction.nc").data.equals(found.data)
    again = predict_correctness(speaking, number_model(), one, PLACE, train, tests, n_bases=6, among_answers=True)
    assert again.data.equals(found.data)
    bars = found.plot()
    names = [trace.name for trace in bars.data]
    assert names == ["in", "out"]
    np.testing.assert_allclose(bars.data[1].x, found.data["auc"].sel(split="out"))
    roc = list(found.plot_roc("in").data)
    assert len(roc) == len(SCORES) and all(np.diff(line.y).min() >= 0 and line.y[-1] == 1 for line in roc)
    area = float(found.data["auc"].sel(split="in", score="margin"))
    line = next(line for line in roc if line.name.startswith("margin"))
    assert abs(np.trapezoid(line.y, line.x) - area) < 0.02  # 101 points of a step function


def test_the_text_of_a_training_prompt_is_not_predicted(speaking, one, train, tests) -> None:
    mixed = dataclasses.replace(tests["in"], examples=(*train.examples[:9], *tests["in"].examples, *train.examples[:5]))
    some = predict_correctness(
        speaking, number_model(), one, PLACE, train, {"in": mixed}, n_bases=2, among_answers=True
    )
    assert not {e.base.text for e in train} & set(some.data["text"].values.tolist())
    assert len(set(some.data["text"].values.tolist())) == some.data.sizes["prompt"]
    assert some.provenance["n_attempted"] == len(mixed)


def test_refusals(speaking, one, train, tests, found: Prediction) -> None:
    def asked(**other: Any) -> Prediction:
        usual = {"causal": number_model(), "one": one, "place": PLACE, "train": train, "tests": tests,
                 "among_answers": True}  # fmt: skip
        return predict_correctness(speaking, **{**usual, **other})

    with pytest.raises(InterpError, match="nothing to predict"):
        asked(tests={})
    with pytest.raises(InterpError, match="0 bases"):
        asked(n_bases=0)
    with pytest.raises(InterpError, match="2 cells"):
        asked(one=LowRank(24, 2, cells=2))
    with pytest.raises(InterpError, match="map has 2 variables"):
        asked(one=Subspace.random(24, [1, 1]))
    with pytest.raises(InterpError, match="exchanges"):
        asked(tests={"x": number_interchange(4, 0, variables=("tense",))})
    with pytest.raises(InterpError, match="no variable 'attractor'"):
        asked(causal=ioi_model())
    example = train.examples[0]
    first = dataclasses.replace(example, base=dataclasses.replace(example.base, answer=" has"))
    with pytest.raises(InterpError, match="disagrees with example 0"):
        asked(train=dataclasses.replace(train, examples=(first, *train.examples[1:])))
    with pytest.raises(ShapeError, match="32 wide.*24"):
        asked(one=Subspace.random(32, 3))
    with pytest.raises(SiteError, match="3 layers"):
        asked(place=Place(Site("resid_pre", 9), "subject"))
    with pytest.raises(PairError, match="no region"):
        asked(place=Place(SITE, "object"))
    with pytest.raises(PairError, match="one of the training's"):
        asked(tests={"same": train[:4]})
    with pytest.raises(PairError, match=r"answers 0 of \d+ prompts of 'train'"):
        asked(among_answers=False)
    known = {text for text, answer, right, _ in answered(speaking, tests["out"], verbs(speaking)) if answer == right}
    fine = [row for row, example in enumerate(tests["out"]) if example.base.text in known]
    with pytest.raises(PairError, match=rf"answers {len(known)} of {len(known)} prompts of 'out' rightly"):
        asked(tests={"out": tests["out"].select(fine)})
    others = [row for row, example in enumerate(tests["out"]) if example.base.text not in known]
    with pytest.raises(PairError, match="answers 0 of .* 'out'"):
        asked(tests={"out": tests["out"].select(others)})
    with pytest.raises(InterpError, match="no split 'inn'"):
        found.plot_roc("inn")
