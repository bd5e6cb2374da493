"""What every merge method promises, as functions: ``check_*(factory, case)`` raise on a breach."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.execution.plan import Plan, plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.types import MergeMethod, TensorGroup

Factory = Callable[[], MergeMethod]

ONE_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place, relative, of the formats that are stored but not computed in."""

SMALLEST_STEP = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
"""The distance of their subnormal numbers."""


@dataclass(frozen=True)
class Case:
    """One name's tensors from every member; the registered name builds the method for plans."""

    group: TensorGroup

    @property
    def count(self) -> int:
        return len(self.group.tensors)


def merged(method: MergeMethod, group: TensorGroup) -> Tensor:
    return method.merge(group, None)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in every bit: zeros of different signs differ."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(as_bytes(one), as_bytes(other))


def checkpoints(case: Case, dtype: torch.dtype | None = None) -> list[MemoryCheckpoint]:
    group = case.group
    return [
        MemoryCheckpoint({group.name: t if dtype is None else t.to(dtype)}, id=name)
        for name, t in zip(group.members, group.tensors, strict=True)
    ]


def base_of(case: Case, dtype: torch.dtype | None = None) -> MemoryCheckpoint | None:
    if case.group.base is None:
        return None
    tensor = case.group.base if dtype is None else case.group.base.to(dtype)
    return MemoryCheckpoint({case.group.name: tensor}, id="base")


def planned(method: MergeMethod, case: Case, members: list[Any], **options: Any) -> Plan:
    return plan_merge(
        members, method.name, method.parameters, seed=case.group.seed, weights=case.group.weights,
        **{"base": base_of(case), **options},
    )  # fmt: skip


def through_plan(method: MergeMethod, case: Case, dtype: torch.dtype | None = None) -> Tensor:
    members, base = checkpoints(case, dtype), base_of(case, dtype)
    plan = planned(method, case, members, base=base)
    return merge_in_memory(plan, members, base)[case.group.name]


def assert_about_equal(one: Tensor, other: Tensor, case: Case) -> None:
    """Equal to the rounding of a sum in another order."""
    largest = max((float(t.abs().amax()) for t in case.group.tensors if t.numel()), default=0.0)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * largest)


def check_shape_and_dtype(factory: Factory, case: Case) -> None:
    result = merged(factory(), case.group)
    assert result.shape == case.group.tensors[0].shape
    assert result.dtype == case.group.tensors[0].dtype


def check_inputs_untouched(factory: Factory, case: Case) -> None:
    inputs = [*case.group.tensors, *([] if case.group.base is None else [case.group.base])]
    before = [tensor.clone() for tensor in inputs]
    result = merged(factory(), case.group)
    assert all(same_bits(a, b) for a, b in zip(inputs, before, strict=True)), "wrote to an input"
    if result.numel():
        assert result.data_ptr() not in {t.data_ptr() for t in inputs}, "handed out an input"


def check_same_twice(factory: Factory, case: Case) -> None:
    """The same bits again, whatever the global random state, which stays as it is."""
    before = torch.get_rng_state()
    first = merged(factory(), case.group)
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
    torch.manual_seed(int(before[:4].sum()) + 1)
    second = merged(factory(), case.group)
    torch.set_rng_state(before)
    assert same_bits(first, second)


def check_equal_members(factory: Factory, case: Case) -> None:
    """Members, and a base, that are all one tensor give exactly that tensor."""
    one = case.group.tensors[0]
    base = None if case.group.base is None else one.clone()
    alike = replace(case.group, tensors=(one,) * case.count, base=base)
    assert same_bits(merged(factory(), alike), one)


def check_order(factory: Factory, case: Case) -> None:
    """The order of the members is irrelevant: to the bit in a plan, unless declared."""
    method = factory()
    expected, direct = through_plan(method, case), merged(method, case.group)
    for order in itertools.islice(itertools.permutations(range(case.count)), 1, 7):
        turned = Case(
            replace(
                case.group,
                members=tuple(case.group.members[i] for i in order),
                tensors=tuple(case.group.tensors[i] for i in order),
                weights=tuple(case.group.weights[i] for i in order),
            )
        )
        if method.ordered:
            plan = planned(method, turned, checkpoints(turned))
            assert plan.members == turned.group.members, "a declared order was not kept"
        else:
            assert same_bits(through_plan(method, turned), expected)
            assert_about_equal(merged(method, turned.group), direct, case)


