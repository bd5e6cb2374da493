"""The convex objectives whose best weights can be found exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alloykit.ensembling.simplex import Array, Objective, Optimum, minimise
from alloykit.ensembling.stack import blocks

LOG_LOSS_GAP = 1e-8
"""Nats per example."""
SQUARED_GAP = 1e-10
"""Relative to the squared error of the worst member."""


def log_loss_weights(log_truth: Tensor) -> Optimum:
    """The weights of the mixture of probabilities with the smallest log loss.

    min over w of -(1/N) Σᵢ log Σₘ wₘ qₘᵢ, with qₘᵢ what member m gave to example i's true class.
    The gap is max over m of (1/N) Σᵢ qₘᵢ/pᵢ, minus one (pᵢ: the mixture); it is zero exactly at
    the optimum.

    Only the truth column enters: the number of classes costs nothing. Each row is divided by its
    largest member, which changes neither the weights nor the gap and keeps tiny probabilities
    apart; a row to which every member gives zero then says nothing about the weights.

    Shapes:
        log_truth [member, example], log-probabilities
    """
    logs = log_truth.double().T
    peak = logs.max(1, keepdim=True).values
    shifted = torch.where(torch.isfinite(peak), logs - peak, torch.zeros_like(logs))
    ratios: Array = shifted.exp().contiguous().numpy(force=True)
    offset = float(peak.mean())

    def value(weights: Array) -> float:
        with np.errstate(divide="ignore"):
            return float(-np.log(ratios @ weights).mean()) - offset

    def derivatives(weights: Array) -> tuple[Array, Array]:
        relative = ratios / (ratios @ weights)[:, None]
        return -relative.mean(0), relative.T @ relative / len(relative)

    return minimise(Objective(value, derivatives, LOG_LOSS_GAP), ratios.shape[1])


def log_pool_weights(stack: Tensor, targets: Tensor) -> Optimum:
    """The weights of the log pool, softmax(Σ wₘ log pₘ), with the smallest log loss.

    Convex as well: it is softmax regression with one feature per member.

    Shapes:
        stack [member, example, class] of log-probabilities, targets [example]
    """
    count = len(targets)

    def value(weights: Array) -> float:
        mix = torch.from_numpy(weights)
        total = 0.0
        for block, labels in blocks(stack, targets):
            pooled = torch.tensordot(mix, block, 1).log_softmax(-1)
            total -= float(pooled.gather(1, labels[:, None]).sum())
        return total / count

    def derivatives(weights: Array) -> tuple[Array, Array]:
        mix = torch.from_numpy(weights)
        gradient = torch.zeros(len(stack), dtype=torch.float64)
        hessian = torch.zeros(len(stack), len(stack), dtype=torch.float64)
        for block, labels in blocks(stack, targets):
            share = torch.tensordot(mix, block, 1).softmax(-1)
            expected = (block * share).sum(-1, keepdim=True)
            truth = block.gather(2, labels.expand(len(stack), -1)[..., None])
            gradient += (expected - truth).sum((1, 2))
            spread = ((block - expected) * share.sqrt()).flatten(1)
            hessian += spread @ spread.T
        return (gradient / count).numpy(), (hessian / count).numpy()

    return minimise(Objective(value, derivatives, LOG_LOSS_GAP), len(stack))


def brier_weights(stack: Tensor, targets: Tensor) -> Optimum:
    """The weights of the mixture of probabilities with the smallest Brier score.

    Shapes:
        stack [member, example, class] of log-probabilities, targets [example]
    """
    gram = torch.zeros(len(stack), len(stack), dtype=torch.float64)
    for block, labels in blocks(stack, targets):
        errors = block.exp()
        errors -= torch.nn.functional.one_hot(labels, stack.shape[2])
        gram += errors.flatten(1) @ errors.flatten(1).T
    return _least_squares(gram / len(targets))


def squared_error_weights(stack: Tensor, targets: Tensor) -> Optimum:
    """The weights of the members' values with the smallest mean squared error.

    Shapes:
        stack [member, example, *output], targets [example, *output]
    """
    errors = (stack.double() - targets.double()).flatten(1).cpu()
    return _least_squares(errors @ errors.T / errors.shape[1])


def _least_squares(gram: Tensor) -> Optimum:
    """Minimise wᵀGw, which is the mean of (Σ wₘ eₘ)² because the weights sum to one."""
    matrix: Array = gram.numpy()
    worst = max(float(matrix.diagonal().max()), 1e-300)
    scaled = matrix / worst
    found = minimise(
        Objective(
            value=lambda weights: float(weights @ scaled @ weights),
            derivatives=lambda weights: (2 * scaled @ weights, 2 * scaled),
            tolerance=SQUARED_GAP,
        ),
        len(matrix),
    )
    return Optimum(found.weights, found.value * worst, found.gap * worst)
