"""Uncertainty of means over examples: bootstrap intervals, sign-flip tests, Holm's correction, shares of a gap, AUC.

The first two take an array whose last axis is `example` and treat the cells before it alike. Examples must be
independent: prompts made from one template with the same names count for less than their number. NaN
means "this example was not scored in this cell" and is left out of that cell alone; infinity is refused.

What few examples can say (p values before correction; an interval needs two examples):

| examples n | smallest sign-flip p, 2^(1-n) | |
|--:|--:|---|
| 1 | 1 | no interval (NaN), nothing can be significant |
| 5 | 0.0625 | never below 0.05 |
| 6 | 0.031 | below 0.05 where all six agree in sign; Holm lets it pass in a map of one cell only |
| 10 | 0.002 | up to 25 cells can pass Holm |
| 14 | 0.00012 | up to 409 cells |
| 18 | 0.0000076 | up to 6,500 cells; the last n counted exactly by default |
| more | 1/(1 + resamples) | Monte Carlo: 0.0000076 by default |

Whether a map of m cells can show anything is m · `smallest_p(n)` against the level that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from interp.errors import PairError, ShapeError

if TYPE_CHECKING:
    import numpy

_BATCH = 4_000_000  # float64 numbers held at once, 32 MB


def bootstrap_interval(
    values: Any, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """An interval for the mean over examples, by the expanded percentile bootstrap.

    The means of `resamples` draws with replacement are formed, and two of their quantiles returned. The plain
    percentile and BCa intervals of a mean are too narrow for few examples: a nominal 95 % covers 84 % at
    n = 5 and 92 % at n = 16 on normal data. Expanding the percentiles by Student's t makes it 92 % and 95 %.
    By 4,000 simulations of each it is also the closest to 95 % on heavy tails (t with 3 degrees of
    freedom, n = 32: 95 %, BCa 91 %), and on skewed data slightly behind an expanded BCa (exponential,
    n = 32: 93 % against 94 %). No interval made by resampling reaches beyond the smallest and largest value
    seen: below about 8 examples read it as a description of the sample.

    All cells share their draws, so that their joint dependence is kept and memory stays bounded.

    Args:
        values: `[..., example]`; NaN marks an example that was not scored.
        level: the wanted coverage, strictly between 0 and 1.
        seed: of the draws.
        resamples: number of draws.

    Returns:
        `(low, high)`, each `[...]`, float64, in the units of `values`. Where a cell has fewer than two
        examples both are NaN (one shows no spread); where all its examples are equal both are that value.

    Raises:
        ShapeError: no example axis, infinite values, or a `level` or `resamples` out of range.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015),
        expanded percentiles: tail probability Φ(√(n/(n-1)) · t_{α/2, n-1}).
    """
    import numpy

    array = _checked(values, resamples)
    if not 0 < level < 1:
        raise ShapeError(f"level is a coverage between 0 and 1, such as 0.95; got {level}.")
    low = numpy.full(array.shape[0], numpy.nan)
    high = low.copy()
    for cells, block in _blocks(array, resamples):
        n = block.shape[1]
        if n < 2:
            continue
        counts, tail = _draws(n, level, seed, resamples)
        centre = block.mean(axis=1, keepdims=True)  # resampling deviations keeps rounding small
        means = centre + (block - centre) @ (counts.T / n)
        ends = numpy.quantile(means, [tail, 1 - tail], axis=1)
        # A mean cannot leave the data, and equal examples have no spread, whatever rounding says.
        low[cells], high[cells] = numpy.clip(ends, block.min(axis=1), block.max(axis=1))
    shape = numpy.shape(values)[:-1]
    return low.reshape(shape), high.reshape(shape)


def mean_effect(effect: Any, seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Of a grid of effects `[..., example]`: the mean, its 95 % interval (low, high), and adjusted p.

    The interval is `bootstrap_interval`'s, p is `sign_flip_p` corrected over the whole grid by `holm`. A cell without
    a scored example is NaN.
    """
    import numpy

    array = numpy.asarray(effect, dtype=float)
    low, high = bootstrap_interval(array, seed=seed)
    scored = ~numpy.isnan(array)
    mean = numpy.where(scored, array, 0).sum(-1) / numpy.where(scored.any(-1), scored.sum(-1), numpy.nan)
    return mean, low, high, holm(sign_flip_p(array, seed=seed))


