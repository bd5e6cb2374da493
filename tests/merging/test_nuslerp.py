from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alloykit.errors import InvalidParameter
from alloykit.execution.scanning import merge_whole
from alloykit.merging.nuslerp import nuslerp
from alloykit.types import TensorGroup


def merged(first, second, base=None, weights=(0.5, 0.5), **parameters):
    group = TensorGroup("w", ("a", "b"), (first, second), weights, base=base)
    return merge_whole(nuslerp(**parameters), group)


def by_hand(first, second, t):
    """The formula on two vectors in float64."""
    first, second = first.double(), second.double()
    scale = first.norm() * second.norm()
    if not scale:
        return (1 - t) * first + t * second
    angle = torch.acos((first @ second / scale).clamp(-1, 1))
    sine = torch.sin(angle)
    if sine < 1e-6:
        return (1 - t) * first + t * second
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / sine


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_whole_tensors_rows_and_columns_follow_the_formula(seed, t):
    first, second, base = drawn(4, 5, seed=seed)
    one, two, weights = first - base, second - base, (1 - t, t)
    whole = base + by_hand(one.reshape(-1), two.reshape(-1), t).reshape(4, 5)
    torch.testing.assert_close(
        merged(first, second, base, weights), whole.float(), rtol=1e-5, atol=1e-5
    )
    rows = base + torch.stack([by_hand(a, b, t) for a, b in zip(one, two, strict=True)])
    torch.testing.assert_close(
        merged(first, second, base, weights, flatten=False), rows.float(), rtol=1e-4, atol=1e-4
    )
    columns = base + torch.stack([by_hand(a, b, t) for a, b in zip(one.T, two.T, strict=True)]).T
    found = merged(first, second, base, weights, flatten=False, row_wise=True)
    torch.testing.assert_close(found, columns.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row_wise", [False, True])
def test_vectors_of_convolutions_lie_along_one_dimension(row_wise):
    first, second, _ = drawn(3, 2, 4, 5)
    found = merged(first, second, flatten=False, row_wise=row_wise)
    dim = 0 if row_wise else -1
    one, two = first.movedim(dim, -1), second.movedim(dim, -1)
    lines = [
        by_hand(a, b, 0.5)
        for a, b in zip(one.reshape(-1, one.shape[-1]), two.reshape(-1, one.shape[-1]), strict=True)
    ]
    expected = torch.stack(lines).reshape(one.shape).movedim(-1, dim)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parameters", [{}, {"flatten": False}, {"flatten": False, "row_wise": True}]
)
def test_task_vectors_at_right_angles_keep_their_length(parameters):
    base = torch.ones(2, 2)
    first, second = base + torch.tensor([[3.0, 0.0]] * 2), base + torch.tensor([[0.0, 3.0]] * 2)
    if parameters.get("row_wise"):
        first, second = first.T, second.T
    found = merged(first, second, base, **parameters) - base
    torch.testing.assert_close(found, torch.full((2, 2), 3 * math.sqrt(0.5)))


@pytest.mark.parametrize("flatten", [True, False])
def test_vectors_of_zeros_and_opposite_ones_are_taken_along_the_line(flatten):
    one = torch.tensor([[3.0, 4.0]])
    nearly_opposite = -one + torch.tensor([[-4e-4, 3e-4]])
    for other in (torch.zeros(1, 2), -one, -2 * one, nearly_opposite, one):
        found = merged(one, other, weights=(0.75, 0.25), flatten=flatten)
        torch.testing.assert_close(found, 0.75 * one + 0.25 * other)


@pytest.mark.parametrize("row_wise", [True, False])
def test_equal_members_of_float64_are_kept_to_the_bit(row_wise):
    one = torch.randn(5, 6, dtype=torch.float64)
    for t in torch.linspace(0.01, 0.99, 50).tolist():
        found = merged(one, one.clone(), weights=(1 - t, t), flatten=False, row_wise=row_wise)
        assert torch.equal(found, one)


def test_weights_are_the_place_on_the_arc_in_any_order():
    first, second, _ = drawn(6)
    one = merged(first, second, weights=(0.9, 0.1))
    torch.testing.assert_close(one, merged(second, first, weights=(0.1, 0.9)))
    torch.testing.assert_close(one, by_hand(first, second, 0.1).float())


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("row_wise", [True, False])
def test_what_is_left_of_two_models_is_that_one(flatten, row_wise):
    alone = TensorGroup("w", ("a",), (torch.ones(2, 2),), (1.0,), base=torch.zeros(2, 2))
    found = merge_whole(nuslerp(flatten, row_wise), alone)
    assert torch.equal(found, torch.ones(2, 2))


def test_its_contract():
    assert nuslerp().optional == {"base"}
    assert list(nuslerp().members) == [2]
    assert (nuslerp().unit, nuslerp(flatten=False).unit) == ("element", "row")
    with pytest.raises(InvalidParameter, match="'compat' parameter of nuslerp"):
        nuslerp(compat="mergekti")
