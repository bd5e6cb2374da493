from __future__ import annotations

import json
import math

import pytest

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.training.schedule import factor
from alloykit.training.settings import Training, check_patience


def test_every_mistake_is_listed_at_once():
    with pytest.raises(InvalidParameter) as caught:
        Training(
            epochs=0, batch_size=2.0, learning_rate=math.nan, weight_decay=-1, schedule="cosin",
            warmup=1, accumulate=True, clip_norm=0.0, precision="half", patience=0, seed=-1,
            optimizer="adam", momentum=1.0,
        )  # fmt: skip
    for line in (
        "'epochs' must be a whole number of at least 1. Got 0.",
        "'batch_size' must be a whole number of at least 1. Got 2.0.",
        "'learning_rate' must be a number above 0. Got nan.",
        "'weight_decay' must be a number at least 0. Got -1.",
        "'schedule' must be one of cosine, linear, constant. Got 'cosin'. Did you mean 'cosine'?",
        "'warmup' must be a number in [0, 1): a part of all steps. Got 1.",
        "'accumulate' must be a whole number of at least 1. Got True.",
        "'clip_norm' must be a number above 0. Got 0.0.",
        "'precision' must be one of float32, bfloat16, float16. Got 'half'.",
        "'patience' must be a whole number of at least 1. Got 0.",
        "'seed' must be a whole number of at least 0. Got -1.",
        "'optimizer' must be one of adamw, sgd. Got 'adam'. Did you mean 'adamw'?",
        "'momentum' must be a number in [0, 1). Got 1.0.",
    ):
        assert line in str(caught.value)


def test_momentum_belongs_to_sgd():
    with pytest.raises(InvalidParameter, match="'momentum' is for optimizer='sgd'"):
        Training(momentum=0.9)
    assert Training(optimizer="sgd", momentum=0.9).momentum == 0.9


def test_settings_survive_json():
    training = Training(epochs=3, clip_norm=0.5, patience=2, precision="bfloat16", seed=2**60)
    assert Training.of(json.loads(json.dumps(training.to_json()))) == training


def test_a_name_that_is_no_setting():
    with pytest.raises(InvalidParameter, match=r"(?s)'epoch'\. Did you mean 'epochs'\?.*patience"):
        Training.of({"epoch": 3})


def test_patience_needs_a_score():
    with pytest.raises(MissingInput, match="patience=2 stops when the validation score"):
        check_patience(Training(patience=2), validated=False)
    check_patience(Training(patience=2), validated=True)
    check_patience(Training(), validated=False)


def test_the_schedules():
    def factors(steps: int, **settings) -> list[float]:
        return [factor(Training(**settings), step, steps) for step in range(steps)]

    half = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert factors(4) == pytest.approx(half)
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(4, schedule="constant", warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors(8, warmup=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8, *half])


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_every_step_moves_and_none_is_above_the_peak(steps, schedule, warmup):
    training = Training(schedule=schedule, warmup=warmup)
    assert all(0 < factor(training, step, steps) <= 1 for step in range(steps))
