"""Where failures gather: what was planted is found, and what was not is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from interp.alignment.failures import describe_failures, failure_rates
from interp.errors import ShapeError


def columns(n: int = 240, seed: int = 0) -> dict[str, list[str]]:
    draw = np.random.default_rng(seed)
    return {
        "number": draw.choice(["plural", "singular"], n).tolist(),
        "tense": draw.choice(["past", "present"], n).tolist(),
        "noun": draw.choice([f"noun {i}" for i in range(40)], n).tolist(),
        "link": draw.choice(["near", "by", "behind"], n).tolist(),
    }


def planted(table: dict[str, list[str]], share: float, seed: int = 1) -> np.ndarray:
    """Failures, mostly where the number is plural and the tense is past."""
    here = np.array([a == "plural" and b == "past" for a, b in zip(table["number"], table["tense"], strict=True)])
    return np.random.default_rng(seed).random(len(here)) < np.where(here, share, 0.05)


def test_rates_are_counted_and_the_least_likely_come_first() -> None:
    table = columns()
    failed = planted(table, 0.8)
    rates = failure_rates(table, failed)
    assert {rate.condition for rate in rates[:4]} == {
        "number is plural", "number is singular", "tense is past", "tense is present"
    }  # fmt: skip
    assert not any("noun" in rate.condition for rate in rates)  # forty values describe single examples
    for rate in rates:
        name, value = rate.condition.split(" is ")
        holds = np.array(table[name]) == value
        assert (rate.n, rate.failed) == (holds.sum(), failed[holds].sum())
        assert rate.low <= rate.failed / rate.n <= rate.high
    plural = next(rate for rate in rates if rate.condition == "number is plural")
    holds = np.array(table["number"]) == "plural"
    p = fisher_exact([[failed[holds].sum(), (~failed[holds]).sum()], [failed[~holds].sum(), (~failed[~holds]).sum()]])
    assert p.pvalue <= plural.p <= len(rates) * p.pvalue + 1e-12


def test_a_column_speaks_only_of_the_examples_it_applies_to() -> None:
    failed = [True] * 10 + [False] * 10 + [True] * 20
    half = ["a"] * 10 + ["b"] * 10 + [""] * 20
    (first, second) = failure_rates({"source": half}, failed)
    assert {(first.condition, first.failed), (second.condition, second.failed)} == {
        ("source is a", 10), ("source is b", 0)
    }  # fmt: skip
    assert first.p == pytest.approx(2 * fisher_exact([[10, 0], [0, 10]]).pvalue)


def test_conditions_of_the_same_examples_are_one() -> None:
    table = {"number": ["a", "b"] * 10, "verb": ["is", "are"] * 10}
    assert [rate.condition for rate in failure_rates(table, [True, False] * 10)] == ["number is a", "number is b"]


@pytest.mark.slow
def test_a_planted_conjunction_is_found() -> None:
    table = columns()
    failed = planted(table, 0.8)
    found = describe_failures(table, failed)
    assert found is not None
    assert set(found.words.split(" and ")) <= {
        "number is plural", "number is not singular", "tense is past", "tense is not present"
    }  # fmt: skip
    assert len(found.words.split(" and ")) == 2
    assert found.failed / found.n > 0.6 and found.failed_else / found.n_else < 0.1
    assert found.n + found.n_else == len(failed) and found.failed + found.failed_else == failed.sum()
    assert found.score > 0.75 and found.p <= 0.05
    assert f"{found.failed} of {found.n}, elsewhere {found.failed_else} of {found.n_else}" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_failures_without_a_pattern_are_not_described(seed: int) -> None:
    table = columns(seed=seed)
    failed = np.random.default_rng(100 + seed).random(240) < 0.2
    assert describe_failures(table, failed, seed=seed) is None
    assert min(rate.p for rate in failure_rates(table, failed)) > 0.05


def test_too_few_failures_are_not_described() -> None:
    table = columns(40)
    assert describe_failures(table, [True] * 3 + [False] * 37) is None
    assert describe_failures({"one": ["a"] * 40}, [True, False] * 20) is None


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="2 values for 3 examples"):
        failure_rates({"a": ["x", "y"]}, [True, False, True])
