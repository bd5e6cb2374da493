"""What the report shows of trained candidates: how they learned, and whom a fusion believes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alloykit.comparison.leaderboard import ranked
from alloykit.comparison.report import wording
from alloykit.comparison.report.data import ReportData
from alloykit.comparison.report.learning_chart import learning_curve
from alloykit.comparison.report.panels import HeatCell, Panel
from alloykit.types import Row

CURVES = 6
"""Most learning curves that are drawn, those of the best candidates."""
MOST_CLASSES = 26
"""Classes that the table of reliance has room for."""


@dataclass(frozen=True)
class Reliance:
    """Which member a fusion believes for which class, as a shaded table.

    Attributes:
        candidate: Whose it is.
        what: What the numbers are, in a sentence.
        classes: Titles of the columns.
        lines: One per member: its name, and a cell per class.
        words: Who is believed most, in a sentence.
    """

    candidate: str
    what: str
    classes: tuple[str, ...]
    lines: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    words: str


def learning_panels(data: ReportData) -> list[Panel]:
    """A learning curve of each of the best candidates that were trained."""
    trained = [row for row in _ranked(data) if row.history.get("epochs")]
    return [
        Panel(
            learning_curve(row.history, name=f"learning-{index}", title=row.candidate),
            row.candidate,
            "recommended" if row.candidate == data.recommendation else "",
            _learning_words(row),
        )
        for index, row in enumerate(trained[:CURVES])
    ]


def _learning_words(row: Row) -> str:
    epochs = row.history["epochs"]
    seconds = sum(epoch["seconds"] for epoch in epochs)
    text = f"{len(epochs)} epoch{'s' if len(epochs) > 1 else ''} in {wording.duration(seconds)}"
    best = row.history.get("best", 0)
    if row.history.get("stopped"):
        text += f"; stopped: {row.history['stopped']}"
    return f"{text}; epoch {best} was kept." if 0 < best < len(epochs) else f"{text}."


def reliance(data: ReportData) -> Reliance | None:
    """The table of the recommended candidate, or else of the best fusion; None without one."""
    known = [row for row in _ranked(data) if row.reliance.get("matrix")]
    known.sort(key=lambda row: row.candidate != data.recommendation)
    if not known:
        return None
    row = known[0]
    members, matrix = row.reliance["members"], row.reliance["matrix"]
    classes = [str(name) for name in row.reliance["classes"]][:MOST_CLASSES]
    shown = [[_number(value) for value in line[:MOST_CLASSES]] for line in matrix]
    finite = [value for line in shown for value in line if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    return Reliance(
        row.candidate,
        str(row.reliance["what"]),
        tuple(classes),
        tuple(
            (str(name), tuple(_cell(value, low, high) for value in line))
            for name, line in zip(members, shown, strict=True)
        ),
        _most_believed(members, classes, shown),
    )


def _cell(value: float, low: float, high: float) -> HeatCell:
    if not math.isfinite(value):
        return HeatCell(wording.NONE, 0)
    share = (value - low) / (high - low) if high > low else 0.5
    text = f"{value:.2f}"
    return HeatCell("0.00" if text == "-0.00" else text.replace("-", "−"), round(4 + 56 * share))


def _most_believed(
    members: Sequence[str], classes: Sequence[str], matrix: Sequence[Sequence[float]]
) -> str:
    """For how many classes each member is believed most."""
    counts = dict.fromkeys(members, 0)
    for place in range(len(classes)):
        column = [line[place] for line in matrix]
        if any(math.isfinite(value) for value in column):
            best = max(range(len(column)), key=lambda m: (math.isfinite(column[m]), column[m]))
            counts[members[best]] += 1
    parts = [f"‘{name}’ for {count}" for name, count in counts.items() if count]
    return f"Believed most: {', '.join(parts)} of {len(classes)} classes." if parts else ""


def _ranked(data: ReportData) -> list[Row]:
    order = ranked(data.rows, data.metric, higher_is_better=data.higher_is_better)
    return sorted(order, key=lambda row: row.candidate != data.recommendation)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
