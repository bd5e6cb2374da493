from __future__ import annotations

import numpy as np
import pytest

from alloykit.merging import tally
from alloykit.merging.tally import Tally


def filled(numbers, most, pieces=7):
    found = Tally(most)
    for piece in np.array_split(np.asarray(numbers, np.int64), pieces):
        found.add(piece)
    return found


def test_the_rank_th_largest_of_few_numbers_is_exact():
    found = filled([5, 0, 9, 9, 2], 9, pieces=3)
    assert [found.interval(rank) for rank in (1, 2, 3, 4, 5)] == [
        (9, 9),
        (9, 9),
        (5, 5),
        (2, 2),
        (0, 0),
    ]
    assert found.total() == 5


@pytest.mark.parametrize("step", [1, 1 << 14])
def test_many_numbers_that_repeat_are_exact(step):
    numbers = np.random.default_rng(0).integers(0, 60, 600_000) * step
    found, ordered = filled(numbers, 60 * step), np.sort(numbers)[::-1]
    for rank in (1, 2, 1234, 300_000, 600_000):
        assert found.interval(rank) == (ordered[rank - 1],) * 2
    assert found.total() == 600_000


def test_many_distinct_numbers_are_known_to_a_bin(monkeypatch):
    monkeypatch.setattr(tally, "HELD", 100)
    monkeypatch.setattr(tally, "BINS", 64)
    most = 10_000_000
    numbers = np.random.default_rng(1).integers(0, most + 1, 5000)
    found, ordered = filled(numbers, most, pieces=90), np.sort(numbers)[::-1]
    assert found.total() == 5000
    for rank in (1, 77, 2500, 5000):
        low, high = found.interval(rank)
        assert low <= ordered[rank - 1] <= high
        assert high - low + 1 == 1 << (most.bit_length() - 6)


def test_what_is_kept_stays_small():
    found = filled(np.arange(3_000_000), 3_000_000, pieces=300)
    arrays = [found._numbers, found._counts, found._bins, *found._waiting]
    assert sum(each.nbytes for each in arrays if each is not None) < 8 << 20


def test_of_nothing():
    assert Tally(10).total() == 0
