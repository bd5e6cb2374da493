"""Permutation groups: which axes of which tensors must be permuted together, as data."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from alloykit.errors import AlignmentError, listing


@dataclass(frozen=True, order=True)
class Place:
    """Where a group's units lie: along one dimension of one tensor.

    Unit ``i`` is every slice of ``stride`` entries that begins at ``i * stride``, and again after
    each ``size * stride`` entries: heads of 64 dimensions have stride 64, and the dimensions
    inside of all heads have stride 1.

    Attributes:
        tensor: Name in the state dict.
        dimension: Which dimension, from 0.
        stride: Entries that belong to one unit and move together.
    """

    tensor: str
    dimension: int
    stride: int = 1


@dataclass(frozen=True)
class PermutationGroup:
    """Units of a model that may change places, in all of these places at once.

    Attributes:
        name: For people, and to look a permutation up: unique in the model.
        size: How many units.
        axes: Every place where the units lie.
        within: The group whose units hold these, each in an order of its own (the dimensions of
            every head); "" where there is one order.
    """

    name: str
    size: int
    axes: tuple[Place, ...]
    within: str = ""


Places: TypeAlias = Mapping[str, Sequence[tuple[PermutationGroup, Place]]]
"""Tensor name -> groups, and where in the tensor their units lie."""


@dataclass(frozen=True)
class PermutationGroups:
    """All permutations of a model's units that leave what it computes as it is.

    Attributes:
        groups: Independent of one another.
        shapes: Name -> shape of every tensor that the model has.
        buffers: Tensors that are not trained (BatchNorm's statistics): they are permuted along,
            but say nothing of which unit is which.
        unknown: Operations whose effect on an axis is not known; what they touch stays in place.
    """

    groups: tuple[PermutationGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()
    _by_name: Mapping[str, PermutationGroup] = field(init=False, repr=False, compare=False)
    _places: Places = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, list[tuple[PermutationGroup, Place]]] = {}
        for group in self.groups:
            for place in group.axes:
                found.setdefault(place.tensor, []).append((group, place))
        object.__setattr__(self, "_by_name", {group.name: group for group in self.groups})
        object.__setattr__(self, "_places", found)
        _check(self)

    def __getitem__(self, name: str) -> PermutationGroup:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def places(self) -> Places:
        """Tensor name -> the groups that permute it, and where."""
        return self._places

    def inner(self, group: PermutationGroup) -> list[PermutationGroup]:
        """The groups within a group."""
        return [other for other in self.groups if other.within == group.name]

    def holder(self, group: PermutationGroup, place: Place) -> Place | None:
        """Where the units lie that hold those of an inner group: the nearest, on the same axis."""
        if group.within not in self:
            return None
        slower = [
            other
            for other in self[group.within].axes
            if (other.tensor, other.dimension) == (place.tensor, place.dimension)
            and other.stride % (group.size * place.stride) == 0
        ]
        return min(slower, key=lambda other: other.stride, default=None)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; ``PermutationGroups.of_json`` takes them back."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "axes": [list(dataclasses.astuple(place)) for place in group.axes],
                    "within": group.within,
                }
                for group in self.groups
            ],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "buffers": sorted(self.buffers),
            "unknown": list(self.unknown),
        }

    @classmethod
    def of_json(cls, given: Mapping[str, Any] | str) -> PermutationGroups:
        """The groups that ``to_json`` wrote, as a mapping or as text.

        Raises:
            AlignmentError: Places that do not exist, or that no group of that size can have.

        Example:
            >>> place = Place("a.weight", 0)
            >>> some = PermutationGroups((PermutationGroup("a", 2, (place,)),), {"a.weight": (2,)})
            >>> PermutationGroups.of_json(some.to_json()) == some
            True
        """
        try:
            values = json.loads(given) if isinstance(given, str) else given
            groups = tuple(
                PermutationGroup(
                    str(group["name"]),
                    int(group["size"]),
                    tuple(Place(str(axis[0]), *map(int, axis[1:])) for axis in group["axes"]),
                    str(group.get("within", "")),
                )
                for group in values["groups"]
            )
            shapes = {str(n): tuple(map(int, shape)) for n, shape in values["shapes"].items()}
            buffers = frozenset(map(str, values.get("buffers", ())))
            unknown = tuple(map(str, values.get("unknown", ())))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise AlignmentError(
                f"These are no permutation groups: {type(error).__name__}: {error}. A group is "
                '{"name": ..., "size": ..., "axes": [[tensor, dimension, stride], ...]}.'
            ) from error
        return cls(groups, shapes, buffers, unknown)


def _check(groups: PermutationGroups) -> None:
    names = Counter(group.name for group in groups.groups)
    wrong = [f"{name}   names {count} groups" for name, count in names.items() if count > 1]
    for group in groups.groups:
        if group.within and (group.within not in groups or groups[group.within].within):
            wrong.append(f"{group.name}   within {group.within!r}, which is no outer group")
        for place in group.axes:
            why = _misplaced(group.size, place, groups.shapes.get(place.tensor))
            if not why and group.within and groups.holder(group, place) is None:
                why = f"no slower place of {group.within!r} on this axis"
            if why:
                where = f"{place.tensor} dimension {place.dimension}, stride {place.stride}"
                wrong.append(f"{group.name}   {where}: {why}")
    if wrong:
        raise AlignmentError(
            f"These permutation groups do not fit the model's tensors:\n{listing(wrong)}\n"
            "A group needs a name of its own, and dimensions of a multiple of size times stride."
        )


def _misplaced(size: int, place: Place, shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "no such tensor"
    if not 0 <= place.dimension < len(shape):
        return f"the shape is {list(shape)}"
    if place.stride < 1 or size < 1 or shape[place.dimension] % (size * place.stride):
        return f"{size} units do not fit the shape {list(shape)}"
    return ""
