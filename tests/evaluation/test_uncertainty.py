import math

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.evaluation.metrics import METRICS, metric
from alloykit.evaluation.uncertainty import (
    bootstrap,
    count_blocks,
    draws,
    improvement,
    mcnemar,
)

G = torch.Generator().manual_seed(0)
Y = torch.randint(0, 3, (120,), generator=G)
LOGS = torch.log_softmax(torch.randn(120, 3, generator=G) + torch.eye(3)[Y], 1)
OTHER = torch.log_softmax(torch.randn(120, 3, generator=G) + torch.eye(3)[Y], 1)
T = torch.randn(120, generator=G)
V = T + 0.3 * torch.randn(120, generator=G)


def pair(name):
    return (V, T) if "regression" in METRICS[name].tasks else (LOGS, Y)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_interval_is_that_of_the_metric_on_resampled_examples(name):
    outputs, targets = pair(name)
    found = bootstrap(name, outputs, targets, seed=3, resamples=60)
    drawn = np.concatenate(list(draws(120, 60, 3)))
    values = [METRICS[name].value(outputs[i], targets[i]) for i in map(torch.from_numpy, drawn)]
    low, high = np.quantile(values, [0.025, 0.975])
    assert found.low == pytest.approx(low, rel=1e-4)
    assert found.high == pytest.approx(high, rel=1e-4)
    assert found.value == METRICS[name].value(outputs, targets)
    assert found.level == 0.95


def test_tokens_are_resampled_by_sequence():
    outputs, targets = LOGS.reshape(12, 10, 3), Y.reshape(12, 10).clone()
    targets[::2, 3:] = -100
    found = bootstrap("accuracy", outputs, targets, resamples=50)
    drawn = np.concatenate(list(draws(12, 50, 0)))
    values = [METRICS["accuracy"].value(outputs[i], targets[i]) for i in drawn]
    assert found.low == pytest.approx(np.quantile(values, 0.025), rel=1e-5)


def test_the_width_for_accuracy_is_that_of_the_normal_approximation():
    right = torch.arange(2000) % 5 > 0
    outputs = torch.log_softmax(torch.stack([right, ~right], 1).float(), 1)
    found = bootstrap("accuracy", outputs, torch.zeros(2000).long())
    half = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert found.low == pytest.approx(0.8 - half, abs=0.003)
    assert found.high == pytest.approx(0.8 + half, abs=0.003)


def test_the_interval_depends_on_the_seed_alone():
    assert bootstrap("f1", LOGS, Y, seed=1) == bootstrap("f1", LOGS, Y, seed=1)
    assert bootstrap("f1", LOGS, Y, seed=1) != bootstrap("f1", LOGS, Y, seed=2)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    assert bootstrap("f1", LOGS, Y, seed=1) == bootstrap("f1", LOGS, Y, seed=1)


def test_blocks_do_not_change_the_resamples(monkeypatch):
    whole = np.concatenate(list(count_blocks(7, 20, 0)))
    monkeypatch.setattr("alloykit.evaluation.uncertainty.KEPT", 0)
    monkeypatch.setattr("alloykit.evaluation.uncertainty.BLOCK", 30)
    assert len(list(count_blocks(7, 20, 0))) == 5
    np.testing.assert_array_equal(np.concatenate(list(count_blocks(7, 20, 0))), whole)
    assert (whole.sum(1) == 7).all()


def test_a_lower_level_gives_a_narrower_interval():
    wide, narrow = (bootstrap("accuracy", LOGS, Y, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("name", sorted(METRICS))
def test_improvement_is_paired_and_signed(name):
    if "regression" in METRICS[name].tasks:
        candidate, reference, targets = T + 0.5 * (V - T), V, T
    else:
        sharper = LOGS + 5 * torch.eye(3)[Y]
        candidate, reference, targets = torch.log_softmax(sharper, 1), LOGS, Y
    found = improvement(name, candidate, reference, targets, resamples=40)
    drawn = np.concatenate(list(draws(120, 40, 0)))
    value = METRICS[name].value
    sign = 1 if METRICS[name].higher_is_better else -1
    gains = [
        sign * (value(candidate[i], targets[i]) - value(reference[i], targets[i])) for i in drawn
    ]
    assert found.value > 0
    assert found.low == pytest.approx(np.quantile(gains, 0.025), rel=1e-4, abs=1e-6)
    assert found.high == pytest.approx(np.quantile(gains, 0.975), rel=1e-4, abs=1e-6)
    back = improvement(name, reference, candidate, targets, resamples=40)
    assert back.value == pytest.approx(-found.value)


def test_a_candidate_equal_to_the_reference_gains_exactly_nothing():
    found = improvement("log_loss", LOGS, LOGS.clone(), Y)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_metrics_of_your_own_are_computed_anew():
    calls = []

    def share(outputs, targets):
        calls.append(len(targets))
        return (outputs.argmax(1) == targets).float().mean()

    found = bootstrap(metric(share, higher_is_better=True), LOGS, Y, resamples=5000)
    assert len(calls) == 201
    assert found.low < found.value < found.high


def test_resamples_without_a_value_are_left_out():
    targets = torch.zeros(30).long()
    targets[0] = 1
    outputs = torch.log_softmax(torch.eye(2)[targets], 1)
    found = bootstrap("auroc", outputs, targets, resamples=50)
    assert (found.low, found.high) == (1, 1)
    none = bootstrap("auroc", outputs[1:], targets[1:], resamples=5)
    assert math.isnan(none.low)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"level": 1.0}, {"level": 95}])
def test_parameters_out_of_range(options):
    with pytest.raises(InvalidParameter, match=str(next(iter(options.values())))):
        bootstrap("accuracy", LOGS, Y, **options)
    with pytest.raises(InvalidParameter):
        improvement("accuracy", LOGS, LOGS, Y, **options)


def test_mcnemar_by_hand():
    targets = torch.zeros(20).long()
    right, wrong = torch.tensor([0.0, -9.0]), torch.tensor([-9.0, 0.0])
    candidate, reference = right.repeat(20, 1), right.repeat(20, 1)
    assert mcnemar(candidate, reference, targets) == 1.0
    reference[:7] = wrong
    candidate[19] = wrong
    # 7 against 1: 2 * (C(8, 0) + C(8, 1)) / 2^8
    assert mcnemar(candidate, reference, targets) == pytest.approx(2 * 9 / 256)
    assert mcnemar(reference, candidate, targets) == pytest.approx(2 * 9 / 256)


def test_all_right_is_not_certain():
    logs = torch.tensor([[0.9, 0.1]] * 10).log()
    interval = bootstrap("accuracy", logs, torch.zeros(10, dtype=torch.long))
    # Wilson, by hand: low = n / (n + z²) with z = 1.96.
    assert interval.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert interval.high == pytest.approx(1.0)
