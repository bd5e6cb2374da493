"""Counting whole numbers in bounded memory, exactly while few differ."""

from __future__ import annotations

from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[Any]]

HELD, BINS = 1 << 18, 1 << 17
"""How many numbers a tally gathers before it counts them, a megabyte; and how many distinct ones,
or bins of them, it keeps apart, another one."""


class Tally:
    """How often each whole number occurred: exact while few differ, in bins beyond that.

    Args:
        most: The largest number that can occur.
    """

    def __init__(self, most: int) -> None:
        self._shift = max(0, most.bit_length() - BINS.bit_length() + 1)
        self._waiting: list[Integers] = []
        self._held = 0
        self._numbers = self._counts = np.empty(0, np.int64)
        self._bins: Integers | None = None

    def add(self, numbers: Integers) -> None:
        """Count these, in any order."""
        self._waiting.append(numbers)
        self._held += len(numbers)
        if self._held > HELD:
            self._count()

    def total(self) -> int:
        """How many numbers there were."""
        self._count()
        return int((self._counts if self._bins is None else self._bins).sum())

    def interval(self, rank: int) -> tuple[int, int]:
        """The smallest known interval, ends included, that holds the rank-th largest."""
        self._count()
        counts = self._counts if self._bins is None else self._bins
        index = len(counts) - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), rank))
        if self._bins is None:
            return (int(self._numbers[index]),) * 2
        return index << self._shift, ((index + 1) << self._shift) - 1

    def _count(self) -> None:
        if not self._held:
            return
        numbers = np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        # Only now: had there been no more to count, many would have been exact too.
        if len(self._numbers) > BINS:
            self._bins = np.zeros(BINS, np.int64)
            np.add.at(self._bins, self._numbers >> self._shift, self._counts)
            self._numbers = self._counts = np.empty(0, np.int64)
        if self._bins is not None:
            self._bins += np.bincount(numbers >> self._shift, minlength=BINS)
            return
        fresh, counts = _distinct(numbers)
        numbers = np.concatenate([self._numbers, fresh])
        # Two sorted runs, which this sort merges in linear time.
        order = np.argsort(numbers, kind="stable")
        numbers, counts = numbers[order], np.concatenate([self._counts, counts])[order]
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        self._numbers, self._counts = numbers[first], np.add.reduceat(counts, first)


def _distinct(numbers: Integers) -> tuple[Integers, Integers]:
    """Each of some non-negative numbers once, sorted, and how often it occurs."""
    # Differences of bfloat16 numbers are multiples of a large power of two: few are possible.
    bits = int(np.bitwise_or.reduce(numbers))
    zeros = (bits & -bits).bit_length() - 1 if bits else 0
    if bits >> zeros < BINS:
        counts = np.bincount(numbers >> zeros)
        seen = np.flatnonzero(counts)
        return seen << zeros, counts[seen]
    distinct, counts = np.unique(numbers, return_counts=True)
    return distinct.astype(np.int64), counts
