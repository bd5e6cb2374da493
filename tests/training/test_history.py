from __future__ import annotations

import json
import math

import pytest

from alloykit.training.history import Epoch, History, better, extended

NAN = math.nan


def after(scores: list[float | None], patience: int | None = None, higher: bool = False) -> History:
    history = History(metric="m", higher_is_better=higher)
    for number, score in enumerate(scores, start=1):
        history = extended(history, Epoch(number, 1.0, score, 0.1, 2.0), patience)
        if history.stopped:
            break
    return history


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ([3.0, 2.0, 2.5], False, 2),
        ([3.0, 2.0, 2.5], True, 1),
        ([2.0, 2.0, 2.0], False, 1),
        ([NAN, 2.0, NAN], False, 2),
        ([NAN, -math.inf], True, 2),
        ([NAN, NAN], True, 1),
        ([1.0, NAN, math.inf], True, 3),
        ([None, None, None], False, 3),
    ],
)
def test_the_best_epoch(scores, higher, best):
    assert after(scores, higher=higher).best == best


def test_patience_counts_epochs_since_the_best():
    history = after([3.0, 2.0, 2.0, NAN, 1.0], patience=2)
    assert (len(history.epochs), history.best) == (4, 2)
    assert history.stopped == "no better m in 2 epochs"
    assert after([3.0, 2.0, 2.0, 1.0, 1.5], patience=2).stopped == ""
    assert after([3.0, 4.0], patience=1).stopped == "no better m in 1 epoch"


def test_nothing_is_better_than_a_tie():
    assert not better(1.0, 1.0, True)
    assert not better(NAN, NAN, False)
    assert not better(NAN, 1.0, False)
    assert better(5.0, None, False)


def test_a_history_survives_strict_json():
    epochs = (
        Epoch(1, 0.1 + 0.2, NAN, 1e-3, 0.5),
        Epoch(2, 1e-300, -math.inf, 2e-3, 0.25),
        Epoch(3, 1.0, None, 0.0, 1.0),
    )
    history = History(epochs, "accuracy", True, 2, "no better accuracy in 1 epoch", 12)
    text = json.dumps(history.to_json(), allow_nan=False)
    back = History.of(json.loads(text))
    assert math.isnan(back.epochs[0].validation)
    assert back.epochs[1:] == epochs[1:]
    assert back.epochs[0].loss == epochs[0].loss
    assert back.to_json() == history.to_json()
    assert back.losses == [0.1 + 0.2, 1e-300, 1.0]
