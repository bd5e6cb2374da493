"""Symbolic axes of tensors: products of atoms, which operations join, split and freeze."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias


class Atom:
    """Units that may change places with one another: a factor of one axis or of many.

    An atom is mutable, since tracing learns about it: it may turn out to be another one, or to be
    a product of smaller ones. ``parts`` then holds what it has become.

    Attributes:
        size: How many units it has.
        frozen: Whether their order must stay.
        parts: The atoms that it has become, slowest first; () while it stands for itself.
    """

    __slots__ = ("frozen", "parts", "size")

    def __init__(self, size: int, *, frozen: bool = False) -> None:
        self.size = size
        self.frozen = frozen
        self.parts: tuple[Atom, ...] = ()


Axis: TypeAlias = tuple[Atom, ...]
"""A product of atoms in row-major order; () is an axis of one entry."""

Axes: TypeAlias = tuple[Axis, ...]
"""All axes of a tensor."""


def axis(size: int, *, frozen: bool = False) -> Axis:
    """An axis of which nothing is known yet, or that must stay as it is."""
    return () if size == 1 else (Atom(size, frozen=frozen or size == 0),)


def fixed(shape: Iterable[int]) -> Axes:
    """The axes of a tensor whose entries must all stay where they are."""
    return tuple(axis(size, frozen=True) for size in shape)


def atoms(given: Axis) -> list[Atom]:
    """The atoms that an axis consists of as of now."""
    return [leaf for atom in given for leaf in (atoms(atom.parts) if atom.parts else [atom])]


def length(given: Axis) -> int:
    """Number of entries along an axis."""
    return math.prod(atom.size for atom in given)


def freeze(*given: Axis) -> None:
    """Say that nothing along these axes may change places."""
    for each in given:
        for atom in atoms(each):
            atom.frozen = True


def unify(left: Axis, right: Axis) -> None:
    """Say that two axes are always permuted alike.

    Where they are products, the atoms of one are split until both have the same ones; axes that
    have no common factoring (6 times 4 and 4 times 6) or differ in length are frozen.

    Example:
        >>> whole, heads, dims = axis(24), axis(4), axis(6)
        >>> unify(whole, heads + dims)
        >>> [atom.size for atom in atoms(whole)], atoms(whole) == atoms(heads + dims)
        ([4, 6], True)
    """
    if length(left) != length(right):
        freeze(left, right)
        return
    while pair := _first_difference(left, right):
        small, large = sorted(pair, key=lambda atom: atom.size)
        if small.size == large.size:
            _join(*pair)
        elif large.size % small.size == 0:
            _split(large, small.size)
        else:
            freeze(left, right)
            return


def _first_difference(left: Axis, right: Axis) -> tuple[Atom, Atom] | None:
    pairs = zip(atoms(left), atoms(right), strict=False)
    return next(((one, other) for one, other in pairs if one is not other), None)


def _join(kept: Atom, other: Atom) -> None:
    kept.frozen = kept.frozen or other.frozen
    other.parts = (kept,)


def _split(atom: Atom, size: int) -> tuple[Atom, Atom]:
    """Make an atom a product whose slower factor has that size."""
    slow = Atom(size, frozen=atom.frozen)
    fast = Atom(atom.size // size, frozen=atom.frozen)
    atom.parts = (slow, fast)
    return slow, fast


def broadcast(tensors: Sequence[Sequence[Axis]]) -> Axes:
    """The axes of what tensors give together, element by element; axes that meet are unified."""
    found: list[Axis] = []
    for place in range(1, max(map(len, tensors), default=0) + 1):
        meeting = [axes[-place] for axes in tensors if len(axes) >= place]
        wide = [each for each in meeting if length(each) != 1]
        for other in wide[1:]:
            unify(wide[0], other)
        found.insert(0, wide[0] if wide else ())
    return tuple(found)


def regrouped(axes: Sequence[Axis], shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape in row-major order, or None where atoms would have to be cut.

    Example:
        >>> channels, width = axis(8), axis(4)
        >>> regrouped((channels, width), (32,)) == (channels + width,)
        True
        >>> regrouped((axis(4), axis(6)), (6, 4)) is None
        True
    """
    if 0 in shape:
        return None
    rest = [atom for each in axes for atom in atoms(each)]
    found = []
    for size in shape:
        taken, left = [], size
        while left > 1:
            if not rest:
                return None
            first = rest.pop(0)
            if first.parts:
                rest[:0] = atoms(first.parts)
            elif left % first.size == 0:
                taken.append(first)
                left //= first.size
            elif first.size % left == 0:
                rest[:0] = _split(first, left)
            else:
                return None
        found.append(tuple(taken))
    return tuple(found)
