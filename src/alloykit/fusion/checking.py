"""Whether a head is worth it: its score on rows it was not trained on, beside the plain mean's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from alloykit.data.splits import IGNORED
from alloykit.errors import DataError
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.uncertainty import improvement
from alloykit.fusion.gathered import Gathered
from alloykit.fusion.head import FittedHead, FusionHead
from alloykit.fusion.parting import FOLDS, fold_rows
from alloykit.registry import fusion_heads
from alloykit.types import Interval

FEWEST = 20
"""Examples that a head takes at least: below that its score is noise."""

SETTLED = 200
"""Examples from which on a pull is chosen once for all folds; see ``settled``."""


@dataclass(frozen=True)
class Check:
    """A head against the plain mean of the members, on rows the head was not trained on.

    Attributes:
        scores: Metric -> score of the head.
        mean: Metric -> score of the plain mean (of probabilities, or values); {} without one.
        improvement: Metric -> how much better the head is, paired by example; above 0 is better.
        examples: How many examples it was measured on.
        how: "cross-fitted" or "held out".
    """

    scores: Mapping[str, float]
    mean: Mapping[str, float]
    improvement: Mapping[str, Interval]
    examples: int
    how: str

    @property
    def beaten(self) -> tuple[str, ...]:
        """The metrics whose whole interval lies above zero."""
        return tuple(name for name, found in self.improvement.items() if found.low > 0)

    @property
    def verdict(self) -> str:
        """What the intervals allow to say."""
        if not self.mean:
            return "has no plain mean to be compared with: members do not give what the head gives"
        behind = [name for name in self.improvement if name not in self.beaten]
        if not self.beaten:
            return "does not beat the plain mean"
        won = f"beats the plain mean on {' and '.join(self.beaten)}"
        return f"{won}, and does not beat the plain mean on {behind[0]}" if behind else won

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "scores": dict(self.scores),
            "mean": dict(self.mean),
            "improvement": {
                name: [found.value, found.low, found.high]
                for name, found in self.improvement.items()
            },
            "examples": self.examples,
            "how": self.how,
            "verdict": self.verdict,
        }


class CrossFitted(nn.Module):
    """Heads that each speak on the rows they were not trained on, as one head over all rows.

    Args:
        heads: One per fold.
        rows: The positions that each speaks on.
    """

    def __init__(self, heads: Sequence[nn.Module], rows: Sequence[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.rows = rows
        if all(hasattr(head, "attention") for head in heads):
            self.attention = self._attention

    def forward(self, members: Sequence[Tensor], context: Tensor | None) -> Tensor:
        """Each head's answer at its own rows."""
        return self._spread("forward", members, context)

    def _attention(self, members: Sequence[Tensor], context: Tensor | None) -> Tensor:
        return self._spread("attention", members, context)

    def _spread(self, call: str, members: Sequence[Tensor], context: Tensor | None) -> Tensor:
        found: Tensor | None = None
        for head, rows in zip(self.heads, self.rows, strict=True):
            part = getattr(head, call)(
                [member[rows] for member in members], None if context is None else context[rows]
            )
            found = part.new_empty(len(members[0]), part.shape[-1]) if found is None else found
            found[rows] = part
        if found is None:
            raise DataError("There are no folds.")
        return found


def cross_fitted(
    head: FusionHead, gathered: Gathered, *, folds: int = FOLDS, seed: int = 0
) -> CrossFitted:
    """Train the head once per fold on all other folds; examples are never cut in two.

    Args:
        head: What to train.
        gathered: The rows.
        folds: At least 2; at most the number of examples.
        seed: Of the folds.
    """
    owner = gathered.numbers
    alone = gathered.examples == len(owner)
    strata = gathered.data.targets if alone else torch.zeros(gathered.examples, dtype=torch.long)
    heads, rows = [], []
    for fold in fold_rows(strata, folds, seed):
        held = torch.isin(owner, fold)
        kept = gathered.keep((~held).nonzero().flatten())
        heads.append(head.fit(kept.data, kept.shape).module)
        rows.append(held.nonzero().flatten())
    return CrossFitted(heads, rows)