def check_zero_weight(factory: Factory, case: Case) -> None:
    """What a member of weight zero holds cannot matter, even where it is not a number."""
    method = factory()
    weights = case.group.weights
    absent = [i for i, weight in enumerate(weights) if weight == 0.0]
    broken = tuple(
        torch.full_like(t, float("nan")) if i in absent else t
        for i, t in enumerate(case.group.tensors)
    )
    other = replace(case.group, tensors=broken)
    assert same_bits(merged(method, other), merged(method, case.group))
    assert same_bits(through_plan(method, Case(other)), through_plan(method, case))


def check_float64(factory: Factory, case: Case) -> None:
    """In float64 it says the same, to float32's rounding of the largest number it is made from.

    And it says it in all of float64's digits: inputs that are larger by a factor that float32
    cannot tell from one give an output that is larger by it.
    """
    method = factory()
    wide = torch.complex128 if case.group.tensors[0].is_complex() else torch.float64
    group = scaled(case.group, 1.0, wide)
    exact, result = merged(method, group), merged(method, case.group)
    assert exact.dtype == wide
    factor = 1.0 + 1e-9
    larger = merged(method, scaled(case.group, factor, wide))
    inputs = [*group.tensors, *([] if group.base is None else [group.base])]
    largest = torch.stack([tensor.abs() for tensor in inputs]).amax(0)
    limit = 4 * case.count * 2.0**-24 * largest + 1e-44
    assert bool(((result.to(wide) - exact).abs() <= limit).all())
    assert bool(((larger - factor * exact).abs() <= 1e-13 * largest).all()), "digits were lost"


def scaled(group: TensorGroup, factor: float, dtype: torch.dtype) -> TensorGroup:
    return replace(
        group,
        tensors=tuple(t.to(dtype) * factor for t in group.tensors),
        base=None if group.base is None else group.base.to(dtype) * factor,
    )


def check_one_rounding(factory: Factory, case: Case) -> None:
    """In bfloat16 and float16 the result is the float64 one, rounded once."""
    method = factory()
    if case.group.tensors[0].is_complex():
        return
    for dtype, half_step in ONE_ROUNDING.items():
        result = through_plan(method, case, dtype)
        assert result.dtype == dtype
        rounded = [t.to(dtype).double() for t in case.group.tensors]
        base = None if case.group.base is None else case.group.base.to(dtype).double()
        exact = merged(method, replace(case.group, tensors=tuple(rounded), base=base))
        inputs = [*rounded, *([] if base is None else [base])]
        largest = torch.stack([tensor.abs() for tensor in inputs]).amax(0)
        limit = exact.abs() * half_step + SMALLEST_STEP[dtype] + 1e-6 * largest
        assert bool(((result.double() - exact).abs() <= limit).all())


def check_blocks(factory: Factory, case: Case) -> None:
    """Given in blocks, an elementwise method gives the blocks of the whole."""
    method = factory()
    if not method.elementwise:
        return
    whole = merged(method, case.group).reshape(-1)
    for size in (1, 3, 1000):
        parts = [
            replace(
                case.group,
                tensors=tuple(t.reshape(-1)[start : start + size] for t in case.group.tensors),
                base=None
                if case.group.base is None
                else case.group.base.reshape(-1)[start : start + size],
            )
            for start in range(0, whole.numel(), size)
        ]
        if parts:
            assert same_bits(torch.cat([merged(method, part) for part in parts]), whole)


def check_rebuilt(factory: Factory, case: Case) -> None:
    """From its plan, through JSON, it is the same method and gives the same bits."""
    method = factory()
    members, base = checkpoints(case), base_of(case)
    plan = planned(method, case, members)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.build_method().parameters == method.parameters
    one = merge_in_memory(plan, members, base)[case.group.name]
    assert same_bits(merge_in_memory(again, members, base)[case.group.name], one)
    assert_about_equal(one, merged(method, case.group), case)


CHECKS = (
    check_shape_and_dtype,
    check_inputs_untouched,
    check_same_twice,
    check_equal_members,
    check_order,
    check_zero_weight,
    check_float64,
    check_one_rounding,
    check_blocks,
    check_rebuilt,
)
