"""What trying a candidate gave, and the folds on which fitted ones are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDS = 5


@dataclass(frozen=True)
class Trial:
    """What trying a candidate gave.

    Attributes:
        recipe: What rebuilds it (see ``assembly``).
        validation: Pooled outputs on validation; cross-fitted where something was fitted there;
            None where training on validation itself leaves no honest score.
        test: Pooled outputs on test.
        model: The combined model.
        forward_passes: Members run for one prediction.
        fit_seconds: Time spent on choosing or fitting.
        notes: What the reader must know.
        history: How a trained one learned, as JSON values.
        reliance: Whom a fusion believes, as JSON values.
    """

    recipe: Mapping[str, Any]
    validation: Tensor | None
    test: Tensor
    model: nn.Module
    forward_passes: int
    fit_seconds: float
    notes: tuple[str, ...] = ()
    history: Mapping[str, Any] = field(default_factory=dict)
    reliance: Mapping[str, Any] = field(default_factory=dict)


def folds(count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions to fit on and positions held out, ascending, for each of five folds.

    Example:
        >>> [held.tolist() for _, held in folds(4, 0)]
        [[2], [0], [1], [3]]
    """
    order = np.random.default_rng(seed).permutation(count)
    for fold in np.array_split(order, min(FOLDS, count)):
        rest = np.setdiff1d(np.arange(count), fold)
        yield torch.as_tensor(rest), torch.as_tensor(np.sort(fold))
