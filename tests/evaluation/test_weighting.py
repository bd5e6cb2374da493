import math

import pytest

from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.evaluation.weighting import weights_from_scores


@pytest.mark.parametrize(
    ("metric", "scores", "power", "expected"),
    [
        ("accuracy", [0.9, 0.6, 0.3], 1.0, [0.5, 1 / 3, 1 / 6]),
        ("precision", [0.2, 0.6], 1.0, [0.25, 0.75]),
        ("recall", [0.2, 0.6], 2.0, [0.1, 0.9]),
        ("r2", [-3.0, 0.5, 0.5], 1.0, [0.0, 0.5, 0.5]),
        ("mse", [1.0, 4.0], 1.0, [0.8, 0.2]),
        ("rmse", [1.0, 2.0], 2.0, [0.8, 0.2]),
        ("mae", [0.0, 1.0, 0.0], 1.0, [0.5, 0.0, 0.5]),
        ("brier", [0.5, 0.0], 3.0, [0.0, 1.0]),
        ("log_loss", [0.0, math.log(3)], 1.0, [0.75, 0.25]),
        ("perplexity", [1.0, 3.0], 1.0, [0.75, 0.25]),
        ("accuracy", [0.9, 0.0], 0.0, [0.5, 0.5]),
        ("mse", [0.0, 7.0], 0.0, [0.5, 0.5]),
    ],
)
def test_weights_by_hand(metric, scores, power, expected):
    assert weights_from_scores(scores, metric, power=power) == pytest.approx(expected)


def test_log_loss_and_perplexity_give_the_same_weights():
    losses = [0.3, 2.0, 40.0, 800.0]
    by_loss = weights_from_scores(losses, "log_loss", power=1.7)
    assert sum(by_loss) == pytest.approx(1)
    by_perplexity = weights_from_scores([math.exp(x) for x in losses[:3]], "perplexity", power=1.7)
    assert by_loss[:3] == pytest.approx(by_perplexity)


def test_large_powers_neither_underflow_nor_overflow():
    assert weights_from_scores([1e-3, 1e-4], "accuracy", power=500) == pytest.approx((1, 0))
    assert weights_from_scores([900.0, 901.0], "log_loss", power=50) == pytest.approx((1, 0))


@pytest.mark.parametrize(
    ("scores", "metric", "text"),
    [
        ([0.5, math.nan, math.inf], "accuracy", "accuracy of member 2, 3 is NaN or infinite"),
        ([0.0, 0.0], "f1", "No member has a f1 above zero"),
        ([-1.0, -2.0], "r2", "No member has a r2 above zero"),
        ([], "r2", "no scores"),
    ],
)
def test_scores_that_make_no_weights(scores, metric, text):
    with pytest.raises(InvalidWeights, match=text):
        weights_from_scores(scores, metric)


@pytest.mark.parametrize("power", [-1, math.inf, math.nan])
def test_powers_out_of_range(power):
    with pytest.raises(InvalidParameter, match="finite number of at least 0"):
        weights_from_scores([1.0], "accuracy", power=power)
