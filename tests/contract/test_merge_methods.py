from __future__ import annotations

from dataclasses import replace
from functools import partial

import merge_contract as contract
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from merge_contract import Case

from alloykit.merging.linear import linear
from alloykit.numerics import weighted_mean
from alloykit.registry import Registry, merge_methods
from alloykit.types import MergeMethod, TensorGroup
from strategies import groups

PARAMETERS = {
    "linear": [{}],
    "exponential": [{}, {"decay": 0.0}, {"decay": 0.5}, {"decay": 1.0}],
    "interpolate": [{}, {"alpha": 0.0}, {"alpha": 0.3}, {"alpha": 1.0}],
}
"""Examples of every registered method's parameters."""

EXTRAPOLATING = [("interpolate", {"alpha": 1.5}), ("interpolate", {"alpha": -0.5})]
"""Beyond the members the rounding grows with the step, so these are held to fewer checks."""

EVERY = [
    pytest.param(name, parameters, id=f"{name}-{parameters}")
    for name, examples in PARAMETERS.items()
    for parameters in examples
]


def cases(method: MergeMethod) -> st.SearchStrategy[TensorGroup]:
    most = min(5, method.members.stop - 1)
    return groups(members=st.integers(method.members.start, most), base="base" in method.needs)


def test_every_registered_method_has_examples():
    assert sorted(PARAMETERS) == merge_methods.names()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "parameters"), EVERY)
def test_every_method_keeps_the_contract(name, parameters, check):
    factory = partial(merge_methods.build, name, **parameters)

    @given(cases(factory()))
    def holds(group):
        # With decay 0 the newest counts alone; without weight, nothing would.
        assume(parameters != {"decay": 0.0} or group.weights[-1] > 0.0)
        check(factory, Case(group))

    holds()


@pytest.mark.parametrize(
    "check",
    [c for c in contract.CHECKS if c.__name__ not in ("check_float64", "check_one_rounding")],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize(("name", "parameters"), EXTRAPOLATING)
def test_extrapolation_keeps_the_contract(name, parameters, check):
    factory = partial(merge_methods.build, name, **parameters)

    @settings(max_examples=10)
    @given(cases(factory()))
    def holds(group):
        check(factory, Case(group))

    holds()


def in_place(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0].mul_(0.5).add(group.tensors[1], alpha=0.5)


def noisy(group: TensorGroup) -> torch.Tensor:
    return weighted_mean(group.tensors, group.weights) + 1e-9 * torch.randn(())


def downcast(group: TensorGroup) -> torch.Tensor:
    rounded = [tensor.to(torch.bfloat16) for tensor in group.tensors]
    return weighted_mean(rounded, group.weights).to(group.tensors[0].dtype)


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
    (downcast, contract.check_float64),
    (downcast, contract.check_equal_members),
    (first_counts_double, contract.check_order),
    (not_rounded_to_its_dtype, contract.check_shape_and_dtype),
    (plain_sum, contract.check_equal_members),
    (plain_sum, contract.check_zero_weight),
    (looks_around, contract.check_blocks),
    (hands_out_an_input, contract.check_inputs_untouched),
]


def planted_case() -> Case:
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(40, generator=generator) for _ in range(3))
    return Case(TensorGroup("w", ("b", "c", "a"), tensors, (0.7, 0.3, 0.0)))


def buggy(bug, monkeypatch, case: Case):
    """A factory of linear with another merge function; plans that name it get the same one."""

    def build(**parameters):
        return replace(linear(), name="buggy", merge=lambda group, _: bug(group))

    build.__name__ = "buggy"
    registry = Registry("merge method", "alloykit.merging")
    registry.add(build, needs=frozenset(), members=range(1, 10), elementwise=True, ordered=False)
    monkeypatch.setattr("alloykit.execution.plan.merge_methods", registry)
    return build


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=lambda item: item.__name__)
def test_the_contract_finds_a_planted_bug(bug, check, monkeypatch):
    check(linear, planted_case())
    case = planted_case()
    with pytest.raises(AssertionError):
        check(buggy(bug, monkeypatch, case), case)


def test_the_contract_finds_arithmetic_in_the_stored_dtype(monkeypatch):
    contract.check_one_rounding(linear, planted_case())
    monkeypatch.setattr("alloykit.execution.run.compute_dtype", lambda dtype: dtype)
    with pytest.raises(AssertionError):
        contract.check_one_rounding(linear, planted_case())


def test_the_contract_finds_members_that_are_not_sorted(monkeypatch):
    class Unsorted(list):
        def sort(self, **_):
            pass

    case = Case(replace(planted_case().group, weights=(1 / 3, 1 / 3, 1 / 3)))
    contract.check_order(linear, case)
    monkeypatch.setattr("alloykit.execution.plan.list", Unsorted, raising=False)
    with pytest.raises(AssertionError):
        contract.check_order(linear, case)
