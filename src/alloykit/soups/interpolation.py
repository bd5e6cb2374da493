"""A sweep along the line between a base and one model (WiSE-FT), alpha chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence

from alloykit.errors import InvalidParameter, MissingInput
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.soups.contract import Choice, Chooser, soup
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint


@soup(
    needs=frozenset({"validation", "base"}),
    paper="Wortsman et al., Robust fine-tuning of zero-shot models, 2021, arXiv:2109.01903.",
)
def interpolation(points: int = 11) -> Chooser:
    """Try evenly spaced points between the base and one model, and keep the best (WiSE-FT).

    merged(alpha) = base + alpha · (member − base), alpha = 0, 1/(points − 1), …, 1

    Use it for one fine-tuned model and its base: both ends are among the points, as they are, so
    the result is never worse on validation than either.

    Args:
        points: Number of points, at least 2; 11 gives steps of 0.1.

    Needs:
        validation, base, exactly one member.

    Raises:
        InvalidParameter: points below 2.
        MissingInput: No base.

    References:
        Wortsman et al., Robust fine-tuning of zero-shot models, 2021, arXiv:2109.01903,
        section 4. Ties go to the larger alpha.
    """
    if points < 2:
        raise InvalidParameter(f"The 'points' of interpolation must be at least 2. Got {points}.")

    def choose(
        members: Sequence[Checkpoint], judge: Judge, base: Checkpoint | None = None
    ) -> Choice:
        if base is None:
            raise MissingInput("interpolation walks from a base to a model; pass base=PATH.")
        trials = []
        for index in range(points):
            alpha = index / (points - 1)
            plan = plan_merge(members, "interpolate", {"alpha": alpha}, base=base)
            merged = merge_in_memory(plan, members, base)
            value = judge.value(merged, reestimate=alpha not in (0.0, 1.0))
            trials.append({"alpha": alpha, judge.metric.name: value})
        sign = 1.0 if judge.metric.higher_is_better else -1.0
        best = max(reversed(trials), key=lambda trial: sign * trial[judge.metric.name])
        value = best[judge.metric.name]
        return Choice("interpolate", {"alpha": best["alpha"]}, (1.0,), value, tuple(trials))

    return choose
