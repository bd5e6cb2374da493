"""Which candidate to ship: validation chooses, and better has to mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alloykit.evaluation.metrics import Metric
from alloykit.types import Interval, Row


@dataclass(frozen=True)
class Recommendation:
    """The candidate to ship and why.

    Attributes:
        candidate: Its name.
        reason: One or two plain sentences, with numbers.
    """

    candidate: str
    reason: str


def recommend(rows: Sequence[Row], metric: Metric, best_single: str) -> Recommendation:
    """Choose among the finished rows by validation alone; test only reports what that is worth.

    The best candidate on validation is chosen if its paired gain over the best single member is
    above zero with its whole interval; of equal ones the cheapest to run. Otherwise the best
    single member is: a gain that could be luck is not worth several models.
    """
    done = [row for row in rows if row.status == "done"]
    single = next(row for row in done if row.candidate == best_single)
    sure = [
        row for row in done if row.validation_improvement and row.validation_improvement.low > 0
    ]
    if not sure:
        return Recommendation(best_single, _nothing_better(done, single, metric))
    winner = max(sure, key=lambda row: (_gain(row), -_passes(row)))
    cheaper = [row for row in sure if _passes(row) < _passes(winner)]
    thrifty = max(cheaper, key=_gain, default=None)
    return Recommendation(winner.candidate, _better(winner, thrifty, single, metric))


def _gain(row: Row) -> float:
    return row.validation_improvement.value if row.validation_improvement else 0.0


def _passes(row: Row) -> int:
    return row.costs.forward_passes if row.costs else 1


def _better(winner: Row, thrifty: Row | None, single: Row, metric: Metric) -> str:
    gain = winner.improvement
    confirmed = gain is not None and gain.low > 0
    p_value = "" if winner.p_value is None else f"; McNemar p = {winner.p_value:.2g}"
    parts = [
        f"On validation it gains {_signed(winner.validation_improvement)} {metric.name} over "
        f"{single.candidate}, the best single member.",
        f"Test confirms it: {_signed(gain)}{p_value}."
        if confirmed
        else f"Test does not confirm it: {_signed(gain)}{p_value}.",
    ]
    if _passes(winner) > 1:
        parts.append(f"It runs {_passes(winner)} models per prediction.")
    if thrifty is not None:
        parts.append(
            f"With {_passes(thrifty)} the best is {thrifty.candidate}, which gains "
            f"{_signed(thrifty.validation_improvement)} on validation."
        )
    return " ".join(parts)


def _nothing_better(done: Sequence[Row], single: Row, metric: Metric) -> str:
    tried = [row for row in done if row.validation_improvement and row.family != "member"]
    if not tried:
        return f"No way of combining could be tried; {single.candidate} is the best single member."
    best = max(tried, key=_gain)
    return (
        f"No way of combining is surely better on validation: the best, {best.candidate}, gains "
        f"{_signed(best.validation_improvement)} {metric.name}, an interval that includes no gain. "
        f"Keep {single.candidate}, the best single member."
    )


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return "nothing"
    level = round(interval.level * 100)
    return f"{interval.value:+.4g} ({level} % interval {interval.low:+.4g} to {interval.high:+.4g})"
