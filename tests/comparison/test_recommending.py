"""The recommendation: validation alone chooses, and a gain that could be luck is not one."""

from __future__ import annotations

from alloykit.comparison.recommending import recommend
from alloykit.evaluation.metrics import METRICS
from alloykit.types import Costs, Interval, Row

ACCURACY = METRICS["accuracy"]


def row(
    name: str, gain: tuple[float, float, float] | None, *, passes: int = 1,
    test: tuple[float, float, float] | None = None, family: str = "predictions",
) -> Row:  # fmt: skip
    return Row(
        candidate=name,
        family=family,  # type: ignore[arg-type]
        status="done",
        validation_improvement=gain and Interval(*gain),
        improvement=test and Interval(*test),
        costs=Costs(1, 1, 1, 1e-6, passes),
    )


SINGLE = row("a", None, family="member")


def test_the_best_sure_gain_on_validation_is_chosen_whatever_test_says() -> None:
    rows = [
        SINGLE,
        row("small", (0.02, 0.01, 0.03), test=(0.09, 0.08, 0.10)),
        row("large", (0.05, 0.03, 0.07), test=(-0.01, -0.03, 0.01), passes=4),
    ]
    said = recommend(rows, ACCURACY, "a")
    assert said.candidate == "large"
    assert "Test does not confirm it" in said.reason
    assert "small" in said.reason, "the cheaper one is mentioned"


def test_a_gain_that_includes_none_keeps_the_single_member() -> None:
    said = recommend([SINGLE, row("b", (0.01, -0.01, 0.03))], ACCURACY, "a")
    assert said.candidate == "a"
    assert "includes no gain" in said.reason


def test_equal_gains_go_to_the_cheaper() -> None:
    rows = [SINGLE, row("dear", (0.05, 0.03, 0.07), passes=4), row("cheap", (0.05, 0.02, 0.08))]
    assert recommend(rows, ACCURACY, "a").candidate == "cheap"


def test_only_members() -> None:
    said = recommend([SINGLE], ACCURACY, "a")
    assert said.candidate == "a"
    assert "No way of combining could be tried" in said.reason


def test_failed_and_skipped_rows_are_never_chosen() -> None:
    failed = Row("c", "weights", "failed", validation_improvement=Interval(1.0, 1.0, 1.0))
    assert recommend([SINGLE, failed], ACCURACY, "a").candidate == "a"
