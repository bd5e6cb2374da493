"""What every merge method promises, as functions: ``check_*(case)`` raise on a breach.

Methods are tried as they are (``direct``, on real tensors, as the engine hands them over) and as
users meet them (``through_plan``, on any tensors).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alloykit.checkpoints.element_types import as_bytes
from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.execution.plan import Plan, plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.execution.scanning import TensorScan, merge_whole, shaped
from alloykit.registry import merge_methods
from alloykit.types import MergeMethod, TensorGroup

ONE_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place, relative, of the formats that are stored but not computed in."""

SMALLEST_STEP = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
"""The distance of their subnormal numbers."""


@dataclass(frozen=True)
class Case:
    """A registered method with parameters, and one name's tensors from every member."""

    method: str
    parameters: dict[str, Any]
    group: TensorGroup

    def build(self) -> MergeMethod:
        method: MergeMethod = merge_methods.build(self.method, **self.parameters)
        return method

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.group.tensors, *([] if self.group.base is None else [self.group.base])]

    def of(self, group: TensorGroup) -> Case:
        return replace(self, group=group)

    def chosen(self, positions: Sequence[int]) -> Case:
        """The same with some members, or in another order, with all that belongs to them."""
        group = self.group
        own = {
            name: [value[i] for i in positions]
            for name, value in self.parameters.items()
            if name in self.build().per_member and isinstance(value, list)
        }
        return Case(
            self.method,
            self.parameters | own,
            replace(
                group,
                members=tuple(group.members[i] for i in positions),
                tensors=tuple(group.tensors[i] for i in positions),
                weights=tuple(group.weights[i] for i in positions),
                stats={k: tuple(each[i] for i in positions) for k, each in group.stats.items()},
            ),
        )

    def present(self) -> Case:
        """Without members of weight zero, which the engine leaves out unless they are ordered."""
        if self.build().ordered:
            return self
        return self.chosen([i for i, weight in enumerate(self.group.weights) if weight])


def direct(case: Case) -> Tensor:
    present = case.present()
    return merge_whole(present.build(), present.group)


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


def stats_of(case: Case) -> dict[str, list[MemoryCheckpoint]]:
    return {
        kind: [
            MemoryCheckpoint({case.group.name: tensor}, id=f"{kind} of {name}")
            for name, tensor in zip(case.group.members, each, strict=True)
        ]
        for kind, each in case.group.stats.items()
    }


def planned(case: Case, dtype: torch.dtype | None = None) -> Plan:
    return plan_merge(
        checkpoints(case, dtype), case.method, case.build().parameters, weights=case.group.weights,
        base=base_of(case, dtype), stats=stats_of(case), seed=case.group.seed,
    )  # fmt: skip


def run(plan: Plan, case: Case, dtype: torch.dtype | None = None) -> Tensor:
    merged = merge_in_memory(
        plan, checkpoints(case, dtype), base_of(case, dtype), stats=stats_of(case)
    )
    return merged[case.group.name]


def through_plan(case: Case, dtype: torch.dtype | None = None) -> Tensor:
    return run(planned(case, dtype), case, dtype)


def assert_about_equal(one: Tensor, other: Tensor, case: Case) -> None:
    """Equal to the rounding of a sum in another order."""
    largest = max((float(t.abs().amax()) for t in case.inputs if t.numel()), default=0.0)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * largest)


def check_shape_and_dtype(case: Case) -> None:
    result = direct(case)
    assert result.shape == case.group.tensors[0].shape
    assert result.dtype == case.group.tensors[0].dtype


def check_inputs_untouched(case: Case) -> None:
    inputs = case.inputs
    before = [tensor.clone() for tensor in inputs]
    result = direct(case)
    assert all(same_bits(a, b) for a, b in zip(inputs, before, strict=True)), "wrote to an input"
    if result.numel():
        assert result.data_ptr() not in {t.data_ptr() for t in inputs}, "handed out an input"


def check_same_twice(case: Case) -> None:
    """The same bits again, whatever the global random state, which stays as it is."""
    before = torch.get_rng_state()
    first = direct(case)
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
    torch.manual_seed(int(before[:4].sum()) + 1)
    second = direct(case)
    torch.set_rng_state(before)
    assert same_bits(first, second)


def check_equal_members(case: Case) -> None:
    """Members, and a base, that are all one tensor give exactly that tensor, stored in any way."""
    for dtype in (case.group.tensors[0].dtype, *ONE_ROUNDING):
        one = case.group.tensors[0].to(dtype).to(case.group.tensors[0].dtype)
        base = None if case.group.base is None else one.clone()
        tensors = tuple(one.clone() for _ in case.group.tensors)
        alike = case.of(replace(case.group, tensors=tensors, base=base))
        assert same_bits(direct(alike), one)
        assert same_bits(through_plan(alike, dtype), one.to(dtype))


def check_float64(case: Case) -> None:
    """In float64 it says the same, to float32's rounding of the largest number on the way."""
    exact, result = direct(scaled(case, 1.0)), direct(case)
    assert exact.dtype == torch.float64
    count = len(case.group.tensors)
    on_the_way = torch.maximum(largest(case).double(), exact.abs())
    # What is added on the way may be larger than all inputs, by the weights and by rescaling.
    gain = max(1.0, *map(abs, case.group.weights))
    limit = 8 * gain * count * 2.0**-24 * on_the_way + 1e-44
    assert bool(((result.double() - exact).abs() <= limit).all())


