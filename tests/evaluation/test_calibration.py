import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation.calibration import fit_temperature, overconfidence, reliability
from alloykit.evaluation.metrics import METRICS

G = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(4000, 6, generator=G)
Y = torch.multinomial(LOGITS.softmax(1), 1, generator=G)[:, 0]


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0, 8.0])
def test_the_temperature_that_spoiled_the_logits_is_found(true):
    found = fit_temperature(F.log_softmax(LOGITS * true, 1), Y)
    assert found == pytest.approx(true, rel=0.06)


def test_no_temperature_on_a_fine_grid_is_better():
    logs = F.log_softmax(LOGITS * 2.3, 1)
    found = fit_temperature(logs, Y)
    losses = [float(F.cross_entropy(logs.double() / t, Y)) for t in np.geomspace(0.05, 20, 2000)]
    assert float(F.cross_entropy(logs.double() / found, Y)) <= min(losses) + 1e-9


@pytest.mark.parametrize(
    ("logs", "targets", "expected"),
    [
        (torch.eye(3).log(), torch.arange(3), 0.05),
        (torch.eye(3).log(), torch.tensor([1, 2, 0]), 20.0),
        (torch.eye(3).clamp(min=0.2).log(), torch.arange(3), 0.05),
        (torch.full((4, 3), 1 / 3).log(), torch.tensor([0, 1, 2, 0]), None),
    ],
)
def test_degenerate_data_stays_in_bounds(logs, targets, expected):
    found = fit_temperature(logs, targets)
    assert 0.05 <= found <= 20
    if expected is not None:
        assert found == expected


def test_one_certain_mistake_does_not_decide_alone():
    logs = F.log_softmax(LOGITS * 2, 1)
    spoiled = logs.clone()
    spoiled[0] = -float("inf")
    spoiled[0, (Y[0] + 1) % 6] = 0
    assert fit_temperature(spoiled, Y) == pytest.approx(fit_temperature(logs, Y), rel=0.1)


def test_tokens_ignore_unscored_positions():
    logs, targets = F.log_softmax(LOGITS * 3, 1).reshape(40, 100, 6), Y.reshape(40, 100).clone()
    targets[:, 50:] = -100
    first = fit_temperature(logs[:, :50].reshape(-1, 6), targets[:, :50].flatten())
    assert fit_temperature(logs, targets) == pytest.approx(first, rel=1e-6)
    with pytest.raises(DataError):
        fit_temperature(logs, targets[:, :9])


def test_reliability_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.45, 0.55], [0.0, 1.0]])
    bins = reliability(p.log(), torch.tensor([0, 1, 1, 1]), bins=10)
    assert [count for _, _, count in bins] == [1, 3]
    assert bins[0][:2] == pytest.approx((0.55, 1.0))
    assert bins[1][:2] == pytest.approx((2.85 / 3, 2 / 3))
    assert overconfidence(bins) == pytest.approx((0.9 + 0.95 + 0.55 + 1) / 4 - 0.75)


def test_the_gaps_of_the_diagram_make_the_calibration_error():
    logs = F.log_softmax(LOGITS, 1)
    bins = reliability(logs, Y)
    assert sum(count for _, _, count in bins) == 4000
    gaps = sum(count * abs(right - sure) for sure, right, count in bins) / 4000
    assert gaps == pytest.approx(METRICS["ece"].value(logs, Y), rel=1e-4)
    with pytest.raises(InvalidParameter, match="at least 1"):
        reliability(logs, Y, bins=0)
    assert np.isnan(overconfidence(()))
