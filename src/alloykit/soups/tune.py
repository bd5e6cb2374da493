"""A merge method's parameter chosen on validation data: by a grid or by golden section."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.evaluation.uncertainty import bootstrap
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.registry import merge_methods
from alloykit.soups.contract import Choice
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint

Rule = Literal["best", "one_se"]

ONE_SIGMA = 0.6827
"""What one standard error to either side covers."""

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class Tunable:
    """A merge of which one parameter is left open.

    Attributes:
        members: What is merged.
        method: Registered merge method.
        parameter: The parameter that is left open.
        parameters: The others.
        weights: One per member, or None.
        base: What the members were fine-tuned from, where the method needs it.
        stats: Kind of statistics -> one checkpoint per member.
        seed: For methods that draw random numbers.
    """

    members: Sequence[Checkpoint]
    method: str
    parameter: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    base: Checkpoint | None = None
    stats: Mapping[str, Sequence[Checkpoint]] = field(default_factory=dict)
    seed: int = 0

    def merged(self, value: Any) -> dict[str, Tensor]:
        """The merge at one value of the parameter."""
        plan = plan_merge(
            self.members,
            self.method,
            {**self.parameters, self.parameter: value},
            weights=self.weights,
            base=self.base,
            stats=self.stats,
            seed=self.seed,
        )
        return merge_in_memory(plan, self.members, self.base, stats=self.stats)

    @property
    def default(self) -> float | None:
        """The parameter's default where that is a number."""
        known = merge_methods.entry(self.method).parameters
        if self.parameter not in known:
            takes = ", ".join(known) or "none"
            raise InvalidParameter(
                f"{self.method} has no parameter {self.parameter!r} to tune. It takes: {takes}."
            )
        value = known[self.parameter].default
        return float(value) if _is_number(value) else None


def tuned(
    tunable: Tunable,
    judge: Judge,
    *,
    values: Sequence[Any] | None = None,
    bounds: tuple[float, float] | None = None,
    points: int = 12,
    rule: Rule = "best",
    prefer: float | None = None,
) -> Choice:
    """Merge at several values of one parameter, and choose by what validation says.

    Among values that score the same, the one nearest to ``prefer`` is chosen. The rule "one_se"
    goes further: it chooses the value nearest to it among all that score within one standard
    error of the best, which a small validation set cannot tell apart.

    Args:
        tunable: The merge.
        judge: Scores merged models on validation data.
        values: What to try, one after the other.
        bounds: Or the ends of an interval to search by golden section: for a score that rises to
            one maximum and falls again.
        points: Merges that the golden section may try, at least 3; 12 narrow the interval to
            half a percent of its width.
        rule: "best" or "one_se".
        prefer: The value to stay near; by default the method's own default, where that is a number.

    Raises:
        InvalidParameter: Not exactly one of values and bounds, or values that the method refuses.

    References:
        Kiefer: Sequential minimax search for a maximum, 1953. Breiman, Friedman, Olshen, Stone:
        Classification and Regression Trees, 1984, section 3.4.3 (the rule of one standard error;
        its standard error is a bootstrap's here).
    """
    near = tunable.default if prefer is None else float(prefer)
    if rule not in ("best", "one_se"):
        raise InvalidParameter(f"The 'rule' is 'best' or 'one_se'. Got {rule!r}.")
    if (values is None) == (bounds is None) or (values is not None and not len(values)):
        raise InvalidParameter(
            "Give either values=, what to try, or bounds=(low, high), an interval to search."
        )
    if rule == "one_se" and near is None:
        raise InvalidParameter(
            f"The rule 'one_se' stays near the default of {tunable.parameter!r}, and that is not a "
            "number. Say which value to stay near with prefer=, or use the rule 'best'."
        )
    trials = _Trials(tunable, judge)
    if bounds is None:
        for value in values or ():
            trials.score(value)
    else:
        _golden_section(trials.score, *_ordered(bounds), points)
    chosen = trials.chosen(rule, near)
    count = len(tunable.members)
    return Choice(
        tunable.method,
        {**tunable.parameters, tunable.parameter: chosen.value},
        tuple(tunable.weights) if tunable.weights is not None else (1.0,) * count,
        chosen.measured,
        tuple({tunable.parameter: t.value, judge.metric.name: t.measured} for t in trials.every),
    )


@dataclass(frozen=True)
class _Trial:
    """One value, what the metric said of its merge, and the same so that higher is better."""

    value: Any
    measured: float
    score: float


class _Trials:
    """Values tried so far; the outputs of the best are kept for its standard error."""

    def __init__(self, tunable: Tunable, judge: Judge) -> None:
        self.tunable, self.judge = tunable, judge
        self.every: list[_Trial] = []
        self._best_outputs: Tensor | None = None

    def score(self, value: Any) -> float:
        """Try one value; higher is better, and what is not a number is worst."""
        judge = self.judge
        outputs = judge.outputs(self.tunable.merged(value))
        measured = judge.metric.value(outputs, judge.validation.targets)
        score = -judge.metric.loss(measured)
        trial = _Trial(value, measured, -math.inf if math.isnan(score) else score)
        if not self.every or trial.score > max(known.score for known in self.every):
            self._best_outputs = outputs
        self.every.append(trial)
        return trial.score

    def chosen(self, rule: Rule, near: float | None) -> _Trial:
        """The trial that the rule chooses."""
        best = max(trial.score for trial in self.every)
        least = best - self._standard_error() if rule == "one_se" else best
        good = [trial for trial in self.every if trial.score >= least]
        if near is None or not all(_is_number(trial.value) for trial in good):
            return max(good, key=lambda trial: trial.score)
        return min(good, key=lambda trial: (abs(trial.value - near), -trial.score))

    def _standard_error(self) -> float:
        assert self._best_outputs is not None
        metric, targets = self.judge.metric, self.judge.validation.targets
        found = bootstrap(metric, self._best_outputs, targets, level=ONE_SIGMA)
        return (found.high - found.low) / 2.0


def _golden_section(score: Callable[[float], float], low: float, high: float, points: int) -> None:
    """Try points of an interval, each inside of what the ones before have left of it."""
    if points < 3:
        raise InvalidParameter(f"A golden section takes at least 3 'points'. Got {points}.")
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = score(left), score(right)
    for _ in range(points - 2):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = score(right)


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not (_is_number(low) and _is_number(high) and -math.inf < low < high < math.inf):
        raise InvalidParameter(
            f"The bounds are two finite numbers, the smaller one first. Got {low} and {high}."
        )
    return float(low), float(high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
