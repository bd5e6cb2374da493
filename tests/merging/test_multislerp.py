from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.multislerp import multislerp
from alloykit.types import TensorGroup


def merged(tensors, weights, base=None, **parameters):
    names = tuple(f"m{i}" for i in range(len(tensors)))
    group = TensorGroup("w", names, tuple(tensors), tuple(weights), base=base)
    return merge_whole(multislerp(**parameters), group)


def drawn(count, seed=0, shape=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def original(tensors, weights):
    """The published steps, the one in the touching plane included, in float64."""
    vectors = torch.stack([t.double().reshape(-1) for t in tensors])
    shares = torch.tensor(weights, dtype=torch.float64)[:, None]
    lengths = vectors.norm(dim=1, keepdim=True)
    units = vectors / lengths
    mean = (shares * units).sum(0)
    mean = mean / mean.norm()
    tangent = (shares * (units - (units @ mean)[:, None] * mean)).sum(0)
    size = tangent.norm()
    assert size < 1e-12, "the step in the plane is not zero"
    point = torch.cos(size) * mean + torch.sinc(size / torch.pi) * tangent
    return ((shares * lengths).sum() * point).reshape(tensors[0].shape)


@given(st.integers(0, 1000), st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5))
def test_it_is_the_published_method_whose_second_step_is_zero(seed, weights):
    tensors = drawn(len(weights), seed)
    shares = [weight / sum(weights) for weight in weights]
    found = merged(tensors, shares)
    torch.testing.assert_close(found, original(tensors, shares).float(), rtol=1e-4, atol=1e-5)


def test_task_vectors_are_averaged_around_the_base():
    base, *tensors = drawn(4)
    found = merged(tensors, (0.2, 0.3, 0.5), base)
    expected = base + original([t - base for t in tensors], (0.2, 0.3, 0.5)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_directions_and_lengths_are_averaged_apart():
    tensors = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])]
    torch.testing.assert_close(merged(tensors, (0.5, 0.5)), torch.full((2,), 3 * 0.5**0.5))


def test_weights_without_normalize_scale_the_result():
    tensors = drawn(2)
    one = merged(tensors, (1.0, 2.0), normalize_weights=False)
    torch.testing.assert_close(one, 3 * merged(tensors, (1 / 3, 2 / 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        merged(tensors, (-1.0, 2.0), normalize_weights=False),
        original(tensors, (-1.0, 2.0)).float(),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_where_directions_balance_out_it_is_the_mean():
    one = torch.tensor([1.0, 2.0])
    assert merged([one, -one], (0.5, 0.5)).tolist() == [0.0, 0.0]
    assert merged([one, -3 * one], (0.5, 0.5)).tolist() == [-1.0, -2.0]
    assert merged([one] * 3, (1 / 3,) * 3, base=one).tolist() == [1.0, 2.0]


def test_a_member_that_did_not_move_has_no_direction():
    base = torch.tensor([1.0, 1.0])
    found = merged([base, base + torch.tensor([2.0, 0.0])], (0.5, 0.5), base)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0]))


def test_its_contract():
    assert multislerp().optional == {"base"}
    assert (multislerp().weights, multislerp(normalize_weights=False).weights) == (
        "shares",
        "factors",
    )
    with pytest.raises(
        InvalidParameter, match=r"'eps' parameter of multislerp must be .* at least 0"
    ):
        multislerp(eps=-1.0)