def check_float64_digits(case: Case) -> None:
    """It says it in all of float64's digits.

    Inputs that are larger by a factor that float32 cannot tell from one give an output that is
    larger by it.
    """
    factor = 1.0 + 1e-9
    exact, larger = direct(scaled(case, 1.0)), direct(scaled(case, factor))
    limit = 1e-11 * largest(case).double()
    assert bool(((larger - factor * exact).abs() <= limit).all()), "digits were lost"


def largest(case: Case) -> Tensor:
    return torch.stack([tensor.abs() for tensor in case.inputs]).amax(0)


def scaled(case: Case, factor: float) -> Case:
    group = case.group
    return case.of(
        replace(
            group,
            tensors=tuple(t.double() * factor for t in group.tensors),
            base=None if group.base is None else group.base.double() * factor,
        )
    )


def check_blocks(case: Case) -> None:
    """Given in blocks, it gives the blocks of the whole: of any size, or whole slices."""
    present = case.present()
    method, group = present.build(), present.group
    whole, shape = direct(case), tuple(group.tensors[0].shape)
    if method.unit == "tensor" or not whole.numel():
        return
    scan = TensorScan(
        group.name, shape, group.members, group.weights, group.seed,
        lambda start, stop: block(group, start, stop), method.unit,
    )  # fmt: skip
    state = method.survey(scan) if method.survey else None
    slices = method.unit == "row" and len(shape) > 1
    smallest = whole[0].numel() if slices else (whole.numel() if method.unit == "row" else 1)
    for size in (smallest, 3 * smallest, 1000 * smallest):
        parts = [
            method.merge(
                shaped(block(group, start, start + size), shape, method.unit), state
            ).reshape(-1)
            for start in range(0, whole.numel(), size)
        ]
        assert same_bits(torch.cat(parts), whole.reshape(-1))


def block(group: TensorGroup, start: int, stop: int) -> TensorGroup:
    """A flat range of every tensor that is shaped like the members."""
    shape = group.tensors[0].shape

    def cut(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1)[start:stop] if tensor.shape == shape else tensor

    return replace(
        group,
        start=start,
        tensors=tuple(map(cut, group.tensors)),
        base=None if group.base is None else cut(group.base),
        stats={kind: tuple(map(cut, each)) for kind, each in group.stats.items()},
    )


def check_order(case: Case) -> None:
    """The order of the members is irrelevant: to the bit in a plan, unless declared."""
    ordered, real = case.build().ordered, not case.group.tensors[0].is_complex()
    expected = through_plan(case)
    for order in itertools.islice(itertools.permutations(range(len(case.group.members))), 1, 7):
        turned = case.chosen(order)
        if ordered:
            assert planned(turned).members == turned.group.members, "an order was not kept"
        else:
            assert same_bits(through_plan(turned), expected)
            if real:
                assert_about_equal(direct(turned), direct(case), case)


def check_zero_weight(case: Case) -> None:
    """A member of weight zero is absent, even where what it holds is not a number."""
    weights = case.group.weights
    absent = [i for i, weight in enumerate(weights) if weight == 0.0]
    broken = tuple(
        torch.full_like(t, float("nan")) if i in absent else t
        for i, t in enumerate(case.group.tensors)
    )
    other = case.of(replace(case.group, tensors=broken))
    expected = through_plan(case)
    assert same_bits(through_plan(other), expected)
    method = case.build()
    if not method.ordered and len(weights) - len(absent) in method.members:
        present = [i for i in range(len(weights)) if i not in absent]
        assert_about_equal(through_plan(case.chosen(present)), expected, case)


def check_one_rounding(case: Case) -> None:
    """In bfloat16 and float16 the result is the float64 one, rounded once."""
    if case.group.tensors[0].is_complex():
        return
    for dtype, half_step in ONE_ROUNDING.items():
        result = through_plan(case, dtype)
        assert result.dtype == dtype
        rounded = replace(
            case.group,
            tensors=tuple(t.to(dtype).double() for t in case.group.tensors),
            base=None if case.group.base is None else case.group.base.to(dtype).double(),
        )
        exact = direct(case.of(rounded))
        limit = exact.abs() * half_step + SMALLEST_STEP[dtype] + 1e-6 * largest(case.of(rounded))
        assert bool(((result.double() - exact).abs() <= limit).all())


def check_plan(case: Case) -> None:
    """A plan gives what the method gives; from JSON it is the same plan, with the same bits."""
    plan = planned(case)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.build_method().parameters == case.build().parameters
    one = run(plan, case)
    assert same_bits(run(again, case), one)
    assert one.shape == case.group.tensors[0].shape
    if not case.group.tensors[0].is_complex():
        assert_about_equal(one, direct(case), case)


DIRECT = (
    check_shape_and_dtype,
    check_inputs_untouched,
    check_same_twice,
    check_equal_members,
    check_float64,
    check_float64_digits,
    check_blocks,
)
"""Checks of the method itself, on real tensors."""

PLANNED = (check_order, check_zero_weight, check_one_rounding, check_plan)
"""Checks of what users get, on complex tensors as well."""
