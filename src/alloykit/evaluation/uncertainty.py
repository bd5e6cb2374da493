"""How far a score can be trusted: bootstrap intervals, paired improvements, McNemar's test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.classification_metrics import Array, units
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.metrics import metric as metric_of
from alloykit.types import Interval

INDEXED_RESAMPLES = 200
"""Most resamples of a metric that is not a function of sums, and is computed anew for each."""

BLOCK = 4_000_000
KEPT = 32_000_000
"""Counts up to this many, two bytes each, are kept for the next metric and candidate."""


def bootstrap(
    metric: str | Metric,
    outputs: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A percentile bootstrap interval of a metric over the examples.

    The examples are drawn with replacement; the ends are the (1 - level)/2 and (1 + level)/2
    quantiles of the metric over the resamples. The same seed draws the same resamples for every
    candidate. AUROC and functions of your own are computed anew on at most 200 resamples; all
    other metrics come from resampled sums.

    Args:
        metric: The metric, or its name.
        outputs: What it scores.
        targets: One per example.
        seed: Of the resamples.
        resamples: How many, at least 1; 1000 is what percentile intervals are usually given.
        level: Coverage asked for, in (0, 1).

    References:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.
    """
    chosen = metric_of(metric)
    _check(resamples, level)
    value = chosen.value(outputs, targets)
    (values,) = _resampled(chosen, (outputs,), targets, seed, resamples)
    if chosen.name == "accuracy" and value in (0.0, 1.0):
        return _all_alike(value, len(targets), level)
    return _interval(value, values, level)


def improvement(
    metric: str | Metric,
    candidate: Tensor,
    reference: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """How much better the candidate is than the reference, with a paired bootstrap interval.

    Both are scored on the same resamples, so that examples hard for both cancel. Positive means
    better, whatever the metric's direction.

    Args:
        metric: The metric, or its name.
        candidate: Pooled outputs of the candidate.
        reference: Pooled outputs of what it is compared with, on the same examples.
        targets: One per example.
        seed: Of the resamples.
        resamples: How many, at least 1.
        level: Coverage asked for, in (0, 1).
    """
    chosen = metric_of(metric)
    _check(resamples, level)
    sign = 1.0 if chosen.higher_is_better else -1.0
    value = sign * (chosen.value(candidate, targets) - chosen.value(reference, targets))
    ours, theirs = _resampled(chosen, (candidate, reference), targets, seed, resamples)
    return _interval(value, sign * (ours - theirs), level)


def mcnemar(candidate: Tensor, reference: Tensor, targets: Tensor) -> float:
    """Exact two-sided p-value that candidate and reference are right equally often.

    Among the b + c examples that exactly one of them gets right, the candidate's share is compared
    with a fair coin; 1.0 where there are none. Tokens of one sequence count as independent, which
    they are not: read the p-value of the tokens task as optimistic.

    Args:
        candidate: Log-probabilities [example, class].
        reference: Log-probabilities [example, class].
        targets: Class numbers [example].

    References:
        McNemar: Note on the sampling error of the difference between correlated proportions or
        percentages, 1947; the exact binomial form.
    """
    from scipy.stats import binomtest

    ours, theirs = (_right(outputs, targets) for outputs in (candidate, reference))
    better, worse = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if better + worse == 0:
        return 1.0
    return float(binomtest(better, better + worse, 0.5).pvalue)


def _right(outputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
    scored, wanted, _ = units(outputs, targets)
    right: NDArray[np.bool_] = (scored.argmax(1) == wanted).numpy()
    return right


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise InvalidParameter(f"The number of resamples must be at least 1. Got {resamples}.")
    if not 0 < level < 1:
        raise InvalidParameter(f"The level must lie in (0, 1). Got {level}. (95 % is 0.95.)")


def _interval(value: float, values: Array, level: float) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(value, np.nan, np.nan, level)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _all_alike(value: float, examples: int, level: float) -> Interval:
    """Wilson's interval where all examples are right, or all wrong: resamples have no width."""
    from scipy.stats import binomtest

    found = binomtest(round(value * examples), examples).proportion_ci(level, method="wilson")
    return Interval(value, float(found.low), float(found.high), level)


def _resampled(
    chosen: Metric, candidates: tuple[Tensor, ...], targets: Tensor, seed: int, resamples: int
) -> list[Array]:
    """The metric of every candidate on every resample, the same resamples for all."""
    if chosen.contributions is None or chosen.finish is None:
        return _by_index(chosen, candidates, targets, seed, min(resamples, INDEXED_RESAMPLES))
    contributions = [chosen.contributions(outputs, targets) for outputs in candidates]
    found: list[list[Array]] = [[] for _ in candidates]
    for counts in count_blocks(len(targets), resamples, seed):
        for values, given in zip(found, contributions, strict=True):
            values.append(chosen.finish(_summed(counts, given)))
    return [np.concatenate(values) for values in found]


def _summed(counts: Array, contributions: Any) -> Array:
    """Σ over examples of count·contribution, [resample, k]; dense or sparse contributions."""
    return np.asarray((contributions.T @ counts.T).T)


def draws(examples: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The positions of the examples of every resample, in blocks [resample, example]."""
    generator = np.random.default_rng(seed)
    size = max(1, BLOCK // examples)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        yield generator.integers(0, examples, size=(count, examples))


def count_blocks(examples: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often every example is drawn in every resample, in blocks [resample, example]."""
    counted = _kept_counts if examples * resamples <= KEPT else _counts
    for counts in counted(examples, resamples, seed):
        yield counts.astype(np.float64)


@lru_cache(maxsize=4)
def _kept_counts(examples: int, resamples: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    """The counts of a comparison, whose candidates and metrics all share the same resamples."""
    return tuple(_counts(examples, resamples, seed))


def _counts(examples: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint16]]:
    for drawn in draws(examples, resamples, seed):
        rows = np.arange(len(drawn))[:, None] * examples
        counts = np.bincount((drawn + rows).ravel(), minlength=drawn.size)
        yield counts.reshape(drawn.shape).astype(np.uint16)


def _by_index(
    chosen: Metric, candidates: tuple[Tensor, ...], targets: Tensor, seed: int, resamples: int
) -> list[Array]:
    found: list[list[float]] = [[] for _ in candidates]
    for block in draws(len(targets), resamples, seed):
        for drawn in block:
            for values, outputs in zip(found, candidates, strict=True):
                values.append(_on(chosen, outputs[drawn], targets[drawn]))
    return [np.array(values, dtype=np.float64) for values in found]


def _on(chosen: Metric, outputs: Tensor, targets: Tensor) -> float:
    """The value on a resample; NaN, which the interval leaves out, where it has none."""
    try:
        return chosen.value(outputs, targets)
    except DataError:
        return np.nan
