"""The table of a comparison for the terminal, and its rows as plain data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from alloykit.comparison.report import wording
from alloykit.types import Row

FAMILIES = (
    "member",
    "predictions",
    "weights",
    "soup",
    "fusion",
    "student",
    "federated",
    "retrained",
)
SHIP, BEST, MEMBER = "➜", "=", "◦"
NAME_WIDTH = 34


def ranked(rows: Iterable[Row], metric: str, *, higher_is_better: bool) -> list[Row]:
    """Finished rows, best first by what chooses: the validation value of the main metric.

    Equal values stand in the order of their names; rows without a value come last.
    """

    def key(row: Row) -> tuple[bool, float, str]:
        value = row.validation.get(metric, math.nan)
        if math.isnan(value):
            return True, 0.0, row.candidate
        return False, -value if higher_is_better else value, row.candidate

    return sorted((row for row in rows if row.status == "done"), key=key)


def left_out(rows: Iterable[Row]) -> list[Row]:
    """Rows that were skipped, then those that failed, as they come."""
    every = list(rows)
    return [r for r in every if r.status == "skipped"] + [r for r in every if r.status == "failed"]


def leaderboard_table(
    rows: Sequence[Row],
    metric: str,
    *,
    higher_is_better: bool,
    examples: int = 0,
    best_single: str = "",
    recommendation: str = "",
) -> Table:
    """A table of at most 100 columns, best first by validation; what is left out stands below.

    Args:
        rows: All candidates.
        metric: Name of the main metric.
        higher_is_better: Its direction.
        examples: Number of test examples: decides the decimals.
        best_single: The candidate marked as such.
        recommendation: The candidate marked as such, in bold.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", width=1)
    table.add_column("candidate", overflow="fold", min_width=20, max_width=NAME_WIDTH)
    # "valid." chooses and "test" reports: the reader must not take one for the other.
    for title in ("valid.", "test", "gain", "interval", "p", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    marks = dict.fromkeys((r.candidate for r in rows if r.family == "member"), MEMBER)
    marks |= {best_single: BEST} | {recommendation: SHIP}
    for row in ranked(rows, metric, higher_is_better=higher_is_better):
        mark = marks.get(row.candidate, "")
        table.add_row(*_cells(row, metric, examples, mark), style="bold" if mark == SHIP else "")
    table.title = Text(f"{wording.label(metric)}, best first by validation", style="italic")
    table.title_justify = table.caption_justify = "left"
    table.caption = _below(rows)
    return table


def _cells(row: Row, metric: str, examples: int, mark: str) -> list[Text]:
    better = row.improvement
    return [
        Text(mark),
        Text(_printable(row.candidate)),
        Text(wording.score(row.validation.get(metric), metric, examples)),
        Text(wording.score(row.test.get(metric), metric, examples)),
        Text(wording.gain(better.value, metric, examples) if better else ""),
        Text(wording.gain_range(better, metric, examples) if better else ""),
        Text(wording.p_value(row.p_value) if row.p_value is not None else ""),
        Text(wording.duration(row.costs.latency) if row.costs else ""),
    ]


def _below(rows: Sequence[Row]) -> Text:
    """What the marks mean, and what is not in the table and why."""
    text = Text(f"{SHIP} recommended   {BEST} best single member   {MEMBER} member", style="dim")
    for status in ("skipped", "failed"):
        found = [row for row in rows if row.status == status]
        if found:
            text.append(f"\n\n{len(found)} {status}:", style="not dim")
        for reason in dict.fromkeys(row.reason for row in found):
            names = ", ".join(_printable(row.candidate) for row in found if row.reason == reason)
            text.append(f"\n  {names}: {_printable(reason)}")
    return text


def _printable(text: str) -> str:
    """On one line, without control characters: a name must not move a terminal's cursor."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def leaderboard_records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as plain data that any JSON reader takes: NaN and infinities become null.

    Example:
        >>> row = Row("a", "member", "done", test={"accuracy": 0.9, "auroc": float("nan")})
        >>> leaderboard_records([row])[0]["test"]
        {'accuracy': 0.9, 'auroc': None}
    """
    return [{f.name: _plain(getattr(row, f.name)) for f in fields(row)} for row in rows]


def _plain(value: Any) -> Any:
    """Mappings, sequences, dataclasses and numbers of other libraries as JSON knows them."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (Sequence, Set)):
        return [_plain(item) for item in value]
    return str(value)
