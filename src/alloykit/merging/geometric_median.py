"""Geometric median: the point with the least sum of distances to the members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import Matrix, Vector, affine, spread_products
from alloykit.merging.ranges import require_choice
from alloykit.types import Scan, TensorGroup

STEPS, TOLERANCE = 1000, 1e-10
"""Most steps of the iteration, and the change of the coefficients at which it stops."""

SAME = 1e-14
"""Squared distance, as a fraction of the largest, up to which two members are one point."""

OPTIMAL = 1e-7
"""How far, as a fraction, the pull on a member may exceed its weight for it to be the median."""


@merge_method(paper="Pillutla, Kakade and Harchaoui, Robust aggregation, 2019, arXiv:1912.13445.")
def geometric_median(scope: Literal["tensor", "model"] = "tensor") -> Passes:
    """Take the point with the least sum of distances to the members: few outliers cannot move it.

    merged = argmin over y of Σ wᵢ · |y − memberᵢ|

    Use it when a minority of the members may be broken or hostile, as in federated learning:
    members that hold less than half of the weight, whatever they hold, move it by a bounded way.

    Args:
        scope: Whether each tensor has a median of its own ("tensor", the default), or the model
            as one vector has one ("model"), which is what the robustness of the paper is about.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members. With two of equal weight it is their mean; a member of half of the
        weight or more is the median.

    Raises:
        InvalidParameter: An unknown scope.

    Example:
        >>> import torch
        >>> tensors = tuple(torch.tensor([x]) for x in (0.0, 1.0, 100.0))
        >>> group = TensorGroup("w", ("a", "b", "c"), tensors, (1 / 3,) * 3)
        >>> squares = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 100.0], [0.0, 100.0, 10000.0]])
        >>> geometric_median().merge(group, median_coefficients(squares, group.weights))
        tensor([1.])

    References:
        Weiszfeld, Sur le point pour lequel la somme des distances de n points donnés est minimum,
        Tohoku Mathematical Journal, 1937; Vardi and Zhang, The multivariate L1-median and
        associated data depth, PNAS, 2000, for the test at the members; Pillutla, Kakade and
        Harchaoui, Robust aggregation for federated learning, 2019, arXiv:1912.13445. Differs from
        the latter's code, which takes a few smoothed steps: it goes on to the minimum.
    """
    require_choice("geometric_median", "scope", scope, ("tensor", "model"))

    def survey(scan: Scan) -> tuple[float, ...]:
        return median_coefficients(spread_products(scan), scan.weights)

    def merge(group: TensorGroup, coefficients: tuple[float, ...]) -> Tensor:
        return affine(group.tensors, coefficients, coarse=group.coarse)

    return Passes(merge=merge, survey=survey, scope=scope)


def median_coefficients(products: Matrix, weights: Sequence[float]) -> tuple[float, ...]:
    """The geometric median of some points as a mean of them, by Weiszfeld's iteration.

    Args:
        products: Inner products of the points' differences to one of them.
        weights: Non-negative, summing to one.

    Shapes:
        products [point, point], weights [point] -> [point]
    """
    shares = np.asarray(weights, dtype=np.float64)
    squares = np.diagonal(products)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    apart = np.sqrt(np.where(apart <= SAME * apart.max(), 0.0, apart))
    medians = [k for k in range(len(shares)) if _is_median(k, apart, products, shares)]
    if medians:
        # Of several medians every mean is one, and this one does not depend on the order.
        return tuple((np.isin(np.arange(len(shares)), medians) / len(medians)).tolist())
    place = shares
    for _ in range(STEPS):
        way = place[:, None] - np.eye(len(shares))
        distances = np.sqrt(np.maximum(np.einsum("ki,kl,li->i", way, products, way), 0.0))
        pull = shares / np.maximum(distances, TOLERANCE * apart.max())
        before, place = place, pull / pull.sum()
        if np.abs(place - before).max() <= TOLERANCE:
            break
    return tuple(map(float, place))


def _is_median(k: int, apart: Matrix, products: Matrix, shares: Vector) -> bool:
    """Whether all others together pull on a point with no more than its own weight."""
    others = apart[k] > 0.0
    pull = np.divide(shares, apart[k], out=np.zeros_like(shares), where=others)
    pull[k] = -pull.sum()
    strength = np.sqrt(max(float(pull @ products @ pull), 0.0))
    return bool(strength <= shares[~others].sum() * (1.0 + OPTIMAL))
