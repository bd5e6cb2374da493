"""Rows kept apart inside a head's own training data, so that settings are chosen on unseen ones."""

from __future__ import annotations

import torch
from torch import Tensor

from alloykit.types import Task

FOLDS = 5


def folds(targets: Tensor, count: int, seed: int, task: Task) -> Tensor:
    """The fold of each row: of equal size to within one row, each class spread evenly over them.

    Rows are shuffled by the seed, sorted by class, and dealt out in turn; values are not sorted.

    Args:
        targets: ``[row]`` classes or ``[row, output]`` values.
        count: Number of folds; no more than there are rows.
        seed: Of the shuffle; torch's global random state is not used.
        task: Whether targets are classes.

    Example:
        >>> folds(torch.tensor([0, 0, 1, 1]), 2, 0, "classification").bincount()
        tensor([2, 2])
    """
    rows = len(targets)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    if task != "regression":
        order = order[targets.cpu()[order].argsort(stable=True)]
    dealt = torch.empty(rows, dtype=torch.long)
    dealt[order] = torch.arange(rows) % min(count, rows)
    return dealt


def held_out(targets: Tensor, seed: int, task: Task) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to stop by: one row in five is held out, at least one of each."""
    apart = folds(targets, FOLDS, seed, task) == 0
    return (~apart).nonzero()[:, 0], apart.nonzero()[:, 0]