def recovered(
    edited: Any, clean: Any, corrupted: Any, what: str, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """How much of the gap between corrupted and clean an edit recovers: a ratio of means, with its interval.

    mean(edited − corrupted) / mean(clean − corrupted) over the examples of a cell. Not the mean of each
    example's own ratio: an example with hardly any gap, which says least about recovery, would have the
    largest ratio and decide that mean alone. So examples count by their gaps. The interval draws examples
    with replacement, numerator and denominator together, and expands percentiles as `bootstrap_interval`.

    Args:
        edited: `[..., example]`; NaN marks an example that was not scored.
        clean: `[example]`.
        corrupted: `[example]`.
        what: name of the metric, for the message.

    Returns:
        `(ratio, low, high)`, each `[...]`, dimensionless: 0 is the corrupted run, 1 the clean one. NaN where the
        examples of a cell, fewer than all, have no gap of their own; an interval needs two examples.

    Raises:
        PairError: no gap over all examples: 0 lies in its interval (for one example: within 0.001 of 0).
    """
    import numpy

    array = _checked(edited, resamples)
    gap = _checked(clean, resamples)[0] - _checked(corrupted, resamples)[0]
    if not _apart(gap, level, seed, resamples):
        low, high = bootstrap_interval(gap, level, seed, resamples)
        raise PairError(
            f"The {what} of clean and corrupted differs by {gap.mean():.3g} on average (interval {low:.2g} to "
            f"{high:.2g}, n = {len(gap)}): nothing is there to recover. Use the values themselves, in the metric's own "
            "unit, or prompts that the model tells apart."
        )
    ratio = numpy.full(array.shape[0], numpy.nan)
    low, high = ratio.copy(), ratio.copy()
    away = array - _checked(corrupted, resamples)[0]
    for cells, block in _blocks(away, resamples):
        own = gap[~numpy.isnan(away[cells[0]])]
        n = len(own)
        if n == 0 or not _apart(own, level, seed, resamples):
            continue
        ratio[cells] = block.mean(axis=1) / own.mean()
        if n > 1:
            counts, tail = _draws(n, level, seed, resamples)
            ratios = (block @ counts.T) / (counts @ own)
            low[cells], high[cells] = numpy.quantile(ratios, [tail, 1 - tail], axis=1)
    shape = numpy.shape(edited)[:-1]
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)


