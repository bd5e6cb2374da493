"""Linear heads at their optimum: softmax regression by L-BFGS, ridge regression in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from alloykit.errors import AlloyError
from alloykit.fusion.parting import FOLDS, folds
from alloykit.types import Task

Array = npt.NDArray[np.float64]

GRADIENT = 1e-6
"""Largest entry of the gradient that counts as solved, per example."""
ROUGH = 5e-4
"""The same where solutions are only compared with one another."""


@dataclass(frozen=True)
class Solution:
    """A linear layer at its optimum.

    Attributes:
        weights: ``[output, column + 1]``, float64; the last column is the bias.
        gradient: Largest entry of the objective's gradient there. The objective exceeds the
            smallest one by at most N/(2·pull) times the squared length of the gradient.
    """

    weights: Tensor
    gradient: float


class Solve(Protocol):
    """``softmax_regression`` and ``ridge``."""

    def __call__(
        self,
        columns: Tensor,
        targets: Tensor,
        anchor: Tensor,
        pull: float,
        *,
        start: Tensor | None = None,
        tolerance: float = GRADIENT,
    ) -> Solution:
        """Solve."""


def softmax_regression(
    columns: Tensor,
    targets: Tensor,
    anchor: Tensor,
    pull: float,
    *,
    start: Tensor | None = None,
    tolerance: float = GRADIENT,
) -> Solution:
    """The weights W that minimise the log loss and their distance from an anchor.

    -(1/N) Σᵢ log softmax(W [xᵢ; 1])[yᵢ] + pull/(2N) · ‖W - anchor‖²

    Strongly convex: there is one solution, found by L-BFGS in float64.

    Args:
        columns: ``[row, column]``.
        targets: ``[row]`` class numbers.
        anchor: ``[class, column + 1]``: where the pull pulls to; the last column is the bias.
        pull: Above 0, in examples: scikit-learn's 1/C.
        start: Where to begin; the anchor where None.
        tolerance: Largest entry of the gradient that counts as solved, in nats per example.

    Raises:
        AlloyError: The solver stopped before the gradient vanished.
    """
    design, labels, goal = with_ones(columns), targets.cpu(), anchor.double().cpu()
    # In these coordinates the objective is nearly as steep in all directions, however correlated
    # the columns are: a tenth of the steps, to the same solution.
    curvature = design.T @ design / 4 + pull * torch.eye(design.shape[1], dtype=torch.float64)
    scale = torch.linalg.cholesky(curvature / len(design))

    def weights_at(point: Array) -> Tensor:
        moved = torch.from_numpy(point).view(goal.shape)
        away: Tensor = torch.linalg.solve_triangular(scale, moved, upper=False, left=False)
        return goal + away

    def objective(point: Array) -> tuple[float, Array]:
        loss, gradient = penalised_log_loss(weights_at(point), design, labels, goal, pull)
        steep = torch.linalg.solve_triangular(scale, gradient.T, upper=False).T
        return loss, steep.flatten().numpy()

    point = np.zeros(goal.numel()) if start is None else ((start - goal) @ scale).flatten().numpy()
    gradient, goal_of_search = math.inf, tolerance / 2
    while gradient > tolerance and goal_of_search > tolerance / 1e4:
        found = minimize(
            objective,
            point,
            jac=True,
            method="L-BFGS-B",
            # Only the gradient stops it: small steps of the loss say little on a valley's floor.
            options={
                "maxiter": 5000, "maxfun": 20000, "maxcor": 20, "gtol": goal_of_search, "ftol": 0,
            },
        )  # fmt: skip
        point, goal_of_search = found.x, goal_of_search / 10
        weights = weights_at(point)
        left = penalised_log_loss(weights, design, labels, goal, pull)[1]
        gradient = float(left.abs().max())
    if not gradient <= tolerance:
        raise AlloyError(
            f"The linear head was not solved: the gradient stayed at {gradient:.3g} where "
            f"{tolerance:g} is asked for ({found.message}). Try a larger pull than {pull:g}, or "
            "feed='standard', which brings all columns to one scale."
        )
    return Solution(weights, gradient)


def penalised_log_loss(
    weights: Tensor, design: Tensor, labels: Tensor, anchor: Tensor, pull: float
) -> tuple[float, Tensor]:
    """The objective of ``softmax_regression`` and its gradient, for columns that end in ones."""
    away, count = weights - anchor, len(labels)
    scores = design @ weights.T
    level = scores.logsumexp(1, keepdim=True)
    truth = scores.gather(1, labels[:, None])
    loss = float((level - truth).sum()) + pull / 2 * float(away.square().sum())
    error = (scores - level).exp_()
    error[torch.arange(count), labels] -= 1
    gradient = error.T @ design + pull * away
    return loss / count, gradient / count


def ridge(
    columns: Tensor,
    targets: Tensor,
    anchor: Tensor,
    pull: float,
    *,
    start: Tensor | None = None,
    tolerance: float = GRADIENT,
) -> Solution:
    """The weights W that minimise the squared error and their distance from an anchor.

    1/(2N) Σᵢ ‖yᵢ - W [xᵢ; 1]‖² + pull/(2N) · ‖W - anchor‖²,
    W = anchor + (Y - X anchorᵀ)ᵀ X (XᵀX + pull · I)⁻¹

    Args:
        columns: ``[row, column]``.
        targets: ``[row, output]``.
        anchor: ``[output, column + 1]``; the last column is the bias.
        pull: Above 0: scikit-learn's ``alpha``.
        start: Not used: there is nothing to search for.
        tolerance: Not used.
    """
    design, goal = with_ones(columns), anchor.double().cpu()
    left = targets.double().cpu() - design @ goal.T
    curvature = design.T @ design + pull * torch.eye(design.shape[1], dtype=torch.float64)
    weights = goal + torch.linalg.solve(curvature, design.T @ left).T
    missed = (weights - goal) @ curvature - left.T @ design
    return Solution(weights, float(missed.abs().max()) / len(design))


def cross_validated(
    solve: Solve,
    columns: Tensor,
    targets: Tensor,
    anchor: Tensor,
    pulls: Sequence[float],
    *,
    task: Task,
    seed: int,
) -> dict[float, float]:
    """Pull -> mean loss on rows that were not solved on: log loss, or squared error.

    Five folds, with each class spread evenly over them; as many as there are rows where these
    are fewer. One fold's solution starts the search for the next pull.
    """
    fold = folds(targets, FOLDS, seed)
    totals = dict.fromkeys(sorted(pulls, reverse=True), 0.0)
    for number in range(int(fold.max()) + 1):
        apart, start = fold == number, None
        inside = columns[~apart], targets[~apart]
        for pull in totals:
            start = solve(*inside, anchor, pull, start=start, tolerance=ROUGH).weights
            scores = with_ones(columns[apart]) @ start.T
            totals[pull] += _loss(scores, targets[apart], task) / len(targets)
    return totals


def _loss(scores: Tensor, targets: Tensor, task: Task) -> float:
    if task == "regression":
        return float((scores - targets).square().sum())
    return -float(scores.log_softmax(1).gather(1, targets[:, None]).sum())


def with_ones(columns: Tensor) -> Tensor:
    """The columns in float64 on the CPU, and one of ones for the bias."""
    wide = columns.double().cpu()
    return torch.cat([wide, torch.ones(len(wide), 1, dtype=torch.float64)], dim=1)
