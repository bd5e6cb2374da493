from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from alloykit.errors import InvalidParameter
from alloykit.merging.trimmed_mean import cut_at_each_end, trimmed_mean
from alloykit.types import TensorGroup


def merged(tensors, weights=None, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = weights or (1 / len(tensors),) * len(tensors)
    group = TensorGroup("w", names, tuple(tensors), tuple(weights))
    return trimmed_mean(**parameters).merge(group, None)


@given(st.integers(5, 12), st.integers(0, 1000), st.sampled_from([0.2, 0.25, 0.4]))
def test_it_is_scipys(count, seed, trim):
    arrays = np.random.default_rng(seed).normal(size=(count, 6))
    found = merged([torch.from_numpy(array) for array in arrays], trim=trim)
    np.testing.assert_allclose(found, trim_mean(arrays, trim, axis=0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("count", "trim", "cut"),
    [
        (1, 0.4, 0),
        (2, 0.4, 0),
        (3, 0.1, 1),
        (9, 0.2, 1),
        (10, 0.2, 2),
        (10, 0.3, 3),
        (100, 0.29, 29),
        (7, 0.0, 0),
    ],
)
def test_how_many_are_cut(count, trim, cut):
    assert cut_at_each_end(count, trim) == cut


@given(st.lists(st.integers(1, 3), min_size=3, max_size=5), st.integers(0, 1000))
def test_with_weights_a_part_of_the_weight_is_cut(counts, seed):
    """Two weights of a model are two models of weight one, of which the same part is cut."""
    values = np.random.default_rng(seed).normal(size=(len(counts), 4)).round(1)
    total, count = sum(counts), len(counts)
    cut = cut_at_each_end(count, 0.2) / count
    fine = 60
    copies = np.sort(np.repeat(values, [c * fine for c in counts], axis=0), axis=0)
    ends = round(cut * total * fine)
    expected = copies[ends : total * fine - ends].mean(axis=0)
    found = merged([torch.from_numpy(v) for v in values], [c / total for c in counts])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_one_broken_model_of_three_does_not_matter():
    tensors = [torch.tensor([1.0, 4.0]), torch.tensor([2.0, 5.0]), torch.tensor([1e30, -1e30])]
    assert merged(tensors, trim=0.01).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4)])
def test_no_trim_is_the_mean(weights):
    tensors = list(torch.randn(4, 5, dtype=torch.float64))
    shares = weights or (0.25,) * 4
    expected = sum(w * t for w, t in zip(shares, tensors, strict=True))
    torch.testing.assert_close(merged(tensors, weights, trim=0.0), expected)


@pytest.mark.parametrize("trim", [-0.1, 0.5, math.nan])
def test_half_cannot_be_cut_at_each_end(trim):
    with pytest.raises(
        InvalidParameter, match=r"'trim' parameter of trimmed_mean .* less than a half"
    ):
        trimmed_mean(trim=trim)
