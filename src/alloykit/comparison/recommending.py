"""Which candidate to ship: validation chooses, and better has to mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alloykit.comparison.report import wording
from alloykit.errors import DataError
from alloykit.evaluation.metrics import Metric
from alloykit.types import Interval, Row


@dataclass(frozen=True)
class Recommendation:
    """The candidate to ship and why.

    Attributes:
        candidate: Its name.
        reason: Plain sentences with numbers, fit for a terminal: no markup, no special spaces.
    """

    candidate: str
    reason: str


def recommend(
    rows: Sequence[Row], metric: Metric, best_single: str, *, examples: int = 0
) -> Recommendation:
    """Choose among the finished rows by validation alone; test only reports what that is worth.

    The best candidate on validation is chosen if its paired gain over the best single member is
    above zero with its whole interval, for accuracy by McNemar's exact test as well (the bootstrap
    is too sure of itself on a handful of examples); of equal ones the cheapest to run. Otherwise
    the best single member is: a gain that could be luck is not worth several models.

    Args:
        rows: All candidates.
        metric: The main metric.
        best_single: Name of the member that did best on validation.
        examples: Number of test examples: decides the decimals, as in the report.
    """
    words = _Words(metric.name, examples)
    done = [row for row in rows if row.status == "done"]
    single = next((row for row in done if row.candidate == best_single), None)
    if single is None:
        reason = next((row.reason for row in rows if row.candidate == best_single), "")
        raise DataError(f"The best single member, {best_single}, could not be measured: {reason}")
    sure = [row for row in done if _is_sure(row)]
    if not sure:
        return Recommendation(best_single, _nothing_better(done, single, words))
    winner = max(sure, key=lambda row: (_gain(row), -_passes(row)))
    cheaper = [row for row in sure if _passes(row) < _passes(winner)]
    thrifty = max(cheaper, key=_gain, default=None)
    return Recommendation(winner.candidate, _better(winner, thrifty, single, words))


def _is_sure(row: Row) -> bool:
    gain, p_value = row.validation_improvement, row.validation_p_value
    return gain is not None and gain.low > 0 and (p_value is None or p_value < 1 - gain.level)


def _gain(row: Row) -> float:
    return row.validation_improvement.value if row.validation_improvement else 0.0


def _passes(row: Row) -> int:
    return row.costs.forward_passes if row.costs else 1


@dataclass(frozen=True)
class _Words:
    """Gains of one metric in words, as the rest of the report writes them."""

    metric: str
    examples: int

    def gains(self, better: Interval) -> str:
        """A verb and its object: "gains +4.2 points of accuracy (95 % interval ...)"."""
        name = wording.label(self.metric)
        if self.metric in wording.IN_PERCENT:
            text = f"gains {self._points(better)} of {name}"
        else:
            # A loss that "gains +0.1" would read as one that rose.
            verb = "improves" if better.value >= 0 else "worsens"
            text = f"{verb} {name} by {self._amount(better)}"
        return wording.breaking(f"{text} ({self._span(better)})")

    def difference(self, better: Interval | None) -> str:
        """The same without verb and metric, which stand in the sentence before."""
        if better is None:
            return "no gain could be measured"
        if self.metric in wording.IN_PERCENT:
            text = self._points(better)
        else:
            text = f"{self._amount(better)} {'better' if better.value >= 0 else 'worse'}"
        return wording.breaking(f"{text} ({self._span(better)})")

    def _points(self, better: Interval) -> str:
        return wording.gain(better.value, self.metric, self.examples, unit=True)

    def _amount(self, better: Interval) -> str:
        return wording.score(abs(better.value), self.metric, self.examples)

    def _span(self, better: Interval) -> str:
        span = wording.gain_range(better, self.metric, self.examples)
        return f"{wording.level(better)} interval {span}"


def _better(winner: Row, thrifty: Row | None, single: Row, words: _Words) -> str:
    gain, chosen_for = winner.improvement, winner.validation_improvement
    assert chosen_for is not None
    verdict = "does not confirm"
    if gain is not None and gain.low > 0:
        verdict = "confirms"
    elif gain is not None and gain.high < 0:
        verdict = "contradicts"
    p_value = (
        f"; McNemar {wording.breaking(wording.p_equation(winner.p_value))}"
        if winner.p_value is not None
        else ""
    )
    parts = [
        f"On validation it {words.gains(chosen_for)} over {single.candidate},",
        "the best single member.",
        f"Test {verdict} it: {words.difference(gain)}{p_value}.",
    ]
    if "chosen_by" in winner.recipe:
        parts.append("It was chosen on these validation examples, which flatters it there.")
    if _passes(winner) > 1:
        parts.append(f"It runs {_passes(winner)} models per prediction.")
    if thrifty is not None:
        parts.append(
            f"With {_passes(thrifty)} per prediction the best is {thrifty.candidate}: "
            f"{words.difference(thrifty.validation_improvement)} on validation."
        )
    return " ".join(parts)


def _nothing_better(done: Sequence[Row], single: Row, words: _Words) -> str:
    tried = [
        (gain, row.candidate)
        for row in done
        if (gain := row.validation_improvement) and row.family != "member"
    ]
    if not tried:
        return f"No way of combining could be tried; {single.candidate} is the best single member."
    # Of equal ones the first by name, which is the one that the leaderboard has on top.
    gain, best = min(tried, key=lambda pair: (-pair[0].value, pair[1]))
    if gain.high < 0:
        judged = "which is surely worse"
    elif gain.low == gain.high == 0:
        judged = "so that it predicts the same"
    else:
        judged = "which may be chance"
    return (
        f"No way of combining is surely better on validation: the best, {best}, "
        f"{words.gains(gain)}, {judged}. Keep {single.candidate}, the best single member."
    )
