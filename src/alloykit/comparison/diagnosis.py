"""Why averaging fails: the loss along the straight line between members, said in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from alloykit.comparison.report_data import Barrier
from alloykit.comparison.setting import Member, Setting
from alloykit.evaluation.batch_norm import has_batch_norm
from alloykit.evaluation.metrics import METRICS
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.soups.judge import Judge

POINTS = 11
EXAMPLES = 2000
MOST_PAIRS = 6
FLAT, STEEP = 0.05, 0.5


def diagnose_members(setting: Setting, *, most_pairs: int | None = MOST_PAIRS) -> list[Barrier]:
    """The barrier of every pair of members with the same tensors (the first ``most_pairs``)."""
    pairs = [pair for group in setting.groups for pair in itertools.combinations(group, 2)]
    return [barrier_between(a, b, setting) for a, b in pairs[:most_pairs]]


def barrier_between(first: Member, second: Member, setting: Setting) -> Barrier:
    """Walk from one member to the other in eleven steps and measure the loss at each.

    loss(alpha) of (1 − alpha) · first + alpha · second, on at most 2,000 validation examples

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020,
        arXiv:1912.05671, section 2. Eleven points, as Ainsworth et al. 2022 (arXiv:2209.04836)
        use twenty-five.
    """
    loss = METRICS["mse" if setting.task == "regression" else "log_loss"]
    judge = Judge(
        first.module, setting.validation.take(EXAMPLES), loss, setting.task,
        batch_norm=setting.batch_norm,
    )  # fmt: skip
    alphas = tuple(index / (POINTS - 1) for index in range(POINTS))
    checkpoints = [first.checkpoint, second.checkpoint]
    plain, reestimated = [], []
    for alpha in alphas:
        merged = merge_in_memory(plan_merge(checkpoints, weights=[1.0 - alpha, alpha]), checkpoints)
        plain.append(judge.value(merged, reestimate=False))
        if judge.batch_norm is not None:
            reestimated.append(judge.value(merged))
    return Barrier(
        first=first.name,
        second=second.name,
        alphas=alphas,
        losses=tuple(plain),
        losses_reestimated=tuple(reestimated) or None,
        verdict=verdict(
            alphas, plain, reestimated or None, batch_norm=has_batch_norm(first.module)
        ),
    )


def barrier_height(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """max over alpha of loss(alpha) − ((1 − alpha)·loss(0) + alpha·loss(1)).

    Example:
        >>> barrier_height([0.0, 0.5, 1.0], [1.0, 4.0, 2.0])
        2.5
    """
    return max(
        loss - ((1 - a) * losses[0] + a * losses[-1])
        for a, loss in zip(alphas, losses, strict=True)
    )


def verdict(
    alphas: Sequence[float],
    losses: Sequence[float],
    reestimated: Sequence[float] | None,
    *,
    batch_norm: bool,
) -> str:
    """What the curve means for averaging these two, in one plain sentence.

    The thresholds are relative to the larger loss at the ends: up to 5 % there is no barrier,
    above 50 % (and above 0.05 in the loss) averaging will fail.
    """
    height, grade = _graded(alphas, losses)
    if reestimated is None:
        hint = (
            " BatchNorm statistics were not re-estimated: give data for it and look again."
            if batch_norm and grade != "none"
            else ""
        )
        return _plain_verdict(height, grade) + hint
    after, regrade = _graded(alphas, reestimated)
    if grade == "none" or after >= height:
        return _plain_verdict(after, regrade)
    if regrade == "none":
        return (
            f"Only the BatchNorm statistics stand in the way: the barrier is {height:.3g} as "
            f"averaged and {max(after, 0.0):.3g} after re-estimation. Average, then re-estimate."
        )
    return f"{_plain_verdict(after, regrade)} Without re-estimating BatchNorm it is {height:.3g}."


def _graded(alphas: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    height, scale = barrier_height(alphas, losses), max(losses[0], losses[-1])
    if not math.isfinite(height) or (height > STEEP * scale and height > FLAT):
        return height, "high"
    return height, "low" if height > FLAT * scale else "none"


def _plain_verdict(height: float, grade: str) -> str:
    if grade == "high":
        return (
            f"Not in one basin (barrier {height:.3g}): averaging will fail; "
            "align them, or ensemble their predictions."
        )
    if grade == "low":
        return (
            f"A low barrier ({height:.3g}): averaging will lose a little; "
            "compare it with the members before you ship it."
        )
    return f"One basin (barrier {max(height, 0.0):.3g}): averaging is safe and may help."
