from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.karcher import karcher, spherical_mean
from alloykit.merging.slerp import slerp
from alloykit.types import TensorGroup


def group(tensors, weights=None):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    return TensorGroup("w", names, tuple(tensors), tuple(weights))


def merged(tensors, weights=None, **parameters):
    return merge_whole(karcher(**parameters), group(tensors, weights))


def drawn(count, seed=0, size=20, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator, dtype=torch.float64)
    return [
        base + spread * torch.randn(size, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def cost(point, tensors, weights):
    """Σ wᵢ·angle²: what a Karcher mean is least in."""
    angles = [torch.acos((point @ t / (point.norm() * t.norm())).clamp(-1, 1)) for t in tensors]
    return float(sum(w * a**2 for w, a in zip(weights, angles, strict=True)))


@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([0.01, 0.5, 1.5]))
def test_no_direction_nearby_is_better(seed, count, spread):
    tensors = drawn(count, seed, spread=spread)
    weights = np.random.default_rng(seed).dirichlet(np.ones(count)).tolist()
    mean = merged(tensors, weights)
    least = cost(mean, tensors, weights)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        step = torch.randn(20, generator=generator, dtype=torch.float64)
        other = mean + 1e-3 * mean.norm() * step / step.norm()
        assert cost(other, tensors, weights) >= least - 1e-12


def test_its_length_is_the_mean_length():
    tensors = drawn(4)
    weights = (0.1, 0.2, 0.3, 0.4)
    lengths = sum(w * float(t.norm()) for w, t in zip(weights, tensors, strict=True))
    assert float(merged(tensors, weights).norm()) == pytest.approx(lengths, rel=1e-12)


@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_of_two_directions_it_is_slerp(seed, t):
    first, second = (x / x.norm() for x in drawn(2, seed))
    expected = merge_whole(slerp(t=t), group([first, second]))
    torch.testing.assert_close(merged([first, second], (1 - t, t)), expected, rtol=1e-6, atol=1e-7)


def test_angles_of_nearly_equal_members_keep_their_digits():
    tensors = drawn(3, size=70_000, spread=1e-4)
    found = merged([t.float() for t in tensors])
    torch.testing.assert_close(found.double(), sum(tensors) / 3, rtol=1e-6, atol=1e-6)


def test_zeros_have_a_length_and_no_direction():
    one = torch.tensor([3.0, 4.0])
    assert merged([torch.zeros(2), one]).tolist() == [1.5, 2.0]
    assert merged([torch.zeros(2), torch.zeros(2)]).tolist() == [0.0, 0.0]


def test_where_directions_balance_out_it_is_the_mean():
    one = torch.tensor([3.0, 4.0])
    assert merged([one, -3 * one]).tolist() == [-3.0, -4.0]


def test_a_direction_opposite_to_the_mean_pulls_no_way():
    tensors = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([-3.0])]
    assert merged(tensors).item() == pytest.approx(2.0)


def test_a_direction_nearly_opposite_to_the_mean_is_no_noise():
    one, noise = (x.float() for x in drawn(2, size=70_000))
    found = merged([one, 2 * one, -3 * one + 1e-4 * noise])
    torch.testing.assert_close(found, 2 * one, rtol=1e-3, atol=1e-3)


def test_a_step_goes_by_the_mean_of_the_ways():
    units = [x / x.norm() for x in drawn(3)]
    weights = (0.2, 0.3, 0.5)
    start = sum(w * u for w, u in zip(weights, units, strict=True))
    start = start / start.norm()
    step = torch.zeros_like(start)
    for weight, unit in zip(weights, units, strict=True):
        angle = torch.acos(unit @ start)
        step += weight * angle / torch.sin(angle) * (unit - (unit @ start) * start)
    size = step.norm()
    expected = torch.cos(size) * start + torch.sin(size) / size * step
    torch.testing.assert_close(merged(units, weights, max_iter=1), expected)
    assert float((expected - start).norm()) > 1e-3


def test_few_steps_are_fewer():
    tensors = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    weights = (0.9, 0.1)
    start = torch.tensor([0.9, 0.1]) / math.hypot(0.9, 0.1)
    torch.testing.assert_close(merged(tensors, weights, max_iter=0), start)
    angle = 0.1 * math.pi / 2
    expected = torch.tensor([math.cos(angle), math.sin(angle)])
    torch.testing.assert_close(merged(tensors, weights), expected)


def test_coefficients_of_equal_vectors_sum_to_one():
    found = spherical_mean(np.full((3, 3), 7.3), (0.2, 0.3, 0.5))
    assert sum(found) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("parameters", [{"max_iter": -1}, {"tol": math.nan}, {"compat": "paper"}])
def test_parameters_out_of_range_are_named(parameters):
    with pytest.raises(InvalidParameter, match=f"'{next(iter(parameters))}' parameter of karcher"):
        karcher(**parameters)
