import pytest
import torch

from alloykit.checkpoints.matching import match
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import MismatchedCheckpoints


def checkpoints(**states):
    return [open_checkpoint(state, name=name) for name, state in states.items()]


def tokens(rows):
    return {
        "embed.weight": torch.zeros(rows, 4),
        "norm": torch.ones(4),
        "head": torch.zeros(rows, 4),
    }


def test_equal_structure_matches():
    found = match(checkpoints(a=tokens(8), b=tokens(8)))
    assert found.same
    assert found.names == ("embed.weight", "norm", "head")
    assert (found.problems, found.notes) == ((), ())
    found.require()


def test_the_text_for_shapes_is_a_table_with_a_hint():
    with pytest.raises(MismatchedCheckpoints) as caught:
        match(checkpoints(a=tokens(8), b=tokens(8), c=tokens(10))).require()
    assert str(caught.value) == (
        "3 checkpoints cannot be merged: 2 tensors differ in shape.\n"
        "  embed.weight   a: [8, 4]   b: [8, 4]   c: [10, 4]\n"
        "  head           a: [8, 4]   b: [8, 4]   c: [10, 4]\n"
        "c has 2 more rows, probably added tokens or classes. Resize c first: shapes must be equal."
    )


def test_everything_that_differs_is_listed_at_once():
    found = match(
        checkpoints(
            a={"x": torch.zeros(1), "n": torch.zeros(1), "s": torch.zeros(2)},
            b={"y": torch.zeros(1), "n": torch.zeros(1, dtype=torch.int64), "s": torch.zeros(2, 1)},
        )
    )
    assert found.names == ("n", "s")
    assert found.notes == (), "a difference in kind is a problem, and no note besides"
    assert found.problems == (
        "x   a: there     b: missing",
        "y   a: missing   b: there",
        "s   a: [2]       b: [2, 1]",
        "n   a: float32   b: int64",
    )
    with pytest.raises(MismatchedCheckpoints) as caught:
        found.require("averaged")
    assert str(caught.value).startswith(
        "2 checkpoints cannot be averaged: 2 tensors are not in all of them, "
        "1 tensor differs in shape, 1 tensor differs in kind.\n"
    )
    assert "rows" not in str(caught.value)


def test_long_lists_are_cut_after_ten():
    a = {f"a{n}": torch.zeros(1) for n in range(12)}
    with pytest.raises(MismatchedCheckpoints, match="and 3 more"):
        match(checkpoints(a=a, b={"z": torch.zeros(1)})).require()


def test_a_common_prefix_is_named():
    plain, prefixed = {"w": torch.ones(1), "b.w": torch.ones(1)}, {}
    prefixed = {f"model.{name}": tensor for name, tensor in plain.items()}
    for states in ({"a": plain, "b": prefixed}, {"b": prefixed, "a": plain}):
        hint = match(checkpoints(**states)).hint
        assert hint == "The names of b are those of a behind 'model.': rename them, and these fit."


def test_float_dtypes_and_ties_are_notes():
    shared = torch.ones(2)
    found = match(
        checkpoints(
            a={"x": shared, "y": shared},
            b={"x": torch.ones(2, dtype=torch.bfloat16), "y": torch.ones(2, dtype=torch.bfloat16)},
        )
    )
    assert found.same
    assert found.notes == (
        "2 tensors differ in dtype (a: float32, b: bfloat16)",
        "x and y are one tensor in a and separate elsewhere",
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.int32])
def test_kinds_must_not_be_mixed(dtype):
    assert not match(
        checkpoints(a={"x": torch.zeros(1)}, b={"x": torch.zeros(1, dtype=dtype)})
    ).same


def test_equal_and_long_ids_are_told_apart():
    pair = [open_checkpoint({"x": torch.zeros(n)}, name="sha256:" + "0" * 64) for n in (1, 2)]
    assert match(pair).problems[0].startswith("x   1 (sha256:")
    assert match([]).same
    assert match(pair[:1]).names == ("x",)


def test_a_classifier_with_a_scalar_difference_gets_no_hint():
    assert match(checkpoints(a={"x": torch.tensor(1.0)}, b={"x": torch.ones(2)})).hint == ""
