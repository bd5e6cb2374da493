"""DELLA, summed (della_linear) and elected (della), and the probabilities of ranks."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.della import della
from alloykit.merging.della_linear import della_linear
from alloykit.merging.dropping import rank_probabilities
from alloykit.types import TensorGroup

BOTH = pytest.mark.parametrize("factory", [della, della_linear])


def merged(method, *members, weights=None, seed=0):
    tensors = tuple(torch.as_tensor(member) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0,) * len(tensors))
    base = torch.zeros_like(tensors[0])
    return merge_whole(method, TensorGroup("w", names, tensors, weights, base=base, seed=seed))


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_grow_with_the_rank_in_the_row(dtype):
    rows = torch.tensor([[3.0, -1.0, 2.0, 0.0, -5.0], [0.1, 0.2, 0.3, 0.4, 0.5]], dtype=dtype)
    expected = [[0.6, 0.4, 0.5, 0.3, 0.7], [0.3, 0.4, 0.5, 0.6, 0.7]]
    torch.testing.assert_close(
        rank_probabilities(rows, 0.5, 0.2), torch.tensor(expected, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_magnitudes_the_earlier_has_the_lower_rank(dtype):
    found = rank_probabilities(torch.tensor([2.0, -2.0, 1.0, 2.0, -1.0], dtype=dtype), 0.5, 0.2)
    assert found.tolist() == pytest.approx([0.5, 0.6, 0.3, 0.7, 0.4])


def test_ranks_equal_those_of_two_argsorts():
    values = normal(17, 333)
    ranks = values.abs().argsort(1).argsort(1)
    torch.testing.assert_close(
        rank_probabilities(values, 0.5, 0.4), 0.1 + 0.8 * ranks / 332, rtol=1e-6, atol=1e-7
    )


def test_a_row_is_a_slice_of_the_first_dimension_and_a_second_one_for_mergekit():
    values = normal(4, 3, 5)
    flat = rank_probabilities(values.reshape(4, 15), 0.5, 0.2).reshape(4, 3, 5)
    assert torch.equal(rank_probabilities(values, 0.5, 0.2), flat)
    ranks = values.abs().argsort(1).argsort(1)
    along = rank_probabilities(values, 0.5, 0.2, along=1)
    torch.testing.assert_close(along, 0.3 + 0.4 * ranks / 2)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1)])
def test_rows_of_one_element_have_the_density(shape):
    assert rank_probabilities(torch.ones(shape), 0.4, 0.3).unique().tolist() == pytest.approx([0.4])
    assert rank_probabilities(torch.ones(0, 3), 0.4, 0.3).shape == (0, 3)


@BOTH
def test_each_rank_is_kept_as_often_as_its_probability_and_divided_by_it(factory):
    values = normal(2000, 20).abs() + 0.1
    found = merged(factory(density=0.5, epsilon=0.4), values)
    probability = rank_probabilities(values, 0.5, 0.4)
    kept = found != 0.0
    torch.testing.assert_close(found[kept], (values / probability)[kept])
    for rank in range(20):
        chosen = probability == probability.flatten().unique()[rank]
        expected = float(probability[chosen].mean())
        share = float(kept[chosen].float().mean())
        assert abs(share - expected) < 5 * (0.25 / int(chosen.sum())) ** 0.5


@BOTH
def test_without_rescaling_what_is_kept_stays_as_it_is(factory):
    values = normal(50, 40)
    found = merged(factory(density=0.5, rescale=False), values)
    assert torch.equal(found[found != 0.0], values[found != 0.0])


@BOTH
def test_mergekit_gives_back_the_norm_of_the_whole_tensor(factory):
    values = normal(500, 300)
    found = merged(factory(density=0.5, compat="mergekit"), values)
    torch.testing.assert_close(found.abs().sum(), values.abs().sum(), rtol=1e-5, atol=0.0)


@BOTH
def test_densities_of_zero_and_one_have_no_probabilities(factory):
    values = normal(7, 9)
    assert torch.equal(merged(factory(density=1.0), values), values)
    assert merged(factory(density=0.0), values).count_nonzero() == 0


def test_those_that_agree_are_averaged_and_sums_have_weights():
    members = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])]
    assert merged(della(density=1.0), *members).tolist() == [2.0, 2.0]
    assert merged(della(density=1.0, normalize=False), *members).tolist() == [4.0, 2.0]
    whole = della_linear(density=1.0, scale=0.5)
    assert merged(whole, *members, weights=(1.0, -1.0)).tolist() == [-1.0, 1.5]


@BOTH
def test_probabilities_must_lie_between_0_and_1(factory):
    with pytest.raises(InvalidParameter, match=r"density 0\.9, epsilon 0\.15: 0\.75 to 1\.05"):
        factory(density=0.9)
    with pytest.raises(InvalidParameter) as caught:
        factory(density=[0.1, 0.5, 0.95, 1.0], epsilon=0.2)
    assert "density 0.1, epsilon 0.2: -0.1 to 0.3" in str(caught.value)
    assert "density 0.95, epsilon 0.2: 0.75 to 1.15" in str(caught.value)
    assert "density 0.5" not in str(caught.value)


@BOTH
def test_parameters_out_of_range(factory):
    with pytest.raises(InvalidParameter, match=r"'epsilon' parameter .* a number in \[0, 0.5\]"):
        factory(epsilon=-0.1)
    with pytest.raises(InvalidParameter, match="has 2 numbers, and 'epsilon' has 3"):
        factory(density=[0.5, 0.5], epsilon=[0.1, 0.1, 0.1])


@BOTH
def test_its_contract(factory):
    assert factory().unit == "row"
    assert factory().per_member == {"density", "epsilon"}
    assert factory().needs == {"base"}
