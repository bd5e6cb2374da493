"""Spherical interpolation between two models."""

from __future__ import annotations

import math

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import combined, task_vector_products
from alloykit.merging.ranges import require_compat, require_number
from alloykit.numerics import normalised
from alloykit.types import Scan, TensorGroup

COLINEAR = 0.9995
"""Cosine beyond which, in either direction, the straight line is taken."""

MERGEKITS_ZERO = 1e-8
"""Length up to which mergekit does not scale a tensor before it takes the cosine."""


def arc_weights(angle: float, t: float) -> tuple[float, float]:
    """Weights of two vectors at the fraction t of the arc between them: sines over a sine.

    (sin((1−t)·Ω) / sin Ω, sin(t·Ω) / sin Ω)

    Args:
        angle: The angle Ω between the vectors in radians, in (0, π).
        t: The fraction.

    Example:
        >>> [round(weight, 4) for weight in arc_weights(math.pi / 2, 0.5)]
        [0.7071, 0.7071]
    """
    sine = math.sin(angle)
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def share_of_second(t: float, weights: tuple[float, ...]) -> float:
    """The fraction t, moved by weights by hand: t·w₂ / ((1−t)·w₁ + t·w₂); t where they are equal.

    Example:
        >>> share_of_second(0.25, (0.5, 0.5)), share_of_second(0.5, (0.9, 0.1))
        (0.25, 0.1)
    """
    if weights[0] == weights[1]:
        return t
    return normalised([(1.0 - t) * weights[0], t * weights[1]], 2)[1]


@merge_method(
    members=range(2, 3),
    ordered=True,
    paper="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.",
)
def slerp(t: float = 0.5, compat: str | None = None) -> Passes:
    """Walk the arc from one model to another, so that the length of the weights does not shrink.

    merged = sin((1−t)·Ω)/sin Ω · first + sin(t·Ω)/sin Ω · second, Ω the angle between them

    Each tensor is one vector, and Ω is the angle of the two as they are, lengths included. Where
    |cos Ω| > 0.9995 the straight line is taken: there the arc is the line to one part in ten
    thousand, or, between opposites, is not defined.

    Use it for two models that went different ways from one start: the mean of two vectors at an
    angle is shorter than both, and slerp keeps the length. Fine-tunes of one base lie at angles
    so small that this is ``linear``; ``nuslerp`` with a base looks at what each of them learned.

    Args:
        t: Place on the arc, in [0, 1]: 0 is the first model, 1 the second. The default 0.5 is
            half way.
        compat: "mergekit" counts a tensor of length 1e-8 or less as at a right angle to the
            other, as mergekit does. By default a tensor of zeros has no angle and the line is
            taken.

    Shapes:
        members [2, *shape] -> [*shape]

    Needs:
        Exactly two members, in order. Weights by hand move t to t·w₂ / ((1−t)·w₁ + t·w₂).

    Raises:
        InvalidParameter: t outside [0, 1], or an unknown compat.
        InvalidWeights: t is at one end, and the model there has weight zero.

    Example:
        >>> import torch
        >>> from alloykit.types import TensorGroup
        >>> tensors = (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> group = TensorGroup("w", ("first", "second"), tensors, (0.5, 0.5))
        >>> slerp(t=0.5).merge(group, arc_weights(math.pi / 2, 0.5))
        tensor([0.7071, 0.7071])

    References:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. The
        threshold, and the use of tensors that do not have length one, are those of mergekit and
        of the snippet that it comes from. Differs from mergekit where one tensor is zero, such as
        a fresh bias: half way to x is x/2 here and 0.707·x there (``compat``).
    """
    require_number("slerp", "t", t, low=0.0, high=1.0)
    require_compat("slerp", compat)

    def survey(scan: Scan) -> tuple[float, float]:
        share = share_of_second(t, scan.weights)
        line = (1.0 - share, share)
        if share in (0.0, 1.0):
            return line
        products = task_vector_products(scan)
        lengths = [math.sqrt(products[i, i]) for i in (0, 1)]
        if compat:
            lengths = [length if length > MERGEKITS_ZERO else 1.0 for length in lengths]
        scale = lengths[0] * lengths[1]
        cosine = products[0, 1] / scale if scale else 1.0
        if abs(cosine) > COLINEAR:
            return line
        return arc_weights(math.acos(cosine), share)

    def merge(group: TensorGroup, coefficients: tuple[float, float]) -> Tensor:
        return combined(group.tensors, coefficients, coarse=group.coarse)

    return Passes(merge=merge, survey=survey, factors=lambda _, coefficients: coefficients)
