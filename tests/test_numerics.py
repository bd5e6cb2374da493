from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidWeights
from alloykit.numerics import (
    compute_dtype,
    is_averaged,
    normalised,
    promoted,
    same_values,
    unusable_values,
    weighted_mean,
)

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e5m2, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex32, torch.complex64),
        (torch.complex64, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
)
def test_arithmetic_is_at_least_in_float32(dtype, compute):
    assert compute_dtype(dtype) == compute
    assert is_averaged(dtype)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.uint64])
def test_integers_are_not_averaged(dtype):
    assert not is_averaged(dtype)


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        ([torch.float16] * 3, torch.float16),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.float32, torch.float64, torch.float16], torch.float64),
        ([torch.float8_e4m3fn] * 2, torch.float8_e4m3fn),
        ([torch.float8_e4m3fn, torch.float8_e5m2], torch.float32),
        ([torch.float8_e4m3fn, torch.bfloat16], torch.float32),
        ([torch.int32, torch.int64], torch.int64),
        ([torch.uint8, torch.int8], torch.int16),
        ([torch.uint16, torch.int32], torch.int64),
        ([torch.uint64, torch.int64], torch.int64),
        ([torch.complex64, torch.complex128], torch.complex128),
    ],
)
def test_unequal_dtypes_meet_in_one_that_holds_them(dtypes, result):
    assert promoted(dtypes) == result
    assert promoted(reversed(dtypes)) == result


@pytest.mark.parametrize(
    ("weights", "count", "result"),
    [
        (None, 4, (0.25,) * 4),
        ([2, 1, 1], 3, (0.5, 0.25, 0.25)),
        ([0, 5], 2, (0.0, 1.0)),
        ([0.2], 1, (1.0,)),
        (np.array([3.0, 1.0]), 2, (0.75, 0.25)),
        (torch.tensor([1.0, 3.0]), 2, (0.25, 0.75)),
        ([1e308, 1e308], 2, (0.5, 0.5)),
        ([5e-324, 5e-324], 2, (0.5, 0.5)),
    ],
)
def test_weights_by_hand_are_divided_by_their_sum(weights, count, result):
    assert normalised(weights, count) == result


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20).filter(any))
def test_weights_sum_to_one(weights):
    shares = normalised(weights, len(weights))
    assert math.isclose(math.fsum(shares), 1.0, rel_tol=1e-12)
    assert normalised(shares, len(shares), strict=True) == pytest.approx(shares, rel=1e-15)


@pytest.mark.parametrize(
    ("weights", "count", "says"),
    [
        ([1], 2, ["1 weights for 2 models"]),
        ([], 2, ["0 weights for 2 models"]),
        ([0.0, 0.0], 2, ["all weights are zero"]),
        ([1, -1], 2, ["weight 2 is negative: -1.0"]),
        ([math.nan, math.inf], 2, ["weight 1 is nan", "weight 2 is inf"]),
        ([-math.inf, -1, math.nan], 2, ["3 weights for 2", "weight 1 is -inf", "weight 3 is nan"]),
        ([-1e308, -1e308], 2, ["weight 1 is negative", "weight 2 is negative"]),
    ],
)
def test_everything_that_is_wrong_with_weights_is_said_at_once(weights, count, says):
    with pytest.raises(InvalidWeights) as caught:
        normalised(weights, count)
    for text in [*says, "Give one finite, non-negative number per model"]:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "total"), [([0.5, 0.6], "1.1"), ([1, 1], "2"), ([1e308, 1e308], "inf")]
)
def test_strict_weights_must_sum_to_one(weights, total):
    with pytest.raises(InvalidWeights, match=f"they sum to {total}, and a sum of one"):
        normalised(weights, 2, strict=True)


def test_strict_weights_may_miss_one_by_rounding():
    assert normalised([0.1] * 10, 10, strict=True) == pytest.approx((0.1,) * 10)
    assert normalised([0.333333, 0.333333, 0.333334], 3, strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(any), st.integers(0, 2**31))
def test_the_mean_is_that_of_numpy_in_longer_arithmetic(dtype, weights, seed):
    shares = normalised(weights, len(weights))
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(9, dtype=dtype, generator=generator) for _ in shares]
    exact = sum(
        np.longdouble(w) * t.numpy().astype(np.clongdouble)
        for w, t in zip(shares, tensors, strict=True)
    )
    result = weighted_mean(tensors, shares)
    precision = torch.finfo(dtype).eps
    scale = max(float(tensor.abs().max()) for tensor in tensors)
    assert np.abs(result.numpy() - exact).max() <= 3 * precision * len(shares) * scale


def test_a_large_tensor_of_small_weight_costs_no_precision():
    large, small = torch.tensor([1e6]), torch.tensor([1.0])
    for tensors, weights in (
        [(large, small), (1e-6, 1 - 1e-6)],
        [(small, large), (1 - 1e-6, 1e-6)],
    ):
        assert weighted_mean(tensors, weights).item() == pytest.approx(2.0 - 1e-6, rel=1e-6)


def test_equal_tensors_keep_every_bit_and_the_signs_of_zeros():
    tensor = torch.tensor([-0.0, 0.0, 0.1, 1e-45, 3.4e38, -3.4e38])
    result = weighted_mean([tensor] * 7, normalised([1, 2, 3, 4, 5, 6, 7], 7))
    assert torch.equal(result.view(torch.int32), tensor.view(torch.int32))


def test_the_mean_is_new_even_of_a_single_tensor():
    tensor = torch.ones(3)
    result = weighted_mean([tensor, torch.full((3,), math.nan)], [1.0, 0.0])
    assert torch.equal(result, torch.ones(3))
    result.zero_()
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 2.0], None),
        ([], None),
        ([math.nan, 1.0], "1 NaN"),
        ([math.inf, -math.inf], "2 Inf"),
        ([math.nan, math.nan, math.inf], "2 NaN, 1 Inf"),
    ],
)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2, torch.complex64])
def test_values_without_an_average_are_counted(values, says, dtype):
    assert unusable_values(torch.tensor(values).to(dtype)) == says


def test_integers_always_have_usable_values():
    assert unusable_values(torch.tensor([1, 2])) is None
    assert unusable_values(torch.tensor(True)) is None


@pytest.mark.parametrize("value", [1.5, -math.inf])
def test_values_are_the_same_whatever_their_precision(value):
    tensors = [torch.full((2,), value, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    assert same_values(tensors)
    assert not same_values([*tensors, torch.zeros(2)])
    assert not same_values([torch.tensor([math.nan])] * 2)
    assert same_values([torch.tensor([3]), torch.tensor([3])])


def test_nan_is_not_the_same_as_itself():
    tensor = torch.tensor([math.nan])
    assert not same_values([tensor])
    assert same_values([torch.tensor([math.inf])])
