"""Inner products of members in float64, and sums of members with coefficients of any sign.

Methods whose result lies in the span of the members need no more of a tensor than the inner
products of the members, or of their task vectors: one pass, a small matrix, and then one linear
combination. How far apart members are must be asked of their differences (``spread_products``):
fine-tunes of one model agree in three digits or more, which their lengths cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from alloykit.errors import MissingInput
from alloykit.numerics import SAFE_SQUARES, inner_products
from alloykit.types import Scan, TensorGroup

Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

LARGEST = 3e38
"""What a coefficient may be for torch to take it as a factor in float32."""

ONE = 1e-14
"""How far from one a sum of coefficients may be that is one but for rounding in float64."""


def lines_of(group: TensorGroup, lines: tuple[int, int]) -> Tensor:
    """Every member less the base (or as it is), cut into lines of one length.

    Shapes:
        members [member, *shape], lines (line, element) -> [line, member, element]
    """
    tensors = [tensor.reshape(lines) for tensor in group.tensors]
    if group.base is None:
        return torch.stack(tensors, 1)
    base = group.base.reshape(lines)
    rows = base.new_empty((base.shape[0], len(tensors), base.shape[1]))
    for index, tensor in enumerate(tensors):
        torch.sub(tensor, base, out=rows[:, index])
    return rows


def line_products(rows: Tensor) -> Tensor:
    """Inner products of some vectors, as float64, for each of many lines.

    Every line's products depend on that line alone, however many there are.

    Shapes:
        rows [line, vector, element] -> [line, vector, vector]
    """
    products = (rows @ rows.mT).double()
    if rows.dtype == torch.float64:
        return products
    squares = products.diagonal(dim1=-2, dim2=-1)
    safe = ((squares >= SAFE_SQUARES[0]) & (squares <= SAFE_SQUARES[1])).all(-1)
    if not bool(safe.all()):
        wide = rows[~safe].double()
        products[~safe] = wide @ wide.mT
    return products


def base_of(method: str, group: TensorGroup) -> Tensor:
    """The group's base.

    Raises:
        MissingInput: It has none; the text names the method and says what to pass.
    """
    if group.base is None:
        raise MissingInput(
            f"{method} starts from a base, and no base was given. "
            "Pass base=PATH: the checkpoint that the models were fine-tuned from."
        )
    return group.base


def task_vectors(group: TensorGroup) -> list[Tensor]:
    """Every member less the base, flat; the members themselves where there is no base."""
    tensors = [tensor.reshape(-1) for tensor in group.tensors]
    if group.base is None:
        return tensors
    base = group.base.reshape(-1)
    return [tensor - base for tensor in tensors]


def task_vector_products(scan: Scan) -> Matrix:
    """Inner products of the whole task vectors; of the members where there is no base."""
    return scan.products().numpy()


def spread_products(scan: Scan) -> Matrix:
    """Inner products of what the members differ from the first; its row and column are zero."""

    def products(group: TensorGroup) -> Tensor:
        first, *others = (tensor.reshape(-1) for tensor in group.tensors)
        return inner_products([other - first for other in others])

    count = len(scan.members)
    result = np.zeros((count, count))
    if count > 1:
        result[1:, 1:] = scan.total(products).numpy()
    return result


def combined(
    tensors: Sequence[Tensor], coefficients: Sequence[float], *, coarse: bool = False
) -> Tensor:
    """Σ cᵢ·xᵢ; where the coefficients sum to one, tensors that are all equal come out exactly.

    Args:
        tensors: The members, in a compute dtype; not modified.
        coefficients: One per member, of either sign. Members with zero are left out.
        coarse: As in ``affine``.

    Shapes:
        tensors [member, *shape] -> [*shape]

    Example:
        >>> combined([torch.tensor([1.0]), torch.tensor([10.0])], [2.0, 0.5])
        tensor([7.])
    """
    if abs(math.fsum(coefficients) - 1.0) <= ONE * max(1.0, *map(abs, coefficients)):
        return affine(tensors, coefficients, coarse=coarse)
    return _summed(tensors, coefficients)


def affine(
    tensors: Sequence[Tensor], coefficients: Sequence[float], *, coarse: bool = False
) -> Tensor:
    """Σ cᵢ·xᵢ for coefficients of either sign that sum to one, by differences from the heaviest.

    Tensors that are all equal give exactly that tensor, signs of zeros included.

    Args:
        tensors: One per coefficient, in a compute dtype; not modified.
        coefficients: They sum to one. Tensors with zero are left out.
        coarse: The result is rounded to half the digits afterwards (``TensorGroup.coarse``): sum
            the products themselves, which is faster, unless some are negative and cancel others.

    Shapes:
        tensors [member, *shape] -> [*shape]

    Example:
        >>> affine([torch.tensor([1.0]), torch.tensor([3.0])], [1.5, -0.5])
        tensor([0.])
    """
    if coarse and min(coefficients) >= 0.0:
        return _summed(tensors, coefficients)
    present = [(tensor, c) for tensor, c in zip(tensors, coefficients, strict=True) if c]
    origin, _ = present.pop(max(range(len(present)), key=lambda i: present[i][1]))
    if not present:
        return origin.clone()
    total = origin
    for index, (tensor, c) in enumerate(present):
        into = total if index else None
        if abs(c) > LARGEST:
            total = total + (tensor - origin) * c  # out of range, as an infinity
            continue
        # Of both ways to write a step, the one that leaves a zero that all have its sign.
        if c > 0.0:
            total = torch.sub(total, origin - tensor, alpha=c, out=into)
        else:
            total = torch.add(total, tensor - origin, alpha=c, out=into)
    return total


def _summed(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    present = [(tensor, c) for tensor, c in zip(tensors, coefficients, strict=True) if c]
    if not present:
        return torch.zeros_like(tensors[0])
    total = torch.mul(*present[0])
    for tensor, coefficient in present[1:]:
        total.add_(tensor, alpha=coefficient)
    return total
