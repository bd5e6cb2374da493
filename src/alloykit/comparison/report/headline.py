"""What the report says first: which candidate to ship, by how much, at which cost."""

from __future__ import annotations

from dataclasses import dataclass

from alloykit.comparison.leaderboard import ranked
from alloykit.comparison.report import wording
from alloykit.comparison.report.data import ReportData
from alloykit.types import Interval, Row

SAME = (0.85, 1.18)
"""Times per example within these ratios are called the same: a repeated measurement differs so."""


@dataclass(frozen=True)
class Headline:
    """One sentence around the name of a candidate, ``before`` 'name' ``after``; and one more."""

    before: str
    name: str
    after: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.before}‘{self.name}’{self.after}" if self.name else self.before


@dataclass(frozen=True)
class Figure:
    """A number worth printing large, what it is, and the small print."""

    value: str
    label: str
    detail: str


def headline(data: ReportData) -> Headline:
    """The question answered in one plain sentence, also where the answer is "nothing is better"."""
    chosen, single = data.row(data.recommendation), data.row(data.best_single)
    if chosen is None:
        return Headline("Nothing can be recommended: no candidate could be scored.", "", "")
    if single is not None and chosen is single:
        return _keep(data, single)
    score = f"{_score(data, chosen)} on test"
    if single is None or chosen.improvement is None:
        return Headline("Ship ", chosen.candidate, f": {score}.")
    joint = "over" if data.metric in wording.IN_PERCENT else "than"
    gain = f"{_size(data, chosen.improvement)} {joint} the best single member"
    span, cost = _span(data, chosen.improvement), cost_phrase(chosen, single)
    if chosen.improvement.low > 0:
        return Headline("Ship ", chosen.candidate, f": {score}, {gain} ({span}){cost}.")
    if chosen.improvement.high < 0:
        rest = " was best on validation, but on test it does worse than the best single member: "
        rest += f"{score}, {_size(data, chosen.improvement)} ({span})."
        return Headline("Ship nothing new: ", chosen.candidate, rest)
    rest = f" reaches {score}, {gain}{cost}, and that may be chance ({span})."
    return Headline("No clear gain: ", chosen.candidate, rest)


def _keep(data: ReportData, single: Row) -> Headline:
    order = ranked(data.rows, data.metric, higher_is_better=data.higher_is_better)
    rival = next((r for r in order if r.family != "member" and r.improvement is not None), None)
    after = f", the best single member: {_score(data, single)} on test. "
    if rival is None:
        return Headline("Ship ", single.candidate, f"{after}No combination was scored.")
    after += "No combination is worth shipping instead."
    assert rival.improvement is not None
    size, span = _size(data, rival.improvement), _span(data, rival.improvement)
    more = f"The best of them on validation, ‘{rival.candidate}’, on test: {size} ({span})."
    return Headline("Ship ", single.candidate, after, more)


def _score(data: ReportData, row: Row) -> str:
    value = wording.score(row.test.get(data.metric), data.metric, data.test_examples)
    name = wording.label(data.metric)
    return f"{value} {name}" if data.metric in wording.IN_PERCENT else f"{name} {value}"


def _size(data: ReportData, better: Interval) -> str:
    """Such as "+4.2 points"; or "0.042 better" without a unit, where a sign would mislead."""
    if data.metric in wording.IN_PERCENT:
        return wording.gain(better.value, data.metric, data.test_examples, unit=True)
    amount = wording.score(abs(better.value), data.metric, data.test_examples)
    return f"{amount} {'better' if better.value >= 0 else 'worse'}"


def _span(data: ReportData, better: Interval) -> str:
    span = wording.gain_range(better, data.metric, data.test_examples)
    return f"{wording.level(better)} interval {span}"


def cost_ratio(row: Row, single: Row) -> float | None:
    """Time per example compared with the single member's; forward passes where it is not known."""
    if row.costs is None or single.costs is None:
        return None
    if row.costs.latency > 0 and single.costs.latency > 0:
        return row.costs.latency / single.costs.latency
    if row.costs.forward_passes > 0 and single.costs.forward_passes > 0:
        return row.costs.forward_passes / single.costs.forward_passes
    return None


def cost_phrase(row: Row, single: Row) -> str:
    """The end of the sentence: ", at 4× its cost"."""
    ratio = cost_ratio(row, single)
    if ratio is None:
        return ""
    same = SAME[0] <= ratio <= SAME[1]
    return ", at the same cost" if same else f", at {wording.times(ratio)} its cost"


def figures(data: ReportData) -> list[Figure]:
    """Up to four numbers of the recommended candidate."""
    row, single = data.row(data.recommendation), data.row(data.best_single)
    if row is None:
        return []
    found = [_test_figure(data, row)]
    if row.improvement is not None and single is not None and row is not single:
        found.append(_gain_figure(data, row, single))
    if row.costs is not None:
        found += _cost_figures(row, single)
    return found


def _test_figure(data: ReportData, row: Row) -> Figure:
    interval = row.intervals.get(data.metric)
    detail = f"{data.test_examples:,} examples"
    if interval is not None:
        span = wording.score_range(interval, data.metric, data.test_examples)
        detail = f"{wording.level(interval)} interval {span}"
    value = wording.score(row.test.get(data.metric), data.metric, data.test_examples)
    return Figure(value, f"{wording.label(data.metric)} on test", detail)


def _gain_figure(data: ReportData, row: Row, single: Row) -> Figure:
    assert row.improvement is not None
    unit = " points" if data.metric in wording.IN_PERCENT else ""
    p = f"; McNemar {wording.p_equation(row.p_value)}" if row.p_value is not None else ""
    span = wording.gain_range(row.improvement, data.metric, data.test_examples)
    return Figure(
        wording.gain(row.improvement.value, data.metric, data.test_examples),
        f"{unit.strip() or 'better'} over the best single member",
        f"{wording.level(row.improvement)} interval {span}{p}",
    )


def _cost_figures(row: Row, single: Row | None) -> list[Figure]:
    assert row.costs is not None
    costs = row.costs
    ratio = cost_ratio(row, single) if single is not None and single is not row else None
    passes = f"{costs.forward_passes} forward pass{'es' if costs.forward_passes != 1 else ''}"
    time = f"{wording.duration(costs.latency)} an example, " if costs.latency > 0 else ""
    found = [
        Figure(
            wording.size(costs.bytes), "on disk", f"{wording.quantity(costs.parameters)} parameters"
        )
    ]
    if ratio is not None:
        label = "the best single member’s time" if time else "its forward passes"
        found.insert(0, Figure(wording.times(ratio), label, f"{time}{passes}"))
    elif time:
        found.insert(0, Figure(wording.duration(costs.latency), "an example", passes))
    return found
