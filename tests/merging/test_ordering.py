from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.merging import ordering
from alloykit.merging.ordering import are_equal, from_sorted, in_order_with_weights
from alloykit.numerics import weighted_mean


def bits(tensor):
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)


@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_rows_are_those_of_torchs_sort(count, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    tensors = list(torch.randn(count, 37, generator=generator, dtype=dtype).round(decimals=1))
    expected = torch.stack(tensors).sort(0).values
    for place in range(count):
        assert torch.equal(from_sorted(tensors, lambda rows, at=place: rows[at]), expected[place])
    values, weights = in_order_with_weights(tensors, [2.0**i for i in range(count)])
    assert torch.equal(values, expected)
    assert weights.dtype == torch.float64
    for column in range(37):
        found = [round(math.log2(w)) for w in weights[:, column].tolist()]
        assert sorted(found) == list(range(count))
        assert all(tensors[i][column] == v for i, v in zip(found, values[:, column], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_of_unlike_sign_have_an_order_wherever_they_stand(dtype):
    ones = [torch.full((37,), value, dtype=dtype) for value in (0.0, -0.0, 0.0)]
    lowest = from_sorted(ones, lambda rows: rows[0])
    middle = from_sorted(ones, lambda rows: rows[1])
    assert torch.signbit(lowest).all()
    assert not torch.signbit(middle).any()
    values, _ = in_order_with_weights(ones, (0.2, 0.5, 0.3))
    assert torch.equal(bits(values[0]), bits(ones[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 19, ordering.COMPARED, ordering.COMPARED + 1, 64, 201])
def test_comparing_and_sorting_agree_bit_for_bit(count, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(count)
    # Rounded, so that values repeat and zeros of both signs stand beside each other.
    drawn = torch.randn(count, 4100, generator=generator, dtype=dtype).round(decimals=1)
    tensors = [row.view(41, 100) for row in drawn]
    assert torch.signbit(drawn[drawn == 0]).any()
    takes = [
        lambda rows: rows[0],
        lambda rows: rows[len(rows) // 2],
        lambda rows: rows[-1],
        lambda rows: weighted_mean(rows[1:], [1 / (len(rows) - 1)] * (len(rows) - 1)),
    ]
    for take in takes:
        monkeypatch.setattr(ordering, "COMPARED", count)
        compared = from_sorted(tensors, take)
        monkeypatch.setattr(ordering, "COMPARED", 0)
        assert torch.equal(bits(from_sorted(tensors, take)), bits(compared))
    assert torch.equal(torch.stack(tensors), drawn.view(count, 41, 100))


def test_a_hundred_members_are_sorted_and_not_compared(monkeypatch):
    monkeypatch.setattr(ordering, "_compared", None)
    tensors = [torch.tensor([float(i), -float(i)]) for i in range(100)]
    assert from_sorted(tensors, lambda rows: rows[98]).tolist() == [98.0, -1.0]


def test_negative_numbers_denormals_and_large_ones_are_in_order():
    row = [3e38, -3e38, 1e-45, -1e-45, 0.0, -1.0, 1.0]
    tensors = [torch.tensor([value]) for value in row]
    found = [from_sorted(tensors, lambda rows, at=i: rows[at]).item() for i in range(len(row))]
    assert found == sorted(torch.tensor(row).tolist())


def test_weights_are_equal_but_for_their_last_digits():
    assert are_equal((1 / 3, 1 / 3, 1 - 2 / 3))
    assert not are_equal((0.3, 0.3, 0.4))
