"""Permutations of a model's units: applied to tensors, inverted, composed, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from alloykit.alignment.groups import PermutationGroup, PermutationGroups
from alloykit.errors import InvalidParameter, MismatchedCheckpoints, listing

Permutation: TypeAlias = dict[str, Tensor]
"""Group name -> its order, [unit] or, for a group within another, [outer unit, unit]: position
``i`` gets the unit that stood at ``order[i]``. Groups that are left out stay as they are."""


def apply(
    groups: PermutationGroups, permutation: Permutation, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put the units of a model in another order; what it computes stays the same.

    new[i] = old[order[i]] along every axis of a group

    Use it when a permutation was found by ``match_weights``, and on any state dict of that
    architecture: parameters, buffers, an average of either.

    Args:
        groups: Of that architecture.
        permutation: One order per group; groups without one stay.
        tensors: State dict, in any dtypes. Names that no group touches are passed through, names
            that share one tensor share one afterwards, and nothing is modified.

    Raises:
        MismatchedCheckpoints: Tensors that are missing or of another shape.
        InvalidParameter: An order that is no permutation of the group's units, or of no group.

    Example:
        >>> from alloykit.alignment.groups import Place
        >>> place = Place("w", 0)
        >>> some = PermutationGroups((PermutationGroup("w", 3, (place,)),), {"w": (3,)})
        >>> apply(some, {"w": torch.tensor([2, 0, 1])}, {"w": torch.tensor([1.0, 2.0, 3.0])})
        {'w': tensor([3., 1., 2.])}
    """
    check_orders(groups, permutation)
    check_tensors(groups, tensors)
    done: dict[tuple[object, ...], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        where = [(g.name, p.dimension, p.stride) for g, p in groups.places.get(name, ())]
        key = (*identity(name, tensor), *where)
        if key not in done:
            done[key] = moved(groups, permutation, name, tensor)
        found[name] = done[key]
    return found


def moved(groups: PermutationGroups, permutation: Permutation, name: str, tensor: Tensor) -> Tensor:
    """One tensor with its units in their new order; the tensor itself where nothing moves it."""
    places = [(g, p) for g, p in groups.places.get(name, ()) if g.name in permutation]
    for dimension in dict.fromkeys(place.dimension for _, place in places):
        entry = torch.arange(tensor.shape[dimension])
        index = entry.clone()
        for group, place in places:
            if place.dimension == dimension:
                unit = entry // place.stride % group.size
                order = permutation[group.name].to(index.device)
                if holder := groups.holder(group, place):
                    order = order[entry // holder.stride % len(order)]
                    source = order.gather(1, unit[:, None])[:, 0]
                else:
                    source = order[unit]
                index += (source - unit) * place.stride
        tensor = _selected(tensor, dimension, index.to(tensor.device))
    return tensor


def _selected(tensor: Tensor, dimension: int, index: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        # torch has no index_select for the eight-bit floats.
        bits = tensor.view(torch.uint8).index_select(dimension, index)
        return bits.view(tensor.dtype)
    return tensor.index_select(dimension, index)


def identity(name: str, tensor: Tensor) -> tuple[object, ...]:
    """What tied names have in common, and others have not."""
    if not tensor.numel() or tensor.is_meta:
        return (name,)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def unmoved(groups: PermutationGroups, group: PermutationGroup) -> Tensor:
    """The order of a group in which every unit is in its place."""
    order = torch.arange(group.size)
    return order.repeat(groups[group.within].size, 1) if group.within else order


def kept(groups: PermutationGroups) -> Permutation:
    """The permutation that leaves every unit in its place."""
    return {group.name: unmoved(groups, group) for group in groups.groups}


def drawn(groups: PermutationGroups, seed: int) -> Permutation:
    """A random permutation of every group."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(order.shape, generator=generator).argsort(-1)
        for name, order in kept(groups).items()
    }


def inverse(groups: PermutationGroups, permutation: Permutation) -> Permutation:
    """What undoes a permutation.

    Example:
        >>> from alloykit.alignment.groups import Place
        >>> some = PermutationGroups((PermutationGroup("w", 3, (Place("w", 0),)),), {"w": (3,)})
        >>> inverse(some, {"w": torch.tensor([2, 0, 1])})
        {'w': tensor([1, 2, 0])}
    """
    back = {name: order.argsort(-1) for name, order in permutation.items()}
    return {
        # An inner order stands where its outer unit went, and belongs where that came from.
        name: order[back[outer]] if (outer := groups[name].within) in back else order
        for name, order in back.items()
    }


def composed(groups: PermutationGroups, first: Permutation, then: Permutation) -> Permutation:
    """One permutation of all groups that does what two do one after the other."""
    before, after = {**kept(groups), **first}, {**kept(groups), **then}
    return {
        group.name: before[group.name][after[group.within]].gather(1, after[group.name])
        if group.within
        else before[group.name][after[group.name]]
        for group in groups.groups
    }


def check_orders(groups: PermutationGroups, permutation: Permutation) -> None:
    """Raise InvalidParameter with everything that is wrong in a permutation."""
    wrong = []
    for name, order in permutation.items():
        if name not in groups:
            wrong.append(f"{name}   the model has no such group")
        elif not torch.equal(order.cpu().sort(-1).values, unmoved(groups, groups[name])):
            outer = groups[name].within
            each = f" for each of {groups[outer].size} of {outer}" if outer else ""
            wrong.append(f"{name}   not an order of {groups[name].size} units{each}")
    if wrong:
        raise InvalidParameter(
            f"This permutation does not fit the groups:\n{listing(wrong)}\n"
            "Every order holds the numbers from 0 to size - 1 once, as int64."
        )


def check_tensors(groups: PermutationGroups, tensors: Mapping[str, Tensor], who: str = "") -> None:
    """Raise MismatchedCheckpoints with all tensors that the groups ask for and are not there.

    Args:
        groups: Of one architecture.
        tensors: State dict that should be of it.
        who: Whose tensors they are, for the error.
    """
    wrong = [
        f"{name}   needed: {list(groups.shapes[name])}   "
        + (f"given: {list(tensors[name].shape)}" if name in tensors else "missing")
        for name in groups.places
        if name not in tensors or tuple(tensors[name].shape) != groups.shapes[name]
    ]
    if wrong:
        raise MismatchedCheckpoints(
            f"{who or 'A state dict'} does not have the tensors that are permuted: "
            f"{len(wrong)} of {len(groups.places)} differ.\n{listing(wrong)}\n"
            "Models are aligned unit by unit: they must have one architecture and equal widths. "
            "For others, use an ensemble, fusion or distillation."
        )
