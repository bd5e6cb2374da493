"""Coordinate ascent over permutations: a few groups at a time, each by linear assignments."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alloykit.alignment.groups import PermutationGroup, PermutationGroups, Place
from alloykit.alignment.likeness import alike, of_inner_units, of_units
from alloykit.alignment.permuting import Permutation, composed, identity, kept, moved
from alloykit.numerics import is_averaged

SWEEPS = 100
"""Most rounds over all groups; about ten are usual, since each of them must gain."""

GAIN = 1e-6
"""Least gain, relative to the sizes of the terms that change, that is no rounding."""


@dataclass(frozen=True)
class End:
    """Where an ascent ends.

    Attributes:
        permutation: Of every group.
        similarity: Of the pair in that order.
        changed: Whether any step was taken from the start.
    """

    permutation: Permutation
    similarity: float
    changed: bool


@dataclass(frozen=True)
class Turn:
    """Groups that are put in order at once, while all others stay.

    Attributes:
        group: Of any kind.
        inner: Groups within it, of which no two lie on one axis: for any two of its units the
            best order of what they hold is found first, and then the best pairs of units.
    """

    group: PermutationGroup
    inner: tuple[PermutationGroup, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Names of all its groups."""
        return frozenset((self.group.name, *(inner.name for inner in self.inner)))


def turns(groups: PermutationGroups) -> list[Turn]:
    """All groups, outer ones with as many of their inner ones as can go with them."""
    found = []
    for group in groups.groups:
        if not group.within:
            inner = sorted(groups.inner(group), key=lambda each: -each.size)
            taken: list[PermutationGroup] = []
            for each in inner:
                if not any(_axes(each) & _axes(other) for other in taken):
                    taken.append(each)
            found.append(Turn(group, tuple(taken)))
            found += [Turn(each) for each in inner if each not in taken]
    return found


def _axes(group: PermutationGroup) -> set[tuple[str, int]]:
    return {(place.tensor, place.dimension) for place in group.axes}


