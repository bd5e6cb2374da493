from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.breadcrumbs import breadcrumbs
from alloykit.merging.breadcrumbs_ties import breadcrumbs_ties
from alloykit.types import TensorGroup


def merged(method, *members, weights=None):
    tensors = tuple(torch.as_tensor(member) for member in members)
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0,) * len(tensors))
    base = torch.zeros_like(tensors[0])
    return merge_whole(method, TensorGroup("w", names, tensors, weights, base=base))


COUNTED = torch.arange(1.0, 101.0) * torch.tensor([1.0, -1.0]).repeat(50)
"""Magnitudes 1 to 100 with alternating signs."""


def kept(method) -> list[int]:
    found = merged(method, COUNTED)
    places = found.nonzero().flatten()
    assert torch.equal(found[places], COUNTED[places])
    return [int(place) + 1 for place in places]


@pytest.mark.parametrize(
    ("density", "gamma", "expected"),
    [
        (0.2, 0.05, range(76, 96)),
        (0.2, 0.0, range(81, 101)),
        (0.15, 0.01, range(85, 100)),
        (0.9, 0.3, range(1, 91)),
        (1.0, 0.3, range(1, 101)),
        (0.0, 0.3, range(0)),
        (0.001, 0.01, range(99, 100)),
        (0.3, 1.0, range(1, 31)),
    ],
)
def test_it_keeps_the_band_below_the_outliers(density, gamma, expected):
    assert kept(breadcrumbs(density=density, gamma=gamma)) == list(expected)
    assert kept(breadcrumbs_ties(density=density, gamma=gamma)) == list(expected)


def test_mergekit_rounds_down_to_nothing_even():
    assert kept(breadcrumbs(density=0.009, gamma=0.019)) == [98]
    assert kept(breadcrumbs(density=0.009, gamma=0.019, compat="mergekit")) == []
    assert kept(breadcrumbs(density=0.019, gamma=0.019, compat="mergekit")) == [99]


def test_equal_magnitudes_at_the_ends_are_kept():
    values = torch.tensor([5.0, 3.0, -3.0, 2.0, 2.0, -2.0, 1.0, 1.0])
    found = merged(breadcrumbs(density=0.375, gamma=0.25), values)
    assert found.tolist() == [0.0, 3.0, -3.0, 2.0, 2.0, -2.0, 0.0, 0.0]


def test_each_member_may_have_its_band():
    method = breadcrumbs(density=[0.1, 0.2], gamma=[0.0, 0.05])
    found = merged(method, COUNTED.abs(), 100 * COUNTED.abs())
    assert found[:75].count_nonzero() == 0
    assert found[75:95].tolist() == [100.0 * i + (i if i > 90 else 0) for i in range(76, 96)]
    assert found[95:].tolist() == [96.0, 97.0, 98.0, 99.0, 100.0]


def test_the_task_vectors_are_summed_with_weights_or_averaged():
    members = [COUNTED, 3.0 * COUNTED]
    every = {"density": 1.0, "scale": 0.5}
    assert torch.equal(merged(breadcrumbs(**every), *members, weights=(2.0, -1.0)), -0.5 * COUNTED)
    mean = merged(breadcrumbs(**every, normalize=True), *members, weights=(1.0, 3.0))
    assert torch.equal(mean, 1.25 * COUNTED)


def test_rescaling_gives_back_the_norm():
    found = merged(breadcrumbs(density=0.5, gamma=0.1, rescale=True), COUNTED)
    torch.testing.assert_close(found.abs().sum(), COUNTED.abs().sum())


def test_the_vote_is_that_of_ties_without_the_outlier():
    members = [[9.0, 1.0, 0.1, 0.0], [-2.0, 3.0, -1.0, 0.0]]
    found = merged(breadcrumbs_ties(density=0.5, gamma=0.25), *members)
    assert found.tolist() == [-2.0, 1.0, -1.0, 0.0]


def test_those_that_agree_are_averaged_and_in_mergekit_summed():
    members = [[1.0, 2.0], [3.0, -1.0]]
    assert merged(breadcrumbs_ties(density=1.0), *members).tolist() == [2.0, 2.0]
    assert merged(breadcrumbs_ties(compat="mergekit"), *members).tolist() == [4.0, 2.0]
    summed = breadcrumbs_ties(density=1.0, normalize=False)
    assert merged(summed, *members).tolist() == [4.0, 2.0]


@pytest.mark.parametrize("factory", [breadcrumbs, breadcrumbs_ties])
def test_parameters_out_of_range(factory):
    with pytest.raises(InvalidParameter, match=r"'gamma' parameter of .* 1 % is 0.01"):
        factory(gamma=1.5)
    with pytest.raises(InvalidParameter, match="'density' parameter"):
        factory(density=[0.5, -1.0])
    with pytest.raises(InvalidParameter, match="has 2 numbers for 1 models"):
        merged(factory(gamma=[0.1, 0.2]), COUNTED)


@pytest.mark.parametrize("factory", [breadcrumbs, breadcrumbs_ties])
def test_its_contract(factory):
    assert factory().needs == {"base"}
    assert factory().per_member == {"density", "gamma"}
    assert factory().weights == "factors"