def ratio_interval(
    numerator: Any, denominator: Any, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """A ratio of sums over examples, with its interval: intersection over union, counts over counts.

    Σ numerator / Σ denominator over the examples of a cell, which so count by their denominators. The interval draws
    examples with replacement, both together, and expands percentiles as `bootstrap_interval`; a draw whose
    denominator is zero counts as ratio 0.

    Args:
        numerator: `[..., example]`, no NaN.
        denominator: the same shape, not negative.

    Returns:
        `(ratio, low, high)`, each `[...]`. NaN where the denominators of a cell are all zero; an interval needs two
        examples.

    Raises:
        ShapeError: shapes that differ, NaN or infinite values, negative denominators.
    """
    import numpy

    top, bottom = _checked(numerator, resamples), _checked(denominator, resamples)
    if numpy.shape(numerator) != numpy.shape(denominator):
        raise ShapeError(f"Numerator {numpy.shape(numerator)} and denominator {numpy.shape(denominator)} differ.")
    if numpy.isnan(top).any() or numpy.isnan(bottom).any() or (bottom < 0).any():
        raise ShapeError("A ratio of sums needs numbers throughout, and denominators that are not negative.")
    cells, n = top.shape
    totals = bottom.sum(1)
    ratio = numpy.divide(top.sum(1), totals, out=numpy.full(cells, numpy.nan), where=totals > 0)
    low, high = numpy.full(cells, numpy.nan), numpy.full(cells, numpy.nan)
    if n > 1:
        counts, tail = _draws(n, level, seed, resamples)
        step = max(1, _BATCH // resamples)
        for start in range(0, cells, step):
            part = slice(start, start + step)
            drawn = bottom[part] @ counts.T
            ratios = numpy.divide(top[part] @ counts.T, drawn, out=numpy.zeros_like(drawn), where=drawn > 0)
            low[part], high[part] = numpy.quantile(ratios, [tail, 1 - tail], axis=1)
        low[totals == 0] = high[totals == 0] = numpy.nan
    shape = numpy.shape(numerator)[:-1]
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)


def statistic_interval(
    sums: Any,
    statistic: Callable[[numpy.ndarray], numpy.ndarray],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """An interval for anything that follows from sums over examples: a correlation, a mean of several ratios.

    Draws examples with replacement, forms their sums, and asks for the statistic of each; percentiles are expanded as
    `bootstrap_interval`.

    Args:
        sums: `[example, ...]`, what each example adds to the sums.
        statistic: from sums `[draw, ...]` to values `[draw, *out]`; never NaN.

    Returns:
        `(value, low, high)`, each `[*out]`; an interval needs two examples (else NaN).

    Raises:
        ShapeError: no example, values that are not finite, a `level` or `resamples` out of range.
    """
    import numpy

    array = numpy.asarray(sums, dtype=float)
    if not array.ndim or not len(array) or not numpy.isfinite(array).all():
        raise ShapeError(f"Sums are finite numbers [example, ...], of at least one example; got {list(array.shape)}.")
    if not 0 < level < 1 or resamples < 1:
        raise ShapeError(f"level={level} is a coverage between 0 and 1, resamples={resamples} at least 1.")
    value, n = numpy.asarray(statistic(array.sum(0)[None])[0]), len(array)
    if n < 2:
        return value, numpy.full(value.shape, numpy.nan), numpy.full(value.shape, numpy.nan)
    counts, tail = _draws(n, level, seed, resamples)
    drawn = (counts @ array.reshape(n, -1)).reshape(resamples, *array.shape[1:])
    low, high = numpy.quantile(statistic(drawn), [tail, 1 - tail], axis=0)
    return value, numpy.asarray(low), numpy.asarray(high)


def auc_interval(
    scores: Any, positive: Any, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """How well a score orders two kinds of examples: the area under the ROC curve, with its interval.

    The share of (positive, negative) pairs in which the positive example has the higher score; a tie counts half. 0.5
    is no order, 1 perfect order, below 0.5 the wrong way round. The interval draws positives and negatives with
    replacement, each as many as there are, and expands percentiles as `bootstrap_interval`, for the smaller kind.
    Where no pair is out of order, resampling sees no spread, and both ends are 1; where one kind has a single example,
    there is no interval (NaN).

    Args:
        scores: `[..., example]`; a cell of NaN only (nothing was scored there) stays NaN.
        positive: `[example]`, bool.

    Returns:
        `(auc, low, high)`, each `[...]`.

    Raises:
        ShapeError: scores that are NaN in part of a cell; another number of examples; a `level` out of range.
        PairError: no positive or no negative example.

    Source: Hanley & McNeil 1982 (area and order); the interval as in `bootstrap_interval`, stratified.
    """
    area, draws, tail = _auc_draws(scores, positive, level, seed, resamples)
    return area, *_ends(draws, tail)


def auc_gain(
    scores: Any, reference: Any, positive: Any, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """How much better scores order the examples than a reference score does: AUC minus AUC, with its interval.

    Both are read on the same draws: two scores of the same examples go up and down together, and the interval of
    their difference is much narrower than theirs suggest.

    Args:
        scores: `[..., example]`.
        reference: `[example]`.
        positive: `[example]`, bool.

    Returns:
        `(gain, low, high)`, each `[...]`; positive where the scores are better than the reference.

    Raises:
        ShapeError, PairError: as `auc_interval`.
    """
    import numpy

    area, draws, tail = _auc_draws(scores, positive, level, seed, resamples)
    theirs, their_draws, _ = _auc_draws(reference, positive, level, seed, resamples)
    return numpy.asarray(area - theirs), *_ends(draws - their_draws, tail)


def _auc_draws(
    scores: Any, positive: Any, level: float, seed: int, resamples: int
) -> tuple[numpy.ndarray, numpy.ndarray, float]:
    """(area [...], area of each draw [..., resample], tail probability)."""
    import numpy

    array, positive = numpy.asarray(scores, dtype=float), numpy.asarray(positive)
    if array.ndim == 0 or positive.dtype != bool or positive.shape != array.shape[-1:]:
        raise ShapeError(
            f"Scores {array.shape} need one bool per example, [example]; got {positive.dtype} {positive.shape}."
        )
    if not 0 < level < 1 or resamples < 1:
        raise ShapeError(f"level={level} is a coverage between 0 and 1, resamples={resamples} at least 1.")
    n = int(positive.sum())
    if not 0 < n < len(positive):
        raise PairError(
            f"{n} of {len(positive)} examples are positive: an AUC compares positive with negative ones; it needs both."
        )
    missing = numpy.isnan(array)
    if (missing.any(-1) != missing.all(-1)).any():
        raise ShapeError("Some scores of a cell are NaN and others are not; score all its examples, or none.")
    cells = array.reshape(-1, len(positive))
    random = numpy.random.default_rng(seed)
    drawn = [_counts(random, int(kind.sum()), resamples) for kind in (positive, ~positive)]
    area, draws = numpy.full(len(cells), numpy.nan), numpy.full((len(cells), resamples), numpy.nan)
    for i in numpy.flatnonzero(~missing.reshape(cells.shape).any(1)):
        ours, theirs = cells[i, positive][:, None], cells[i, ~positive]
        wins = (ours > theirs) + 0.5 * (ours == theirs)
        area[i] = wins.mean()
        draws[i] = ((drawn[0] @ wins) * drawn[1]).sum(1) / wins.size
    fewest = min(n, len(positive) - n)
    if fewest < 2:
        draws[:] = numpy.nan
    tail = _tail(fewest, level) if fewest > 1 else 0.5
    return area.reshape(array.shape[:-1]), draws.reshape(*array.shape[:-1], resamples), tail


def _ends(draws: numpy.ndarray, tail: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The two quantiles over draws [..., resample] that cut off so much on either side; NaN of NaN."""
    import numpy

    low, high = numpy.quantile(draws, [tail, 1 - tail], axis=-1)
    return numpy.asarray(low), numpy.asarray(high)


def _apart(gap: numpy.ndarray, level: float, seed: int, resamples: int) -> bool:
    """Whether a mean gap differs from zero by more than its own uncertainty."""
    low, high = bootstrap_interval(gap, level, seed, resamples)
    return bool(abs(gap.mean()) > 1e-3 and not low <= 0 <= high)


def sign_flip_p(values: Any, seed: int = 0, resamples: int = 131_072) -> numpy.ndarray:
    """Two-sided p of the sign-flip test: would the mean be so far from zero if signs were coins?

    The null hypothesis is that the examples are independent and each symmetric around zero. p is the share
    of sign assignments whose mean is at least as far from zero as the one observed. With n examples there are
    2^n of them; all are counted where 2^(n-1) ≤ `resamples` (an assignment and its opposite agree), and
    otherwise `resamples` random ones, with p = (1 + at least as far) / (1 + resamples), a valid p.

    Args:
        values: `[..., example]`, usually effects; NaN marks an example that was not scored.
        seed: of the random signs, which all cells of the same n share.
        resamples: number of random sign assignments.

    Returns:
        p, `[...]`, float64. The smallest attainable is `smallest_p(n, resamples)`. A cell whose examples are
        all exactly zero has p = 1; a cell without examples has NaN.

    Raises:
        ShapeError: no example axis, infinite values, or `resamples` below 1.
    """
    import numpy

    array = _checked(values, resamples)
    p = numpy.full(array.shape[0], numpy.nan)
    for cells, block in _blocks(array, resamples):
        n = block.shape[1]
        if n == 0:
            continue
        exact = _enumerable(n, resamples)
        if exact:  # the first sign is +: the other half are opposites, with the same distance from zero
            flips = numpy.arange(2 ** (n - 1))[:, None] >> numpy.arange(n) & 1
        else:
            flips = numpy.random.default_rng(seed).integers(0, 2, (resamples, n), dtype=numpy.int8)
        # Sums that are equal on paper may differ by rounding: count them as equal, which makes p larger.
        size = numpy.abs(block).max(axis=1, keepdims=True)
        scaled = numpy.divide(block, size, out=numpy.zeros_like(block), where=size > 0)
        observed = numpy.abs(scaled.sum(axis=1, keepdims=True)) - 1e-12 * n
        as_far = (numpy.abs(scaled @ (1.0 - 2.0 * flips.T)) >= observed).sum(axis=1)
        p[cells] = as_far / len(flips) if exact else (1 + as_far) / (1 + resamples)
    return p.reshape(numpy.shape(values)[:-1])


def smallest_p(n: int, resamples: int = 131_072) -> float:
    """The smallest p that `sign_flip_p` can return for n examples; 1 for n ≤ 1.

    A map of m cells can only show something if m · `smallest_p(n)` is below the level that is asked for.
    """
    return 2.0 ** (1 - max(n, 1)) if _enumerable(n, resamples) else 1 / (1 + resamples)


def holm(p: Any) -> numpy.ndarray:
    """P values adjusted for testing them all, by Holm's step-down method (family-wise error).

    Args:
        p: any shape, all of one family; NaN (not tested) is passed on and does not count.

    Returns:
        Adjusted p, the same shape, float64, at most 1.

    Raises:
        ShapeError: a p outside 0 … 1.
    """
    import numpy

    array = numpy.asarray(p, dtype=float)
    tested = ~numpy.isnan(array)
    if ((array[tested] < 0) | (array[tested] > 1)).any():
        raise ShapeError(f"p must lie between 0 and 1; got {array[tested].min()} to {array[tested].max()}.")
    adjusted = array.copy()
    order = numpy.argsort(array[tested])
    stepped = numpy.arange(len(order), 0, -1) * array[tested][order]
    kept = numpy.empty(len(order))
    kept[order] = numpy.minimum(numpy.maximum.accumulate(stepped), 1)
    adjusted[tested] = kept
    return adjusted


def _enumerable(n: int, resamples: int) -> bool:
    return n <= 62 and 2 ** (n - 1) <= resamples


def _draws(n: int, level: float, seed: int, resamples: int) -> tuple[numpy.ndarray, float]:
    """(how often each example is drawn [resample, example], tail probability expanded by Student's t)."""
    import numpy

    return _counts(numpy.random.default_rng(seed), n, resamples), _tail(n, level)


def _counts(random: numpy.random.Generator, n: int, resamples: int) -> numpy.ndarray:
    """How often each of n examples is drawn, [resample, example]."""
    import numpy

    draws = random.integers(0, n, (resamples, n))
    counts = numpy.zeros((resamples, n))
    numpy.add.at(counts, (numpy.arange(resamples)[:, None], draws), 1.0)
    return counts


def _tail(n: int, level: float) -> float:
    """The tail probability of a percentile interval, expanded by Student's t, for n > 1 examples."""
    import numpy
    from scipy.special import ndtr, stdtrit

    return float(ndtr(numpy.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))


def _checked(values: Any, resamples: int) -> numpy.ndarray:
    """`values` as float64 `[cell, example]`."""
    import numpy

    array = numpy.asarray(values, dtype=float)
    if array.ndim == 0:
        raise ShapeError("A single number has no example axis; pass an array [..., example].")
    if numpy.isinf(array).any():
        infinite = int(numpy.isinf(array).sum())
        raise ShapeError(f"{infinite} of {array.size} values are infinite; no mean exists.")
    if resamples < 1:
        raise ShapeError(f"resamples must be at least 1; got {resamples}.")
    return array.reshape(int(numpy.prod(array.shape[:-1])), array.shape[-1])


def _blocks(array: numpy.ndarray, columns: int) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Cells that lack the same examples, without those, few enough that [cell, `columns`] fits in memory."""
    import numpy

    present = ~numpy.isnan(array)
    patterns, which = numpy.unique(present, axis=0, return_inverse=True)
    step = max(1, _BATCH // columns)
    for index, pattern in enumerate(patterns):
        cells = numpy.flatnonzero(which.ravel() == index)
        for start in range(0, len(cells), step):
            chunk = cells[start : start + step]
            yield chunk, array[chunk][:, pattern]
