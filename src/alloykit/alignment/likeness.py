"""How alike the units of two models are: inner products of their weights, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.numerics import compute_dtype

Tensors = Mapping[str, Tensor]


def of_units(
    group: PermutationGroup, places: Iterable[Place], reference: Tensors, other: Tensors
) -> Tensor:
    """Inner products of the reference's units with the other's, in float64.

    Shapes:
        -> [unit of the reference, unit of the other]
    """
    found = torch.zeros(group.size, group.size, dtype=torch.float64)
    for place in places:
        shape = _unfolded(tuple(reference[place.tensor].shape), place, group.size)
        left, right = (tensors[place.tensor].reshape(shape) for tensors in (reference, other))
        found += _products(left, right, (1,))
    return found


def of_inner_units(
    groups: PermutationGroups,
    group: PermutationGroup,
    places: Iterable[Place],
    reference: Tensors,
    other: Tensors,
) -> Tensor:
    """The same for a group within another, for every pair of outer units.

    Shapes:
        -> [outer unit of the reference, unit of it, outer unit of the other, unit of it]
    """
    outer, size = groups[group.within].size, group.size
    found = torch.zeros(outer * size, outer * size, dtype=torch.float64)
    for place in places:
        holder = groups.holder(group, place)
        assert holder is not None
        before, _, behind = _unfolded(tuple(reference[place.tensor].shape), holder, outer)
        # The axis between the outer units and these, and what lies behind them.
        between = holder.stride // (size * place.stride)
        shape = (before, outer, between, size, behind // (between * size))
        left, right = (tensors[place.tensor].reshape(shape) for tensors in (reference, other))
        found += _products(left, right, (1, 3))
    return found.reshape(outer, size, outer, size)


def alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors on the first one's device, in the wider of their compute dtypes, real.

    Complex numbers become pairs in a last dimension.
    """
    wide = torch.promote_types(compute_dtype(one.dtype), compute_dtype(other.dtype))
    left, right = (tensor.detach().to(one.device, wide) for tensor in (one, other))
    if wide.is_complex:
        return torch.view_as_real(left), torch.view_as_real(right)
    return left, right


def _unfolded(shape: tuple[int, ...], place: Place, size: int) -> tuple[int, int, int]:
    """(before, size, behind): the shape in which a group's units are the second dimension."""
    behind = math.prod(shape[place.dimension + 1 :]) * place.stride
    return math.prod(shape) // (size * behind), size, behind


def _products(left: Tensor, right: Tensor, units: tuple[int, ...]) -> Tensor:
    rest = [dimension for dimension in range(left.dim()) if dimension not in units]
    count = math.prod(left.shape[dimension] for dimension in units)
    one, two = (t.permute(*units, *rest).reshape(count, -1) for t in (left, right))
    return (one @ two.T).to("cpu", torch.float64)