def settled(head: FusionHead, fitted: FittedHead, examples: int) -> FusionHead:
    """The head with what was chosen on all rows, so that folds need not choose again.

    Choosing anew in each fold takes twenty times as long, and what is chosen is one strength of a
    pull out of four. The best of four flatters: on labels that mean nothing by 0.025 nats of log
    loss at 40 examples and 0.005 at 200 (of 1.11), on labels that mean something by 0.01 and 0.
    Below 200 examples, where it would show and costs little, every fold chooses for itself.
    """
    if examples < SETTLED:
        return head
    known = fusion_heads.entry(head.name).parameters
    chosen = {key: value for key, value in fitted.chosen.items() if key == "pull" and key in known}
    if not chosen:
        return head
    same: FusionHead = fusion_heads.build(head.name, **{**head.parameters, **chosen})
    return same


def plain_mean(gathered: Gathered) -> Tensor:
    """The members' mean: log of the mean of probabilities, or the mean of values."""
    stack = torch.stack([output.double() for output in gathered.outputs])
    if gathered.shape.task == "regression":
        return stack.mean(0)
    return stack.logsumexp(0) - math.log(len(stack))


def check_against_mean(
    outputs: Tensor, gathered: Gathered, *, how: str = "held out", seed: int = 0
) -> Check:
    """Score a head's outputs beside the plain mean of the members, with paired intervals.

    Args:
        outputs: ``[row, output]`` of a head that was not trained on these rows.
        gathered: What the members said on them.
        how: How the head came to not have seen them.
        seed: Of the resamples.
    """
    regression = gathered.shape.task == "regression"
    names = ("rmse",) if regression else ("log_loss", "accuracy")
    ours, targets = _by_example(outputs.double(), gathered)
    scores = {name: metric(name).value(ours, targets) for name in names}
    mean: dict[str, float] = {}
    gains: dict[str, Interval] = {}
    if gathered.averages:
        theirs, _ = _by_example(plain_mean(gathered), gathered)
        mean = {name: metric(name).value(theirs, targets) for name in names}
        gains = {name: improvement(name, ours, theirs, targets, seed=seed) for name in names}
    return Check(scores, mean, gains, len(targets), how)


def _by_example(outputs: Tensor, gathered: Gathered) -> tuple[Tensor, Tensor]:
    """Rows of one example together: the bootstrap draws examples, not tokens."""
    counts = torch.bincount(gathered.numbers).tolist()
    targets = gathered.data.targets
    if max(counts) == 1 and gathered.shape.task != "tokens":
        return outputs, targets
    padded = pad_sequence(list(torch.split(outputs, counts)), batch_first=True)
    wanted = pad_sequence(
        list(torch.split(targets, counts)), batch_first=True, padding_value=IGNORED
    )
    return padded, wanted


def require_enough(gathered: Gathered) -> tuple[str, ...]:
    """Refuse splits too small for a head; what is left to say of thin classes.

    Raises:
        DataError: Fewer than 20 examples, or fewer than two per class on average.
    """
    examples = gathered.examples
    classes = gathered.shape.outputs if gathered.shape.task == "classification" else 0
    least = max(FEWEST, 2 * classes)
    if examples < least:
        each = f" (two for each of {classes} classes)" if least > FEWEST else ""
        raise DataError(
            f"The split is too small for a fusion head: {examples} examples, and {least} are the "
            f"least{each}. Give more labelled examples that no member was trained on, or take "
            "alloykit.ensemble, which learns nothing."
        )
    if not classes:
        return ()
    counts = torch.bincount(gathered.data.targets, minlength=classes).tolist()
    thin = [str(label) for label, count in enumerate(counts) if count < 2]
    if not thin:
        return ()
    shown = ", ".join(thin[:10]) + (f" and {len(thin) - 10} more" if len(thin) > 10 else "")
    return (f"Fewer than two examples of the classes {shown}: the head learned little of them.",)


def held_back(targets: Tensor, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the examples to train on, and of a fifth to measure on."""
    measured, *others = fold_rows(targets, FOLDS, seed)
    return torch.cat(others).sort().values.tolist(), measured.tolist()
