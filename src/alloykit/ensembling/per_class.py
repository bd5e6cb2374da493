"""The log pool with one weight per member and class."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from alloykit.ensembling.rule import CLASSES, Pooling, ensemble_rule, learned
from alloykit.ensembling.simplex import Array
from alloykit.ensembling.stack import blocks
from alloykit.errors import AlloyError, InvalidParameter
from alloykit.numerics import compute_dtype
from alloykit.threads import threads_for
from alloykit.types import State

GRADIENT = 1e-6
"""Largest entry of the gradient that counts as solved, in nats per example."""


@ensemble_rule(
    tasks=CLASSES,
    fits=True,
    keeps="nothing",
    formula="softmax over c of Σₘ Wₘ_c log pₘ_c + b_c",
)
def per_class(pull: float = 1.0) -> Pooling:
    """Weigh every member separately for every class, in log space, with a bias per class.

    p_c ∝ exp(Σₘ W[m, c] · log pₘ(c) + b[c]); W, b minimise the log loss plus
    pull/(2N) · (‖W - 1/M‖² + ‖b‖²)

    Use it when members know different classes well (each saw other data). It is convex and solved
    to the optimum, it recalibrates at the same time, and it has M·C + C numbers to learn, so give
    it some examples of each class; a linear fusion head would need M·C² of them.

    Args:
        pull: Strength of the pull towards the plain log pool (W = 1/M, b = 0), > 0, measured in
            examples: it counts like the penalty of scikit-learn's ``LogisticRegression`` with
            C = 1/pull and fades as 1/N. The default 1 is scikit-learn's, and the lower end of the
            1 to 30 that cross-validation chooses from for linear heads, which have C times as
            many numbers to learn.

    Shapes:
        stack [member, example, class] -> [example, class]
        state: class_weights [member, class], class_bias [class], gradient []: its largest entry
        at the solution; the loss exceeds the smallest by at most (M·C + C)·N/(2·pull) times its
        square

    Raises:
        InvalidParameter: ``pull`` not above zero.

    Example:
        >>> stack = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.1, 0.9]]]).log()
        >>> state = per_class().fit(stack, torch.tensor([0, 1]))
        >>> bool(state["class_weights"][1, 1] > state["class_weights"][0, 1])
        True

    References:
        Vector scaling (Guo et al., On calibration of modern neural networks, 2017,
        arXiv:1706.04599, section 4.2) applied to all members at once; the pull is ours.
    """
    if not pull > 0:
        raise InvalidParameter(f"The 'pull' of per_class must be above 0. Got {pull}.")

    def combine(stack: Tensor, state: State) -> Tensor:
        stack = stack.to(compute_dtype(stack.dtype))
        weights = learned(state, "class_weights", "per_class").to(stack)
        bias = learned(state, "class_bias", "per_class").to(stack)
        spread = weights.view(len(stack), *(1,) * (stack.ndim - 2), -1)
        return ((spread * stack).sum(0) + bias).log_softmax(-1)

    def fit(stack: Tensor, targets: Tensor) -> State:
        weights, bias, gradient = solved(stack, targets, pull)
        return {"class_weights": weights, "class_bias": bias, "gradient": torch.tensor(gradient)}

    return Pooling(combine, fit)


def solved(stack: Tensor, targets: Tensor, pull: float) -> tuple[Tensor, Tensor, float]:
    """The optimal class weights and bias in float64, and the largest entry of the gradient.

    Shapes:
        stack [member, example, class], targets [example] -> [member, class], [class], a number

    Raises:
        AlloyError: The solver stopped before the gradient vanished.
    """
    members, _, classes = stack.shape
    start = torch.cat([torch.full((members, classes), 1.0 / members), torch.zeros(1, classes)])
    start, scale = start.double(), _scale(stack, pull)

    def values_at(point: Array) -> Tensor:
        moved = torch.from_numpy(point).view(classes, members + 1, 1)
        away: Tensor = torch.linalg.solve_triangular(scale.mT, moved, upper=True)
        return start + away[..., 0].T

    def objective(point: Array) -> tuple[float, Array]:
        loss, slope = penalised_loss(values_at(point).flatten().numpy(), stack, targets, pull)
        steep = torch.from_numpy(slope).view(members + 1, classes).T[..., None]
        return loss, torch.linalg.solve_triangular(scale, steep, upper=False).flatten().numpy()

    point, gradient, asked = np.zeros(start.numel()), math.inf, GRADIENT / 10
    while gradient > GRADIENT and asked > GRADIENT / 1e5:
        options = {"maxiter": 5000, "maxfun": 20000, "maxcor": 20, "gtol": asked, "ftol": 0}
        with threads_for(stack.numel()):
            found = minimize(objective, point, jac=True, method="L-BFGS-B", options=options)
        point, asked = found.x, asked / 10
        values = values_at(point)
        slope = penalised_loss(values.flatten().numpy(), stack, targets, pull)[1]
        gradient = float(np.abs(slope).max())
    if not gradient <= GRADIENT:
        raise AlloyError(
            f"per_class was not solved: the gradient stayed at {gradient:.3g} where {GRADIENT:g} "
            f"is asked for ({found.message}). Try a larger pull than {pull:g}."
        )
    return values[:members].clone(), values[members].clone(), gradient


def _scale(stack: Tensor, pull: float) -> Tensor:
    """Coordinates of each class in which the objective is nearly as steep in all directions.

    The Cholesky factor of the curvature at the plain log pool, class by class: members that agree,
    and log-probabilities far below zero, make the plain coordinates a narrow valley.

    Shapes:
        stack [member, example, class] -> [class, member + 1, member + 1], float64
    """
    members, count, classes = stack.shape
    total = pull * torch.eye(members + 1, dtype=torch.float64).repeat(classes, 1, 1)
    for block, _ in blocks(stack, torch.empty(count)):
        share = block.mean(0).softmax(-1)
        # Where the pool is sure of a wrong class the curvature vanishes, and comes back later.
        steep = (share * (1 - share)).clamp(min=1e-3).sqrt()
        columns = torch.cat([block, torch.ones(1, *block.shape[1:], dtype=block.dtype)]) * steep
        total += torch.einsum("mic,nic->cmn", columns, columns)
    factor: Tensor = torch.linalg.cholesky(total / count)
    return factor


def penalised_loss(
    point: Array, stack: Tensor, targets: Tensor, pull: float
) -> tuple[float, Array]:
    """The objective and its gradient at ``point``: class weights, then bias, flattened."""
    members, count, classes = stack.shape
    values = torch.from_numpy(point).view(members + 1, classes)
    away = values.clone()
    away[:members] -= 1.0 / members
    loss = float(away.square().sum()) * pull / 2
    gradient = pull * away
    for block, labels in blocks(stack, targets):
        logs = ((values[:members, None] * block).sum(0) + values[members]).log_softmax(-1)
        loss -= float(logs.gather(1, labels[:, None]).sum())
        error = logs.exp()
        error[torch.arange(len(labels)), labels] -= 1
        gradient[:members] += (block * error).sum(1)
        gradient[members] += error.sum(0)
    return loss / count, (gradient / count).flatten().numpy()
