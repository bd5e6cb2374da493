from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import CheckpointError, MissingInput
from alloykit.execution.arithmetic import Arithmetic
from alloykit.execution.inputs import Inputs
from alloykit.execution.limits import Limits
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from strategies import state_dicts

NAN, INF = math.nan, math.inf


def members(*states):
    return [MemoryCheckpoint(state, id=f"m{i}") for i, state in enumerate(states)]


def merged(*states, base=None, **options) -> dict[str, Tensor]:
    checkpoints = members(*states)
    origin = None if base is None else MemoryCheckpoint(base, id="base")
    return merge_in_memory(plan_merge(checkpoints, base=origin, **options), checkpoints, origin)


def of(*values, dtype=torch.float32) -> dict[str, Tensor]:
    return {"w": torch.tensor(values).to(dtype)}


def expected_mean(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.stack([tensor.to(wide) for tensor in tensors]).mean(0)


@given(state_dicts(3))
def test_every_kind_of_tensor_is_merged_or_copied(states):
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    result = merged(*states)
    assert list(result) == list(states[0])
    for name, tensor in result.items():
        every = [state[name] for state in states]
        assert (tensor.shape, tensor.dtype) == (every[0].shape, every[0].dtype)
        if name == "bn.num_batches_tracked":
            assert tensor.item() == 102
        elif not (tensor.is_floating_point() or tensor.is_complex()):
            assert torch.equal(tensor, every[0])
        else:
            exact = expected_mean(every, tensor.dtype)
            torch.testing.assert_close(
                tensor.to(exact.dtype), exact, rtol=2 * torch.finfo(tensor.dtype).eps, atol=2e-5
            )
    if result["head.weight"].numel():
        assert result["head.weight"] is result["layer0.weight"]
    for state, copies in zip(states, before, strict=True):
        for name, tensor in state.items():
            assert torch.equal(as_bytes(tensor), as_bytes(copies[name]))


@given(state_dicts(2), st.randoms(use_true_random=False))
def test_the_order_of_the_checkpoints_handed_over_does_not_matter(states, random):
    checkpoints = members(*states)
    plan = plan_merge(checkpoints, "exponential", {"decay": 0.5})
    expected = merge_in_memory(plan, checkpoints)
    random.shuffle(checkpoints)
    result = merge_in_memory(plan, checkpoints)
    assert all(torch.equal(as_bytes(result[n]), as_bytes(expected[n])) for n in expected)


def test_nothing_returned_shares_memory_with_a_member():
    mask = torch.tensor([-INF, 0.0])
    state = {"w": torch.ones(2), "mask": mask, "i": torch.tensor([1]), "empty": torch.zeros(0)}
    for result in (merged(state), merged(state, state)):
        for tensor in result.values():
            tensor.fill_(7)
    assert mask.tolist() == [-INF, 0.0]
    assert state["w"].tolist() == [1.0, 1.0]
    assert state["i"].tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_averaged_in_float32_and_rounded_once(dtype):
    values = [[1.0, 0.5, -448.0, 3.25], [1.125, 0.75, -448.0, 2.0], [1.25, 7.0, -448.0, 0.0]]
    states = [of(*row, dtype=dtype) for row in values]
    result = merged(*states)["w"]
    mean = torch.stack([state["w"].float() for state in states]).double().mean(0)
    assert result.dtype == dtype
    assert torch.equal(result.float(), mean.float().to(dtype).float())


def test_mixed_precisions_meet_without_loss():
    fine = 1.0 + 2.0**-20
    result = merged(of(1.0, dtype=torch.float16), of(fine), of(1.0, dtype=torch.bfloat16))["w"]
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(1.0 + 2.0**-20 / 3, abs=1e-7)


def test_values_that_float16_cannot_sum_can_be_averaged():
    assert (
        merged(of(65504.0, dtype=torch.float16), of(65504.0, dtype=torch.float16))["w"].item()
        == 65504.0
    )
    assert merged(*[of(60000.0, dtype=torch.float16)] * 20)["w"].item() == 60000.0


def test_a_result_outside_the_range_of_its_dtype_is_an_error():
    with pytest.raises(CheckpointError, match=r"w   the result in float16: 1 Inf"):
        merged(of(1e5), of(1e5), dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"w   the result in float32: 1 Inf"):
        merged(of(2.0), base=of(1.0), method="interpolate", parameters={"alpha": 1e39})


def test_a_huge_step_is_taken_as_long_as_it_fits():
    result = merged(of(2.0), base=of(1.0), method="interpolate", parameters={"alpha": 1e30})
    assert result["w"].item() == pytest.approx(1e30)


def test_values_without_an_average_are_all_named():
    states = [
        of(1.0, 2.0) | {"v": torch.ones(1)},
        {"w": torch.tensor([NAN, INF]), "v": of(NAN)["w"]},
    ]
    with pytest.raises(CheckpointError) as caught:
        merged(*states)
    text = str(caught.value)
    assert "2 value problems" in text
    assert "w   m1: 1 NaN, 1 Inf" in text
    assert "v   m1: 1 NaN" in text
    assert "m0" not in text


def test_of_many_bad_tensors_ten_are_listed():
    bad = {f"w{i:02}": torch.tensor([NAN]) for i in range(40)}
    with pytest.raises(CheckpointError, match=r"and 30 more\n"):
        merged(bad, {name: torch.zeros(1) for name in bad})


def test_a_nan_in_the_base_is_named():
    with pytest.raises(CheckpointError, match="w   base: 1 NaN"):
        merged(of(1.0), base=of(NAN), method="interpolate")


def test_masks_of_infinities_are_copied_where_all_agree():
    mask = torch.full((3, 3), -INF).triu(1)
    states = [{"mask": mask.to(dtype)} for dtype in (torch.float16, torch.float32)]
    assert torch.equal(merged(*states)["mask"], mask)
    with pytest.raises(CheckpointError, match="mask   m0: 3 Inf"):
        merged({"mask": mask}, {"mask": torch.zeros(3, 3)})


def test_equal_nans_have_no_average_either():
    with pytest.raises(CheckpointError, match="1 NaN"):
        merged(of(NAN), of(NAN))


def test_a_member_of_weight_zero_is_not_even_read():
    class Unreadable(MemoryCheckpoint):
        def read(self, name, **_):
            raise AssertionError("read")

    checkpoints = [*members(of(1.0), of(3.0)), Unreadable(of(NAN), id="z")]
    plan = plan_merge(checkpoints, weights=[1, 1, 0])
    assert merge_in_memory(plan, checkpoints)["w"].item() == 2.0


def test_integers_of_a_member_of_weight_zero_do_not_matter():
    states = [{"i": torch.tensor([1])}, {"i": torch.tensor([2])}]
    assert merged(*states, weights=[0, 1])["i"].tolist() == [2]
    counters = [{"bn.num_batches_tracked": torch.tensor(n)} for n in (9, 5, 7)]
    assert merged(*counters, weights=[0, 1, 1])["bn.num_batches_tracked"].item() == 7


def test_in_an_ordered_method_a_member_of_weight_zero_keeps_its_place():
    states = [of(8.0), of(NAN), of(2.0)]
    result = merged(*states, method="exponential", parameters={"decay": 0.5}, weights=[1, 0, 1])
    assert result["w"].item() == pytest.approx((8.0 * 0.25 + 2.0) / 1.25)


def test_integers_that_differ_are_all_named():
    one = {
        "position_ids": torch.arange(3),
        "vocabulary": torch.tensor([1]),
        "flag": torch.tensor(True),
    }
    other = {"position_ids": torch.arange(3) + 1, "vocabulary": torch.tensor([2]),
             "flag": torch.tensor(True)}  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        merged(one, other, one)
    text = str(caught.value)
    assert "position_ids   m1: int64 values differ from m0; integers are never averaged" in text
    assert "vocabulary" in text
    assert "flag" not in text


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.int8, torch.bool])
def test_integers_of_every_sort_are_copied(dtype):
    state = {"i": torch.tensor([0, 1]).to(dtype)}
    assert torch.equal(merged(state, state)["i"], state["i"])


