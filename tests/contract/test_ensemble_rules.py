from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import rule_contract as contract
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloykit.ensembling.average import average
from alloykit.ensembling.rule import candidate_rules, shown
from alloykit.ensembling.vote import vote
from alloykit.ensembling.weighted import weighted
from alloykit.registry import ensemble_rules
from alloykit.types import EnsembleRule

TASKS = ("classification", "tokens", "regression")
MEMBERS = 3
BY_HAND = [
    weighted(weights=[0.5, 0.2, 0.3]),
    weighted(weights=[1, 0, 3], space="logits"),
    weighted(weights=[1, 2, 3], space="values"),
    vote(weights=[0.5, 0.25, 0.25]),
]
EVERY = [
    pytest.param(task, rule, id=f"{task}-{shown(rule)}")
    for task in TASKS
    for rule in [*candidate_rules(task), *(rule for rule in BY_HAND if task in rule.tasks)]
]
CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "examples": st.integers(1, 12),
        "classes": st.integers(2, 5),
        "scale": st.sampled_from([0.1, 1.0, 5.0, 30.0]),
        "ties": st.booleans(),
    }
)
members_of = {"weights": st.just(MEMBERS), "free": st.integers(1, 5)}


def rebuilt(rule: EnsembleRule) -> EnsembleRule:
    fewer = {"rounds": 6} if "rounds" in rule.parameters else {}
    return ensemble_rules.build(rule.name, **{**rule.parameters, **fewer})


@pytest.mark.parametrize(("task", "rule"), EVERY)
@given(data=st.data())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_every_rule_keeps_the_contract(task, rule, data):
    by_hand = rule.parameters.get("weights") is not None
    members = data.draw(members_of["weights" if by_hand else "free"])
    numbers = data.draw(CASES)
    # A metric may be undefined on a draw; that is the metric's to say, not the rule's.
    case = contract.case(task, members=members, **{**numbers, "examples": numbers["examples"] + 3})
    for check in contract.CHECKS:
        check(partial(rebuilt, rule), case)


def test_every_registered_rule_is_tried():
    tried = {parameter.values[1].name for parameter in EVERY}
    assert tried == set(ensemble_rules.names())


def in_place(stack, state):
    return stack.sub_(stack.logsumexp(-1, keepdim=True)).mean(0).log_softmax(-1)


def noisy(stack, state):
    return (average().combine(stack, state) + 1e-3 * torch.randn(stack.shape[1:])).log_softmax(-1)


def rounded(stack, state):
    result = average().combine(stack.bfloat16(), state).bfloat16()
    return result.to(stack.dtype).log_softmax(-1)


def first_counts_double(stack, state):
    return average().combine(torch.cat([stack[:1], stack]), state)


def unnormalised(stack, state):
    return stack.logsumexp(0)


def looks_around(stack, state):
    pooled = average().combine(stack, state)
    return (pooled + 0.1 * pooled.mean(0)).log_softmax(-1)


def outside(stack, state):
    return (average().combine(stack, state) * 2).log_softmax(-1)


def half(stack, state):
    return average().combine(stack, state).half()


BUGS = [
    (in_place, contract.check_inputs_untouched),
    (noisy, contract.check_same_twice),
    (rounded, contract.check_equal_members),
    (half, contract.check_float64),
    (first_counts_double, contract.check_order),
    (unnormalised, contract.check_output),
    (half, contract.check_output),
    (looks_around, contract.check_examples_apart),
    (outside, contract.check_within_range),
    (outside, contract.check_equal_members),
    (outside, contract.check_rebuilt),
]


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=lambda item: item.__name__)
def test_the_contract_finds_a_planted_bug(bug, check):
    case = contract.case(
        "classification", seed=1, members=3, examples=8, classes=4, scale=2.0, ties=False
    )
    # Unnormalised log-probabilities, so that an in-place normalisation changes something.
    if bug is in_place:
        case = replace(case, stack=case.stack + 1.0)
    check(average, case)
    with pytest.raises(AssertionError):
        check(lambda: replace(average(), combine=bug), case)


def test_the_contract_finds_weights_that_are_ignored():
    case = contract.case(
        "classification", seed=1, members=3, examples=8, classes=4, scale=2.0, ties=False
    )
    rule = weighted("log_loss")
    contract.check_zero_weight(lambda: rule, case)
    deaf = replace(rule, combine=lambda stack, state: average().combine(stack, {}))
    with pytest.raises(AssertionError):
        contract.check_zero_weight(lambda: deaf, case)