@dataclass(frozen=True)
class Pair:
    """The parameters of two models that groups move, each tied tensor once, as real numbers.

    Attributes:
        groups: Of the architecture of both.
        reference: Whose order stays.
        other: Whose units are to be put in order.
    """

    groups: PermutationGroups
    reference: Mapping[str, Tensor]
    other: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        groups: PermutationGroups,
        reference: Mapping[str, Tensor],
        other: Mapping[str, Tensor],
    ) -> Pair:
        """What counts of two state dicts: buffers and integers do not."""
        distinct: dict[object, str] = {}
        for name in groups.places:
            if name not in groups.buffers and is_averaged(other[name].dtype):
                distinct.setdefault(identity(name, other[name]), name)
        pairs = {name: alike(reference[name], other[name]) for name in distinct.values()}
        return cls(
            groups,
            {name: pair[0] for name, pair in pairs.items()},
            {name: pair[1] for name, pair in pairs.items()},
        )

    def similarity(self) -> float:
        """Σ <reference, other>."""
        return math.fsum(
            float((tensor * self.other[name]).sum(dtype=torch.float64))
            for name, tensor in self.reference.items()
        )

    def start(self) -> Permutation:
        """Where to begin: the present order, unless another one found at once is more alike.

        Models that were fine-tuned from one start are as alike as they can be; of models that were
        trained apart, the present order says nothing.
        """
        found, present = self.layer_by_layer(), self.similarity()
        better = self._ordered(found).similarity() - present > GAIN * abs(present)
        return found if better else kept(self.groups)

    def layer_by_layer(self) -> Permutation:
        """The order of each group in turn by the weights whose other units have been settled.

        It needs no guess, since inputs are in one order: the first layer's weights say which of
        its units are alike, then the second's, and so on.
        """
        found, pair = kept(self.groups), self
        waiting, settled = turns(self.groups), frozenset[str]()
        while waiting:
            turn = next((t for t in waiting if self._settled(t, settled)), waiting[0])
            waiting.remove(turn)
            step = pair._best(turn, self._settled(turn, settled) or self.reference.keys())
            settled |= turn.names
            found, pair = composed(self.groups, found, step), pair._ordered(step)
        return found

    def climbed(self, start: Permutation, generator: torch.Generator) -> End:
        """Go up from a start, turn by turn in random order, until a round changes nothing."""
        found, pair, changed = start, self._ordered(start), False
        every = turns(self.groups)
        for _ in range(SWEEPS):
            gained = False
            for index in torch.randperm(len(every), generator=generator).tolist():
                step = pair._best(every[index], self.reference.keys())
                new = pair._ordered(step)
                if pair._gains(new):
                    found, pair = composed(self.groups, found, step), new
                    gained = changed = True
            if not gained:
                break
        return End(found, pair.similarity(), changed)

    def _best(self, turn: Turn, tensors: Collection[str]) -> Permutation:
        """The best order of a turn's groups by some of the tensors, from the present one."""
        group = turn.group
        if group.within:
            likeness = self._inner_likeness(group, tensors)
            return {group.name: _assigned_each(likeness, torch.arange(len(likeness)))}
        inner = {each.name: self._inner_likeness(each, tensors) for each in turn.inner}
        covered = set().union(*(_axes(each) for each in turn.inner))
        places = [p for p in group.axes if (p.tensor, p.dimension) not in covered]
        likeness = of_units(group, self._among(places, tensors), self.reference, self.other)
        for each in inner.values():
            likeness += _best_values(each)
        order = _assigned(likeness)
        return {group.name: order} | {
            name: _assigned_each(each, order) for name, each in inner.items()
        }

    def _inner_likeness(self, group: PermutationGroup, tensors: Collection[str]) -> Tensor:
        places = self._among(group.axes, tensors)
        return of_inner_units(self.groups, group, places, self.reference, self.other)

    def _among(self, places: Collection[Place], tensors: Collection[str]) -> list[Place]:
        return [place for place in places if place.tensor in self.reference.keys() & tensors]

    def _settled(self, turn: Turn, settled: frozenset[str]) -> set[str]:
        """The tensors of a turn's groups in which all other groups are settled."""
        return {
            name
            for name in self.reference
            if turn.names & (there := {group.name for group, _ in self.groups.places[name]})
            and there <= settled | turn.names
        }

    def _ordered(self, permutation: Permutation) -> Pair:
        """The pair with the other model in a new order."""
        other = {
            name: moved(self.groups, permutation, name, tensor)
            for name, tensor in self.other.items()
        }
        return Pair(self.groups, self.reference, other)

    def _gains(self, new: Pair) -> bool:
        """Whether the sum rises in a new order, by more than rounding.

        The assignment alone does not say so where a group permutes two dimensions of one tensor.
        """
        gain, scale = 0.0, 0.0
        for name, tensor in new.other.items():
            if tensor is not self.other[name]:
                terms = (tensor - self.other[name]).mul_(self.reference[name])
                gain += float(terms.sum(dtype=torch.float64))
                scale += float(terms.abs_().sum(dtype=torch.float64))
        return gain > GAIN * scale


def _assigned(likeness: Tensor) -> Tensor:
    _, order = linear_sum_assignment(likeness.numpy(), maximize=True)
    return torch.from_numpy(order)


def _assigned_each(likeness: Tensor, order: Tensor) -> Tensor:
    """The orders of inner units once the outer ones are in theirs."""
    pairs = enumerate(order.tolist())
    return torch.stack([_assigned(likeness[one, :, two]) for one, two in pairs])


def _best_values(likeness: Tensor) -> Tensor:
    """The sums of the best assignments, for every pair of outer units."""
    found = torch.empty(likeness.shape[0], likeness.shape[2], dtype=likeness.dtype)
    for one in range(likeness.shape[0]):
        for two in range(likeness.shape[2]):
            pair = likeness[one, :, two]
            found[one, two] = pair.gather(1, _assigned(pair)[:, None]).sum()
    return found
