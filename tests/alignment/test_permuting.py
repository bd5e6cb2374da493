from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.permuting import apply, composed, drawn, inverse, kept
from alloykit.errors import InvalidParameter, MismatchedCheckpoints

HEADS = PermutationGroup("heads", 2, (Place("q", 0, 3), Place("o", 1, 3)))
DIMS = PermutationGroup("dims", 3, (Place("q", 0), Place("o", 1)))
GROUPS = PermutationGroups((HEADS, DIMS), {"q": (6, 4), "o": (5, 6)})
FINER = PermutationGroups((HEADS, replace(DIMS, within="heads")), GROUPS.shapes)


def state():
    return {"q": torch.arange(24.0).reshape(6, 4), "o": torch.arange(30.0).reshape(5, 6)}


def test_blocks_and_what_is_inside_them_are_permuted_apart():
    moved = apply(GROUPS, {"heads": torch.tensor([1, 0]), "dims": torch.tensor([2, 0, 1])}, state())
    rows = [5, 3, 4, 2, 0, 1]
    assert torch.equal(moved["q"], state()["q"][rows])
    assert torch.equal(moved["o"], state()["o"][:, rows])


def test_groups_left_out_stay_and_nothing_is_modified():
    given = state()
    moved = apply(GROUPS, {"heads": torch.tensor([1, 0])}, given)
    assert torch.equal(moved["q"], given["q"][[3, 4, 5, 0, 1, 2]])
    assert torch.equal(given["q"], state()["q"])


def test_inverse_and_composition():
    for groups in (GROUPS, FINER):
        one, two = drawn(groups, 1), drawn(groups, 2)
        back = apply(groups, inverse(groups, one), apply(groups, one, state()))
        assert all(torch.equal(back[name], tensor) for name, tensor in state().items())
        both = apply(groups, composed(groups, one, two), state())
        after = apply(groups, two, apply(groups, one, state()))
        assert all(torch.equal(both[name], after[name]) for name in both)
        same = apply(groups, kept(groups), state())
        assert all(torch.equal(same[name], tensor) for name, tensor in state().items())


def test_parts_of_a_permutation_are_inverted_and_composed():
    outer, inner = {"heads": torch.tensor([1, 0])}, {"dims": torch.tensor([[1, 0, 2], [2, 0, 1]])}
    for part in (outer, inner):
        back = apply(FINER, inverse(FINER, part), apply(FINER, part, state()))
        assert all(torch.equal(back[name], tensor) for name, tensor in state().items())
    both = apply(FINER, composed(FINER, inner, outer), state())
    after = apply(FINER, outer, apply(FINER, inner, state()))
    assert all(torch.equal(both[name], after[name]) for name in both)


def test_units_within_others_have_an_order_for_each():
    order = {"heads": torch.tensor([1, 0]), "dims": torch.tensor([[1, 0, 2], [2, 0, 1]])}
    moved = apply(FINER, order, state())
    rows = [4, 3, 5, 2, 0, 1]
    assert torch.equal(moved["q"], state()["q"][rows])
    assert torch.equal(moved["o"], state()["o"][:, rows])
    with pytest.raises(InvalidParameter, match="dims   not an order of 3 units for each of 2 of"):
        apply(FINER, {"dims": torch.tensor([1, 0, 2])}, state())


def test_the_same_seed_draws_the_same():
    assert all(torch.equal(a, b) for a, b in zip(
        drawn(GROUPS, 3).values(), drawn(GROUPS, 3).values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64,
     torch.float8_e4m3fn, torch.float8_e5m2],
)  # fmt: skip
def test_every_dtype_is_carried(dtype):
    group = PermutationGroup("w", 4, (Place("w", 0),))
    groups = PermutationGroups((group,), {"w": (4,)})
    given = torch.tensor([0.0, 1.0, 2.0, 3.0]).to(dtype)
    order = torch.tensor([3, 1, 0, 2])
    moved = apply(groups, {"w": order}, {"w": given})["w"]
    assert moved.dtype == dtype
    expected = given.to(torch.complex64)[order] if dtype.is_complex else given.float()[order]
    assert torch.equal(moved.to(expected.dtype), expected)


def test_tied_tensors_stay_tied_and_others_pass():
    group = PermutationGroup("w", 2, (Place("a", 0), Place("b", 0)))
    groups = PermutationGroups((group,), {"a": (2,), "b": (2,)})
    tensor, other = torch.tensor([1.0, 2.0]), torch.tensor(7)
    moved = apply(groups, {"w": torch.tensor([1, 0])}, {"a": tensor, "b": tensor, "count": other})
    assert moved["a"] is moved["b"]
    assert moved["a"].tolist() == [2.0, 1.0]
    assert moved["count"] is other


def test_wrong_tensors_are_listed():
    with pytest.raises(MismatchedCheckpoints) as caught:
        apply(GROUPS, {}, {"q": torch.zeros(8, 4)})
    assert str(caught.value).startswith(
        "A state dict does not have the tensors that are permuted: 2 of 2 differ.\n"
        "  q   needed: [6, 4]   given: [8, 4]\n"
        "  o   needed: [5, 6]   missing\n"
    )
    assert "equal widths" in str(caught.value)


@pytest.mark.parametrize("order", [[0, 0], [0, 2], [0], [0, 1, 2]])
def test_orders_that_are_no_permutations_are_refused(order):
    with pytest.raises(InvalidParameter, match="heads   not an order of 2 units"):
        apply(GROUPS, {"heads": torch.tensor(order)}, state())


def test_orders_of_unknown_groups_are_refused():
    with pytest.raises(InvalidParameter, match="tails   the model has no such group"):
        apply(GROUPS, {"tails": torch.tensor([0])}, state())
