from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import geometric_slerp

from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.execution.scanning import merge_whole
from alloykit.merging.slerp import arc_weights, share_of_second, slerp
from alloykit.types import TensorGroup


def merged(first, second, weights=(0.5, 0.5), **parameters):
    group = TensorGroup("w", ("first", "second"), (first, second), weights)
    return merge_whole(slerp(**parameters), group)


def unit(seed, size):
    vector = np.random.default_rng(seed).normal(size=size)
    return vector / np.linalg.norm(vector)


@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.0, 1.0))
def test_on_unit_vectors_it_is_scipys(seed, size, t):
    first, second = unit(seed, size), unit(seed + 1, size)
    if abs(first @ second) < 0.999:
        found = merged(torch.from_numpy(first), torch.from_numpy(second), t=t)
        np.testing.assert_allclose(found, geometric_slerp(first, second, t), atol=1e-12)


def test_lengths_are_kept_where_the_mean_is_shorter():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 40, generator=generator) for _ in range(2))
    half = merged(first, second, t=0.5)
    assert float(half.norm()) == pytest.approx(float((first.norm() + second.norm()) / 2), rel=0.01)
    assert float(((first + second) / 2).norm()) < 0.75 * float(first.norm())


def test_the_angle_is_that_of_whole_tensors_of_several_blocks():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(500, 300, generator=generator) for _ in range(2))
    angle = float(
        torch.acos(torch.cosine_similarity(first.reshape(-1), second.reshape(-1), 0).double())
    )
    a, b = arc_weights(angle, 0.3)
    torch.testing.assert_close(merged(first, second, t=0.3), a * first + b * second)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_near_one_line_it_takes_that_line(sign):
    first = torch.tensor([1.0, 0.0])
    second = sign * torch.tensor([3.0, 0.03])
    torch.testing.assert_close(merged(first, second, t=0.25), 0.75 * first + 0.25 * second)


def test_at_larger_angles_it_does_not():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.1])
    shorter = 0.5 * (first + second).norm()
    assert float(merged(first, second).norm() - shorter) > 1e-3


def test_the_ends_are_the_models():
    first, second = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    assert torch.equal(merged(first, second, t=0.0), first)
    assert torch.equal(merged(first, second, t=1.0), second)
    broken = torch.full((2,), math.nan)
    assert torch.equal(merged(first, broken, t=0.0), first)


def test_a_zero_tensor_has_no_angle():
    one = torch.tensor([0.0, 2.0])
    assert merged(torch.zeros(2), one).tolist() == [0.0, 1.0]
    assert merged(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]
    at_a_right_angle = merged(torch.zeros(2), one, compat="mergekit")
    assert at_a_right_angle.tolist() == [0.0, pytest.approx(2.0 * math.sqrt(0.5))]


def test_weights_by_hand_move_t():
    assert share_of_second(0.5, (0.75, 0.25)) == 0.25
    assert share_of_second(0.2, (0.8, 0.2)) == pytest.approx(0.04 / (0.64 + 0.04))
    first, second = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    torch.testing.assert_close(merged(first, second, (0.75, 0.25)), merged(first, second, t=0.25))
    with pytest.raises(InvalidWeights, match="all weights are zero"):
        merged(first, second, (1.0, 0.0), t=1.0)


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan, "half"])
def test_t_is_a_fraction(t):
    with pytest.raises(
        InvalidParameter, match=r"'t' parameter of slerp must be a number in \[0, 1"
    ):
        slerp(t=t)


def test_its_contract():
    method = slerp()
    assert method.ordered
    assert list(method.members) == [2]
    assert (method.unit, dict(method.parameters)) == ("element", {"t": 0.5, "compat": None})
