from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter, InvalidWeights, MissingInput
from alloykit.merging.task_arithmetic import task_arithmetic
from alloykit.types import TensorGroup


def merged(tensors, weights, base, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    group = TensorGroup("w", names, tuple(tensors), tuple(weights), base=base)
    return task_arithmetic(**parameters).merge(group, None)


@given(st.integers(0, 1000), st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4),
       st.floats(-1.5, 1.5))  # fmt: skip
def test_it_is_the_formula(seed, weights, scale):
    generator = torch.Generator().manual_seed(seed)
    base, *tensors = torch.randn(len(weights) + 1, 9, generator=generator, dtype=torch.float64)
    step = sum(w * (t - base) for w, t in zip(weights, tensors, strict=True))
    found = merged(tensors, weights, base, scale=scale)
    torch.testing.assert_close(found, base + scale * step, rtol=1e-10, atol=1e-10)
    if abs(sum(weights)) > 0.1:
        found = merged(tensors, weights, base, scale=scale, normalize=True)
        expected = base + scale * step / sum(weights)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_negative_weight_takes_away_what_was_learned():
    base, tuned = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0])
    assert merged([tuned], (-1.0,), base).tolist() == [0.5, 3.0]


def test_no_scale_is_the_base_and_one_model_of_weight_one_is_that_model():
    base, tuned = torch.tensor([0.1, 1e8]), torch.tensor([0.3, 1.0])
    assert torch.equal(merged([tuned], (1.0,), base, scale=0.0), base)
    assert torch.equal(merged([tuned], (1.0,), base), tuned)


def test_weights_that_cancel_cannot_be_normalised():
    base, tuned = torch.zeros(1), torch.ones(1)
    with pytest.raises(InvalidWeights, match=r"sum of the weights \(1.0, -1.0\), and that is 0"):
        merged([tuned, tuned], (1.0, -1.0), base, normalize=True)


def test_what_it_needs_is_said():
    assert task_arithmetic().needs == {"base"}
    assert task_arithmetic().weights == "factors"
    with pytest.raises(InvalidParameter, match="'scale' parameter of task_arithmetic"):
        task_arithmetic(scale=math.nan)
    with pytest.raises(MissingInput, match="task_arithmetic starts from a base"):
        merged([torch.ones(1)], (1.0,), None)
