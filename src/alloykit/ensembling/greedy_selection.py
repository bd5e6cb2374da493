"""Greedy selection of members, with replacement, for any metric."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.ensembling.pooling import Space, pool, tasks_of
from alloykit.ensembling.rule import EVERY_TASK, Pooling, ensemble_rule, learned
from alloykit.ensembling.stack import true_class
from alloykit.errors import InvalidParameter
from alloykit.evaluation.classification_metrics import FLOOR
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.metrics import metric as metric_named
from alloykit.types import State

_TIE = 1e-6
"""Scores closer than this are a tie, as in AutoGluon: float32 scores are no finer."""


@ensemble_rule(
    tasks=EVERY_TASK,
    fits=True,
    candidates=({"metric": "accuracy"}, {"metric": "f1"}, {"metric": "mae"}),
    formula="add, K times, the member that helps most; keep the best prefix",
    paper="Caruana et al., Ensemble selection from libraries of models, ICML 2004.",
)
def greedy_selection(
    metric: str = "accuracy", rounds: int = 50, space: Space | None = None
) -> Pooling:
    """Add, again and again, the member that improves a metric most; members may be added twice.

    sₖ = sₖ₋₁ + pⱼ with j the member whose sₖ/k scores best; weights = counts of the best prefix / k

    Use it when the metric is not a smooth function of the weights (accuracy, F1, AUROC). For log
    loss, Brier score and mean squared error ``weighted`` finds the true optimum, and faster.

    Ties go to a member that was already chosen, then to the smaller log loss (squared error for
    values), then to the earlier member. The shortest prefix with the best score is kept.

    Args:
        metric: A metric's name.
        rounds: Members added at most, >= 1; weights are multiples of 1/rounds or coarser. 50 as
            in auto-sklearn; Caruana et al. saw little gain beyond.
        space: What is averaged; see ``average``. Default: "values" for regression metrics, else
            "probabilities".

    Shapes:
        stack [member, example, class] -> [example, class]
        state: weights [member]

    Raises:
        InvalidParameter: ``rounds`` below 1, or a space that the metric does not fit.
        UnknownName: There is no such metric.

    Example:
        >>> stack = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]]]).log()
        >>> greedy_selection("accuracy").fit(stack, torch.tensor([0, 1]))["weights"]
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Caruana, Niculescu-Mizil, Crew, Ksikes, 2004, section 2: selection with replacement. Without
        their sorted initialisation and bagging; like AutoGluon the best prefix is kept. Ties are
        never broken at random.
    """
    if rounds < 1:
        raise InvalidParameter(f"The 'rounds' must be at least 1. Got {rounds}.")
    measure = metric_named(metric)
    if space is None:
        space = "values" if measure.tasks == {"regression"} else "probabilities"
    served = measure.tasks & tasks_of(space)
    if not served:
        raise InvalidParameter(f"The metric {metric!r} does not fit space={space!r}.")

    def combine(stack: Tensor, state: State) -> Tensor:
        return pool(stack, learned(state, "weights", "greedy_selection"), space)

    def fit(stack: Tensor, targets: Tensor) -> State:
        scores: TruthScores | PooledScores
        if metric == "log_loss" and space == "probabilities":
            scores = TruthScores(stack, targets)
        else:
            scores = PooledScores(stack, targets, measure, space)
        return {"weights": selected(scores, len(stack), rounds)}

    return Pooling(combine, fit, served)


class TruthScores:
    """Log loss of "the chosen ones and one more", from the true class's column alone."""

    def __init__(self, stack: Tensor, targets: Tensor) -> None:
        self.truth = true_class(stack, targets).double().clamp_min(FLOOR).exp()
        self.total = torch.zeros_like(self.truth[0])

    def losses(self, count: int) -> tuple[Tensor, Tensor]:
        """For each member: the loss with it added as number ``count``, and the tie-breaker."""
        loss = -((self.total + self.truth) / count).log().mean(1)
        return loss, loss

    def add(self, member: int) -> None:
        """Choose that member once more."""
        self.total = self.total + self.truth[member]


class PooledScores:
    """Any metric of "the chosen ones and one more"."""

    def __init__(self, stack: Tensor, targets: Tensor, measure: Metric, space: str) -> None:
        self.stack = stack.exp() if space == "probabilities" else stack
        self.targets, self.measure, self.space = targets, measure, space
        self.total = torch.zeros_like(self.stack[0])

    def losses(self, count: int) -> tuple[Tensor, Tensor]:
        """For each member: the loss with it added as number ``count``, and the tie-breaker."""
        pairs = [self._loss(self.total + member, count) for member in self.stack]
        first, second = zip(*pairs, strict=True)
        return torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)

    def _loss(self, total: Tensor, count: int) -> tuple[float, float]:
        pooled = total / count
        if self.space == "probabilities":
            pooled = pooled.log()
        elif self.space != "values":
            pooled = pooled.log_softmax(-1)
        second = metric_named("mse" if self.space == "values" else "log_loss")
        return (
            self.measure.loss(self.measure.value(pooled, self.targets)),
            second.loss(second.value(pooled, self.targets)),
        )

    def add(self, member: int) -> None:
        """Choose that member once more."""
        self.total = self.total + self.stack[member]


def selected(scores: TruthScores | PooledScores, members: int, rounds: int) -> Tensor:
    """Counts of the best prefix divided by its length, float64 ``[member]``."""
    counts = torch.zeros(members, dtype=torch.float64)
    best, kept = float("inf"), counts
    for count in range(1, rounds + 1):
        losses, second = scores.losses(count)
        member = _first_choice(losses, second, counts > 0)
        scores.add(member)
        counts[member] += 1
        if float(losses[member]) < best - _TIE:
            best, kept = float(losses[member]), counts / count
    return kept


def _first_choice(losses: Tensor, second: Tensor, chosen: Tensor) -> int:
    tied = losses <= losses.min() + _TIE
    if bool((tied & chosen).any()):
        tied = tied & chosen
    return int(second.masked_fill(~tied, torch.inf).argmin())
