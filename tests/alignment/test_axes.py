from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloykit.alignment.axes import atoms, axis, broadcast, fixed, freeze, length, regrouped, unify


def sizes(given):
    return [atom.size for atom in atoms(given)]


def test_an_axis_of_one_entry_has_no_atoms():
    assert axis(1) == ()
    assert length(axis(1)) == 1
    assert [length(each) for each in fixed((2, 1, 3))] == [2, 1, 3]
    assert all(atom.frozen for each in fixed((2, 1, 3)) for atom in each)


def test_equal_sizes_become_one_atom_and_frost_spreads_both_ways():
    for cold in (0, 1):
        pair = [axis(4), axis(4)]
        freeze(pair[cold])
        unify(*pair)
        assert atoms(pair[0]) == atoms(pair[1])
        assert atoms(pair[0])[0].frozen


def test_freezing_after_joining_reaches_everything_joined():
    one, two, three = axis(4), axis(4), axis(4)
    unify(one, two)
    unify(two, three)
    freeze(three)
    assert atoms(one)[0].frozen


def test_a_whole_is_split_like_its_parts_and_stays_split():
    whole, heads, dims = axis(24), axis(4), axis(6)
    unify(whole, heads + dims)
    assert sizes(whole) == [4, 6]
    assert atoms(whole) == atoms(heads) + atoms(dims)
    other = axis(24)
    unify(other, whole)
    assert atoms(other) == atoms(whole)


def test_parts_of_a_frozen_atom_are_frozen():
    whole = axis(6, frozen=True)
    unify(whole, axis(2) + axis(3))
    assert [atom.frozen for atom in atoms(whole)] == [True, True]


def test_products_refine_each_other():
    left, right = axis(2) + axis(12), axis(8) + axis(3)
    unify(left, right)
    assert sizes(left) == sizes(right) == [2, 4, 3]
    assert atoms(left) == atoms(right)


@pytest.mark.parametrize(
    ("left", "right"), [(axis(4) + axis(6), axis(6) + axis(4)), (axis(4), axis(6))]
)
def test_axes_without_a_common_factoring_are_frozen(left, right):
    unify(left, right)
    assert all(atom.frozen for atom in atoms(left) + atoms(right))


def test_broadcasting_unifies_from_the_right_and_skips_single_entries():
    wide, row, column = (axis(2), axis(3)), (axis(3),), (axis(2), ())
    found = broadcast([wide, row, column])
    assert [length(each) for each in found] == [2, 3]
    assert atoms(row[0]) == atoms(wide[1]) == atoms(found[1])
    assert atoms(column[0]) == atoms(wide[0]) == atoms(found[0])


def test_reshapes_that_cut_atoms_have_no_answer():
    assert regrouped((axis(4), axis(6)), (6, 4)) is None
    assert regrouped((axis(3), axis(2)), (2, 3)) is None
    assert regrouped((axis(4),), (0,)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.randoms())
def test_a_regrouped_tensor_is_the_reshaped_one(before, random):
    """Permuting atoms and then reshaping is reshaping and then permuting the new axes."""
    total = math.prod(before)
    after = random.choice([
        shape
        for count in (1, 2, 3)
        for shape in itertools.product(range(1, total + 1), repeat=count)
        if math.prod(shape) == total
    ] if total <= 24 else [(total,), (before[0], total // before[0])])  # fmt: skip
    old = tuple(axis(size) for size in before)
    new = regrouped(old, after)
    if new is None:
        return
    orders = {atom: torch.randperm(atom.size) for each in old for atom in atoms(each)}
    tensor = torch.arange(total).reshape(before)
    assert torch.equal(
        permuted(tensor, old, orders).reshape(after), permuted(tensor.reshape(after), new, orders)
    )


def permuted(tensor, axes, orders):
    factors = [atom for each in axes for atom in atoms(each)]
    found = tensor.reshape([atom.size for atom in factors])
    for dimension, atom in enumerate(factors):
        found = found.index_select(dimension, orders[atom])
    return found.reshape(tensor.shape)
