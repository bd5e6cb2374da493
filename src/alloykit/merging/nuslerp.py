"""NuSLERP: spherical interpolation by weights, of whole tensors, rows or columns, or of changes."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.gram import (
    affine,
    combined,
    line_products,
    lines_of,
    task_vector_products,
    task_vectors,
)
from alloykit.merging.ranges import require_compat
from alloykit.numerics import SAFE_SQUARES
from alloykit.types import Scan, TensorGroup

COLINEAR = 1e-6
"""Sine of the angle up to which the arc is the line to thirteen digits."""

OPPOSITE = -0.9995
"""Cosine below which the line is taken, as the arc is hardly defined."""

MERGEKITS_SHORTEST = 1e-7
"""Length below which mergekit does not scale a vector to one."""


@merge_method(
    optional=frozenset({"base"}),
    members=range(2, 3),
    paper="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.",
)
def nuslerp(flatten: bool = True, row_wise: bool = False, compat: str | None = None) -> Passes:
    """Walk the arc between two models by their weights; with a base, between their task vectors.

    merged = base + sin((1−t)·Ω)/sin Ω · δ₁ + sin(t·Ω)/sin Ω · δ₂, t = w₂ / (w₁ + w₂)

    δᵢ = memberᵢ − base, or the member where there is no base; Ω is the angle between both. Where
    they point the same way, or opposite ways, or one is zero, the straight line is taken.

    Use it for two fine-tunes of one base, with the base: fine-tunes themselves lie at angles so
    small that ``slerp`` is the mean, while what they learned does not.

    Args:
        flatten: Whether each tensor is one vector. mergekit calls it nuslerp_flatten.
        row_wise: Without ``flatten``: whether the vectors lie along the first dimension (one for
            every input of a linear layer) rather than along the last (one for every output).
            mergekit calls it nuslerp_row_wise.
        compat: "mergekit" counts a vector shorter than 1e-7 as at a right angle, or nearly so,
            to the other, as mergekit does. By default a vector of zeros has no angle.

    Shapes:
        members [2, *shape], base [*shape] or None -> [*shape]

    Needs:
        Two members, in any order; a base where there is one.

    Raises:
        InvalidParameter: An unknown compat.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        >>> group = TensorGroup("w", ("a", "b"), tensors, (0.5, 0.5))
        >>> nuslerp(flatten=False).merge(group, None)
        tensor([[0.7071, 0.7071]])

    References:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, as in
        mergekit's nuslerp. Differs from mergekit where a vector is zero, as the task vectors of
        frozen layers are: half way to δ is δ/2 here and 0.707·δ there (``compat``); and within two
        degrees of opposite vectors, where its coefficients grow without bound.
    """
    require_compat("nuslerp", compat)
    shortest = MERGEKITS_SHORTEST if compat else 0.0

    def survey(scan: Scan) -> tuple[float, ...]:
        if len(scan.members) == 1:
            return (1.0,)
        products = torch.from_numpy(task_vector_products(scan))
        return tuple(arc(products[[0, 0, 1], [0, 1, 1]], scan.weights[1], shortest).tolist())

    def merge(group: TensorGroup, own: tuple[float, ...]) -> Tensor:
        if group.base is None:
            return combined(group.tensors, own, coarse=group.coarse)
        return affine((group.base, *group.tensors), (1.0 - sum(own), *own), coarse=group.coarse)

    def survey_columns(scan: Scan) -> Tensor | None:
        if len(scan.members) == 1:
            return None
        return arc(scan.total(column_products), scan.weights[1], shortest)

    def merge_columns(group: TensorGroup, coefficients: Tensor | None) -> Tensor:
        return group.tensors[0].clone() if coefficients is None else along(group, coefficients)

    def merge_rows(group: TensorGroup, _: None) -> Tensor:
        if len(group.tensors) == 1 or not group.tensors[0].numel():
            return group.tensors[0].clone()
        shape = group.tensors[0].shape
        rows = lines_of(group, (-1, shape[-1] if shape else 1))
        products = line_products(rows.double())[:, [0, 0, 1], [0, 1, 1]].T
        products = products.reshape(3, *shape[:-1], 1) if shape else products.reshape(3)
        return along(group, arc(products, group.weights[1], shortest))

    if flatten:
        return Passes(merge=merge, survey=survey)
    if row_wise:
        return Passes(merge=merge_columns, survey=survey_columns, unit="row")
    return Passes(merge=merge_rows, unit="row")


def column_products(group: TensorGroup) -> Tensor:
    """⟨δ₁, δ₁⟩, ⟨δ₁, δ₂⟩ and ⟨δ₂, δ₂⟩ of all vectors along the first dimension, in float64.

    Shapes:
        members [2, rows, *rest] -> [3, *rest]; of a vector or a scalar [3]
    """
    shape = group.tensors[0].shape
    one, two = (vector.reshape(shape) for vector in task_vectors(group))
    over = 0 if len(shape) > 1 else None
    found = _sums(one, two, over)
    squares = found[[0, 2]]
    if bool((squares < SAFE_SQUARES[0]).any()) or bool((squares > SAFE_SQUARES[1]).any()):
        found = _sums(one.double(), two.double(), over)
    return found


def _sums(one: Tensor, two: Tensor, over: int | None) -> Tensor:
    pairs = (one * one, one * two, two * two)
    return torch.stack([pair.sum(over, dtype=torch.float64) for pair in pairs])


def arc(products: Tensor, t: float, shortest: float = 0.0) -> Tensor:
    """Coefficients of two vectors at the fraction t of the arc between them, for any number.

    Args:
        products: ⟨δ₁, δ₁⟩, ⟨δ₁, δ₂⟩ and ⟨δ₂, δ₂⟩, in float64.
        t: The fraction, in [0, 1].
        shortest: Lengths below this are taken to be this.

    Shapes:
        products [3, *lines] -> [2, *lines]
    """
    line = torch.tensor([1.0 - t, t], dtype=torch.float64, device=products.device)
    line = line.reshape(2, *[1] * (products.dim() - 1))
    scale = products[0].sqrt().clamp(min=shortest) * products[2].sqrt().clamp(min=shortest)
    cosine = (products[1] / scale.masked_fill(scale == 0.0, 1.0)).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    straight = (scale == 0.0) | (sine <= COLINEAR) | (cosine < OPPOSITE)
    curved = torch.sin(line * angle) / sine.masked_fill(straight, 1.0)
    return torch.where(straight, line, curved)


def along(group: TensorGroup, coefficients: Tensor) -> Tensor:
    """The base plus c₁·δ₁ + c₂·δ₂, with coefficients of its own for every vector.

    In a form that is exact where the members, and the base, are equal.

    Shapes:
        members [2, *shape], coefficients [2, broadcast to shape] -> [*shape]
    """
    first, second = group.tensors
    excess = (coefficients.sum(0) - 1.0).to(first.dtype)
    share = coefficients[1].to(first.dtype)
    result = torch.addcmul(first, first - second, share, value=-1)
    if group.base is None:
        return result.addcmul_(first, excess)
    # Less the negative excess: of both ways, the one that keeps the sign of a zero that all have.
    return result.addcmul_(first - group.base, -excess + 0.0, value=-1)
