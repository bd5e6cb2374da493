"""Multi-SLERP: the direction of the mean of directions, at the mean length."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from alloykit.merging.contract import Passes, WeightKind, merge_method
from alloykit.merging.gram import Matrix, Vector, affine, combined, task_vector_products
from alloykit.merging.ranges import require_compat, require_number
from alloykit.types import Scan, TensorGroup

BALANCED = 1e-3
"""Length of the mean of unit vectors up to which they count as having no mean direction."""

MERGEKITS_EPS = 1e-8
"""What mergekit adds to lengths."""


@merge_method(
    optional=frozenset({"base"}),
    paper="Goddard, Multi-SLERP, goddard.blog.",
)
def multislerp(
    normalize_weights: bool = True, eps: float | None = None, compat: str | None = None
) -> Passes:
    """Average directions and lengths apart: the mean of unit vectors, at the mean length.

    merged = base + Σ wᵢ·|δᵢ| · M / |M|, M = Σ wᵢ·δᵢ / |δᵢ|, δᵢ = memberᵢ − base

    Without a base δᵢ is the member. Each tensor is one vector.

    Use it as slerp for any number of models, weighed and in no order: the mean of vectors at an
    angle is shorter than they are, and this keeps the length. With a base it averages what each
    model learned. ``karcher`` gives the mean along the sphere, which is nearly the same.

    Args:
        normalize_weights: Whether weights are shares: not negative, and divided by their sum.
            Without it they are used as they are, of either sign, 1 each by default.
        eps: Added to every length before dividing by it, at least 0. By default 0, and 1e-8
            under compat.
        compat: "mergekit" adds 1e-8 to lengths, and returns a single member as it is.

    Shapes:
        members [member, *shape], base [*shape] or None -> [*shape]

    Needs:
        One or more members; a base where there is one. Where the directions balance out (|M| is
        less than a thousandth) there is none for the mean: it is Σ wᵢ·δᵢ then.

    Raises:
        InvalidParameter: eps is negative or not finite, or an unknown compat.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5))
        >>> products = np.diag([9.0, 1.0])
        >>> multislerp().merge(group, mean_of_directions(products, np.array(group.weights)))
        tensor([1.4142, 1.4142])

    References:
        Goddard, Multi-SLERP, goddard.blog/posts/multislerp-wow-what-a-cool-idea. There the
        unit vectors are averaged once more in the plane that touches the sphere at M / |M|; that
        mean is zero for any vectors, so the step is left out. Differs from mergekit in eps
        (``compat``), and where directions balance out: mergekit takes Σ wᵢ·δᵢ for two models and
        fails for more, all-zero biases and unchanged tensors among them.
    """
    added = eps if eps is not None else (MERGEKITS_EPS if compat else 0.0)
    require_number("multislerp", "eps", added, low=0)
    require_compat("multislerp", compat)

    def survey(scan: Scan) -> tuple[float, ...]:
        if compat and len(scan.members) == 1:
            return (1.0,)
        return mean_of_directions(task_vector_products(scan), np.array(scan.weights), added)

    def merge(group: TensorGroup, coefficients: tuple[float, ...]) -> Tensor:
        if group.base is None:
            return combined(group.tensors, coefficients, coarse=group.coarse)
        return affine(
            (group.base, *group.tensors),
            (1.0 - sum(coefficients), *coefficients),
            coarse=group.coarse,
        )

    kind: WeightKind = "shares" if normalize_weights else "factors"
    return Passes(merge=merge, survey=survey, weights=kind)


def mean_of_directions(products: Matrix, weights: Vector, added: float = 0.0) -> tuple[float, ...]:
    """The mean length times the direction of the mean of unit vectors, as coefficients.

    Args:
        products: Inner products of the vectors.
        weights: One per vector.
        added: To every length before dividing by it.

    Shapes:
        products [vector, vector], weights [vector] -> [vector]
    """
    lengths = np.sqrt(np.diagonal(products))
    divisors = lengths + added
    mean = np.divide(weights, divisors, out=np.zeros_like(divisors), where=divisors > 0.0)
    size = math.sqrt(max(float(mean @ products @ mean), 0.0))
    if size <= BALANCED * np.abs(weights).sum():
        return tuple(map(float, weights))
    return tuple(map(float, (weights @ lengths) / size * mean))
