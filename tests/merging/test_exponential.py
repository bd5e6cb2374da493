from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.merging.exponential import exponential, recency_weights
from alloykit.types import TensorGroup


def group(tensors, weights=None):
    count = len(tensors)
    names = tuple(f"step {i}" for i in range(count))
    return TensorGroup("w", names, tuple(tensors), tuple(weights or (1 / count,) * count))


@given(st.integers(1, 30), st.floats(0.05, 0.99))
def test_the_weights_are_those_of_the_formula(count, decay):
    expected = [decay ** (count - 1 - i) * (1 - decay) / (1 - decay**count) for i in range(count)]
    assert recency_weights(count, decay) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("count", "decay", "weights"),
    [
        (1, 0.9, (1.0,)),
        (3, 1.0, (1 / 3,) * 3),
        (3, 0.0, (0.0, 0.0, 1.0)),
        (2, 0.25, (0.2, 0.8)),
        (3, 0.5, (1 / 7, 2 / 7, 4 / 7)),
    ],
)
def test_weights_at_the_ends_of_the_range(count, decay, weights):
    assert recency_weights(count, decay) == pytest.approx(weights, rel=1e-15)


def test_weights_of_a_thousand_checkpoints_do_not_underflow_into_an_error():
    weights = recency_weights(1000, 0.1)
    assert math.fsum(weights) == pytest.approx(1.0)
    assert weights[-1] == pytest.approx(0.9)
    assert weights[0] == 0.0


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan, math.inf])
def test_a_decay_outside_its_range_is_refused_when_the_method_is_built(decay):
    with pytest.raises(InvalidParameter, match=r"'decay' parameter of exponential .* \[0, 1\]"):
        exponential(decay=decay)


def test_the_newest_weighs_most():
    tensors = [torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([2.0])]
    assert exponential(decay=0.5).merge(group(tensors), None).item() == pytest.approx(10 / 7)
    assert exponential(decay=0.0).merge(group(tensors), None).item() == 2.0
    assert exponential(decay=1.0).merge(group(tensors), None).item() == pytest.approx(1.0)


def test_weights_by_hand_multiply_recency():
    tensors = [torch.tensor([0.0]), torch.tensor([1.0])]
    result = exponential(decay=0.5).merge(group(tensors, [0.8, 0.2]), None)
    assert result.item() == pytest.approx(0.2 / (0.4 + 0.2))


def test_weights_that_leave_nobody_are_refused():
    tensors = [torch.tensor([0.0]), torch.tensor([1.0])]
    with pytest.raises(InvalidWeights, match="all weights are zero"):
        exponential(decay=0.0).merge(group(tensors, [1.0, 0.0]), None)


def running_average(tensors, decay):
    average = tensors[0]
    for newest in tensors[1:]:
        average = decay * average + (1 - decay) * newest
    return average


@given(st.integers(1, 8), st.floats(0.01, 1.0))
def test_the_running_form_is_an_average_updated_file_by_file(count, decay):
    basis = list(torch.eye(count, dtype=torch.float64))
    found = exponential(decay=decay, running=True).merge(group(basis), None)
    torch.testing.assert_close(found, running_average(basis, decay))


def test_both_forms_differ_in_the_oldest_checkpoint_alone():
    basis = list(torch.eye(4, dtype=torch.float64))
    running, ours = running_average(basis, 0.9), torch.tensor(recency_weights(4, 0.9)).double()
    torch.testing.assert_close(running[1:] / running[-1], ours[1:] / ours[-1])
    assert running[0] > 2 * ours[0]


def test_its_contract():
    method = exponential(0.7)
    assert method.ordered
    assert dict(method.parameters) == {"decay": 0.7, "running": False}
    assert dict(exponential().parameters) == {"decay": 0.9, "running": False}
