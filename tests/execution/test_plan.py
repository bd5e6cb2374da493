from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import (
    CheckpointError,
    InvalidParameter,
    InvalidWeights,
    MismatchedCheckpoints,
    MissingInput,
    UnknownName,
)
from alloykit.execution.plan import Plan, Step, plan_merge
from strategies import state_dicts


def checkpoint(name: str, **tensors: torch.Tensor) -> MemoryCheckpoint:
    return MemoryCheckpoint(tensors or {"w": torch.zeros(2)}, id=name)


def steps(*states, **options) -> dict[str, Step]:
    members = [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]
    return {step.name: step for step in plan_merge(members, **options).steps}


class Unreadable(MemoryCheckpoint):
    def read(self, name, **_):
        raise AssertionError("a plan reads no tensor data")


def test_a_plan_reads_headers_alone():
    members = [Unreadable({"w": torch.zeros(2)}, id=name) for name in "ab"]
    assert plan_merge(members).steps == (Step("w", "merge", (2,), "float32"),)


def test_members_are_in_the_order_of_their_ids_whatever_the_order_given():
    members = [checkpoint(name) for name in ("c", "a", "b")]
    plan = plan_merge(members, weights=[3, 1, 0])
    assert plan.members == ("a", "b", "c")
    assert plan.weights == (0.25, 0.0, 0.75)
    assert plan == plan_merge(members[::-1], weights=[0, 1, 3])


def test_ordered_methods_keep_the_order_given():
    members = [checkpoint(name) for name in ("c", "a", "b")]
    assert plan_merge(members, "exponential").members == ("c", "a", "b")


def test_every_parameter_is_recorded_defaults_included():
    assert plan_merge([checkpoint("a")], "exponential").parameters == {
        "decay": 0.9,
        "running": False,
    }


@given(state_dicts(2))
def test_plans_survive_json(states):
    members = [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]
    plan = plan_merge(members, "exponential", {"decay": 0.5}, weights=[1, 2], seed=3)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.specs() == plan.specs()
    assert json.loads(plan.to_json())["method"] == "exponential"
    assert plan.specs().keys() == states[0].keys()


def test_a_copy_of_a_plan_is_another_plan():
    plan = plan_merge([checkpoint("a"), checkpoint("b")])
    heavier = dataclasses.replace(plan, weights=(0.9, 0.1))
    assert plan.weights == (0.5, 0.5)
    assert Plan.from_json(heavier.to_json()) == heavier


@pytest.mark.parametrize(
    ("one", "other", "action", "dtype"),
    [
        (torch.float16, torch.float16, "merge", "float16"),
        (torch.float16, torch.bfloat16, "merge", "float32"),
        (torch.float32, torch.float64, "merge", "float64"),
        (torch.float8_e4m3fn, torch.float8_e4m3fn, "merge", "float8_e4m3fn"),
        (torch.float8_e4m3fn, torch.float8_e5m2, "merge", "float32"),
        (torch.complex64, torch.complex64, "merge", "complex64"),
        (torch.int32, torch.int64, "copy", "int64"),
        (torch.uint16, torch.int32, "copy", "int64"),
        (torch.bool, torch.bool, "copy", "bool"),
    ],
)
def test_what_happens_follows_from_the_dtypes(one, other, action, dtype):
    found = steps({"w": torch.zeros(3).to(one)}, {"w": torch.zeros(3).to(other)})
    assert found["w"] == Step("w", action, (3,), dtype)


def test_counters_of_batch_norm_take_the_maximum():
    state = {"bn.num_batches_tracked": torch.tensor(3), "bn.running_mean": torch.zeros(1)}
    found = steps(state, state)
    assert found["bn.num_batches_tracked"].action == "maximum"
    assert found["bn.running_mean"].action == "merge"


def test_an_output_dtype_is_for_tensors_of_its_kind():
    state = {
        "w": torch.zeros(1), "c": torch.zeros(1, dtype=torch.complex64), "i": torch.tensor([1])
    }  # fmt: skip
    found = steps(state, state, dtype=torch.float16)
    assert [found[name].dtype for name in "wci"] == ["float16", "complex64", "int64"]
    found = steps(state, state, dtype=torch.complex128)
    assert [found[name].dtype for name in "wci"] == ["float32", "complex128", "int64"]
    with pytest.raises(InvalidParameter, match=r"floating point or complex\. Got torch\.int8"):
        steps(state, state, dtype=torch.int8)


