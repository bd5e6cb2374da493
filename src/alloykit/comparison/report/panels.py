"""The report's drawings and side tables, each with the words that stand under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alloykit.comparison.leaderboard import ranked
from alloykit.comparison.report import charts, cost_chart, wording
from alloykit.comparison.report.data import ReportData
from alloykit.comparison.report.ranges import Domain
from alloykit.types import Row

OTHERS = 4
"""Reliability diagrams beside those of the recommended candidate and the best single member."""


@dataclass(frozen=True)
class Panel:
    """A drawing with its heading and what it says. ``narrow`` is for small screens."""

    drawing: str
    title: str = ""
    mark: str = ""
    caption: str = ""
    narrow: str = ""


def cost_panel(data: ReportData, domain: Domain | None) -> Panel | None:
    """The main metric against cost; None where fewer than two candidates have both."""
    rows = [r for r in data.rows if r.status == "done" and r.costs and data.metric in r.test]
    rows = [row for row in rows if math.isfinite(row.test[data.metric])]
    if len(rows) < 2 or domain is None:
        return None
    timed = all(row.costs is not None and row.costs.latency > 0 for row in rows)
    costs = cost_chart.CostAxis("time per example" if timed else "forward passes", timed)
    points = _points(data, rows, timed)
    single = data.row(data.best_single)
    scores = cost_chart.ScoreAxis(
        data.metric,
        data.higher_is_better,
        domain,
        data.test_examples,
        single.test.get(data.metric) if single else None,
    )
    front = cost_chart.pareto(points, higher_is_better=data.higher_is_better)
    words = "; ".join(f"‘{p.name}’ {scores.text(p.score)} at {costs.text(p.cost)}" for p in front)
    return Panel(
        caption=f"On the edge, cheapest first: {words}.",
        drawing=cost_chart.scatter(points, costs, scores, name="cost", width=1080, height=520),
        narrow=cost_chart.scatter(points, costs, scores, name="cost-narrow", width=340, height=460),
    )


def _points(data: ReportData, rows: Sequence[Row], timed: bool) -> list[cost_chart.Point]:
    points = [
        cost_chart.Point(
            row.candidate,
            row.family,
            max(row.costs.latency if timed else float(row.costs.forward_passes), 1e-12),
            row.test[data.metric],
        )
        for row in rows
        if row.costs is not None
    ]
    front = {p.name for p in cost_chart.pareto(points, higher_is_better=data.higher_is_better)}
    must = {data.best_single, data.recommendation}
    return [
        replace(
            point,
            importance=2 if point.name in must else int(point.name in front),
            ring=point.name == data.recommendation,
        )
        for point in points
    ]


def calibration_panels(data: ReportData) -> list[Panel]:
    """Reliability diagrams: the recommended candidate, the best single, up to four more."""
    order = ranked(data.rows, data.metric, higher_is_better=data.higher_is_better)
    drawn = [row for row in order if any(count for *_, count in row.calibration)]
    marks = {data.best_single: "best single member", data.recommendation: "recommended"}
    first = [row for row in drawn if row.candidate == data.recommendation]
    first += [r for r in drawn if r.candidate == data.best_single and r not in first]
    others = [row for row in drawn if row.candidate not in marks][:OTHERS]
    return [
        Panel(
            charts.reliability(row.calibration, name=f"calibration-{index}", title=row.candidate),
            row.candidate,
            marks.get(row.candidate, ""),
            _calibration_words(row),
        )
        for index, row in enumerate([*first, *others])
    ]


def _calibration_words(row: Row) -> str:
    total = sum(count for *_, count in row.calibration)
    gap = sum((said - right) * count for said, right, count in row.calibration) / total
    text = (
        "Neither over- nor underconfident on average"
        if abs(gap) < 0.005
        else (
            f"{'Over' if gap > 0 else 'Under'}confident by {100 * abs(gap):.1f} points on average"
        )
    )
    error = row.test.get("ece")
    if error is None or not math.isfinite(error):
        return f"{text}."
    return f"{text}; calibration error {wording.score(error, 'ece')}."


def barrier_panels(data: ReportData) -> list[Panel]:
    """Loss and wrong predictions between each two members, all on the same axes."""
    if not data.barriers:
        return []
    domain, errors_to = charts.barrier_domain(data.barriers), charts.error_top(data.barriers)
    return [
        Panel(
            charts.barrier_curve(barrier, domain, name=f"barrier-{index}", errors_to=errors_to),
            f"{barrier.first} – {barrier.second}",
            caption=barrier.verdict,
        )
        for index, barrier in enumerate(data.barriers)
    ]


def agreement_words(data: ReportData) -> str:
    """Which two members are most and least alike."""
    agreement = data.agreement
    if agreement is None or len(agreement.names) < 3:
        return ""
    size = range(len(agreement.names))
    pairs = [(agreement.matrix[i][j], i, j) for i in size for j in size if i < j]
    pairs = sorted(pair for pair in pairs if math.isfinite(pair[0]))
    if not pairs:
        return ""

    def both(pair: tuple[float, int, int]) -> str:
        return f"‘{agreement.names[pair[1]]}’ and ‘{agreement.names[pair[2]]}’"

    return f"Most alike: {both(pairs[-1])}. Least alike: {both(pairs[0])}."


@dataclass(frozen=True)
class HeatCell:
    """A number of the agreement table and how strongly it is shaded, 0 to 100."""

    text: str
    shade: int


def heat_map(data: ReportData) -> list[tuple[str, list[HeatCell]]]:
    """The agreement of members, line by line; empty where there are fewer than two."""
    agreement = data.agreement
    if agreement is None or len(agreement.names) < 2:
        return []
    size = range(len(agreement.names))
    apart = [agreement.matrix[i][j] for i in size for j in size if i != j]
    finite = [value for value in apart if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    counted = data.task != "regression"

    def cell(value: float, same: bool) -> HeatCell:
        if same or not math.isfinite(value):
            return HeatCell(wording.NONE, 0)
        share = (value - low) / (high - low) if high > low else 0.5
        text = f"{100 * value:.1f}{wording.SPACE}%" if counted else wording.gain(value, "r")
        return HeatCell(text, round(8 + 37 * share))

    return [
        (name, [cell(value, i == j) for j, value in enumerate(agreement.matrix[i])])
        for i, name in enumerate(agreement.names)
    ]


MEMBER_COLUMNS = (
    ("name", "Member"),
    ("source", "Read from"),
    ("architecture", "Architecture"),
    ("parameters", "Parameters"),
    ("bytes", "Size"),
    ("dtype", "Stored as"),
    ("digest", "Digest"),
)


def member_table(
    members: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Titles, and lines of (shown, in full); columns that no member fills are left out."""
    kept = [(k, t) for k, t in MEMBER_COLUMNS if any(m.get(k) not in (None, "") for m in members)]
    lines = [[_member_cell(key, member.get(key)) for key, _ in kept] for member in members]
    return [title for _, title in kept], lines


def _member_cell(key: str, value: Any) -> tuple[str, str]:
    if value in (None, ""):
        return wording.NONE, ""
    if key == "parameters":
        return wording.quantity(value), f"{value:,}"
    if key == "bytes":
        return wording.size(value), f"{value:,} bytes"
    return (short_digest(str(value)), str(value)) if key == "digest" else (str(value), "")


def short_digest(digest: str) -> str:
    """The first twelve letters of a digest, without its kind."""
    letters = digest.rpartition(":")[2]
    return f"{letters[:12]}…" if len(letters) > 12 else letters
