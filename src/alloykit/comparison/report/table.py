"""The leaderboard as columns and cells: what is shown, what is sorted by, what is marked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from alloykit.comparison.leaderboard import ranked
from alloykit.comparison.report import wording
from alloykit.comparison.report.data import ReportData
from alloykit.comparison.report.ranges import Domain, focus, range_svg
from alloykit.types import Interval, Row


@dataclass(frozen=True)
class Cell:
    """What stands in the table, the small line below it, and the number it is sorted by.

    Attributes:
        text: Shown.
        value: Sorted by; None stands last.
        small: The line below.
        drawing: An SVG beside the text, of numbers only.
        spoken: Said to those who do not see the drawing.
    """

    text: str
    value: float | None = None
    small: str = ""
    drawing: str = ""
    spoken: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its title, the group it stands in, the order that a first click sorts it in."""

    title: str
    group: str
    first: str
    cell: Callable[[Row], Cell]
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the leaderboard with its marks, its cells and the numbers of its footnotes."""

    row: Row
    recommended: bool
    best_single: bool
    cells: tuple[Cell, ...]
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard as it is shown.

    Attributes:
        columns: From left to right.
        groups: What stands above them, as (name, number of columns).
        lines: Best first by validation.
        domain: The ends of the axis that all intervals share; None without any value.
        notes: The footnotes, each once; the first has number 1.
    """

    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    lines: tuple[Line, ...]
    domain: Domain | None
    notes: tuple[str, ...] = ()


CHOSE, TEST, COST, MORE = "Validation chose", "Test reports", "Cost", "Test, other metrics"
CONTENDERS = 6


def leaderboard(data: ReportData) -> Leaderboard:
    """Finished candidates, best first by validation; columns that would be empty are left out."""
    rows = ranked(data.rows, data.metric, higher_is_better=data.higher_is_better)
    domain = score_domain(data, rows)
    columns = _columns(data, domain)
    cells = [[column.cell(row) for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i].text != wording.NONE for line in cells)]
    columns = [columns[i] for i in kept]
    names = [column.group for column in columns]
    notes = tuple(dict.fromkeys(note for row in rows for note in row.notes))
    lines = tuple(
        Line(
            row,
            row.candidate == data.recommendation,
            row.candidate == data.best_single,
            tuple(line[i] for i in kept),
            tuple(sorted({notes.index(note) + 1 for note in row.notes})),
        )
        for row, line in zip(rows, cells, strict=True)
    )
    groups = tuple((name, names.count(name)) for name in dict.fromkeys(names))
    return Leaderboard(
        tuple(columns), groups, lines, domain, tuple(wording.sentence(note) for note in notes)
    )


def main_interval(data: ReportData, row: Row) -> Interval | None:
    """The main metric's interval on test; a point where only the value is known."""
    value = row.test.get(data.metric, math.nan)
    if not math.isfinite(value):
        return None
    known = row.intervals.get(data.metric)
    return replace(known, value=value) if known else Interval(value, value, value)


def score_domain(data: ReportData, rows: list[Row]) -> Domain | None:
    """The part of the main metric's axis that all drawings share; None without any value.

    The better half sets it (at least six): where many combinations fell apart, the differences
    among those that did not are what the reader came for.
    """
    every = [interval for row in rows if (interval := main_interval(data, row))]
    every.sort(key=lambda interval: interval.value, reverse=data.higher_is_better)
    half = every[: max(len(every) // 2, CONTENDERS)]
    marked = [r for r in rows if r.candidate in (data.best_single, data.recommendation)]
    always = [interval for row in marked if (interval := main_interval(data, row))]
    if not every:
        return None
    low, high = focus(half, always)
    # The margin around the values must not make an axis end at 101 %.
    return (max(low, 0.0), min(high, 1.0)) if data.metric in wording.IN_PERCENT else (low, high)


def _columns(data: ReportData, domain: Domain | None) -> list[Column]:
    metric, examples = data.metric, data.test_examples
    best = "descending" if data.higher_is_better else "ascending"
    name = wording.label(metric)

    def validation(row: Row) -> Cell:
        return _number(row.validation.get(metric), lambda v: wording.score(v, metric, examples))

    columns = [
        Column(_title(name), CHOSE, best, validation),
        Column(_title(name), TEST, best, lambda row: _test_cell(data, domain, row)),
        Column("Gain", TEST, "descending", lambda row: _gain_cell(data, row), GAIN_HINT),
        Column("p", TEST, "ascending", lambda row: _number(row.p_value, wording.p_value), P_HINT),
        Column("Time", COST, "ascending", _time_cell, "Time per example"),
        Column("Size", COST, "ascending", _size_cell, "Size on disk; peak memory of one batch"),
    ]
    # There can be many of these: what decides must not need scrolling.
    return columns + [
        Column(
            _title(wording.label(other)),
            MORE,
            "descending" if higher else "ascending",
            _metric_cell(other, examples),
        )
        for other, higher in data.metrics
        if other != metric
    ]


GAIN_HINT = "Improvement over the best single member, paired by example; positive is better"
P_HINT = "Exact McNemar test against the best single member"


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _number(value: float | None, write: Callable[[float | None], str]) -> Cell:
    if value is None or math.isnan(value):
        return Cell(wording.NONE)
    return Cell(write(value), float(value) if math.isfinite(value) else None)


def _metric_cell(metric: str, examples: int) -> Callable[[Row], Cell]:
    return lambda row: _number(row.test.get(metric), lambda v: wording.score(v, metric, examples))


def _test_cell(data: ReportData, domain: Domain | None, row: Row) -> Cell:
    interval, value = main_interval(data, row), row.test.get(data.metric)
    if interval is None or value is None or domain is None:
        return Cell(wording.NONE)
    text = wording.score(value, data.metric, data.test_examples)
    said = ""
    if data.metric in row.intervals:
        span = wording.score_range(interval, data.metric, data.test_examples)
        said = f"{wording.level(interval)} interval {span}"
    single = data.row(data.best_single)
    reference = main_interval(data, single) if single else None
    drawing = range_svg(interval, domain, reference.value if reference else None, said or text)
    return Cell(text, value, drawing=drawing, spoken=said)


def _gain_cell(data: ReportData, row: Row) -> Cell:
    if row.improvement is None or row.candidate == data.best_single:
        return Cell(wording.NONE)
    examples = data.test_examples
    text = wording.gain(row.improvement.value, data.metric, examples)
    small = wording.gain_range(row.improvement, data.metric, examples)
    return Cell(text, row.improvement.value, small=small)


def _time_cell(row: Row) -> Cell:
    if row.costs is None:
        return Cell(wording.NONE)
    passes = row.costs.forward_passes
    small = f"{passes} pass{'es' if passes != 1 else ''}"
    if row.costs.latency > 0:
        return Cell(wording.duration(row.costs.latency), row.costs.latency, small)
    return Cell(small, float(passes))


def _size_cell(row: Row) -> Cell:
    if row.costs is None:
        return Cell(wording.NONE)
    peak = f"peak {wording.size(row.costs.peak_memory)}" if row.costs.peak_memory else ""
    return Cell(wording.size(row.costs.bytes), float(row.costs.bytes), peak)
