"""The exact k-th largest magnitude of whole tensors, in as few passes over them as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alloykit.merging.tally import Integers, Tally
from alloykit.types import Scan, TensorGroup

WHOLE = 1 << 16
"""A scan of at most so many elements has all of them in its sample."""

STRATA, DEVIATIONS = 64, 4.0
"""Into how many stretches a sample is cut to see how sure it is, and how many standard deviations
around what it suggests are searched: one guess in ten thousand then misses."""


def kth_largest(
    scan: Scan,
    rows: Sequence[Callable[[TensorGroup], Tensor]],
    ranks: Sequence[Sequence[int]],
    *,
    scattered: bool = True,
    dtype: torch.dtype | None = None,
) -> list[list[float]]:
    """The magnitudes of given ranks in rows of numbers, exactly.

    result[i][j] = the ranks[i][j]-th largest of abs(rows[i]) over all blocks of the scan

    Magnitudes are compared as the whole numbers that their bits spell, which have the same order.
    A sample suggests a narrow interval for each rank; one pass counts what lies above it and
    gathers what lies inside. That is exact unless very many distinct magnitudes lie inside: then
    another pass looks at the one small interval of them that holds the rank. Where the sample
    misled, another pass looks further out. The result does not depend on the sample, on how the
    scan cuts its blocks, or on what equal magnitudes there are. Memory: two megabytes a rank.

    Args:
        scan: What to walk.
        rows: One function a row: block -> the numbers to rank, NaN counting as the largest.
        ranks: For each row the ranks wanted, 1 for the largest; a row without any is not computed.
            A rank beyond the number of elements is that of a zero.
        scattered: Whether the rows can be computed from scattered elements, as a sample has them.
        dtype: What to compare in; by default the dtype of the members.

    Example:
        A survey that finds the median magnitude of the first member:

        >>> def survey(scan):
        ...     (median,), = kth_largest(scan, [lambda g: g.tensors[0]], [[(scan.numel + 1) // 2]])
        ...     return median
    """
    if not scan.numel:
        return [[0.0] * len(wanted) for wanted in ranks]
    sample = scan.sample()
    dtype = sample.tensors[0].dtype if dtype is None else dtype
    searches: list[list[_Search]] = []
    for row, wanted in zip(rows, ranks, strict=True):
        drawn = _Sample(_bits(row(sample), dtype), scan.numel) if scattered and wanted else None
        searches.append([_Search(rank, dtype, drawn) for rank in wanted])
    while any(search.found is None for each in searches for search in each):
        _pass(scan, rows, searches, dtype)
    return [[_value(search.found, dtype) for search in each] for each in searches]


def _pass(
    scan: Scan,
    rows: Sequence[Callable[[TensorGroup], Tensor]],
    searches: Sequence[Sequence[_Search]],
    dtype: torch.dtype,
) -> None:
    """One walk over the scan, for all searches that are still open."""
    open_rows = [
        (row, [search for search in each if search.found is None])
        for row, each in zip(rows, searches, strict=True)
    ]

    def look(group: TensorGroup) -> Tensor:
        counts = []
        for row, each in open_rows:
            if each:
                counts += _looked(_bits(row(group), dtype), each)
        return torch.tensor(counts)

    every = [search for _, each in open_rows for search in each]
    for search, counts in zip(every, scan.total(look).tolist(), strict=True):
        search.conclude(*counts)


def _looked(offsets: Integers, searches: Sequence[_Search]) -> list[tuple[int, int, int]]:
    """Show a block to the searches of one row, by turning it into offsets from each's interval."""
    origin, counts = 0, []
    for search in searches:
        np.subtract(offsets, search.low - origin, out=offsets)
        origin = search.low
        counts.append(search.look(offsets))
    return counts


class _Search:
    """The search for one rank: an interval of bits that is thought to hold it.

    Args:
        rank: 1 for the largest.
        dtype: What the bits are bits of.
        sample: Suggests the first interval; without one it is everything.
    """

    def __init__(self, rank: int, dtype: torch.dtype, sample: _Sample | None) -> None:
        self.rank = rank
        self.most = int(np.iinfo(_integer(dtype)).max)
        self.sample = sample
        self.found: int | None = None
        if sample is None:
            self._search(0, self.most)
        elif sample.numel == len(sample.bits) <= WHOLE:
            self.found = sample.exact(rank)
        else:
            self.place = sample.place(rank)
            self.margin = sample.margin(self.place)
            low = sample.at(self.place + self.margin, 0)
            self._search(low, sample.at(self.place - self.margin, self.most))

    def _search(self, low: int, high: int) -> None:
        """Look from low to high next, ends included."""
        self.first, self.last = low, high
        # What very many elements share is counted where it is an end, which costs less.
        self.many_last = self.sample is not None and self.sample.is_frequent(high)
        self.many_first = self.sample is not None and self.sample.is_frequent(low) and low < high
        self.low, self.high = low + self.many_first, high - self.many_last
        self.tally = Tally(max(0, self.high - self.low))

    def look(self, offsets: Integers) -> tuple[int, int, int]:
        """Gather what lies inside; count what lies above, at the last and at or above the first."""
        span = self.high - self.low
        over = last = int(np.count_nonzero(offsets > span))
        if self.many_last:
            over = int(np.count_nonzero(offsets > span + 1))
        inside = 0
        if span >= 0:
            # Seen as unsigned, what lies below the interval is larger than all inside.
            mask = offsets.view(f"u{offsets.itemsize}") <= span
            picked = offsets[np.flatnonzero(mask)]
            self.tally.add(picked)
            inside = len(picked)
        first = last + inside
        if self.many_first:
            first = int(np.count_nonzero(offsets >= -1))
        return over, last, first

    def conclude(self, over: int, last: int, first: int) -> None:
        """After a pass: the magnitude, or the next interval to look at.

        Args:
            over: How many elements are larger than the last magnitude of the interval.
            last: How many are larger than what was gathered: with those at the last one, if many.
            first: How many are at least the first one.
        """
        inside = self.tally.total()
        if self.rank <= over:
            self._look_further(over + 1 - self.rank, up=True)
        elif self.rank > first:
            self._look_further(self.rank - first, up=False)
        elif self.rank <= last:
            self.found = self.last
        elif self.rank > last + inside:
            self.found = self.first
        else:
            low, high = (self.low + end for end in self.tally.interval(self.rank - last))
            self.found = low if low == high else None
            self._search(low, high)

    def _look_further(self, missed_by: int, *, up: bool) -> None:
        """Twice as far as the miss suggests: samples that mislead do so by more than chance."""
        if self.sample is None or (not up and self.first == 0):
            self.found = 0
            return
        self.margin += 2 * self.sample.place(missed_by) + self.margin
        if up:
            low = self.last + 1
            self._search(low, max(low, self.sample.at(self.place - self.margin, self.most)))
        else:
            high = self.first - 1
            self._search(min(high, self.sample.at(self.place + self.margin, 0)), high)


class _Sample:
    """Magnitudes from evenly spaced places, which suggest where a rank of the whole is.

    Args:
        bits: Of the magnitudes, in the order of their places.
        numel: How many elements there are in all.
    """

    def __init__(self, bits: Integers, numel: int) -> None:
        self.bits = bits
        self.numel = numel
        self._ascending: Integers | None = None

    def exact(self, rank: int) -> int:
        """The magnitude of that rank where the sample is everything."""
        if rank > self.numel:
            return 0
        return int(np.partition(self.bits, self.numel - rank)[self.numel - rank])

    def place(self, rank: int) -> float:
        """The rank within the sample that corresponds to one within everything."""
        return rank * len(self.bits) / self.numel

    @property
    def ascending(self) -> Integers:
        """The same magnitudes, sorted."""
        if self._ascending is None:
            self._ascending = np.sort(self.bits)
        return self._ascending

    def at(self, place: float, beyond: int) -> int:
        """The magnitude at a place counted from the largest; ``beyond`` outside the sample."""
        index = len(self.bits) - 1 - round(place)
        return int(self.ascending[index]) if 0 <= index < len(self.bits) else beyond

    def is_frequent(self, bits: int) -> bool:
        """Whether more than one in 200 elements have that magnitude."""
        number = self.bits.dtype.type(bits)
        left = np.searchsorted(self.ascending, number)
        right = np.searchsorted(self.ascending, number, "right")
        return bool((right - left) * 200 > len(self.bits))

    def margin(self, place: float) -> float:
        """By how many places a suggestion may be wrong.

        Neighbours resemble each other, so that chance alone would be too sure: what is seen is how
        much the number of large magnitudes changes from one stretch of the sample to the next.
        """
        count = len(self.bits)
        large = self.bits >= self.at(min(max(place, 0.0), count - 1.0), 0)
        share = min(max(place / count, 0.0), 1.0)
        stretches = large[: count // STRATA * STRATA].reshape(STRATA, -1).sum(axis=1)
        changes = float(np.square(np.diff(stretches.astype(np.float64))).mean()) / 2.0
        variance = max(STRATA * changes, count * share * (1.0 - share))
        return DEVIATIONS * float(np.sqrt(variance)) + DEVIATIONS


def _integer(dtype: torch.dtype) -> type[np.signedinteger[Any]]:
    return np.int64 if dtype == torch.float64 else np.int32


def _bits(values: Tensor, dtype: torch.dtype) -> Integers:
    """The magnitudes' bits as whole numbers of the same order, in memory of their own."""
    magnitudes = values.to(dtype).reshape(-1).abs()
    return magnitudes.numpy(force=True).view(_integer(dtype))


def _value(bits: int | None, dtype: torch.dtype) -> float:
    number = np.array(bits, _integer(dtype))
    return float(number.view(np.float64 if dtype == torch.float64 else np.float32))
