import io
import json
import math
from types import MappingProxyType

import numpy as np
import pytest
import torch
from rich.console import Console

from alloykit.comparison.leaderboard import (
    leaderboard_records,
    leaderboard_table,
    left_out,
    ranked,
)
from alloykit.comparison.report import wording
from alloykit.types import Interval, Row
from report_sample import MEMBERS, sample


def scored(name, value, **more):
    return Row(name, "weights", "done", validation={"m": value}, test={"m": value}, **more)


def printed(rows, width=100, **arguments):
    arguments = {"higher_is_better": True, "examples": 2000} | arguments
    console = Console(file=io.StringIO(), width=width)
    console.print(leaderboard_table(rows, "accuracy", **arguments))
    return console.file.getvalue()


def test_ranked_puts_the_best_first_in_either_direction():
    rows = [scored("low", 0.1), scored("high", 0.9), scored("none", math.nan)]
    assert [r.candidate for r in ranked(rows, "m", higher_is_better=True)] == [
        "high",
        "low",
        "none",
    ]
    assert [r.candidate for r in ranked(rows, "m", higher_is_better=False)] == [
        "low",
        "high",
        "none",
    ]


def test_ranked_does_not_depend_on_the_order_given():
    rows = [scored("b", 0.5), scored("a", 0.5), scored("c", 0.5)]
    assert ranked(rows, "m", higher_is_better=True) == ranked(
        rows[::-1], "m", higher_is_better=True
    )


def test_ranked_goes_by_validation_not_by_test():
    lucky = Row("lucky", "soup", "done", validation={"m": 0.5}, test={"m": 0.99})
    assert ranked([lucky, scored("sound", 0.8)], "m", higher_is_better=True)[0].candidate == "sound"


def test_left_out_lists_skipped_before_failed():
    assert [r.status for r in left_out(sample().rows)] == ["skipped"] * 3 + ["failed"]


def test_table_fits_a_hundred_columns_and_says_all():
    text = printed(sample().rows, best_single=MEMBERS[3], recommendation="average of probabilities")
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    lines = text.splitlines()
    assert any(line.startswith("➜") and "average of probabilities" in line for line in lines)
    assert any(line.startswith("=") and "seed 4 (augmented)" in line for line in lines)
    assert any(line.startswith("◦") and "seed 1" in line for line in lines)
    assert "93.1" in text
    assert "+3.1 to +5.3" in text
    assert "3 skipped:" in text
    assert "1 failed:" in text
    assert "It takes exactly 2 models. Got 4." in text


def test_table_orders_by_validation():
    text = printed(sample().rows)
    assert (
        text.index("average of probabilities") < text.index("majority vote") < text.index("seed 3")
    )


def test_table_prints_names_as_they_are_but_without_control_characters():
    text = printed([Row("[red]x[/red]\x1b[2J", "soup", "done", validation={"accuracy": 0.5})])
    assert "[red]x[/red]" in text
    assert "\x1b[2J" not in text


def test_records_are_json_whatever_the_rows_hold():
    row = Row(
        "a", "weights", "done",
        recipe=MappingProxyType({"n": np.int64(2), "w": torch.tensor([0.5, 0.5]), "s": {1}}),
        test={"m": float("nan")},
        improvement=Interval(0.1, -math.inf, 0.2),
    )  # fmt: skip
    (record,) = leaderboard_records([row])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["recipe"] == {"n": 2, "w": [0.5, 0.5], "s": [1]}
    assert record["test"] == {"m": None}
    assert record["improvement"] == {"value": 0.1, "low": None, "high": 0.2, "level": 0.95}


def test_records_keep_every_row_and_field_of_the_sample():
    records = leaderboard_records(sample().rows)
    assert len(records) == 26
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert records[4]["costs"]["forward_passes"] == 4


@pytest.mark.parametrize(
    ("value", "metric", "examples", "text"),
    [
        (0.93149, "accuracy", 2000, "93.1 %"),
        (0.93149, "accuracy", 50_000, "93.15 %"),
        (0.23149, "log_loss", 2000, "0.231"),
        (0.0000213, "mse", 10, "2.1e−05"),
        (12345.6, "mae", 10, "12,346"),
        (-0.25, "r2", 10, "−0.250"),
        (-0.00001, "accuracy", 10, "0.0 %"),
        (math.inf, "perplexity", 10, "∞"),
        (math.nan, "accuracy", 10, "–"),
        (None, "accuracy", 10, "–"),
    ],
)
def test_scores_are_rounded_to_what_can_be_told_apart(value, metric, examples, text):
    assert wording.score(value, metric, examples).replace(wording.SPACE, " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0421, "+4.2"), (-0.0421, "−4.2"), (0.0001, "±0.0"), (math.nan, "–")]
)
def test_gains_carry_their_sign(value, text):
    assert wording.gain(value, "accuracy", 2000) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.duration(0.000_002_5), "2.50 µs"),
        (wording.duration(3e-10), "0.300 ns"),
        (wording.duration(600), "10.0 min"),
        (wording.duration(0.1, short=True), "100 ms"),
        (wording.size(999_999), "1.00 MB"),
        (wording.size(0), "0 B"),
        (wording.quantity(7_241_732_096), "7.24 G"),
        (wording.times(0.5), "0.5×"),
        (wording.p_value(1e-9), "< 0.001"),
    ],
)
def test_costs_come_in_human_units(text, expected):
    assert text.replace(wording.SPACE, " ") == expected
