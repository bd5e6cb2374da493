"""How honest probabilities are: one temperature that mends them, and the reliability diagram."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.evaluation.classification_metrics import FLOOR, probabilities, units

COLDEST, HOTTEST = 0.05, 20.0
TOLERANCE = 1e-6


def fit_temperature(log_probs: Tensor, targets: Tensor) -> float:
    """The temperature T in [0.05, 20] with the smallest log loss of log_softmax(log p / T).

    The log loss is convex in the inverse temperature 1/T, so the bounded one-dimensional search
    over it finds the minimum. Above one the probabilities were too confident, below one too timid.
    Use it after combining: calibrated members make an under-confident average.

    Args:
        log_probs: Log-probabilities (or logits) [example, class] or [example, position, class].
            No class counts as less likely than 2.2e-16, so that a zero cannot decide alone.
        targets: Class numbers; -100 is ignored in sequences.

    Raises:
        DataError: Shapes or targets do not fit.

    Example:
        >>> timid = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.4, 0.6]]).log()
        >>> round(fit_temperature(timid, torch.tensor([0, 1, 0, 1])), 4)
        0.05

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, 2017,
        arXiv 1706.04599, section 4.2. We search 1/T exactly within bounds; their code runs
        L-BFGS on T for 50 steps.
    """
    from scipy.optimize import minimize_scalar

    scored, wanted, _ = units(log_probs, targets)
    logs = F.log_softmax(scored.double(), 1).clamp(min=FLOOR)

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(logs * inverse, wanted))

    bounds = (1 / HOTTEST, 1 / COLDEST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": TOLERANCE})
    # The bounded search never tries the ends themselves, which is where degenerate data leads.
    return 1 / min((*bounds, float(found.x)), key=loss)


def reliability(
    log_probs: Tensor, targets: Tensor, bins: int = 15
) -> tuple[tuple[float, float, int], ...]:
    """The reliability diagram: (mean confidence, accuracy, count) of every bin of confidence.

    Empty bins are left out. Bins are of equal width and hold their lower edge; the last one holds
    both. A well calibrated model has accuracy = confidence everywhere.

    Args:
        log_probs: [example, class] or [example, position, class].
        targets: Class numbers.
        bins: How many, at least 1.
    """
    if bins < 1:
        raise InvalidParameter(f"The number of bins must be at least 1. Got {bins}.")
    scored, wanted, _ = units(log_probs, targets)
    confidence, predicted = probabilities(scored).max(1)
    right = (predicted == wanted).double().numpy()
    sure = confidence.double().numpy()
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True).numpy() - 1
    place = np.minimum(place, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=weights, minlength=bins) for weights in (sure, right)]
    return tuple(
        (float(sums[0][b] / count[b]), float(sums[1][b] / count[b]), int(count[b]))
        for b in range(bins)
        if count[b]
    )


def overconfidence(bins: tuple[tuple[float, float, int], ...]) -> float:
    """Mean confidence minus accuracy over all examples of a reliability diagram; signed."""
    total = sum(count for _, _, count in bins)
    if not total:
        return math.nan
    return sum((confidence - right) * count for confidence, right, count in bins) / total
