"""Why averaging fails: loss and errors along the straight line between members, in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from alloykit.comparison.report.data import Barrier
from alloykit.comparison.setting import Member, Setting
from alloykit.data.examples import Examples
from alloykit.evaluation.batch_norm import has_batch_norm
from alloykit.evaluation.metrics import METRICS
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.soups.judge import Judge
from alloykit.types import Task

POINTS = 11
EXAMPLES = 2000
MOST_PAIRS = 6
NONE, LOW, HIGH = 0, 1, 2
LOSS_GRADES = (0.05, 0.5)
"""Up to 5 % of the larger loss at the ends there is no barrier, above 50 % a high one."""

ERROR_GRADES = (0.02, 0.1)
"""The same for errors, in fractions of all examples; 2 % is what the source calls unstable."""


@dataclass(frozen=True)
class Curve:
    """What was measured along one line.

    Attributes:
        losses: The loss at each alpha.
        errors: The fraction of wrong predictions at each alpha; empty for regression.
    """

    losses: tuple[float, ...]
    errors: tuple[float, ...] = ()

    @property
    def height(self) -> float:
        """The loss barrier."""
        return barrier_height(self.losses)

    @property
    def error_height(self) -> float:
        """The error barrier, as a fraction of all examples; 0 for regression."""
        return barrier_height(self.errors) if self.errors else 0.0

    @property
    def grade(self) -> int:
        """NONE, LOW or HIGH: the worse of what loss and errors say."""
        if not math.isfinite(self.height):
            return HIGH
        scale = max(self.losses[0], self.losses[-1])
        by_loss = sum(self.height > share * scale for share in LOSS_GRADES)
        by_error = sum(self.error_height > share for share in ERROR_GRADES)
        # A barrier in the loss of two excellent models can be many times their loss and nothing.
        return max(by_error, min(by_loss, LOW) if self.errors and not by_error else by_loss)


def diagnose_members(setting: Setting, *, most_pairs: int | None = MOST_PAIRS) -> list[Barrier]:
    """The barrier of every pair of members with the same tensors (the first ``most_pairs``)."""
    pairs = [pair for group in setting.groups for pair in itertools.combinations(group, 2)]
    return [barrier_between(a, b, setting) for a, b in pairs[:most_pairs]]


def barrier_between(first: Member, second: Member, setting: Setting) -> Barrier:
    """Walk from one member to the other in eleven steps; measure loss and errors at each.

    At alpha the model is (1 − alpha) · first + alpha · second. At most 2,000 validation examples
    are used. Skewed members can have less loss between them than at either end and be wrong more
    often all the same, which is why the errors are part of the verdict.

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020,
        arXiv:1912.05671, section 2 (errors, instability above 2 %); Ainsworth et al., Git
        Re-Basin, 2022, arXiv:2209.04836 (loss; 25 points, where we take 11).
    """
    judge = Judge(
        first.module,
        _spread(setting.validation),
        setting.metric,
        setting.task,
        batch_norm=setting.batch_norm,
        kind=setting.kinds[first.name],
    )
    alphas = tuple(index / (POINTS - 1) for index in range(POINTS))
    plain = _curve(first, second, alphas, judge, reestimate=False)
    again = None
    if judge.batch_norm is not None:
        again = _curve(first, second, alphas, judge, reestimate=True)
    return Barrier(
        first=first.name,
        second=second.name,
        alphas=alphas,
        losses=plain.losses,
        losses_reestimated=again.losses if again else None,
        verdict=verdict(plain, again, batch_norm=has_batch_norm(first.module)),
        errors=(again or plain).errors or None,
    )


def _spread(examples: Examples) -> Examples:
    """At most 2,000 of the examples, evenly spaced: they may be sorted by class."""
    step = -(-len(examples) // EXAMPLES)
    return examples if step <= 1 else examples.keep(range(0, len(examples), step))


def _curve(
    first: Member, second: Member, alphas: Sequence[float], judge: Judge, *, reestimate: bool
) -> Curve:
    checkpoints, targets = [first.checkpoint, second.checkpoint], judge.validation.targets
    losses, errors = [], []
    for alpha in alphas:
        plan = plan_merge(checkpoints, weights=[1.0 - alpha, alpha])
        outputs = judge.outputs(merge_in_memory(plan, checkpoints), reestimate=reestimate)
        loss, error = _measured(outputs, targets, judge.task)
        losses.append(loss)
        errors += [] if error is None else [error]
    return Curve(tuple(losses), tuple(errors))


def _measured(outputs: Tensor, targets: Tensor, task: Task) -> tuple[float, float | None]:
    if task == "regression":
        return METRICS["mse"].value(outputs, targets), None
    accuracy = METRICS["accuracy"].value(outputs, targets)
    return METRICS["log_loss"].value(outputs, targets), 1.0 - accuracy


def barrier_height(values: Sequence[float]) -> float:
    """Max over alpha of value(alpha) − ((1 − alpha)·value(0) + alpha·value(1)), evenly spaced.

    Example:
        >>> barrier_height([1.0, 4.0, 2.0])
        2.5
    """
    last = len(values) - 1
    return max(
        value - ((1 - index / last) * values[0] + index / last * values[-1])
        for index, value in enumerate(values)
    )


def verdict(plain: Curve, reestimated: Curve | None, *, batch_norm: bool) -> str:
    """What the curves mean for averaging these two, in one or two plain sentences."""
    if reestimated is None:
        hint = " BatchNorm statistics were not re-estimated: give data for it and look again."
        return _said(plain) + (hint if batch_norm and plain.grade != NONE else "")
    if reestimated.grade >= plain.grade:
        return _said(reestimated)
    before = f"As averaged, without re-estimating BatchNorm, it is {_heights(plain)}."
    if reestimated.grade == NONE:
        return f"Only the BatchNorm statistics stand in the way: re-estimate them. {before}"
    return f"{_said(reestimated)} {before}"


def _said(curve: Curve) -> str:
    if curve.grade == HIGH:
        return (
            f"Not in one basin (barrier {_heights(curve)}): averaging will fail; "
            "align them, or ensemble their predictions."
        )
    if curve.grade == LOW:
        return (
            f"A low barrier ({_heights(curve)}): averaging may lose a little; "
            "compare it with the members before you ship it."
        )
    return f"One basin (barrier {_heights(curve)}): nothing is lost on the way, averaging may help."


def _heights(curve: Curve) -> str:
    text = f"{max(curve.height, 0.0):.2g} in the loss"
    if curve.errors:
        text += f", {100 * max(curve.error_height, 0.0):.1f} points of accuracy"
    return text
