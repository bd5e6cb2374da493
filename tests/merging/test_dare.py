"""DARE, summed (dare_linear) and elected (dare_ties)."""

from __future__ import annotations

import pytest
import torch

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.dare_linear import dare_linear
from alloykit.merging.dare_ties import dare_ties
from alloykit.types import TensorGroup

BOTH = pytest.mark.parametrize("factory", [dare_linear, dare_ties])
SIZE = 100_000


def merged(method, *members, weights=None, base=None, names=None, seed=0):
    tensors = tuple(torch.as_tensor(member) for member in members)
    names = tuple(names or (f"m{i}" for i in range(len(tensors))))
    weights = tuple(weights or (1.0,) * len(tensors))
    base = torch.zeros_like(tensors[0]) if base is None else base
    return merge_whole(method, TensorGroup("w", names, tensors, weights, base=base, seed=seed))


@BOTH
@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_a_share_is_kept_and_divided_by_it(factory, density):
    found = merged(factory(density=density), torch.full((SIZE,), -3.0))
    kept = found[found != 0.0]
    torch.testing.assert_close(kept, torch.full_like(kept, -3.0 / density))
    assert abs(len(kept) / SIZE - density) < 5 * (density * (1 - density) / SIZE) ** 0.5


@BOTH
def test_without_rescaling_what_is_kept_stays_as_it_is(factory):
    found = merged(factory(density=0.5, rescale=False), torch.ones(SIZE))
    assert found.unique().tolist() == [0.0, 1.0]


@BOTH
def test_the_default_drops_nine_tenths_and_mergekits_nothing(factory):
    share = merged(factory(), torch.ones(SIZE)).count_nonzero() / SIZE
    assert share == pytest.approx(0.1, abs=0.01)
    assert torch.equal(merged(factory(compat="mergekit"), torch.ones(9)), torch.ones(9))


@BOTH
def test_density_zero_keeps_nothing_and_one_everything(factory):
    values = torch.linspace(-1.0, 1.0, 99)
    base = torch.full((99,), 0.25)
    assert torch.equal(merged(factory(density=0.0), values, base=base), base)
    torch.testing.assert_close(merged(factory(density=1.0), values, base=base), values)


@BOTH
def test_each_member_may_have_its_density(factory):
    method = factory(density=[0.0, 0.5, 1.0])
    found = merged(method, *(10.0**i * torch.ones(1000) for i in range(3)))
    halves = sorted(set(found.tolist()))
    assert halves == ([100.0, 120.0] if factory is dare_linear else [60.0, 100.0])


@BOTH
def test_what_is_kept_depends_on_the_seed_the_name_and_the_member(factory):
    values, method = torch.ones(1000), factory(density=0.5)
    one = merged(method, values)
    assert torch.equal(merged(method, values), one)
    assert not torch.equal(merged(method, values, seed=1), one)
    assert not torch.equal(merged(method, values, names=["other"]), one)


@BOTH
def test_members_draw_independently_and_keep_their_draw_in_any_order(factory):
    method = factory(density=0.5, normalize=False)
    values = torch.ones(SIZE)
    found = merged(method, values, 3.0 * values, names=["a", "b"])
    shares = [float((found == value).float().mean()) for value in (0.0, 2.0, 6.0, 8.0)]
    assert shares == pytest.approx([0.25] * 4, abs=0.01)
    assert torch.equal(merged(method, 3.0 * values, values, names=["b", "a"]), found)


def test_the_sum_has_weights_a_scale_and_a_mean():
    every = {"density": 1.0, "scale": 0.5}
    members = torch.tensor([4.0]), torch.tensor([8.0])
    assert merged(dare_linear(**every), *members, weights=(1.0, -1.0)).tolist() == [-2.0]
    mean = dare_linear(**every, normalize=True)
    assert merged(mean, *members, weights=(1.0, 3.0)).tolist() == [3.5]


def test_elected_members_are_averaged_and_in_mergekit_summed():
    members = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])]
    assert merged(dare_ties(density=1.0), *members).tolist() == [2.0, 2.0]
    assert merged(dare_ties(compat="mergekit"), *members).tolist() == [4.0, 2.0]
    assert merged(dare_ties(density=1.0, normalize=False), *members).tolist() == [4.0, 2.0]


@BOTH
def test_mergekit_gives_back_the_norm_of_the_whole_tensor(factory):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SIZE, generator=generator)
    found = merged(factory(density=0.3, compat="mergekit"), values)
    torch.testing.assert_close(found.abs().sum(), values.abs().sum(), rtol=1e-5, atol=0.0)
    plain = merged(factory(density=0.3, rescale=False), values)
    assert torch.equal(found != 0.0, plain != 0.0)


@BOTH
def test_the_expectation_is_the_task_vector(factory):
    values = torch.linspace(-1.0, 1.0, 50)
    mean = sum(merged(factory(density=0.5), values, seed=seed) for seed in range(400)) / 400
    torch.testing.assert_close(mean, values, rtol=0.0, atol=0.25)


@BOTH
def test_parameters_out_of_range(factory):
    with pytest.raises(InvalidParameter, match=r"must be a number in \[0, 1\]"):
        factory(density=9.0)
    with pytest.raises(InvalidParameter, match="'compat' parameter"):
        factory(compat="theirs")
    with pytest.raises(InvalidParameter, match="'scale' parameter"):
        factory(scale=float("inf"))


@BOTH
def test_its_contract(factory):
    assert factory().needs == {"base"}
    assert factory().unit == "element"
    assert factory().survey is None
    assert factory(density=0.5, compat="mergekit").survey is not None
    assert factory(density=0.5, compat="mergekit", rescale=False).survey is None
