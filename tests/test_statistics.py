"""Statistics against hand-worked cases, scipy, and simulation."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from interp.errors import PairError, ShapeError
from interp.statistics import (
    auc_gain,
    auc_interval,
    bootstrap_interval,
    holm,
    ratio_interval,
    recovered,
    sign_flip_p,
    smallest_p,
    statistic_interval,
)


def test_sign_flip_by_hand() -> None:
    # [1, 2, 3]: of 8 sums only +6 and -6 are as far: 2/8. [1, 2, -3]: the sum is 0, all are as far.
    # [3, 1, -1]: |sum| = 3; the sums are ±5, ±3, ±3, ±1: 6/8.
    assert sign_flip_p([[1, 2, 3], [1, 2, -3], [3, 1, -1]]).tolist() == [0.25, 1.0, 0.75]
    assert sign_flip_p([5.0]) == 1.0
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0  # 0.1 + 0.2 - 0.3 is 5.6e-17, not 0


def test_sign_flip_equals_scipy() -> None:
    values = numpy.random.default_rng(0).normal(0.3, 1, (6, 11))
    oracle = stats.permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=10**4,
    )
    numpy.testing.assert_allclose(sign_flip_p(values), oracle.pvalue, rtol=0, atol=1e-12)


def test_sign_flip_monte_carlo_is_near_exact() -> None:
    values = numpy.random.default_rng(1).normal(0.5, 1, (20, 12))
    exact, drawn = sign_flip_p(values), sign_flip_p(values, resamples=2000)
    assert not numpy.array_equal(exact, drawn)
    assert (numpy.abs(drawn - exact) < 5 * numpy.sqrt(exact * (1 - exact) / 2000) + 1 / 2000).all()
    assert numpy.array_equal(drawn, sign_flip_p(values, resamples=2000))
    assert not numpy.array_equal(drawn, sign_flip_p(values, seed=1, resamples=2000))


def test_sign_flip_holds_its_level() -> None:
    values = numpy.random.default_rng(2).standard_t(3, (4000, 20))
    share = (sign_flip_p(values, resamples=999) <= 0.05).mean()
    assert 0.03 < share < 0.07


@pytest.mark.parametrize("n", [1, 2, 6, 14, 15, 40])
def test_smallest_p_is_attained(n: int) -> None:
    found = sign_flip_p(numpy.ones(n))
    assert found >= smallest_p(n)
    if n <= 14 or n == 40:
        assert found == smallest_p(n)


def test_zero_cells_have_p_one() -> None:
    assert sign_flip_p(numpy.zeros((2, 3))).tolist() == [1, 1]
    assert sign_flip_p(numpy.zeros((2, 50))).tolist() == [1, 1]


def test_missing_examples_are_left_out_of_their_cell_alone() -> None:
    values = numpy.random.default_rng(3).normal(size=(5, 9))
    gaps = values.copy()
    gaps[1, [0, 4]] = numpy.nan
    gaps[2] = numpy.nan
    fewer = numpy.delete(values[1], [0, 4])
    for statistic in (sign_flip_p, lambda v: numpy.stack(bootstrap_interval(v), axis=-1)):
        found, whole = statistic(gaps), statistic(values)
        assert numpy.array_equal(found[[0, 3, 4]], whole[[0, 3, 4]])
        numpy.testing.assert_allclose(found[1], statistic(fewer), rtol=1e-12)
        assert numpy.isnan(found[2]).all()


def test_bootstrap_equals_scipy_at_the_expanded_level() -> None:
    values = numpy.random.default_rng(4).exponential(size=(5, 10))
    tail = stats.norm.cdf(-numpy.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
    oracle = stats.bootstrap(
        (values,),
        numpy.mean,
        axis=-1,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=2000,
        rng=numpy.random.default_rng(0),
    ).confidence_interval
    low, high = bootstrap_interval(values)
    numpy.testing.assert_allclose(low, oracle.low, rtol=1e-12)
    numpy.testing.assert_allclose(high, oracle.high, rtol=1e-12)


@pytest.mark.parametrize(
    ("draw", "mean", "n", "least"),
    [
        ("normal", 0.0, 8, 0.91),
        ("normal", 0.0, 32, 0.935),
        ("t", 0.0, 16, 0.925),
        ("exponential", 1.0, 32, 0.91),
    ],
)
def test_coverage(draw: str, mean: float, n: int, least: float) -> None:
    rng = numpy.random.default_rng(5)
    values = {
        "normal": lambda: rng.normal(size=(3000, n)),
        "t": lambda: rng.standard_t(3, (3000, n)),
        "exponential": lambda: rng.exponential(size=(3000, n)),
    }[draw]()
    low, high = bootstrap_interval(values)
    assert least < ((low <= mean) & (mean <= high)).mean() < 0.97


def test_degenerate_intervals() -> None:
    for equal in ([0.1] * 7, [0.0, 0.0], [1e300, 1e300], [-0.3] * 33):
        assert bootstrap_interval(equal) == (equal[0], equal[0])
    for few in ([1.0], [], [numpy.nan, 2.0]):
        assert numpy.isnan(bootstrap_interval(few)).all()
    assert sign_flip_p([]).shape == () and numpy.isnan(sign_flip_p([]))


def test_shapes_are_kept() -> None:
    low, high = bootstrap_interval(numpy.zeros((2, 0, 3)))
    assert low.shape == high.shape == sign_flip_p(numpy.zeros((2, 0, 3))).shape == (2, 0)
    assert bootstrap_interval(numpy.ones((2, 3, 4)))[0].shape == (2, 3)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(float, arrays.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_invariants(values: numpy.ndarray, level: float) -> None:
    low, high = bootstrap_interval(values, level=level, resamples=200)
    p = sign_flip_p(values, resamples=10_000)
    if values.shape[-1] > 1:
        assert (low >= values.min(axis=-1)).all() and (high <= values.max(axis=-1)).all() and (low <= high).all()
    assert ((p >= smallest_p(values.shape[-1])) & (p <= 1)).all()
    assert numpy.array_equal(p, sign_flip_p(-values))
    assert numpy.array_equal(p, sign_flip_p(4.0 * values))


# --- shares of a gap ---------------------------------------------------------------------------------------------


def test_recovered_with_equal_gaps_is_a_mean_over_a_constant() -> None:
    """Then the ratio's interval is that of the mean, which has its own oracle, divided by the gap."""
    edited = numpy.random.default_rng(0).normal(1.0, 2.0, (4, 9))
    corrupted = numpy.full(9, -0.5)
    ratio, low, high = recovered(edited, corrupted + 4.0, corrupted, "m", seed=3)
    numpy.testing.assert_allclose(ratio, (edited.mean(1) + 0.5) / 4)
    expected = bootstrap_interval(edited + 0.5, seed=3)
    numpy.testing.assert_allclose(low, expected[0] / 4)
    numpy.testing.assert_allclose(high, expected[1] / 4)


