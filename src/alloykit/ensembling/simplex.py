"""Convex functions minimised over weights (w ≥ 0, Σ w = 1), with a certificate of optimality.

Sequential quadratic programming with exact second derivatives: each step minimises the quadratic
model over the simplex with an active set, then a line search keeps the true function falling. The
Frank-Wolfe gap g·w - min g bounds how far the value is from the optimum, whatever the route there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alloykit.errors import AlloyError

Array = npt.NDArray[np.float64]

STEPS = 200
RIDGE = 1e-12
"""Curvature added where there is none, relative to the largest: equal members share evenly."""
NEGLIGIBLE = 1e-9
"""Weights below this are tried at exactly zero, so that such members need not be run."""


@dataclass(frozen=True)
class Objective:
    """A convex function of the weights.

    Attributes:
        value: w -> f(w); infinite where it is not defined.
        derivatives: w -> (gradient, Hessian).
        tolerance: Largest gap that counts as optimal, in units of f.
    """

    value: Callable[[Array], float]
    derivatives: Callable[[Array], tuple[Array, Array]]
    tolerance: float


@dataclass(frozen=True)
class Optimum:
    """Weights with their certificate.

    Attributes:
        weights: ``[member]``, float64, non-negative, summing to one.
        value: f(weights).
        gap: No weights have a value below ``value - gap``.
    """

    weights: Array
    value: float
    gap: float


def minimise(objective: Objective, members: int) -> Optimum:
    """The weights with the smallest value, certified.

    Args:
        objective: A convex function.
        members: How many weights there are.

    Raises:
        AlloyError: The gap could not be brought below the tolerance.
    """
    weights = np.full(members, 1.0 / members)
    gap = np.inf
    for _ in range(STEPS):
        gradient, hessian = objective.derivatives(weights)
        gap = _gap(gradient, weights)
        if gap <= objective.tolerance:
            return _without_negligible(objective, weights, gap)
        target = quadratic_minimum(hessian, gradient, weights)
        moved = _line_search(objective, weights, target - weights, gradient)
        if np.array_equal(moved, weights):
            break
        weights = moved
    raise AlloyError(
        f"The best weights were not found: the certificate reached {gap:.3g} where "
        f"{objective.tolerance:.3g} is asked for. Members whose outputs differ by many orders of "
        "magnitude cause this; leave them out, or give weights by hand."
    )


def _gap(gradient: Array, weights: Array) -> float:
    return max(float(gradient @ weights - gradient.min()), 0.0)


def _without_negligible(objective: Objective, weights: Array, gap: float) -> Optimum:
    pruned = _on_simplex(np.where(weights < NEGLIGIBLE, 0.0, weights))
    if not np.array_equal(pruned, weights):
        pruned_gap = _gap(objective.derivatives(pruned)[0], pruned)
        if pruned_gap <= objective.tolerance:
            weights, gap = pruned, pruned_gap
    return Optimum(weights, objective.value(weights), gap)


def _line_search(objective: Objective, start: Array, direction: Array, gradient: Array) -> Array:
    value, slope = objective.value(start), float(gradient @ direction)
    # Below this the promised fall is smaller than the rounding of the value itself.
    if -slope <= 1e-13 * max(1.0, abs(value)):
        return _on_simplex(start + direction)
    step = 1.0
    while step > 1e-12:
        candidate = _on_simplex(start + step * direction)
        if objective.value(candidate) <= value + 1e-4 * step * slope:
            return candidate
        step /= 2
    return start


def _on_simplex(weights: Array) -> Array:
    clipped = np.maximum(weights, 0.0)
    result: Array = clipped / clipped.sum()
    return result


def quadratic_minimum(hessian: Array, gradient: Array, start: Array) -> Array:
    """The w on the simplex that minimises g·(w - s) + ½ (w - s)ᵀH(w - s), by a primal active set.

    Args:
        hessian: H ``[member, member]``, positive semi-definite; a tiny ridge makes it definite.
        gradient: g ``[member]``, at ``start``.
        start: s, a point on the simplex. The ridge pulls towards it, so that it cannot move an
            optimum that ``start`` already is.

    Example:
        >>> quadratic_minimum(np.eye(2), np.array([0.5, 1.0]), np.array([0.5, 0.5]))
        array([0.75, 0.25])
    """
    scale = max(float(hessian.diagonal().max()), float(np.abs(gradient).max()), 1e-300)
    curved = hessian / scale + RIDGE * np.eye(len(start))
    slope = gradient / scale - curved @ start
    weights, free = start.copy(), start > 0
    for _ in range(20 * len(start) + 100):
        target, level = _equality_minimum(curved, slope, free)
        blocked = free & (target <= 0)
        if blocked.any():
            reach = np.full(len(weights), np.inf)
            reach[blocked] = weights[blocked] / (weights[blocked] - target[blocked])
            weights = np.where(free, weights + reach.min() * (target - weights), 0.0)
            stopped = blocked & (reach <= reach.min())
            weights[stopped], free = 0.0, free & ~stopped
            continue
        weights = target
        excess = np.where(free, np.inf, curved @ weights + slope - level)
        if excess.min() >= -1e-14:
            break
        free = free.copy()
        free[int(excess.argmin())] = True
    return _on_simplex(weights)


def _equality_minimum(hessian: Array, linear: Array, free: Any) -> tuple[Array, float]:
    """Minimise over Σ w = 1 with the other weights at zero; also the multiplier of that sum."""
    count = int(free.sum())
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = hessian[np.ix_(free, free)]
    system[count, count] = 0.0
    solution = np.linalg.solve(system, np.append(-linear[free], 1.0))
    weights = np.zeros(len(linear))
    weights[free] = solution[:count]
    return weights, -float(solution[count])
