from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.errors import AlignmentError

HEADS = PermutationGroup("heads", 2, (Place("q", 0, 3), Place("o", 1, 3)))
DIMS = PermutationGroup("dims", 3, (Place("q", 0), Place("o", 1)))
SHAPES = {"q": (6, 4), "o": (5, 6), "count": ()}
GROUPS = PermutationGroups((HEADS, DIMS), SHAPES, frozenset({"count"}), ("lstm",))


def test_groups_survive_json_as_values_and_as_text():
    assert PermutationGroups.of_json(GROUPS.to_json()) == GROUPS
    assert PermutationGroups.of_json(json.dumps(GROUPS.to_json())) == GROUPS


def test_groups_written_by_hand_may_leave_out_strides():
    given = {"groups": [{"name": "w", "size": 2, "axes": [["w", 0]]}], "shapes": {"w": [2]}}
    (group,) = PermutationGroups.of_json(given).groups
    assert group.axes == (Place("w", 0, 1),)


def test_groups_are_found_by_name_and_by_tensor():
    assert GROUPS["dims"] is DIMS
    assert [*GROUPS.places["o"]] == [(HEADS, Place("o", 1, 3)), (DIMS, Place("o", 1))]


def test_groups_are_frozen():
    with pytest.raises(FrozenInstanceError):
        HEADS.size = 3


def test_groups_within_others_know_where_these_lie():
    finer = PermutationGroups((HEADS, replace(DIMS, within="heads")), SHAPES)
    assert finer.inner(HEADS) == [finer["dims"]]
    assert finer.holder(finer["dims"], Place("o", 1)) == Place("o", 1, 3)
    assert finer.holder(HEADS, Place("o", 1, 3)) is None
    assert PermutationGroups.of_json(finer.to_json()) == finer


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(DIMS, within="tails"), "dims   within 'tails', which is no outer group"),
        (replace(HEADS, within="dims", name="both"), "no slower place of 'dims' on this axis"),
        (PermutationGroup("dims", 3, (Place("q", 0), Place("k", 0)), "heads"),
         "dims   k dimension 0, stride 1: no slower place of 'heads' on this axis"),
    ],
)  # fmt: skip
def test_groups_that_are_within_nothing_are_refused(wrong, why):
    others = (HEADS, DIMS) if wrong.name == "both" else (HEADS,)
    with pytest.raises(AlignmentError) as caught:
        PermutationGroups((*others, wrong), {**SHAPES, "k": (3,)})
    assert why in str(caught.value)


def test_everything_that_does_not_fit_is_listed():
    wrong = (
        PermutationGroup("a", 2, (Place("gone", 0), Place("q", 2))),
        PermutationGroup("a", 4, (Place("q", 0),)),
    )
    with pytest.raises(AlignmentError) as caught:
        PermutationGroups(wrong, SHAPES)
    assert str(caught.value) == (
        "These permutation groups do not fit the model's tensors:\n"
        "  a   names 2 groups\n"
        "  a   gone dimension 0, stride 1: no such tensor\n"
        "  a   q dimension 2, stride 1: the shape is [6, 4]\n"
        "  a   q dimension 0, stride 1: 4 units do not fit the shape [6, 4]\n"
        "A group needs a name of its own, and dimensions of a multiple of size times stride."
    )


@pytest.mark.parametrize(
    "given", [{}, {"groups": [{"name": "a"}], "shapes": {}}, {"groups": 3}, "[1, 2]", "{nonsense"]
)
def test_json_that_holds_no_groups_is_refused(given):
    with pytest.raises(AlignmentError, match="These are no permutation groups"):
        PermutationGroups.of_json(given)
