"""How an ensemble rule is written: a factory with its parameters, and its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from alloykit.data.tasks import require_served
from alloykit.ensembling.stack import fitting_rows
from alloykit.errors import MissingInput
from alloykit.numerics import normalised
from alloykit.registry import ensemble_rules
from alloykit.types import EnsembleRule, State, Task

Combine = Callable[[torch.Tensor, State], torch.Tensor]
Fit = Callable[[torch.Tensor, torch.Tensor], State]

EVERY_TASK: frozenset[Task] = frozenset({"classification", "tokens", "regression"})
CLASSES: frozenset[Task] = frozenset({"classification", "tokens"})
VALUES: frozenset[Task] = frozenset({"regression"})


@dataclass(frozen=True)
class Pooling:
    """What a rule's factory returns: the arithmetic for one set of parameters.

    Attributes:
        combine: ``(stack, state) -> pooled``; see ``EnsembleRule``.
        fit: ``(stack, targets) -> state``, or None. It is only ever given clean rows:
            ``[member, example, class]`` with one label per example, none of them ignored, or
            values with targets of the same shape.
        tasks: The tasks that these parameters serve; None means all that the rule declares.
    """

    combine: Combine
    fit: Fit | None = None
    tasks: frozenset[str] | None = None


def ensemble_rule(
    *,
    tasks: frozenset[Task],
    fits: bool,
    candidates: Sequence[Mapping[str, Any]] = ({},),
    keeps: Literal["output", "winner", "nothing"] = "output",
    formula: str = "",
    paper: str = "",
) -> Callable[[Callable[..., Pooling]], Callable[..., EnsembleRule]]:
    """Register a factory of poolings under its own name.

    The decorated factory takes the rule's parameters, all of them JSON values, and returns a
    ``Pooling``; calling the registered name gives an ``EnsembleRule`` that also knows its
    parameters, so that it can be rebuilt from its name and parameters.

    Args:
        tasks: Every task that the rule serves with some parameters.
        fits: Whether it learns something from validation data, with some parameters.
        candidates: Parameter sets that ``compare`` should try.
        keeps: What a single member's output keeps: itself, its winning class only, or nothing sure.
        formula: The rule in one line, for the generated documentation.
        paper: Where the rule comes from.
    """

    def register(factory: Callable[..., Pooling]) -> Callable[..., EnsembleRule]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> EnsembleRule:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            pooling = factory(*args, **kwargs)
            served = tasks if pooling.tasks is None else pooling.tasks
            return EnsembleRule(
                name=factory.__name__,
                parameters=dict(bound.arguments),
                combine=pooling.combine,
                fit=pooling.fit and _on_clean_rows(pooling.fit, served),
                tasks=frozenset(served),
            )

        ensemble_rules.add(
            build,
            tasks=tasks,
            fits=fits,
            candidates=tuple(candidates),
            keeps=keeps,
            formula=formula,
            paper=paper,
        )
        return build

    return register


def _on_clean_rows(fit: Fit, tasks: frozenset[str]) -> Fit:
    @torch.no_grad()
    def checked(stack: torch.Tensor, targets: torch.Tensor) -> State:
        return fit(*fitting_rows(stack, targets, classes=tasks != VALUES))

    return checked


def build_rule(name: str, *, task: Task, **parameters: Any) -> EnsembleRule:
    """The rule of that name for a task; ``space`` becomes "values" for regression if not given.

    Args:
        name: A registered rule.
        task: What the members were trained for.
        parameters: The rule's own.

    Raises:
        UnknownName: There is no such rule.
        InvalidParameter: Unknown parameters, or the rule does not serve the task.

    Example:
        >>> build_rule("average", task="regression").parameters
        {'space': 'values'}
    """
    entry = ensemble_rules.entry(name)
    if task == "regression" and "space" in entry.parameters:
        parameters = {"space": "values", **parameters}
    rule: EnsembleRule = entry.build(**parameters)
    require_task(rule, task)
    return rule


def require_task(rule: EnsembleRule, task: Task) -> None:
    """Refuse a rule that does not serve ``task``, naming the ones that do."""
    more = ", with space='values'" if task == "regression" else ""
    require_served(f"rule {shown(rule)}", rule.tasks, task, ensemble_rules, more)


def candidate_rules(task: Task) -> list[EnsembleRule]:
    """Every rule, with every parameter set, that is worth trying for ``task``, in order of name."""
    built = [
        entry.build(**parameters)
        for entry in ensemble_rules.entries()
        for parameters in entry.contract["candidates"]
    ]
    return [rule for rule in built if task in rule.tasks]


def starting_state(rule: EnsembleRule, members: int) -> State:
    """What a rule knows before it is fitted: weights by hand, normalised, where it has them.

    Raises:
        InvalidWeights: The weights by hand do not fit ``members`` members.
    """
    weights = rule.parameters.get("weights")
    if weights is None:
        return {}
    return {"weights": torch.tensor(normalised(weights, members), dtype=torch.float64)}


def learned(state: State, key: str, rule: str) -> torch.Tensor:
    """What fitting learned under ``key``; MissingInput where the rule was not fitted."""
    if key not in state:
        raise MissingInput(
            f"The rule {rule} has not been fitted: it needs rule.fit(stack, targets) on validation "
            "data first."
        )
    return state[key]


def shown(rule: EnsembleRule) -> str:
    """The rule as one would type it: "average(space='logits')"; parameters left at None unsaid."""
    given = (f"{key}={value!r}" for key, value in rule.parameters.items() if value is not None)
    return f"{rule.name}({', '.join(given)})"
