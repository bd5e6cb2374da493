"""Rows kept apart, so that settings are chosen, and heads are judged, on rows they did not see."""

from __future__ import annotations

import torch
from torch import Tensor

FOLDS = 5
"""Parts that a split is cut into where nothing else is said."""


def folds(targets: Tensor, count: int, seed: int) -> Tensor:
    """The fold of each row: of equal size to within one row, each class spread evenly over them.

    Rows are shuffled by the seed, sorted by class, and dealt out in turn; values are not sorted.

    Args:
        targets: ``[row]`` classes, or ``[row, ...]`` values or tokens.
        count: Number of folds; no more than there are rows.
        seed: Of the shuffle; torch's global random state is not used.

    Example:
        >>> folds(torch.tensor([0, 0, 1, 1]), 2, 0).bincount()
        tensor([2, 2])
    """
    rows = len(targets)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    if targets.ndim == 1 and not targets.is_floating_point():
        order = order[targets.cpu()[order].argsort(stable=True)]
    dealt = torch.empty(rows, dtype=torch.long)
    dealt[order] = torch.arange(rows) % min(count, rows)
    return dealt


def fold_rows(targets: Tensor, count: int, seed: int) -> list[Tensor]:
    """Ascending positions of each fold; see ``folds``.

    Example:
        >>> [rows.tolist() for rows in fold_rows(torch.tensor([0, 0, 1, 1]), 2, seed=0)]
        [[0, 3], [1, 2]]
    """
    fold = folds(targets, count, seed)
    return [(fold == number).nonzero()[:, 0] for number in range(min(count, len(targets)))]


def held_out(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to stop by: one row in five is held out, at least one of each."""
    apart = folds(targets, FOLDS, seed) == 0
    return (~apart).nonzero()[:, 0], apart.nonzero()[:, 0]
