from __future__ import annotations

from dataclasses import replace
from functools import partial

import merge_contract as contract
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from merge_contract import Case
from merge_examples import EXAMPLES, Example

import strategies
from alloykit.errors import CheckpointError
from alloykit.merging.linear import linear
from alloykit.numerics import weighted_mean
from alloykit.registry import Registry, merge_methods
from alloykit.types import TensorGroup

CHECKS = {
    **dict.fromkeys(contract.DIRECT, strategies.real_dtypes),
    **dict.fromkeys(contract.PLANNED, strategies.compute_dtypes),
}
"""Check -> dtypes of the tensors that it is tried on."""

KEPT = [
    pytest.param(example, check, id=f"{example}-{check.__name__}")
    for example in EXAMPLES
    for check in CHECKS
    if check.__name__.removeprefix("check_") not in example.lacks
]


def cases(example: Example, dtypes: st.SearchStrategy[torch.dtype]) -> st.SearchStrategy[Case]:
    method = merge_methods.build(example.method, **example.parameters)
    stats = method.needs - {"base"}
    most = min(5, method.members.stop - 1)
    count = st.integers(max(method.members.start, example.least), most)
    drawn = strategies.groups(
        members=st.just(example.members) if example.members else count,
        # Statistics are of real tensors.
        dtypes=strategies.real_dtypes if stats else dtypes,
        base=example.base or "base" in method.needs,
        weights=partial(getattr(strategies, method.weights), least=example.least),
        stats=stats,
    )
    return drawn.map(lambda group: Case(example.method, dict(example.parameters), group))


def test_every_registered_method_has_examples():
    assert sorted({example.method for example in EXAMPLES}) == merge_methods.names()


def test_what_a_method_lacks_is_a_property():
    names = {check.__name__ for check in CHECKS}
    assert {f"check_{name}" for example in EXAMPLES for name in example.lacks} <= names


@pytest.mark.parametrize(("example", "check"), KEPT)
def test_every_method_keeps_the_contract(example, check):
    # Other parameters of a method that was tried already are tried less.
    first = next(other for other in EXAMPLES if other.method == example.method) is example

    @settings(max_examples=settings().max_examples // (1 if first else 3))
    @given(cases(example, CHECKS[check]))
    def holds(case):
        assume(example.usable(case.group))
        check(case)

    holds()


def in_place(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0].mul_(0.5).add(group.tensors[1], alpha=0.5)


def noisy(group: TensorGroup) -> torch.Tensor:
    return weighted_mean(group.tensors, group.weights) + 1e-9 * torch.randn(())


def downcast(group: TensorGroup) -> torch.Tensor:
    rounded = [tensor.to(torch.bfloat16) for tensor in group.tensors]
    return weighted_mean(rounded, group.weights).to(group.tensors[0].dtype)


def downcast_from_float32(group: TensorGroup) -> torch.Tensor:
    return (
        downcast(group) if group.tensors[0].dtype == torch.float32 else linear().merge(group, None)
    )


def first_counts_double(group: TensorGroup) -> torch.Tensor:
    weights = [2 * group.weights[0], *group.weights[1:]]
    return weighted_mean(group.tensors, [w / sum(weights) for w in weights])


def not_rounded_to_its_dtype(group: TensorGroup) -> torch.Tensor:
    return weighted_mean(group.tensors, group.weights).double()


def plain_sum(group: TensorGroup) -> torch.Tensor:
    return sum(w * t for w, t in zip(group.weights, group.tensors, strict=True))


def looks_around(group: TensorGroup) -> torch.Tensor:
    mean = weighted_mean(group.tensors, group.weights)
    return mean + 1e-3 * (mean - mean.mean())


def hands_out_an_input(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0]


BUGS = [
    (in_place, contract.check_inputs_untouched),
    (noisy, contract.check_same_twice),
    (downcast_from_float32, contract.check_float64),
    (downcast, contract.check_float64_digits),
    (downcast, contract.check_equal_members),
    (first_counts_double, contract.check_order),
    (not_rounded_to_its_dtype, contract.check_shape_and_dtype),
    (plain_sum, contract.check_equal_members),
    (looks_around, contract.check_blocks),
    (hands_out_an_input, contract.check_inputs_untouched),
]


def planted_case(weights: tuple[float, ...] = (0.7, 0.3, 0.0)) -> Case:
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(40, generator=generator) for _ in range(3))
    return Case("linear", {}, TensorGroup("w", ("b", "c", "a"), tensors, weights))


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=lambda item: item.__name__)
def test_the_contract_finds_a_planted_bug(bug, check, monkeypatch):
    check(planted_case())

    def buggy(normalize: bool = True):
        return replace(linear(), name="buggy", merge=lambda group, _: bug(group))

    registry = Registry("merge method", "alloykit.merging")
    registry.add(buggy)
    for place in ("alloykit.execution.plan", "merge_contract"):
        monkeypatch.setattr(f"{place}.merge_methods", registry)
    with pytest.raises(AssertionError):
        check(replace(planted_case(), method="buggy"))


def test_the_contract_finds_arithmetic_in_the_stored_dtype(monkeypatch):
    contract.check_one_rounding(planted_case())
    # The compiled sums compute in float32 by themselves: only what they leave can be planted in.
    monkeypatch.setattr("alloykit.execution.arithmetic.Merged._added_up", lambda *_: False)
    contract.check_one_rounding(planted_case())
    monkeypatch.setattr("alloykit.execution.arithmetic.compute_dtype", lambda dtype: dtype)
    with pytest.raises(AssertionError):
        contract.check_one_rounding(planted_case())


def test_the_contract_finds_members_that_are_not_sorted(monkeypatch):
    class Unsorted(list):
        def sort(self, **_):
            pass

    contract.check_order(planted_case((1 / 3, 1 / 3, 1 / 3)))
    monkeypatch.setattr("alloykit.execution.plan.list", Unsorted, raising=False)
    with pytest.raises(AssertionError):
        contract.check_order(planted_case((1 / 3, 1 / 3, 1 / 3)))


def test_the_contract_finds_members_of_weight_zero_that_are_read(monkeypatch):
    contract.check_zero_weight(planted_case())
    monkeypatch.setattr("alloykit.execution.arithmetic.Arithmetic.ordered", True)
    monkeypatch.setattr("alloykit.merging.linear.weighted_mean", plain_mean)
    with pytest.raises(CheckpointError, match="NaN"):
        contract.check_zero_weight(planted_case())


def plain_mean(tensors, weights, *, coarse):
    return sum(w * t for w, t in zip(weights, tensors, strict=True))
