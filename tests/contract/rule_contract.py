"""What every ensemble rule promises, as functions: ``check_*(factory, case)`` raise on a breach."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.testing import assert_close

from alloykit.ensembling.stack import IGNORED
from alloykit.registry import ensemble_rules
from alloykit.types import EnsembleRule, State, Task

Factory = Callable[[], EnsembleRule]

# Fitted weights are optimal to a gap, and where the objective is flat they may differ a little.
FITTED = {"rtol": 0.0, "atol": 2e-3}
EXACT = {"rtol": 1e-6, "atol": 1e-5}


@dataclass(frozen=True)
class Case:
    """Members' outputs on the same examples: log-probabilities, or values for regression."""

    stack: Tensor
    targets: Tensor
    task: Task

    @property
    def has_classes(self) -> bool:
        return self.task != "regression"


def case(
    task: Task, *, seed: int, members: int, examples: int, classes: int, scale: float, ties: bool
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(members, examples, classes, generator=generator) * scale
    if task == "regression":
        noise = torch.randn(examples, classes, generator=generator)
        return Case(outputs, outputs[0] + 0.1 * scale * noise, task)
    if ties:
        outputs = outputs.round()
    labels = torch.randint(classes, (examples,), generator=generator)
    # Every score above zero for at least one member: otherwise weights by it are an error.
    labels[0] = outputs[0, 0].argmax()
    if task == "tokens":
        labels = labels[:, None].repeat(1, 2)
        labels[::2, 1] = IGNORED
        outputs = torch.stack([outputs, outputs.flip(1)], dim=2)
    return Case(outputs.log_softmax(-1), labels, task)


def fitted(rule: EnsembleRule, stack: Tensor, targets: Tensor) -> State:
    return rule.fit(stack, targets) if rule.fit is not None else {}


def pooled(rule: EnsembleRule, stack: Tensor, targets: Tensor) -> Tensor:
    return rule.combine(stack, fitted(rule, stack, targets))


def comparable(outputs: Tensor, given: Case) -> Tensor:
    """Probabilities for classes: their differences mean the same for any confidence."""
    return outputs.exp() if given.has_classes else outputs


def tolerance(rule: EnsembleRule) -> dict[str, float]:
    return EXACT if rule.fit is None else FITTED


def keeps(rule: EnsembleRule) -> str:
    return ensemble_rules.entry(rule.name).contract["keeps"]


def check_output(factory: Factory, given: Case) -> None:
    result = pooled(factory(), given.stack, given.targets)
    assert result.dtype == torch.float32
    assert result.shape == given.stack.shape[1:]
    assert bool(torch.isfinite(result).all())
    if given.has_classes:
        assert_close(result.exp().sum(-1), torch.ones(result.shape[:-1]), **EXACT)


def check_equal_members(factory: Factory, given: Case) -> None:
    """Equal members, and so a single one, give that member: as far as the rule keeps it."""
    rule = factory()
    count = len(rule.parameters.get("weights") or given.stack)
    for copies in {1, count} if rule.parameters.get("weights") is None else {count}:
        stack = given.stack[:1].expand(copies, *given.stack.shape[1:]).contiguous()
        result, member = pooled(rule, stack, given.targets), given.stack[0]
        if keeps(rule) == "output":
            assert_close(comparable(result, given), comparable(member, given), **EXACT)
        elif keeps(rule) == "winner":
            best = result.gather(-1, member.argmax(-1, keepdim=True))[..., 0]
            assert_close(best, result.amax(-1), **EXACT)


def check_order(factory: Factory, given: Case) -> None:
    rule = factory()
    order = torch.arange(len(given.stack)).roll(1)
    parameters = dict(rule.parameters)
    if parameters.get("weights") is not None:
        parameters["weights"] = [parameters["weights"][i] for i in order]
        other = ensemble_rules.build(rule.name, **parameters)
    else:
        other = rule
    assert_close(
        comparable(pooled(other, given.stack[order], given.targets), given),
        comparable(pooled(rule, given.stack, given.targets), given),
        **tolerance(rule),
    )


def check_zero_weight(factory: Factory, given: Case) -> None:
    """A member of weight zero is absent, whether the weight was fitted or given."""
    rule = factory()
    state = fitted(rule, given.stack, given.targets)
    if "weights" not in state and rule.parameters.get("weights") is None:
        return
    weights = torch.arange(len(given.stack), dtype=torch.float64)
    if not weights.any():
        return
    weights = weights / weights.sum()
    with_it = rule.combine(given.stack, {**state, "weights": weights})
    without = rule.combine(given.stack[1:], {**state, "weights": weights[1:]})
    assert_close(comparable(with_it, given), comparable(without, given), **EXACT)


def check_inputs_untouched(factory: Factory, given: Case) -> None:
    rule = factory()
    stack, targets = given.stack.clone(), given.targets.clone()
    state = fitted(rule, stack, targets)
    kept = {name: value.clone() for name, value in state.items()}
    rule.combine(stack, state)
    assert torch.equal(stack, given.stack)
    assert torch.equal(targets, given.targets)
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def check_same_twice(factory: Factory, given: Case) -> None:
    before = torch.get_rng_state()
    first = pooled(factory(), given.stack, given.targets)
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
    torch.manual_seed(int(before[:4].sum()) + 1)
    second = pooled(factory(), given.stack, given.targets)
    torch.set_rng_state(before)
    assert torch.equal(first, second)


def check_float64(factory: Factory, given: Case) -> None:
    rule = factory()
    state = fitted(rule, given.stack, given.targets)
    single = rule.combine(given.stack, state)
    double = rule.combine(given.stack.double(), state)
    assert double.dtype == torch.float64
    assert_close(comparable(single, given), comparable(double, given).float(), **EXACT)


def check_rebuilt(factory: Factory, given: Case) -> None:
    """From its name and its parameters, through JSON, it is the same rule."""
    rule = factory()
    again = ensemble_rules.build(rule.name, **json.loads(json.dumps(dict(rule.parameters))))
    assert again.tasks == rule.tasks
    assert again.parameters == rule.parameters
    assert torch.equal(
        pooled(again, given.stack, given.targets), pooled(rule, given.stack, given.targets)
    )


def check_examples_apart(factory: Factory, given: Case) -> None:
    """What is said of one example does not depend on the others in the batch."""
    rule = factory()
    state = fitted(rule, given.stack, given.targets)
    alone = rule.combine(given.stack[:, :1], state)
    together = rule.combine(given.stack, state)[:1]
    assert_close(comparable(alone, given), comparable(together, given), **EXACT)


def check_within_range(factory: Factory, given: Case) -> None:
    """Means of probabilities or values lie between the smallest and the largest member."""
    rule = factory()
    space = rule.parameters.get("space", "")
    if space is None:
        space = "values" if rule.tasks == {"regression"} else "probabilities"
    renormalised = (rule.name, space) == ("median", "probabilities")
    if space not in ("probabilities", "values") or renormalised:
        return
    result = comparable(pooled(rule, given.stack, given.targets), given)
    members = comparable(given.stack, given)
    assert bool((result >= members.amin(0) - 1e-5).all())
    assert bool((result <= members.amax(0) + 1e-5).all())


CHECKS = (
    check_output,
    check_equal_members,
    check_order,
    check_zero_weight,
    check_inputs_untouched,
    check_same_twice,
    check_float64,
    check_rebuilt,
    check_examples_apart,
    check_within_range,
)
