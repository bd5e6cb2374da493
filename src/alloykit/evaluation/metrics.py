"""The metrics by name: what each one is, which way is better, and for which tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from alloykit.errors import InvalidParameter, UnknownName, did_you_mean
from alloykit.evaluation import classification_metrics as classes
from alloykit.evaluation import regression_metrics as values
from alloykit.evaluation.classification_metrics import Array
from alloykit.types import Task

Score = Callable[[Tensor, Tensor], float]
Contributions = Callable[[Tensor, Tensor], Any]
Finish = Callable[[Array], Array]

EVERY_TASK: frozenset[Task] = frozenset({"classification", "regression", "tokens"})


@dataclass(frozen=True)
class Metric:
    """A number that says how good pooled outputs are.

    Attributes:
        name: Its name.
        higher_is_better: Its direction.
        tasks: The tasks that it fits.
        value: (outputs, targets) -> the number. Outputs are log-probabilities [example, class]
            or [example, position, class], or values [example, *output].
        contributions: (outputs, targets) -> [example, k], dense or sparse, where the metric is a
            function of sums over examples; else None.
        finish: Sums [resample, k] -> values [resample]; None where ``contributions`` is.
    """

    name: str
    higher_is_better: bool
    tasks: frozenset[Task]
    value: Score
    contributions: Contributions | None = None
    finish: Finish | None = None

    @property
    def summary(self) -> str:
        """The first line of what it is documented as."""
        return (self.value.__doc__ or "").strip().partition("\n")[0]

    def loss(self, value: float) -> float:
        """The value with its sign turned where higher is better, so that lower is better."""
        return -value if self.higher_is_better else value


def metric(
    name_or_callable: str | Metric | Score,
    *,
    higher_is_better: bool | None = None,
    task: Task | None = None,
) -> Metric:
    """The metric of that name, or one made of a function.

    Args:
        name_or_callable: A name of ``METRICS``; a Metric; or a function (outputs, targets) ->
            number, where outputs are as ``Metric.value`` takes them.
        higher_is_better: The direction of a function of your own; needed there.
        task: Refuse a metric that does not fit it.

    Raises:
        UnknownName: There is no metric of that name.
        InvalidParameter: It does not fit the task, or a function came without its direction.

    Example:
        >>> metric("log_loss").higher_is_better
        False
    """
    if isinstance(name_or_callable, Metric):
        found = name_or_callable
    elif isinstance(name_or_callable, str):
        found = _named(name_or_callable)
    else:
        found = _own(name_or_callable, higher_is_better)
    if task is not None and task not in found.tasks:
        fitting = ", ".join(m.name for m in for_task(task))
        raise InvalidParameter(
            f"The metric {found.name!r} does not fit {task}. Those that do: {fitting}."
        )
    return found


def for_task(task: Task) -> list[Metric]:
    """The metrics that fit a task, the usual main one first."""
    return [m for m in METRICS.values() if task in m.tasks]


def _named(name: str) -> Metric:
    if name not in METRICS:
        raise UnknownName(
            f"There is no metric {name!r}.{did_you_mean(name, list(METRICS))} "
            f"All {len(METRICS)}: {', '.join(METRICS)}."
        )
    return METRICS[name]


def _own(function: Score, higher_is_better: bool | None) -> Metric:
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(function):
        raise InvalidParameter(
            f"A metric is a name or a function (outputs, targets) -> number. Got a {name}."
        )
    if higher_is_better is None:
        raise InvalidParameter(
            f"Which way is better for the metric {name!r}? Say higher_is_better=True or False."
        )

    def value(outputs: Tensor, targets: Tensor) -> float:
        return float(function(outputs, targets))

    value.__doc__ = function.__doc__
    return Metric(name, higher_is_better, EVERY_TASK, value)


def _of_units(score: Score) -> Score:
    def value(outputs: Tensor, targets: Tensor) -> float:
        scored, wanted, _ = classes.units(outputs, targets)
        return score(scored, wanted)

    value.__doc__ = score.__doc__
    return value


def _per_example(contributions: Contributions) -> Contributions:
    """Sums over the tokens of each example; unchanged where a unit is an example."""

    def summed(outputs: Tensor, targets: Tensor) -> Any:
        scored, wanted, owner = classes.units(outputs, targets)
        found = contributions(scored, wanted)
        if targets.dim() == 1:
            return found
        place = (owner.numpy(), np.arange(len(owner)))
        belongs = sparse.csr_matrix((np.ones(len(owner)), place), (len(targets), len(owner)))
        return belongs @ found

    return summed


def _classification(
    score: Score,
    contributions: Contributions | None = None,
    finish: Finish | None = None,
    *,
    higher: bool = True,
    tokens: bool = True,
) -> Metric:
    tasks: frozenset[Task] = EVERY_TASK - {"regression"} - (set() if tokens else {"tokens"})
    per_example = None if contributions is None else _per_example(contributions)
    return Metric(score.__name__, higher, tasks, _of_units(score), per_example, finish)


def _regression(
    score: Score, contributions: Contributions, finish: Finish, *, higher: bool = False
) -> Metric:
    return Metric(score.__name__, higher, frozenset({"regression"}), score, contributions, finish)


METRICS: Mapping[str, Metric] = {
    entry.name: entry
    for entry in (
        _classification(classes.accuracy, classes.hits, classes.mean),
        _classification(classes.precision, classes.class_counts, classes.macro_precision),
        _classification(classes.recall, classes.class_counts, classes.macro_recall),
        _classification(classes.f1, classes.class_counts, classes.macro_f1),
        _classification(classes.log_loss, classes.losses, classes.mean, higher=False),
        _classification(classes.brier, classes.squared_errors, classes.mean, higher=False),
        _classification(classes.ece, classes.bin_gaps, classes.binned_error, higher=False),
        _classification(classes.auroc, tokens=False),
        _classification(classes.perplexity, classes.losses, classes.exp_mean, higher=False),
        _regression(values.r2, values.moments, values.explained, higher=True),
        _regression(values.mae, values.absolute_errors, classes.mean),
        _regression(values.rmse, values.squared_errors, values.root_mean),
        _regression(values.mse, values.squared_errors, classes.mean),
    )
}
"""Name -> metric, the main one of each task first."""
