"""Karcher mean: the mean of directions on the sphere, at the mean length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import Matrix, Vector, combined, task_vector_products
from alloykit.merging.ranges import require_compat, require_number
from alloykit.types import Scan, TensorGroup

BALANCED = 1e-3
"""Length of the mean of unit vectors up to which they count as having no mean direction."""

OPPOSITE = 1e-6 - 1.0
"""Cosine below which the way from one direction to another is not defined."""

STEPS, TOLERANCE = 100, 1e-7
"""Default number of steps, and the step, in radians, that is not worth taking."""

MERGEKITS_STEPS, MERGEKITS_TOLERANCE = 10, 1e-5
"""The same in mergekit, where tensors no longer than the tolerance also count as zero."""


@merge_method(paper="Karcher, Riemannian center of mass and mollifier smoothing, 1977.")
def karcher(
    max_iter: int | None = None, tol: float | None = None, compat: str | None = None
) -> Passes:
    """Average directions on the sphere and lengths on the line: the Karcher (Fréchet) mean.

    merged = Σ wᵢ·|xᵢ| · u, where u minimises Σ wᵢ·angle(u, xᵢ)²

    Each tensor is one vector. For two members it is slerp of their directions; it does not depend
    on the order of the members.

    Use it as ``slerp`` for more than two models. Fine-tunes of one base lie at small angles,
    where it is the mean, scaled back to the mean length.

    Args:
        max_iter: Most steps of the iteration, at least 0. By default 100, of which few are taken.
        tol: The step, in radians, at which it stops, at least 0. By default 1e-7, float32's
            rounding.
        compat: "mergekit" stops as mergekit does (10 steps, 1e-5 radians, unless given) and
            counts tensors no longer than that as zero. By default only zeros count as zero.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members. Tensors whose weighted directions balance out (their mean is shorter
        than a thousandth) have no mean direction: for them it is the weighted mean.

    Raises:
        InvalidParameter: max_iter or tol out of range, or an unknown compat.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5))
        >>> coefficients = spherical_mean(np.diag([4.0, 4.0]), (0.5, 0.5))
        >>> karcher().merge(group, coefficients)
        tensor([1.4142, 1.4142])

    References:
        Karcher, Riemannian center of mass and mollifier smoothing, Communications on Pure and
        Applied Mathematics, 1977; the iteration is that of Afsari, Tron and Vidal, On the
        convergence of gradient descent for finding the Riemannian center of mass, 2013,
        arXiv:1201.0925. Differs from mergekit, which has no weights here, in where it stops and
        in short tensors (``compat``): there all of them become zero where none is longer than
        1e-5. Angles are float64's here, those of the tensors' dtype there.
    """
    steps = max_iter if max_iter is not None else (MERGEKITS_STEPS if compat else STEPS)
    tolerance = tol if tol is not None else (MERGEKITS_TOLERANCE if compat else TOLERANCE)
    require_number("karcher", "max_iter", steps, low=0)
    require_number("karcher", "tol", tolerance, low=0)
    require_compat("karcher", compat)

    def survey(scan: Scan) -> tuple[float, ...]:
        products = task_vector_products(scan)
        if compat and np.diagonal(products).max() <= tolerance**2:
            return (0.0,) * len(scan.members)
        shortest = tolerance if compat else 0.0
        return spherical_mean(products, scan.weights, steps, tolerance, shortest=shortest)

    def merge(group: TensorGroup, coefficients: tuple[float, ...]) -> Tensor:
        return combined(group.tensors, coefficients, coarse=group.coarse)

    return Passes(merge=merge, survey=survey, factors=lambda _, coefficients: coefficients)


def spherical_mean(
    products: Matrix,
    weights: Sequence[float],
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
    *,
    shortest: float = 0.0,
) -> tuple[float, ...]:
    """The mean length times the mean direction, as one coefficient per vector.

    Args:
        products: Inner products of the vectors.
        weights: Non-negative, summing to one.
        steps: Most steps of the iteration. With none it is the direction of the mean of the
            unit vectors.
        tolerance: The step, in radians, at which it stops.
        shortest: Vectors no longer than this have no direction.

    Shapes:
        products [vector, vector], weights [vector] -> [vector]
    """
    shares = np.asarray(weights, dtype=np.float64)
    lengths = np.sqrt(np.diagonal(products))
    kept = (lengths > shortest) & (shares > 0.0)
    cosines = products[np.ix_(kept, kept)] / np.outer(lengths[kept], lengths[kept])
    place = _mean_direction(cosines, shares[kept], steps, tolerance)
    if place is None:
        return tuple(weights)
    result = np.zeros(len(shares))
    result[kept] = (shares @ lengths) * place / lengths[kept]
    return tuple(map(float, result))


def _mean_direction(
    cosines: Matrix, weights: Vector, steps: int, tolerance: float
) -> Vector | None:
    """The mean of unit vectors, given by their cosines, as coefficients; None where it vanishes.

    From the direction of the weighted mean, each step goes by the mean of the ways to all of
    them, u ← exp(Σ wᵢ·log(uᵢ)). Only inner products are needed for that.
    """
    shares = weights / max(weights.sum(), np.finfo(np.float64).tiny)
    if _length(shares, cosines) <= BALANCED:
        return None
    place: Vector = shares / _length(shares, cosines)
    for _ in range(steps):
        dots = np.clip(cosines @ place, -1.0, 1.0)
        sines = np.sqrt(1.0 - dots * dots)
        # sin x / x is one at zero; towards its own opposite a direction has no way to go.
        stretch = np.divide(np.arccos(dots), sines, out=np.ones_like(dots), where=sines > 0.0)
        stretch[dots < OPPOSITE] = 0.0
        step = shares * stretch - (shares @ (stretch * dots)) * place
        size = _length(step, cosines)
        if size <= tolerance:
            break
        place = np.cos(size) * place + np.sin(size) / size * step
        place = place / _length(place, cosines)
    return place


def _length(place: Vector, products: Matrix) -> float:
    return math.sqrt(max(float(place @ products @ place), 0.0))
