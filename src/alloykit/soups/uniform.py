"""The uniform soup: the plain average, scored on validation data."""

from __future__ import annotations

from collections.abc import Sequence

from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.soups.contract import Choice, Chooser, soup
from alloykit.soups.judge import Judge
from alloykit.types import Checkpoint


@soup(paper="Wortsman et al., Model soups, 2022, arXiv:2203.05482, section 2.")
def uniform() -> Chooser:
    """Average all members plainly.

    Use it as the yardstick for the other soups, and where validation data is too scarce to choose.

    Needs:
        validation, to say what the average is worth.

    References:
        Wortsman et al., Model soups, 2022, arXiv:2203.05482, section 2.
    """

    def choose(
        members: Sequence[Checkpoint], judge: Judge, base: Checkpoint | None = None
    ) -> Choice:
        merged = merge_in_memory(plan_merge(members), members)
        value = judge.value(merged, reestimate=len(members) > 1)
        return Choice("linear", {}, (1.0 / len(members),) * len(members), value)

    return choose
