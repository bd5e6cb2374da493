from __future__ import annotations

import pytest

from alloykit.errors import MissingInput
from alloykit.federation.round_history import FederationHistory, RoundResult
from alloykit.federation.round_picture import picture
from alloykit.federation.update import Counted, LeftOut, RoundRecord


def history(*scores: float | None) -> FederationHistory:
    record = RoundRecord(
        1, "fedavg", (Counted("a", 3.0, 1.0, float("inf")),), (LeftOut("b", "gone"),)
    )
    rounds = tuple(
        RoundResult(n, s, None, 0.5, 2_000_000, 1_000_000, 0.1, record)
        for n, s in enumerate(scores, 1)
    )
    return FederationHistory(rounds, "accuracy", higher_is_better=True)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_one_and_several_are_drawn(tmp_path, suffix):
    one = picture(history(0.3, 0.5, 0.9), tmp_path / f"one.{suffix}")
    many = picture({str(i): history(0.1 * i, 0.5) for i in range(1, 10)}, tmp_path / f"many.{suffix}",
                   lines={"union": 0.95}, title="Ten clients")  # fmt: skip
    assert one.stat().st_size > 5000
    assert many.stat().st_size > one.stat().st_size
    if suffix == "svg":
        text = many.read_text()
        assert "Ten clients" in text or "<path" in text


def test_rounds_without_a_score_are_left_out(tmp_path):
    picture(history(None, float("nan"), 0.5), tmp_path / "some.png")
    with pytest.raises(MissingInput, match="no round was scored"):
        picture(history(None, float("nan")), tmp_path / "none.png")


def test_sums_the_best_and_json():
    found = history(0.3, None, 0.9, 0.9, float("nan"))
    assert found.moved == [3_000_000 * n for n in range(1, 6)]
    assert found.best == 3
    assert history(None).best == 0
    again = FederationHistory.of(found.to_json())
    assert again.rounds[:4] == found.rounds[:4]
    assert again.scores[4] != again.scores[4]
    assert again.rounds[0].record.counted[0].norm == float("inf")
