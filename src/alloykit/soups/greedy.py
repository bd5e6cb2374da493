"""The greedy soup: members join the average only while validation does not suffer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alloykit.errors import InvalidParameter
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.soups.contract import Choice, Chooser, soup
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint


@soup(paper="Wortsman et al., Model soups, 2022, arXiv:2203.05482, recipe 1.")
def greedy(tolerance: float = 0.0) -> Chooser:
    """Add members to a uniform average, best first, keeping those that do not make it worse.

    Use it when some of the members may be bad: with tolerance 0 the result is never worse on
    validation than the best single member.

    Args:
        tolerance: How much worse, in the metric's unit, a larger soup may be and still be kept;
            at least 0. The default 0 is the authors' rule.

    Needs:
        validation.

    Raises:
        InvalidParameter: tolerance below 0.

    References:
        Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time, 2022, arXiv:2203.05482, recipe 1. BatchNorm
        statistics of averages are re-estimated before each trial where the judge was given data
        for it; a member alone keeps its own.
    """
    if not tolerance >= 0.0:
        raise InvalidParameter(f"The 'tolerance' of greedy must be at least 0. Got {tolerance}.")

    def choose(
        members: Sequence[Checkpoint], judge: Judge, base: Checkpoint | None = None
    ) -> Choice:
        singles = [_score([member], judge) for member in members]
        # sorted() is stable: members that score the same keep the order of their names.
        by_name = sorted(range(len(members)), key=lambda i: members[i].id)
        order = sorted(by_name, key=lambda i: singles[i], reverse=True)
        chosen, best = [order[0]], singles[order[0]]
        trials = [_trial(members, chosen, best, judge, kept=True)]
        for index in order[1:]:
            score = _score([members[i] for i in [*chosen, index]], judge)
            kept = score >= best - tolerance
            trials.append(_trial(members, [*chosen, index], score, judge, kept=kept))
            if kept:
                chosen, best = [*chosen, index], score
        weights = tuple(1.0 / len(chosen) if i in chosen else 0.0 for i in range(len(members)))
        return Choice("linear", {}, weights, _value(best, judge), tuple(trials))

    return choose


def _score(members: Sequence[Checkpoint], judge: Judge) -> float:
    score = judge.score(merge_in_memory(plan_merge(members), members), reestimate=len(members) > 1)
    return -math.inf if math.isnan(score) else score


def _value(score: float, judge: Judge) -> float:
    return score if judge.metric.higher_is_better else -score


def _trial(
    members: Sequence[Checkpoint], indices: Sequence[int], score: float, judge: Judge, *, kept: bool
) -> dict[str, object]:
    return {
        "members": [members[i].id for i in indices],
        judge.metric.name: _value(score, judge),
        "kept": kept,
    }
