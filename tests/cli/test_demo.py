"""The demo runs whole, in less time than a visitor's patience, and says what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import run


def test_demo_recommends_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, ["demo", "-o", tmp_path / "demo", "--json"])
    assert done.code == 0, done.err
    partitions, tunes = json.loads(done.out)
    for result in (partitions, tunes):
        assert Path(result["report"]).stat().st_size > 20_000
        assert result["recommendation"]
    rows = [
        json.loads(line)
        for line in (tmp_path / "demo" / "partitions" / "rows.jsonl").read_text().splitlines()
    ]
    assert all(row["status"] != "failed" for row in rows)
    tests = {row["candidate"]: row["test"].get("accuracy") for row in rows}
    best_member = max(tests[name] for name in ("mlp-1", "mlp-2", "cnn-3", "cnn-4"))
    assert tests["average (probabilities)"] > best_member + 0.05
    assert tests["linear of cnn-3, cnn-4"] < best_member
