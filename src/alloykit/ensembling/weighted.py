"""The weighted average of the members' predictions, with weights learned or given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alloykit.ensembling import objectives
from alloykit.ensembling.pooling import Space, pool, tasks_of
from alloykit.ensembling.rule import EVERY_TASK, Combine, Pooling, ensemble_rule, learned
from alloykit.ensembling.simplex import Optimum
from alloykit.ensembling.stack import true_class
from alloykit.errors import InvalidParameter
from alloykit.evaluation.classification_metrics import FLOOR
from alloykit.evaluation.metrics import metric
from alloykit.evaluation.weighting import weights_from_scores
from alloykit.numerics import normalised
from alloykit.types import State

_OPTIMISED = {
    "log_loss": ("probabilities", "logits", "geometric"),
    "brier": ("probabilities",),
    "mse": ("values",),
}


@ensemble_rule(
    tasks=EVERY_TASK,
    fits=True,
    candidates=(
        {"by": "log_loss"},
        {"by": "log_loss", "space": "logits"},
        {"by": "brier"},
        {"by": "accuracy"},
        {"by": "precision"},
        {"by": "recall"},
        {"by": "f1"},
        {"by": "perplexity"},
        {"by": "mse"},
        {"by": "r2"},
    ),
    formula="p = Σ wₘ pₘ with w ≥ 0, Σ w = 1",
    paper="Kim et al., A fast algorithm for maximum likelihood estimation of mixture proportions "
    "using sequential quadratic programming, 2018, arXiv:1806.01412.",
)
def weighted(
    by: str | None = None,
    weights: Sequence[float] | None = None,
    power: float = 1.0,
    space: Space | None = None,
) -> Pooling:
    """Average with one weight per member: optimal for a loss, by a metric's score, or by hand.

    by log_loss: min over w of -(1/N) Σᵢ log Σₘ wₘ pₘ(yᵢ); by brier or mse: min of the squared
    error of Σ wₘ pₘ; by another metric: wₘ ∝ scoreₘ^power; each with w ≥ 0 and Σ w = 1

    Use it when members differ in quality, or repeat one another. The first three are convex and
    solved to a certified optimum; members that add nothing get weight zero and need not be run.
    The best log loss is not the best accuracy: on members that saw different classes the optimum
    can lose accuracy against the plain average while it gains log loss.

    Args:
        by: "log_loss" (default; "mse" when ``space`` is "values"), "brier", "mse", or any metric's
            name, which then scores each member on its own.
        weights: By hand instead, one non-negative number per member; they are divided by their sum.
        power: Exponent of the scores, >= 0; 0 is uniform, larger trusts the better ones more. Of
            no effect on the optimised ones.
        space: What is averaged; see ``average``. Default: "values" for regression metrics, else
            "probabilities". "log_loss" is convex in "logits" too.

    Shapes:
        stack [member, example, class] -> [example, class]
        state: weights [member]; gap [], for the optimised ones

    Raises:
        InvalidParameter: Both ``by`` and ``weights``, an unknown space, or a loss that has no
            certified optimum in that space.
        UnknownName: There is no such metric.

    Example:
        >>> stack = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]]).log()
        >>> weighted("log_loss").fit(stack, torch.tensor([0, 1]))["weights"]
        tensor([1., 0.], dtype=torch.float64)

    References:
        Kim, Carbonetto, Stephens, Anitescu, 2018, arXiv:1806.01412, for the log loss. We solve
        the quadratic sub-problems on the simplex itself, and stop by the duality gap.
        Brier: Breiman, Stacked regressions, 1996, with the sum of weights held at one.
    """
    if by is not None and weights is not None:
        raise InvalidParameter("Give weighted either 'by' or 'weights', not both.")
    if space is None:
        space = "values" if by and metric(by).tasks == {"regression"} else "probabilities"
    tasks = tasks_of(space)
    if weights is not None:
        return Pooling(_pool_by(weights, space), tasks=tasks)
    by = by or ("mse" if space == "values" else "log_loss")
    if by in _OPTIMISED and space not in _OPTIMISED[by]:
        raise InvalidParameter(
            f"Weights by {by} can be found for space={' or '.join(_OPTIMISED[by])}, not {space}."
        )
    served = metric(by).tasks & tasks
    if not served:
        raise InvalidParameter(f"The metric {by!r} does not fit space={space!r}.")

    def fit(stack: Tensor, targets: Tensor) -> State:
        if by in _OPTIMISED:
            return optimal_state(stack, targets, by, space)
        return {"weights": scored_weights(stack, targets, by, power)}

    return Pooling(_pool_by(None, space), fit, served)


def _pool_by(by_hand: Sequence[float] | None, space: str) -> Combine:
    def combine(stack: Tensor, state: State) -> Tensor:
        if by_hand is None or "weights" in state:
            return pool(stack, learned(state, "weights", "weighted"), space)
        given = normalised(by_hand, len(stack))
        return pool(stack, torch.tensor(given, dtype=torch.float64), space)

    return combine


def optimal_state(stack: Tensor, targets: Tensor, by: str, space: str) -> State:
    """The weights with the smallest loss, and the certificate: no others are better by the gap."""
    optimum: Optimum
    if by == "mse":
        optimum = objectives.squared_error_weights(stack, targets)
    elif by == "brier":
        optimum = objectives.brier_weights(stack, targets)
    elif space == "probabilities":
        optimum = objectives.log_loss_weights(true_class(stack, targets).clamp_min(FLOOR))
    else:
        optimum = objectives.log_pool_weights(stack, targets)
    return {"weights": torch.from_numpy(optimum.weights), "gap": torch.tensor(optimum.gap)}


def scored_weights(stack: Tensor, targets: Tensor, by: str, power: float) -> Tensor:
    """Weights from each member's own score, float64 ``[member]``."""
    measure = metric(by)
    scores = [measure.value(member, targets) for member in stack]
    weights = weights_from_scores(scores, measure, power=power)
    return torch.tensor(weights, dtype=torch.float64)
