from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.merging.consensus import consensus
from alloykit.types import TensorGroup


def merged(*members, weights=None, base=None, **parameters):
    tensors = tuple(torch.as_tensor(member) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0,) * len(tensors))
    base = torch.zeros_like(tensors[0]) if base is None else base
    group = TensorGroup("w", names, tensors, weights, base=base)
    return consensus(**parameters).merge(group, None)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.0, 0.4, 2.0, [0.2, 0.4, 0.6, 3.0]])
def test_it_is_what_the_paper_says(factor, k):
    base, *members = np.random.default_rng(2).normal(size=(5, 400))
    deltas = np.stack(members) - base
    total = deltas.sum(0)
    lambdas = np.broadcast_to(factor, 4)[:, None]
    masks = np.abs(deltas) > np.abs(total - deltas) * lambdas
    expected = base + 0.3 * total * (masks.sum(0) >= k)
    found = merged(*members, base=torch.as_tensor(base), tall_mask_lambda=factor, k=k, scale=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_elements_that_matter_to_one_task_alone_stay_the_bases():
    assert merged([1.0, 5.0, 0.1], [1.0, 0.5, 4.0]).tolist() == [2.0, 0.0, 0.0]
    assert merged([1.0, 5.0, 0.0], [1.0, 0.5, 0.0], k=1).tolist() == [2.0, 5.5, 0.0]


def test_with_fewer_members_than_k_nothing_is_added():
    assert merged([1.0, 2.0]).tolist() == [0.0, 0.0]
    assert merged([1.0, 2.0], k=1).tolist() == [1.0, 2.0]


def test_weights_come_before_the_masks():
    assert merged([1.0], [1.0], weights=(1.0, 10.0)).tolist() == [0.0]
    assert merged([1.0], [1.0], weights=(10.0, 10.0)).tolist() == [20.0]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"tall_mask_lambda": -0.1}, "'tall_mask_lambda' parameter of consensus must be"),
        ({"k": 0}, "'k' parameter of consensus must be a whole number, at least 1. Got 0"),
        ({"k": 1.5}, "Got 1.5"),
        ({"scale": float("inf")}, "'scale' parameter"),
    ],
)
def test_parameters_out_of_range(parameters, text):
    with pytest.raises(InvalidParameter, match=text):
        consensus(**parameters)


def test_its_contract():
    assert consensus().needs == {"base"}
    assert consensus().per_member == {"tall_mask_lambda"}
    assert consensus().survey is None
