"""Scores of prompts on a network whose variable is planted, and damaged in prompts that are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from interp.alignment.continuation import FunctionContinuation
from interp.alignment.correctness import (
    ALIGNED,
    INFORMED,
    SCORES,
    Bases,
    EveryPair,
    Observed,
    Values,
    correctness_probe,
    joined,
    log_odds,
    observed,
    simulated,
    value_probe,
)
from interp.alignment.maps import Subspace
from interp.alignment.prediction import compared
from interp.errors import InterpError
from interp.tasks.causal_model import CausalModel, Variable

WIDTH = 64
BITS = (0, 1)
XOR = CausalModel(
    "sign and question",
    (
        Variable("word", BITS), Variable("question", BITS),
        Variable("sign", BITS, ("word",), lambda word: word),
        Variable("answer", ("0", "1"), ("sign", "question"), lambda sign, question: str(sign ^ question)),
    ),
    "answer",
)  # fmt: skip


def network(states: torch.Tensor) -> torch.Tensor:
    """Logits of "0" and "1": the sign is what stands in direction 0, the question in direction 1."""
    score = 4 * states[:, 0] * states[:, 1]
    return torch.stack([score, -score], -1)


def prompts(n: int, seed: int, damaged: float) -> tuple[Observed, np.ndarray]:
    """States in which some signs are faint and wrong; how loud the question is hides it from the confidence."""
    random = np.random.default_rng(seed)
    word, question = random.integers(0, 2, (2, n))
    hurt = random.random(n) < damaged
    states = random.normal(0, 1, (n, WIDTH))
    states[:, 0] = (1 - 2 * word) * np.where(hurt, random.uniform(-0.3, 0, n), random.uniform(0.8, 1.2, n))
    states[:, 1] = (1 - 2 * question) * random.lognormal(0, 1.5, n)
    settings = [{"word": int(w), "question": int(q)} for w, q in zip(word, question, strict=True)]
    right = torch.tensor([int(XOR.run(setting)["answer"]) for setting in settings])
    states = torch.from_numpy(states)
    return observed(states, network(states), right, settings, torch.tensor([0, 1])), hurt


def consistent(values: Values, some: Observed) -> np.ndarray:
    table = np.array([[int(answer) for answer in values.answers(setting)] for setting in some.settings])
    return table == some.answer.numpy()[:, None]


def planted() -> Subspace:
    return Subspace(torch.eye(WIDTH, dtype=torch.float64)[:, :1])


@cache
def experiment(damaged_in_training: float = 0.3):
    train, _ = prompts(300, 0, damaged_in_training)
    tests = {"in": prompts(300, 1, 0.3)[0], "out": prompts(300, 2, 0.6)[0]}
    right = np.flatnonzero(train.right)
    values = Values.occurring(XOR, ["sign"], [train.settings[row] for row in right])
    # Bases whose question is as loud as any: their answers are the sign's.
    bases = train.select(right[:16].tolist())
    labels = torch.tensor([[int(a) for a in values.answers(setting)] for setting in bases.settings])
    ready = FunctionContinuation(bases.states, (bases.states,), network)
    return Bases(ready, labels), train, tests, values


@cache
def result(seed: int = 0, damaged_in_training: float = 0.3):
    bases, train, tests, values = experiment(damaged_in_training)
    own = {split: consistent(values, some) for split, some in tests.items()}
    return compared(planted(), values, bases, train, tests, own, seed), tests


def test_a_damaged_variable_predicts_the_errors_and_a_random_subspace_does_not() -> None:
    (data, _, failed), tests = result()
    assert not failed
    for split, (_, hurt) in {"in": prompts(300, 1, 0.3), "out": prompts(300, 2, 0.6)}.items():
        np.testing.assert_array_equal(tests[split].right, ~hurt)
        auc = data["auc"].sel(split=split)
        for name in ("simulation, right value", "value probe, right value", "simulation, own answer"):
            assert float(auc.sel(score=name)) > 0.99, (split, name)
        # The question's loudness is half of the confidence, and says nothing of the sign.
        assert float(auc.sel(score="top probability")) < 0.93
        assert float(data["gain_low"].sel(split=split, score="simulation, own answer")) > 0
        beside = data.sel(split=split, control="random subspace")
        for name in (*ALIGNED[:1], *INFORMED[:1]):
            here = beside.sel(score=name)
            assert float(here["control_low"]) <= 0.5 <= float(here["control_high"]), (split, name)
            assert abs(float(here["control_auc"]) - 0.5) < 0.12


def test_shuffled_labels_are_not_predicted() -> None:
    seen = []
    for seed in range(3):
        (data, _, _), _ = result(seed)
        shuffled = data.sel(control="shuffled labels")
        seen.append(((shuffled["control_low"] <= 0.5) & (shuffled["control_high"] >= 0.5)).values)
        assert abs(shuffled["control_auc"] - 0.5).max() < 0.17
    assert np.stack(seen).mean() > 0.85  # 95 % intervals; three shuffles of two splits


def test_areas_are_those_of_scikit_learn() -> None:
    (data, reference, _), tests = result()
    for split, some in tests.items():
        here = data["split_of"].values == split
        np.testing.assert_array_equal(data["right"].values[here], some.right)
        areas = {}
        for name in SCORES:
            value = np.unique(data["value"].sel(score=name).values[here], return_inverse=True)[1]
            areas[name] = roc_auc_score(some.right, value)
            assert abs(areas[name] - float(data["auc"].sel(score=name, split=split))) < 1e-12
        for name in SCORES:
            gain = float(data["gain"].sel(score=name, split=split))
            assert abs(gain - (areas[name] - areas[reference])) < 1e-12


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_simulation_by_hand(shift: float) -> None:
    """Pair by pair, with the swap written out; a third answer takes its share, unless answers are two."""
    bases, _, tests, _ = experiment()
    states = tests["in"].states[:7]

    def speak(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x), x[:, 2:3] + shift], -1)

    base = bases.ready.base[0]
    ready = FunctionContinuation(base, (base,), speak)
    for among in (None, torch.tensor([0, 1])):
        found = simulated(planted(), Bases(ready, bases.labels, among), states)
        for row, state in enumerate(states):
            total = torch.zeros(2, dtype=torch.float64)
            for one, label in zip(base, bases.labels, strict=True):
                edited = one.clone()
                edited[0] = state[0]
                logits = speak(edited[None])[0]
                total += (logits if among is None else logits[among]).softmax(-1)[label]
            np.testing.assert_allclose(found[row], total / len(base), atol=1e-12, rtol=0)
        sums = found.sum(1)  # two values, two answers
        assert (sums < 0.999).all() if among is None else np.allclose(sums, 1, atol=1e-12)


def test_a_base_without_an_answer_is_left_out() -> None:
    bases, _, tests, _ = experiment()
    states, base = tests["in"].states[:5], bases.ready.base[0]
    whole = simulated(planted(), bases, states)
    some = bases.labels.clone()
    some[3:, 1] = -1
    found = simulated(planted(), Bases(bases.ready, some), states)
    few = Bases(FunctionContinuation(base[:3], (base[:3],), network), bases.labels[:3])
    np.testing.assert_allclose(found[:, 0], whole[:, 0], atol=1e-12)
    np.testing.assert_allclose(found[:, 1], simulated(planted(), few, states)[:, 1], atol=1e-12)
    some[:, 1] = -1
    with pytest.raises(InterpError, match="no base"):
        simulated(planted(), Bases(bases.ready, some), states)


def test_pairs_are_ordered_prompt_by_prompt() -> None:
    base, states = torch.arange(6.0).view(3, 2), torch.arange(100.0, 104).view(2, 2)
    pairs = EveryPair(FunctionContinuation(base, (base,), lambda x: 2 * x), states, 2)
    torch.testing.assert_close(pairs.base[0, [0, 1, 2, 3]], base[[0, 1, 2, 0]])
    assert len(pairs.sources) == 2
    torch.testing.assert_close(pairs.sources[1][0, [0, 2, 3]], states[[0, 0, 1]])
    torch.testing.assert_close(pairs.base_outputs(torch.tensor([4])), 2 * base[[1]])


def test_the_probe_gives_the_probabilities_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for n_values in (2, 3):
        y = random.integers(0, n_values, 90)
        x = random.normal(0, 1, (90, 4)) + y[:, None]
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
        other = random.normal(1, 1, (20, 4))
        log_p = value_probe(x, y, n_values)(other)
        np.testing.assert_allclose(np.exp(log_p), oracle.predict_proba(other), atol=1e-9)
        which = np.zeros((20, n_values), dtype=bool)
        which[:, 1] = True
        p = oracle.predict_proba(other)[:, 1]
        np.testing.assert_allclose(log_odds(log_p, which), np.log(p / (1 - p)), atol=1e-7)
        assert (log_odds(log_p, ~which & which) == -np.inf).all()
        assert (log_odds(log_p, which | ~which) == np.inf).all()


def test_the_correctness_probe_learns_and_is_refused_without_errors() -> None:
    train, hurt = prompts(300, 0, 0.3)
    states = np.concatenate([train.states.numpy(), hurt[:, None]], 1)  # a mark that tells
    probe = correctness_probe(states, train.right)
    assert roc_auc_score(train.right, probe(states)) > 0.95
    with pytest.raises(InterpError, match="Of 4 training prompts 3"):
        correctness_probe(states[:4], np.array([True, True, True, False]))


def test_without_errors_in_training_there_is_no_correctness_probe_and_the_rest_stands() -> None:
    (data, reference, failed), _ = result(damaged_in_training=0.0)
    assert reference == "top probability" and "no correctness probe: Of 300 training prompts 300" in failed[0]
    missing = data["auc"].isnull().all("split")
    assert data["score"].values[missing].tolist() == ["correctness probe"]


def test_confidence_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, 5.0], [0.0, 3.0, 1.0, -1.0]], dtype=torch.float64)
    setting = [{}, {}]
    answers = torch.tensor([0, 2])
    whole = observed(torch.zeros(2, 1), logits, torch.tensor([3, 2]), setting, answers)
    p = logits.softmax(-1)
    assert whole.answer.tolist() == [3, 1] and whole.right.tolist() == [True, False]
    torch.testing.assert_close(whole.confidence[0], p.max(-1).values.log())
    torch.testing.assert_close(whole.confidence[1], (p * p.log()).sum(-1))
    torch.testing.assert_close(whole.confidence[2], torch.tensor([1.0, 1.0], dtype=torch.float64))
    some = observed(torch.zeros(2, 1), logits, torch.tensor([3, 2]), setting, answers, among_answers=True)
    assert some.answer.tolist() == [0, 2] and some.right.tolist() == [False, True]
    torch.testing.assert_close(some.confidence[0], logits[:, [0, 2]].log_softmax(-1).max(-1).values)
    both = joined([whole, some])
    assert len(both) == 4 and both.select([3, 0]).answer.tolist() == [2, 3]


def test_values_and_what_follows_from_them() -> None:
    settings = [{"word": 1, "question": 1}, {"word": 0, "question": 1}, {"word": 1, "question": 0}]
    values = Values.occurring(XOR, ["sign"], settings)
    assert values.joint == ((0,), (1,)) and values.of(settings).tolist() == [1, 0, 1]
    assert values.answers(settings[0]) == ["1", "0"]
    both = Values.occurring(XOR, ["sign", "question"], settings)
    assert both.joint == ((0, 1), (1, 0), (1, 1)) and both.answers(settings[0]) == ["1", "1", "0"]
    with pytest.raises(InterpError, match="Prompt 0: sign and question is 0 and 0, which never occurs"):
        both.of([{"word": 0, "question": 0}])
    with pytest.raises(InterpError, match="always has the value"):
        Values.occurring(XOR, ["sign"], settings[:1])
    with pytest.raises(InterpError, match="no variable 'sing'"):
        Values.occurring(XOR, ["sing"], settings)
    from interp.tasks.causal_models.ioi import ioi_model

    ioi = ioi_model("identity")
    known = [{"first": "Mary", "second": "John", "giver": "John"}, {"first": "Anna", "second": "Paul", "giver": "Anna"}]
    identity = Values.occurring(ioi, ["identity"], known)
    given = dict(zip((joint[0] for joint in identity.joint), identity.answers(known[0]), strict=True))
    assert given == {"John": " Mary", "Anna": None}
