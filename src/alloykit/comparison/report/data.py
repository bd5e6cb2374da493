"""What a report is made of: rows, and what was found out beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alloykit.errors import DataError, listing
from alloykit.types import Row, Task


@dataclass(frozen=True)
class Barrier:
    """The loss along the straight line between the parameters of two members.

    Attributes:
        first: Name of the member at alpha 0.
        second: Name of the member at alpha 1.
        alphas: Where the loss was measured, in [0, 1], rising; usually eleven.
        losses: The loss there, with buffers averaged as they are.
        losses_reestimated: The loss after BatchNorm statistics were re-estimated, or None where
            there is no BatchNorm or no data to do it.
        verdict: One plain sentence: what the curve means for merging these two.
        errors: Fraction of wrong predictions at each alpha, of the losses that the verdict is
            about (re-estimated where there are such); None for regression.
    """

    first: str
    second: str
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    losses_reestimated: tuple[float, ...] | None = None
    verdict: str = ""
    errors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Agreement:
    """How alike the members are on the test examples.

    Attributes:
        names: The members, in the order of rows and columns.
        matrix: Square. Classification: fraction of examples with the same predicted class, in
            [0, 1]. Regression: correlation of the residual errors, in [-1, 1].
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ReportData:
    """Everything that the report of a comparison shows. ``render_report`` adds no facts.

    Attributes:
        title: What was compared, in the reader's words.
        task: "classification", "regression" or "tokens".
        metric: Name of the main metric.
        higher_is_better: Direction of the main metric.
        metrics: Names in column order, each with its ``higher_is_better``; the main one included.
        splits: (name, examples, digest) of each split.
        rows: All candidates, in any order, skipped and failed ones included.
        best_single: The member that did best on validation; "" where none could be scored.
        recommendation: The candidate to ship; "" where none could be scored.
        recommendation_reason: Why that one, in one or two plain sentences.
        members: One mapping a member: name, source, architecture, parameters, bytes, dtype, digest.
        agreement: How alike the members are, or None.
        barriers: One a pair of members that can be joined by a line.
        reproduce: Candidate -> the command or snippet that rebuilds it.
        command: What repeats the whole comparison.
        environment: Versions, threads, machine.
        settings: Seed, resamples and the like.
        warnings: What a reader must know before trusting the numbers.
        created: When, as ISO text; given by the caller, so that a report can be made twice.
    """

    title: str
    task: Task
    metric: str
    higher_is_better: bool
    metrics: tuple[tuple[str, bool], ...]
    splits: tuple[tuple[str, int, str], ...]
    rows: tuple[Row, ...]
    best_single: str
    recommendation: str
    recommendation_reason: str = ""
    members: tuple[Mapping[str, Any], ...] = ()
    agreement: Agreement | None = None
    barriers: tuple[Barrier, ...] = ()
    reproduce: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    created: str = ""

    @property
    def test_examples(self) -> int:
        """Number of test examples; 0 where there is no such split."""
        return next((count for name, count, _ in self.splits if name == "test"), 0)

    def row(self, candidate: str) -> Row | None:
        """The finished row of that candidate, or None."""
        return next(
            (row for row in self.rows if row.candidate == candidate and row.status == "done"), None
        )


def check(data: ReportData) -> None:
    """Refuse data that contradicts itself.

    Raises:
        DataError: All contradictions, listed.
    """
    wrong = _wrong_rows(data) + [line for barrier in data.barriers for line in _uneven(barrier)]
    if data.agreement is not None:
        size = len(data.agreement.names)
        if [len(line) for line in data.agreement.matrix] != [size] * size:
            wrong.append(f"agreement: the matrix is not {size} x {size}, one line a name")
    if wrong:
        raise DataError(
            f"The report cannot be made: its data contradict themselves.\n{listing(wrong)}"
        )


def _wrong_rows(data: ReportData) -> list[str]:
    names = [row.candidate for row in data.rows]
    wrong = [
        f"rows: {name!r} is there twice"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for role in ("best_single", "recommendation"):
        name = getattr(data, role)
        if name and data.row(name) is None:
            wrong.append(f"{role}: {name!r} is not among the finished rows")
    if data.metric not in [name for name, _ in data.metrics]:
        wrong.append(f"metric: {data.metric!r} is not among metrics")
    return wrong


def _uneven(barrier: Barrier) -> list[str]:
    points = len(barrier.alphas)
    curves = {
        "losses": barrier.losses,
        "losses_reestimated": barrier.losses_reestimated,
        "errors": barrier.errors,
    }
    return [
        f"barrier {barrier.first} - {barrier.second}: {len(curve)} {name} for {points} alphas"
        for name, curve in curves.items()
        if curve is not None and len(curve) != points
    ]