def tied(value: float = 0.0) -> dict[str, torch.Tensor]:
    tensor = torch.full((2,), value)
    return {"embed": tensor, "head": tensor}


def untied(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"embed": torch.full((2,), value), "head": torch.full((2,), value)}


def test_what_is_tied_in_all_members_stays_tied():
    found = steps(tied(), tied(1.0))
    assert (found["head"].action, found["head"].tied_to) == ("tie", "embed")
    plan = plan_merge([MemoryCheckpoint(tied(), id="a")])
    assert plan.specs()["head"].place == plan.specs()["embed"].place


def test_what_is_tied_in_some_members_alone_is_merged_apart():
    assert steps(tied(), untied())["head"].action == "merge"


def test_a_base_that_is_not_tied_unties_the_result():
    member, base = MemoryCheckpoint(tied(), id="m"), MemoryCheckpoint(untied(), id="base")
    plan = plan_merge([member], "interpolate", base=base)
    assert [step.action for step in plan.steps] == ["merge", "merge"]


def test_a_transposed_view_is_not_a_tie():
    square = torch.arange(4.0).reshape(2, 2)
    state = {"w": square, "v": square.t()}
    assert [step.action for step in steps(state, state).values()] == ["merge", "merge"]


def test_a_base_that_the_method_does_not_need_is_left_out():
    members = [checkpoint("a"), checkpoint("b")]
    other = checkpoint("base", v=torch.zeros(3))
    assert plan_merge(members, base=other) == plan_merge(members)
    assert plan_merge(members[:1], "interpolate", base=checkpoint("start")).base == "start"


def test_members_of_weight_zero_have_no_say_in_the_dtype():
    members = [checkpoint("a", w=torch.zeros(1).half()), checkpoint("b", w=torch.zeros(1).double())]
    assert plan_merge(members, weights=[1, 0]).steps[0].dtype == "float16"


def test_everything_that_does_not_match_is_listed():
    members = [
        checkpoint("a", w=torch.zeros(2), v=torch.zeros(1)),
        checkpoint("b", w=torch.zeros(3), u=torch.zeros(1)),
    ]
    with pytest.raises(MismatchedCheckpoints) as caught:
        plan_merge(members)
    for text in ("2 checkpoints cannot be merged", "[2]", "[3]", "\n  v", "\n  u", "missing"):
        assert text in str(caught.value)


def test_a_base_that_does_not_match_is_listed():
    with pytest.raises(MismatchedCheckpoints, match=r"start: \[3\]"):
        plan_merge([checkpoint("a")], "interpolate", base=checkpoint("start", w=torch.zeros(3)))


@pytest.mark.parametrize(
    ("count", "method", "says"),
    [
        (0, "linear", "linear was given no models to merge"),
        (2, "interpolate", "interpolate takes exactly 1 model; 2 were given"),
    ],
)
def test_too_few_or_too_many_members(count, method, says):
    members = [checkpoint(f"m{i}") for i in range(count)]
    with pytest.raises(MissingInput, match=says):
        plan_merge(members, method, base=checkpoint("base"))


def test_a_missing_base_is_said():
    with pytest.raises(MissingInput, match="interpolate needs a base, and none was given"):
        plan_merge([checkpoint("a")], "interpolate")


def test_different_models_of_one_name_are_refused_and_equal_ones_are_not():
    same = [MemoryCheckpoint({"w": torch.ones(2)}, id="model x") for _ in range(2)]
    assert plan_merge(same).members == ("model x", "model x")
    other = MemoryCheckpoint({"w": torch.zeros(2)}, id="model x")
    with pytest.raises(CheckpointError, match="3 different models are named 'model x'"):
        plan_merge([*same, other])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [float("nan"), 1]])
def test_weights_that_cannot_be_used(weights):
    with pytest.raises(InvalidWeights):
        plan_merge([checkpoint("a"), checkpoint("b")], weights=weights)


def test_unknown_methods_and_parameters():
    with pytest.raises(UnknownName, match="Did you mean 'linear'"):
        plan_merge([checkpoint("a")], "lineer")
    with pytest.raises(InvalidParameter, match="linear has no parameter 'alpha'"):
        plan_merge([checkpoint("a")], parameters={"alpha": 1})
    with pytest.raises(InvalidParameter, match="'decay'"):
        plan_merge([checkpoint("a")], "exponential", {"decay": 2})
