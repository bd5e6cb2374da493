from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.merging.median import median
from alloykit.types import TensorGroup


def merged(tensors, weights=None):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    return median().merge(TensorGroup("w", names, tuple(tensors), tuple(weights)), None)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_it_is_numpys(count, seed):
    arrays = np.random.default_rng(seed).normal(size=(count, 6, 4))
    found = merged([torch.from_numpy(array) for array in arrays])
    np.testing.assert_allclose(found, np.median(arrays, axis=0), rtol=1e-13, atol=1e-15)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 1000))
def test_a_weight_of_two_is_the_model_twice(counts, seed):
    arrays = np.random.default_rng(seed).normal(size=(len(counts), 9)).round(1)
    total = sum(counts)
    found = merged([torch.from_numpy(a) for a in arrays], [c / total for c in counts])
    np.testing.assert_allclose(
        found, np.median(np.repeat(arrays, counts, axis=0), axis=0), rtol=1e-12, atol=1e-15
    )


def test_a_minority_cannot_move_it_far():
    honest = [torch.tensor([1.0, 2.0]), torch.tensor([1.2, 2.1]), torch.tensor([0.9, 1.8])]
    broken = [torch.tensor([1e30, -1e30])] * 2
    found = merged(honest + broken)
    assert found.tolist() == [pytest.approx(1.2), pytest.approx(1.8)]


def test_large_numbers_do_not_overflow_in_between():
    assert merged([torch.tensor([3e38]), torch.tensor([2e38])]).item() == pytest.approx(2.5e38)
    assert math.isfinite(merged([torch.tensor([3e38]), torch.tensor([3e38])]).item())
