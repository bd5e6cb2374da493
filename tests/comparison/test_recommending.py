"""The recommendation: validation alone chooses, and a gain that could be luck is not one."""

from __future__ import annotations

from alloykit.comparison.recommending import recommend
from alloykit.evaluation.metrics import METRICS
from alloykit.types import Costs, Interval, Row

ACCURACY = METRICS["accuracy"]


def row(
    name: str, gain: tuple[float, float, float] | None, *, passes: int = 1,
    test: tuple[float, float, float] | None = None, family: str = "predictions",
    p: float | None = None,
) -> Row:  # fmt: skip
    return Row(
        candidate=name,
        family=family,  # type: ignore[arg-type]
        status="done",
        validation_improvement=gain and Interval(*gain),
        improvement=test and Interval(*test),
        p_value=p,
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
    assert "which may be chance" in said.reason


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


def test_a_sure_gain_in_points_and_in_plain_letters() -> None:
    best = row("b", (0.10571, 0.0657, 0.1429), test=(0.1141, 0.0806, 0.1454), passes=4, p=1.6e-11)
    said = recommend([SINGLE, best, row("c", (0.05, 0.02, 0.08))], ACCURACY, "a").reason
    assert said == (
        "On validation it gains +10.6 points of accuracy (95 % interval +6.6 to +14.3) over a, "
        "the best single member. Test confirms it: +11.4 points (95 % interval +8.1 to +14.5); "
        "McNemar p < 0.001. It runs 4 models per prediction. "
        "With 1 per prediction the best is c: +5.0 points (95 % interval +2.0 to +8.0) on validation."
    )


def test_a_loss_improves_instead_of_gaining() -> None:
    best = row("b", (0.04217, 0.01, 0.08), test=(-0.0123, -0.03, 0.01))
    assert recommend([SINGLE, best], METRICS["log_loss"], "a").reason == (
        "On validation it improves log loss by 0.042 (95 % interval +0.010 to +0.080) over a, "
        "the best single member. Test does not confirm it: 0.012 worse "
        "(95 % interval −0.030 to +0.010)."
    )
    worse = row("b", (-0.04217, -0.08, 0.01))
    said = recommend([SINGLE, worse], METRICS["log_loss"], "a").reason
    assert "the best, b, worsens log loss by 0.042 (95 % interval −0.080 to +0.010)" in said


def test_a_test_without_gain_is_said_so() -> None:
    said = recommend([SINGLE, row("b", (0.05, 0.03, 0.07), p=0.04)], ACCURACY, "a").reason
    assert "Test does not confirm it: no gain could be measured; McNemar p = 0.040." in said


def test_many_examples_are_worth_another_decimal() -> None:
    rows = [SINGLE, row("b", (0.05123, 0.03, 0.07))]
    assert "+5.12 points" in recommend(rows, ACCURACY, "a", examples=50_000).reason


def test_the_best_of_equals_is_the_one_on_top_of_the_leaderboard() -> None:
    rows = [SINGLE, row("z", (0.01, -0.01, 0.03)), row("b", (0.01, -0.01, 0.03))]
    assert "the best, b, gains +1.0 points" in recommend(rows, ACCURACY, "a").reason


def test_test_can_contradict_what_validation_chose() -> None:
    rows = [SINGLE, row("b", (0.05, 0.03, 0.07), test=(-0.2, -0.25, -0.15))]
    said = recommend(rows, ACCURACY, "a")
    assert said.candidate == "b", "test chooses nothing"
    assert "Test contradicts it" in said.reason


def test_a_sure_loss_is_not_called_chance() -> None:
    said = recommend([SINGLE, row("b", (-0.02, -0.03, -0.01))], ACCURACY, "a")
    assert "which is surely worse" in said.reason
    same = recommend([SINGLE, row("b", (0.0, 0.0, 0.0))], ACCURACY, "a")
    assert "predicts the same" in same.reason


def test_a_handful_of_examples_is_not_sure_whatever_the_bootstrap_says() -> None:
    from dataclasses import replace

    lucky = replace(row("b", (0.02, 0.005, 0.04)), validation_p_value=0.125)
    assert recommend([SINGLE, lucky], ACCURACY, "a").candidate == "a"
    sound = replace(lucky, validation_p_value=0.01)
    assert recommend([SINGLE, sound], ACCURACY, "a").candidate == "b"


def test_a_soup_that_wins_says_on_what_it_was_chosen() -> None:
    from dataclasses import replace

    soup = replace(row("greedy soup", (0.05, 0.03, 0.07)), recipe={"chosen_by": {}})
    assert "chosen on these validation examples" in recommend([SINGLE, soup], ACCURACY, "a").reason
