"""Which soft losses a student learns by, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from alloykit.distillation.contract import SoftLoss, check_temperature, require_task
from alloykit.errors import InvalidParameter, did_you_mean
from alloykit.numerics import is_number
from alloykit.registry import distillation_losses
from alloykit.types import Task

Losses = str | SoftLoss | Mapping[str, float] | None
"""A registered name, a built loss, several names with their weights, or None for the default."""


@dataclass(frozen=True)
class Term:
    """One soft loss and its weight."""

    loss: SoftLoss
    weight: float = 1.0

    def __repr__(self) -> str:
        return f"{self.loss}" if self.weight == 1 else f"{self.weight:g} x {self.loss}"


def soft_terms(
    losses: Losses, *, task: Task, temperature: float, parameters: Mapping[str, Any]
) -> tuple[Term, ...]:
    """The terms of a soft loss, checked.

    Args:
        losses: See ``Losses``; the default is kl, and values for regression.
        task: What the student is trained for.
        temperature: T > 0, given to every named loss that has one.
        parameters: Given to every named loss that takes them.

    Raises:
        UnknownName: There is no such loss.
        InvalidParameter: Parameters that no loss takes, values outside their range, or a loss
            that does not serve the task.

    Example:
        >>> soft_terms({"kl": 1, "hint": 0.5}, task="classification", temperature=2, parameters={})
        (kl(T=2), 0.5 x hint)
    """
    if task not in get_args(Task):
        raise InvalidParameter(
            f"'task' must be one of {', '.join(get_args(Task))}. Got {task!r}."
            f"{did_you_mean(str(task), get_args(Task))}"
        )
    check_temperature(temperature, "a distillation")
    if losses is None:
        losses = "values" if task == "regression" else "kl"
    if not isinstance(losses, SoftLoss | str | Mapping):
        raise InvalidParameter(
            "'loss' must be a registered name, a built loss, or names with weights as in "
            f"{{'kl': 1, 'hint': 10}}. Got {losses!r}."
        )
    if isinstance(losses, SoftLoss):
        _refuse_unused(parameters, [])
        terms = [Term(losses)]
    else:
        weights = {losses: 1.0} if isinstance(losses, str) else dict(losses)
        _check_weights(weights)
        _refuse_unused(parameters, list(weights))
        given = {"temperature": temperature, **parameters}
        terms = [Term(_built(name, given), float(weight)) for name, weight in weights.items()]
    for term in terms:
        require_task(term.loss, task)
    return tuple(terms)


def _built(name: str, given: Mapping[str, Any]) -> SoftLoss:
    entry = distillation_losses.entry(name)
    loss: SoftLoss = entry.build(**{k: v for k, v in given.items() if k in entry.parameters})
    return loss


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights or not all(map(_counts, weights.values())):
        raise InvalidParameter(
            "Several losses take one weight above 0 each, as in {'kl': 1, 'hint': 10}. "
            f"Got {dict(weights)}."
        )


def _counts(weight: object) -> bool:
    return is_number(weight) and 0 < weight < math.inf


def _refuse_unused(parameters: Mapping[str, Any], names: list[str]) -> None:
    entries = [distillation_losses.entry(name) for name in names]
    known = sorted({name for entry in entries for name in entry.parameters})
    unknown = [name for name in parameters if name not in known]
    if unknown:
        which = " and ".join(names) or "A loss that is already built"
        raise InvalidParameter(
            f"{which} has no parameter {unknown[0]!r}.{did_you_mean(unknown[0], known)} "
            f"It takes: {', '.join(known) or 'none'}."
        )
