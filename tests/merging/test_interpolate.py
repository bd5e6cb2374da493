from __future__ import annotations

import math

import pytest
import torch

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.merging.interpolate import interpolate
from alloykit.types import TensorGroup


def group(base, tensor):
    return TensorGroup("w", ("tuned",), (tensor,), (1.0,), base=base)


def merged(base, tensor, alpha):
    return interpolate(alpha=alpha).merge(group(base, tensor), None)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, 2.0), (0.25, 3.0), (0.5, 4.0), (1.0, 6.0), (1.5, 8.0), (-0.5, 0.0)],
)
def test_it_walks_the_line_and_beyond(alpha, expected):
    assert merged(torch.tensor([2.0]), torch.tensor([6.0]), alpha).item() == expected


def test_the_ends_are_exact_where_the_line_would_round():
    base, tensor = torch.tensor([1e8, -0.0, 3e38]), torch.tensor([1.0, 0.1, -3e38])
    for alpha, end in ((0, base), (1, tensor)):
        result = merged(base, tensor, alpha)
        assert torch.equal(result.view(torch.int32), end.view(torch.int32))
        result.zero_()
    assert base[0] == 1e8
    assert tensor[0] == 1.0


@pytest.mark.parametrize("alpha", [0.3, -0.3, 1.7])
def test_a_zero_that_both_have_keeps_its_sign(alpha):
    zero = torch.tensor([-0.0, 0.0])
    assert torch.signbit(merged(zero, zero.clone(), alpha)).tolist() == [True, False]


def test_it_equals_lerp():
    base, tensor = torch.linspace(-3, 2, 50).double(), torch.linspace(5, -7, 50).double()
    torch.testing.assert_close(merged(base, tensor, 0.3), torch.lerp(base, tensor, 0.3))


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_alpha_must_be_finite(alpha):
    with pytest.raises(InvalidParameter, match="'alpha' parameter of interpolate must be a finite"):
        interpolate(alpha=alpha)


def test_without_a_base_it_says_what_to_pass():
    with pytest.raises(MissingInput, match=r"no base was given\. Pass base="):
        interpolate().merge(group(None, torch.ones(1)), None)


def test_its_contract():
    method = interpolate()
    assert method.needs == {"base"}
    assert list(method.members) == [1]
    assert dict(method.parameters) == {"alpha": 0.5}
