from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.arcee_fusion import arcee_fusion, divergence, importance
from alloykit.types import TensorGroup


def grouped(base, member):
    return TensorGroup("w", ("m",), (member,), (1.0,), base=base)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_definition(base, member):
    """In NumPy's longest floats, as it is written."""
    base, member = (each.numpy().astype(np.longdouble) for each in (base, member))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (member, base))
    scores = np.abs(member - base) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ordered = np.sort(scores.reshape(-1))
    first, median, third = (ordered[int(share * (scores.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(scores >= median + 1.5 * (third - first), member, base)


@pytest.mark.parametrize("shape", [(33,), (6, 5), (2, 3, 4), (70, 100), (300, 250)])
@pytest.mark.parametrize("spread", [1e-3, 0.1, 2.0])
def test_it_is_what_it_says(shape, spread):
    base = normal(*shape)
    member = base + spread * normal(*shape, seed=1) ** 3
    found = merge_whole(arcee_fusion(), grouped(base, member)).numpy()
    expected = by_definition(base, member)
    assert (found == expected).all()
    assert 0.0 < (found == member.numpy()).mean() < 0.5


def test_every_element_is_the_members_or_the_bases_to_the_bit():
    base, member = normal(50, 40), normal(50, 40, seed=1)
    found = merge_whole(arcee_fusion(), grouped(base, member))
    assert bool(((found == base) | (found == member)).all())
    assert found.data_ptr() not in (base.data_ptr(), member.data_ptr())


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-6, 1e-3])
def test_a_small_divergence_is_exact_and_never_negative(size):
    base = normal(20, 300, dtype=torch.float64)
    change = size * normal(20, 300, seed=1, dtype=torch.float64)
    found = divergence(base + change, base)
    # To second order it is half the variance of the change under the base's probabilities.
    q = base.softmax(-1)
    mean = (q * change).sum(-1, keepdim=True)
    second_order = 0.5 * (q * (change - mean).square()).sum(-1, keepdim=True)
    torch.testing.assert_close(found, second_order, rtol=max(1e-2 * size**0.5, 2e-3), atol=0.0)
    assert bool((found >= 0.0).all())


def test_it_equals_torchs_divergence_where_that_is_exact():
    one, other = normal(30, 20, dtype=torch.float64), normal(30, 20, seed=1, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), one.log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(divergence(one, other), expected.sum(-1, keepdim=True))


def test_weights_that_are_far_apart_are_no_nan():
    one = torch.tensor([[1000.0, -1000.0, 0.0]], dtype=torch.float64)
    assert divergence(one, -one).item() == pytest.approx(2000.0)
    assert divergence(one, one).item() == 0.0


def test_mergekits_shift_is_reproduced():
    one, other = normal(4, 7, dtype=torch.float64), normal(4, 7, seed=1, dtype=torch.float64)
    p, q = one.softmax(-1) + 1e-8, other.softmax(-1) + 1e-8
    expected = (p * (p / q).log()).sum(-1, keepdim=True)
    assert torch.equal(divergence(one, other, "mergekit"), expected)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (0,), (3, 0)])
def test_where_nothing_stands_out_the_member_is_taken(shape):
    base, member = torch.zeros(shape), torch.ones(shape)
    assert torch.equal(merge_whole(arcee_fusion(), grouped(base, member)), member)


def test_importance_is_the_change_times_the_divergence_of_its_row():
    base, member = normal(3, 4), normal(3, 4, seed=1)
    found = importance(grouped(base, member))
    expected = (member - base).abs().double() * divergence(member.double(), base.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_its_contract():
    method = arcee_fusion()
    assert method.unit == "row"
    assert list(method.members) == [1]
    assert method.needs == {"base"}
    with pytest.raises(InvalidParameter, match="'compat' parameter of arcee_fusion"):
        arcee_fusion(compat="arcee")
