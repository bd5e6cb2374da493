"""What Krum, Multi-Krum and Bulyan share: how close each client is to its nearest neighbours."""

from __future__ import annotations

import numpy as np

from alloykit.federation.contract import Matrix

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]


def squared_distances(products: Matrix) -> Matrix:
    """Squared distances between points, from the inner products of their differences to any one.

    Shapes:
        products [client, client] -> [client, client]

    Example:
        >>> squared_distances(np.array([[1.0, 2.0], [2.0, 4.0]]))
        array([[0., 1.],
               [1., 0.]])
    """
    squares = np.diagonal(products)
    # Rounding must not make a distance negative: a neighbour would count as closer than itself.
    return np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)


def neighbour_distances(squared: Matrix) -> Matrix:
    """Each client's squared distances to all others, smallest first.

    Shapes:
        squared [client, client] -> [client, client - 1]
    """
    count = len(squared)
    others = squared[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return np.sort(others, axis=1)


def krum_scores(products: Matrix, num_malicious: int) -> Scores:
    """Sum of each client's squared distances to its n − f − 2 nearest neighbours.

    Args:
        products: Inner products of the clients' deltas.
        num_malicious: f.

    Shapes:
        products [client, client] -> [client]

    Example:
        >>> deltas = np.array([[0.0], [1.0], [3.0], [100.0], [4.0]])
        >>> krum_scores(deltas @ deltas.T, num_malicious=1)
        array([1.0000e+01, 5.0000e+00, 5.0000e+00, 1.8625e+04, 1.0000e+01])
    """
    neighbours = neighbour_distances(squared_distances(products))
    return np.asarray(neighbours[:, : max(1, len(products) - num_malicious - 2)].sum(axis=1))


def closest(products: Matrix, num_malicious: int, count: int) -> list[int]:
    """Positions of the ``count`` clients with the least scores; of equal ones the first.

    Example:
        >>> deltas = np.array([[0.0], [1.0], [3.0], [100.0], [4.0]])
        >>> closest(deltas @ deltas.T, num_malicious=1, count=2)
        [1, 2]
    """
    order = np.argsort(krum_scores(products, num_malicious), kind="stable")
    return sorted(order[:count].tolist())


def closest_in_turn(products: Matrix, num_malicious: int, count: int) -> list[int]:
    """Positions of ``count`` clients, each with the least score among those that are left.

    A client's score among those left counts at least one neighbour, since with the last few of
    them n − f − 2 would be none.

    Example:
        >>> deltas = np.array([[0.0], [1.0], [3.0], [100.0], [4.0]])
        >>> closest_in_turn(deltas @ deltas.T, num_malicious=1, count=3)
        [0, 1, 2]
    """
    squared = squared_distances(products)
    # Every client itself comes last in its own order, and is never a neighbour.
    np.fill_diagonal(squared, np.inf)
    order = np.argsort(squared, axis=1, kind="stable")[:, :-1]
    distances = np.take_along_axis(squared, order, axis=1)
    left = np.ones(len(squared), dtype=bool)
    for _ in range(count):
        neighbours = max(1, int(left.sum()) - num_malicious - 2)
        there = left[order]
        counted = there & (np.cumsum(there, axis=1) <= neighbours)
        scores = np.where(counted, distances, 0.0).sum(axis=1)
        left[int(np.argmin(np.where(left, scores, np.inf)))] = False
    return np.flatnonzero(~left).tolist()
