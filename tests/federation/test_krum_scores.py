"""What Krum, Multi-Krum and Bulyan share, beside a slow and plain way to the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloykit.federation.krum_scores import (
    closest,
    closest_in_turn,
    krum_scores,
    squared_distances,
)


def points(seed: int, count: int):
    return np.random.default_rng(seed).standard_normal((count, 3))


def plain_scores(rows, f: int):
    scores = []
    for i, row in enumerate(rows):
        others = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[: max(1, len(rows) - f - 2)]))
    return scores


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 6))
def test_scores_are_those_of_the_definition(seed: int, f: int, more: int):
    rows = points(seed, 2 * f + 3 + more)
    assert krum_scores(rows @ rows.T, f) == pytest.approx(plain_scores(rows, f), rel=1e-9)


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 4))
def test_in_turn_is_krum_again_and_again(seed: int, f: int, more: int):
    rows = points(seed, 4 * f + 3 + more)
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        scores = plain_scores(rows[left], f) if len(left) > 1 else [0.0]
        chosen.append(left.pop(int(np.argmin(scores))))
    assert closest_in_turn(rows @ rows.T, f, len(rows) - 2 * f) == sorted(chosen)


def test_it_matters_whether_clients_are_chosen_in_turn():
    rows = np.array([[0.0], [0.1], [0.3], [5.0], [5.1], [5.2], [9.0]])
    products = rows @ rows.T
    assert closest(products, 1, 5) != closest_in_turn(products, 1, 5)


def test_of_equal_scores_the_first_client_counts():
    rows = np.array([[1.0], [0.0], [1.0], [0.0], [0.5]])
    products = np.zeros((5, 5))
    assert closest(products, 1, 1) == [0]
    assert closest_in_turn(products, 1, 3) == [0, 1, 2]
    # Scores of 0.25 but for the last, which has 0.5.
    assert closest(rows @ rows.T, 1, 3) == [0, 1, 2]


def test_distances_are_never_negative():
    products = np.array([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]])
    assert squared_distances(products).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_lone_point_far_off_is_never_first():
    rows = np.vstack([points(3, 8), np.full((1, 3), 1e6)])
    assert 8 not in closest(rows @ rows.T, 1, 8)
    assert 8 not in closest_in_turn(rows @ rows.T, 1, 7)
