"""Rows survive the way to disk and back, torn lines and all."""

from __future__ import annotations

import json
import math
from pathlib import Path

from alloykit.comparison.journal import Journal, from_json, to_json
from alloykit.types import Costs, Interval, Row

FULL = Row(
    candidate="average (logits)",
    family="predictions",
    status="done",
    members=("a", "b"),
    recipe={"kind": "ensemble", "state": {"weights": [0.5, 0.5]}},
    validation={"accuracy": 0.9, "auroc": math.nan},
    test={"accuracy": 0.8, "log_loss": 0.1 + 0.2},
    intervals={"accuracy": Interval(0.8, 0.7, 0.9)},
    improvement=Interval(0.1, -0.1, math.inf),
    validation_improvement=None,
    p_value=0.25,
    costs=Costs(10, 40, 100, 1e-6, 2, 0.5),
    calibration=((0.5, 0.25, 4), (0.9, 1.0, 6)),
    notes=("fitted on validation",),
)


def test_a_row_comes_back_whole() -> None:
    text = json.dumps(to_json(FULL), allow_nan=False)
    back = from_json(json.loads(text))
    assert math.isnan(back.validation["auroc"])
    assert back.improvement is not None
    assert math.isnan(back.improvement.high), "JSON has no infinity"
    same = {"validation": FULL.validation, "improvement": FULL.improvement}
    assert Row(**{**back.__dict__, **same}) == FULL


def test_a_row_without_anything_comes_back() -> None:
    skipped = Row("x", "weights", "skipped", reason="needs a base")
    assert from_json(json.loads(json.dumps(to_json(skipped)))) == skipped


def test_the_last_row_of_a_candidate_counts_and_torn_lines_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 0})
    journal.add(Row("x", "weights", "failed", reason="out of memory"))
    journal.add(Row("x", "weights", "done"))
    journal.add(Row("y", "weights", "failed"))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"candidate": "z", "fam')
    again = Journal(tmp_path, {"seed": 0})
    assert again.finished("x") is not None
    assert again.finished("y") is None, "failed rows are tried again"
    assert again.finished("z") is None
    again.add(Row("z", "weights", "done"))
    assert Journal(tmp_path, {"seed": 0}).finished("z") is not None


def test_memory_only_without_a_folder() -> None:
    journal = Journal(None, {})
    journal.add(FULL)
    assert journal.rows == (FULL,)
