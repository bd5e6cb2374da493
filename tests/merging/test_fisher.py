from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.fisher import fisher
from alloykit.types import TensorGroup


def group(weights=(0.5, 0.5), shape=(40,), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    count = len(weights)
    tensors = torch.randn(count, *shape, generator=generator, dtype=dtype)
    diagonals = torch.randn(count, *shape, generator=generator).square()
    return TensorGroup(
        "w", tuple("abc"[:count]), tuple(tensors), weights, stats={"fisher": tuple(diagonals)}
    )


def test_it_is_the_weighted_mean_by_fisher_information():
    made = group((0.2, 0.3, 0.5))
    f = torch.stack(made.stats["fisher"]).double() * torch.tensor(made.weights)[:, None]
    expected = (f * torch.stack(made.tensors).double()).sum(0) / f.sum(0)
    found = merge_whole(fisher(), made)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=5e-7)


def test_by_hand():
    stats = {"fisher": (torch.tensor([9.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))}
    made = TensorGroup("w", ("a", "b"), (torch.zeros(3), torch.ones(3)), (0.5, 0.5), stats=stats)
    torch.testing.assert_close(merge_whole(fisher(), made), torch.tensor([0.1, 1e-10, 0.5]))
    weighted = replace(made, weights=(0.25, 0.75))
    torch.testing.assert_close(merge_whole(fisher(), weighted), torch.tensor([0.25, 3e-10, 0.75]))


@pytest.mark.parametrize("floor", [0.0, 1e-10, 1e-3])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-35])
def test_information_too_small_to_count_is_the_mean_and_never_nan(floor, size):
    made = replace(group((0.25, 0.75)), stats={"fisher": (torch.full((40,), size),) * 2})
    expected = 0.25 * made.tensors[0] + 0.75 * made.tensors[1]
    torch.testing.assert_close(merge_whole(fisher(floor=floor), made), expected)


def test_the_floor_bounds_the_ratio():
    stats = {"fisher": (torch.tensor([1.0]), torch.tensor([0.0]))}
    made = TensorGroup("w", ("a", "b"), (torch.zeros(1), torch.ones(1)), (0.5, 0.5), stats=stats)
    assert merge_whole(fisher(floor=0.25), made).item() == pytest.approx(0.2)


def test_normalised_every_member_has_the_same_say_in_all():
    made = group()
    louder = replace(
        made, stats={"fisher": (made.stats["fisher"][0] * 1e4, made.stats["fisher"][1])}
    )
    once, again = (merge_whole(fisher(normalize=True), each) for each in (made, louder))
    torch.testing.assert_close(once, again)
    assert not torch.allclose(merge_whole(fisher(), made), merge_whole(fisher(), louder))
    f = torch.stack([d / d.norm() for d in made.stats["fisher"]])
    expected = (f * torch.stack(made.tensors)).sum(0) / f.sum(0)
    torch.testing.assert_close(once, expected)
    assert fisher(normalize=True).scope == "model"


def test_a_diagonal_of_zeros_is_not_divided_by():
    made = replace(group(), stats={"fisher": (torch.zeros(40), torch.zeros(40))})
    expected = 0.5 * (made.tensors[0] + made.tensors[1])
    torch.testing.assert_close(merge_whole(fisher(normalize=True), made), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5)])
def test_equal_members_give_exactly_that_member(shape, normalize):
    made = group((0.2, 0.3, 0.5), shape)
    tensor = made.tensors[0].clone()
    if tensor.numel() > 1:
        tensor.view(-1)[:2] = -0.0
    found = merge_whole(fisher(normalize=normalize), replace(made, tensors=(tensor,) * 3))
    assert torch.equal(found, tensor)
    assert torch.equal(torch.signbit(found), torch.signbit(tensor))
    assert not found.numel() or found.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("normalize", [False, True])
def test_tensors_without_a_diagonal_are_averaged(normalize):
    made = replace(group((0.25, 0.75)), stats={})
    expected = 0.25 * made.tensors[0] + 0.75 * made.tensors[1]
    torch.testing.assert_close(merge_whole(fisher(normalize=normalize), made), expected)


def test_inputs_and_statistics_are_left_alone():
    made = group(dtype=torch.float64)
    stats = tuple(d.double() for d in made.stats["fisher"])
    made = replace(made, stats={"fisher": stats})
    before = [t.clone() for t in (*made.tensors, *stats)]
    assert merge_whole(fisher(), made).dtype == torch.float64
    assert all(map(torch.equal, before, (*made.tensors, *stats)))


def test_blocks_give_the_whole():
    made = group()
    whole = merge_whole(fisher(), made)
    method = fisher()
    parts = [
        method.merge(
            replace(
                made,
                tensors=tuple(t[i : i + 7] for t in made.tensors),
                stats={"fisher": tuple(d[i : i + 7] for d in made.stats["fisher"])},
                start=i,
            ),
            None,
        )
        for i in range(0, 40, 7)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_tiny_tensors_of_little_information_and_weight_are_averaged_all_the_same():
    stats = {"fisher": (torch.tensor([1e-10]), torch.tensor([3e-10]))}
    tensors = (torch.tensor([1e-30]), torch.tensor([2e-30]))
    made = TensorGroup("w", ("a", "b"), tensors, (1.0 - 1e-6, 1e-6), stats=stats)
    share = 3e-16 / (1e-10 * (1 - 1e-6) + 3e-16)
    expected = 1e-30 * (1 + share)
    assert merge_whole(fisher(), made).item() == pytest.approx(expected, rel=1e-7)
    assert merge_whole(fisher(), made).item() > 1e-30 * (1 + 0.9 * share)


@pytest.mark.parametrize("floor", [-1e-9, float("nan"), float("inf"), "none"])
def test_the_floor_is_at_least_zero(floor):
    with pytest.raises(
        InvalidParameter, match="'floor' parameter of fisher must be a finite number, at least 0"
    ):
        fisher(floor=floor)


def test_its_contract():
    assert fisher().needs == {"fisher"}
    assert fisher().unit == "element"
    assert fisher().scope == "tensor"