def test_recovered_equals_scipy_at_the_expanded_level() -> None:
    n, level = 12, 0.95
    random = numpy.random.default_rng(5)
    gap = random.uniform(0.5, 3.0, n)
    edited = gap * random.normal(0.6, 0.2, n)
    tail = stats.norm.cdf(numpy.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    ends = stats.bootstrap(
        (edited, gap), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, vectorized=True,
        confidence_level=1 - 2 * tail, method="percentile", n_resamples=200_000, rng=random,
    ).confidence_interval  # fmt: skip
    ratio, low, high = recovered(edited, gap, numpy.zeros(n), "m", resamples=200_000)
    numpy.testing.assert_allclose(ratio, edited.mean() / gap.mean())
    numpy.testing.assert_allclose([low, high], ends, atol=3e-3)
    # The mean of ratios is something else: one example with a gap of nearly nothing decides it.
    gap[0], edited[0] = 1e-4, 1.0
    assert abs(recovered(edited, gap, numpy.zeros(n), "m")[0] - 0.6) < 0.2 < abs((edited / gap).mean() - 0.6)


def test_recovered_in_cells_of_some_examples() -> None:
    nan = numpy.nan
    edited = numpy.array(
        [[1.0, 2.0, 3.0, 5.0], [1.0, nan, nan, 5.0], [nan, nan, 3.0, nan], [nan] * 4, [1, 2, nan, nan]]
    )
    clean, corrupted = numpy.array([2.0, 4.0, 4.0, 4.0]), numpy.array([0.0, 6.0, 0.0, 0.0])
    with pytest.raises(PairError, match=r"The m of clean and corrupted differs by 2 on average.*n = 4"):
        recovered(edited, clean, corrupted, "m")  # the second example's gap is −2
    corrupted[1] = 3.999
    ratio, low, high = recovered(edited, clean, corrupted, "m")
    numpy.testing.assert_allclose(
        ratio, [(1 + 2 - 3.999 + 3 + 5) / (2 + 0.001 + 4 + 4), 6 / 6, 3 / 4, nan, -0.999 / 2.001], rtol=1e-12
    )
    assert numpy.isnan(low[2:4]).all() and numpy.isfinite(low[[0, 1, 4]]).all() and (low <= high)[[0, 1, 4]].all()
    for nothing in ([0.0], [1e-4], [1.0, -1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(PairError, match="nothing is there to recover"):
            recovered(numpy.ones(len(nothing)), nothing, numpy.zeros(len(nothing)), "m")


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    found = holm([[0.03, 0.01], [0.04, 0.02]])
    numpy.testing.assert_allclose(found, [[0.06, 0.04], [0.06, 0.06]], rtol=0, atol=1e-15)
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    # NaN was not tested: it neither counts nor changes
    found = holm([0.03, numpy.nan, 0.01])
    numpy.testing.assert_allclose(found, [0.03, numpy.nan, 0.02], rtol=0, atol=1e-15)
    assert holm([]).shape == (0,) and numpy.isnan(holm([numpy.nan])).all()
    assert holm(0.2) == pytest.approx(0.2)


def test_refusals() -> None:
    for statistic in (bootstrap_interval, sign_flip_p):
        with pytest.raises(ShapeError, match="no example axis"):
            statistic(1.0)
        with pytest.raises(ShapeError, match="1 of 2 values are infinite"):
            statistic([1.0, numpy.inf])
        with pytest.raises(ShapeError, match="resamples"):
            statistic([1.0, 2.0], resamples=0)
    with pytest.raises(ShapeError, match="level"):
        bootstrap_interval([1.0, 2.0], level=95.0)
    for wrong in ([-0.1], [1.1]):
        with pytest.raises(ShapeError, match="between 0 and 1"):
            holm(wrong)


# -- ratios of sums -------------------------------------------------------------------------------------------


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    ratio, low, high = ratio_interval([[1.0, 0.0, 9.0]], [[1.0, 9.0, 10.0]])
    assert ratio == pytest.approx(10 / 20) and low < ratio < high


def test_ratio_intervals_cover():
    """Of 200 draws from a population whose ratio is 0.3, about 95 % of the intervals hold it."""
    random = numpy.random.default_rng(0)
    bottom = random.integers(5, 40, (200, 40))
    top = random.binomial(bottom, 0.3)
    _, low, high = ratio_interval(top, bottom)
    assert 0.9 <= ((low <= 0.3) & (high >= 0.3)).mean() <= 0.99


def test_ratios_without_spread_or_without_anything():
    ratio, low, high = ratio_interval([[2.0, 4.0], [0.0, 0.0], [1.0, 0.0]], [[4.0, 8.0], [0.0, 0.0], [2.0, 0.0]])
    numpy.testing.assert_allclose(ratio, [0.5, numpy.nan, 0.5])
    assert low[0] == high[0] == 0.5 and numpy.isnan([low[1], high[1]]).all()
    assert numpy.isnan(ratio_interval([[1.0]], [[2.0]])[1]).all()  # one example shows no spread


@pytest.mark.parametrize(
    ("top", "bottom", "message"),
    [
        ([[1.0]], [[1.0, 2.0]], "differ"),
        ([[numpy.nan]], [[1.0]], "numbers throughout"),
        ([[1.0]], [[-1.0]], "not negative"),
    ],
)
def test_ratios_that_are_refused(top, bottom, message):
    with pytest.raises(ShapeError, match=message):
        ratio_interval(top, bottom)


def test_an_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    random = numpy.random.default_rng(0)
    positive = random.random(60) < 0.3
    scores = numpy.round(random.normal(0, 1, (2, 4, 60)) + positive, 1)  # with ties
    area, low, high = auc_interval(scores, positive)
    for at in numpy.ndindex(2, 4):
        assert abs(area[at] - roc_auc_score(positive, scores[at])) < 1e-12
    assert ((low < area) & (area < high)).all()
    flipped = auc_interval(-scores, positive)
    numpy.testing.assert_allclose(flipped[0], 1 - area, atol=1e-12)
    numpy.testing.assert_allclose(flipped[1], 1 - high, atol=1e-12)


def test_an_area_s_interval_is_that_of_resampled_examples() -> None:
    from sklearn.metrics import roc_auc_score

    random = numpy.random.default_rng(1)
    positive = numpy.arange(24) < 9
    one, other = random.normal(0, 1, (2, 24)) + positive
    drawn = numpy.random.default_rng(5)
    ours, theirs = drawn.integers(0, 9, (300, 9)), drawn.integers(0, 15, (300, 15)) + 9
    labels = [True] * 9 + [False] * 15
    rows = numpy.concatenate([ours, theirs], 1)
    areas = numpy.array([[roc_auc_score(labels, scores[row]) for row in rows] for scores in (one, other)])
    tail = stats.norm.cdf(numpy.sqrt(9 / 8) * stats.t.ppf(0.025, 8))
    _, low, high = auc_interval(one, positive, seed=5, resamples=300)
    numpy.testing.assert_allclose([low, high], numpy.quantile(areas[0], [tail, 1 - tail]), atol=1e-12)
    gain, low, high = auc_gain(one, other, positive, seed=5, resamples=300)
    assert abs(gain - (roc_auc_score(positive, one) - roc_auc_score(positive, other))) < 1e-12
    numpy.testing.assert_allclose([low, high], numpy.quantile(areas[0] - areas[1], [tail, 1 - tail]), atol=1e-12)
    assert [float(x) for x in auc_gain(one, one, positive)] == [0, 0, 0]


@pytest.mark.parametrize(("n_positive", "n_negative"), [(12, 12), (60, 20)])
def test_an_area_s_interval_covers(n_positive: int, n_negative: int) -> None:
    """Two normal kinds one standard deviation apart: the area is Φ(1/√2) = 0.760."""
    truth = stats.norm.cdf(1 / numpy.sqrt(2))
    positive = numpy.arange(n_positive + n_negative) < n_positive
    covered = []
    for seed in range(300):
        scores = numpy.random.default_rng(seed).normal(0, 1, len(positive)) + positive
        _, low, high = auc_interval(scores, positive, seed=seed, resamples=400)
        covered.append(low <= truth <= high)
    assert 0.91 < numpy.mean(covered) <= 0.99


def test_what_has_no_area() -> None:
    with pytest.raises(PairError, match="3 of 3 examples are positive"):
        auc_interval([1.0, 2.0, 3.0], [True] * 3)
    with pytest.raises(PairError, match="0 of 3"):
        auc_interval([1.0, 2.0, 3.0], [False] * 3)
    with pytest.raises(ShapeError, match="one bool per example"):
        auc_interval([1.0, 2.0, 3.0], [1, 0, 1])
    with pytest.raises(ShapeError, match="one bool per example"):
        auc_interval([1.0, 2.0, 3.0], [True, False])
    with pytest.raises(ShapeError, match="all its examples, or none"):
        auc_interval([1.0, numpy.nan, 3.0], [True, False, True])
    with pytest.raises(ShapeError, match="level"):
        auc_interval([1.0, 2.0], [True, False], level=1.0)
    nothing = [numpy.nan] * 4
    area, low, high = auc_interval([nothing, [4.0, 3.0, 2.0, 1.0]], [True, True, False, False])
    assert area.tolist()[1] == low.tolist()[1] == high.tolist()[1] == 1
    assert numpy.isnan([area[0], low[0], high[0]]).all()
    area, low, high = auc_interval([1.0, 2.0, numpy.inf], [False, False, True])
    assert area == 1 and numpy.isnan([low, high]).all()  # one positive example has no spread


def test_a_statistic_of_sums_has_the_interval_of_its_own_function():
    top, bottom = numpy.random.default_rng(0).random((2, 3, 20))
    found = statistic_interval(numpy.stack([top.T, bottom.T], -1), lambda s: s[..., 0] / s[..., 1], resamples=500)
    for ours, theirs in zip(found, ratio_interval(top, bottom, resamples=500), strict=True):
        numpy.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert numpy.isnan(statistic_interval(numpy.ones((1, 2)), lambda s: s)[1]).all()


@pytest.mark.parametrize(("sums", "more"), [(numpy.ones((0, 2)), {}), ([numpy.nan, 1], {}), ([1.0, 2], {"level": 1.0})])
def test_a_statistic_of_nothing_is_refused(sums, more):
    with pytest.raises(ShapeError):
        statistic_interval(sums, lambda s: s, **more)