def test_integers_of_unequal_width_meet():
    result = merged({"i": torch.tensor([5], dtype=torch.int32)}, {"i": torch.tensor([5])})
    assert result["i"].dtype == torch.int64


def test_progress_is_told_before_every_tensor():
    told = []
    checkpoints = members({"a": torch.ones(1), "b": torch.ones(1)})
    plan = plan_merge(checkpoints)
    merge_in_memory(plan, checkpoints, progress=lambda *told_: told.append(told_))
    assert told == [("a", 0, 8), ("b", 4, 8)]


def test_checkpoints_that_the_plan_names_must_be_given():
    checkpoints = members(of(1.0), of(2.0))
    plan = plan_merge(checkpoints)
    with pytest.raises(MissingInput, match="not given: m1"):
        merge_in_memory(plan, checkpoints[:1])
    base = MemoryCheckpoint(of(0.0), id="start")
    plan = plan_merge(checkpoints[:1], "interpolate", base=base)
    with pytest.raises(MissingInput, match=r"not given: start \(the base\)"):
        merge_in_memory(plan, checkpoints)


def test_a_file_that_changed_since_the_plan_is_noticed():
    plan = plan_merge(members(of(1.0), of(2.0)))
    with pytest.raises(
        CheckpointError, match=r"w of m0 has the shape \[3\].*made for \[1\]\. Plan a"
    ):
        merge_in_memory(plan, members(of(1.0, 2.0, 3.0), of(1.0, 2.0, 3.0)))


def test_a_single_member_with_nan_is_refused_too():
    with pytest.raises(CheckpointError, match="w   m0: 1 NaN"):
        merged(of(NAN))
    assert merged(of(-INF))["w"].item() == -INF


@pytest.mark.parametrize(("method", "alone"), [("linear", False), ("ties", True), ("iso_c", False)])
def test_methods_whose_threads_would_wait_for_one_another_run_on_one(method, alone, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    opened = members({"w": torch.ones(2, 2)}, {"w": torch.zeros(2, 2)})
    base = None if method == "linear" else MemoryCheckpoint({"w": torch.ones(2, 2) / 3}, id="base")
    plan = plan_merge(opened, method, {}, base=base)
    arithmetic = Arithmetic(plan, Inputs.of(plan, opened, base, None))
    assert Limits().chosen_threads(arithmetic) == (1 if alone else 4)
    assert Limits(threads=3).chosen_threads(arithmetic) == 3
