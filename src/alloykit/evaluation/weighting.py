"""Mixing weights from the members' scores on validation data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alloykit.errors import InvalidParameter, InvalidWeights
from alloykit.evaluation.metrics import Metric
from alloykit.evaluation.metrics import metric as metric_of


def weights_from_scores(
    scores: Sequence[float], metric: str | Metric, *, power: float = 1.0
) -> tuple[float, ...]:
    """Weights that sum to one, larger for members that scored better.

    - higher is better (accuracy, precision, recall, f1, r2): w ∝ max(score, 0)^power
    - log loss: w ∝ exp(-power·score), the same as perplexity^-power
    - any other score that is better when lower: w ∝ score^-power; a score of zero takes all
      weight, shared among the members that have it

    Args:
        scores: One per member.
        metric: What they were scored with, or its name.
        power: How strongly better scores count, at least 0; 0 gives equal weights.

    Raises:
        InvalidWeights: A score is NaN or infinite, or no member scored above zero.
        InvalidParameter: A negative or infinite power.

    Example:
        >>> weights_from_scores([0.5, 0.25, 0.25], "accuracy")
        (0.5, 0.25, 0.25)
        >>> weights_from_scores([1.0, 4.0], "mse")
        (0.8, 0.2)
    """
    chosen = metric_of(metric)
    if not 0 <= power < math.inf:
        raise InvalidParameter(f"The power must be a finite number of at least 0. Got {power}.")
    given = np.asarray(scores, dtype=np.float64)
    _check(given, chosen)
    logs = _log_weights(given, chosen, power)
    shares = np.exp(logs - logs.max())
    return tuple(float(share) for share in shares / shares.sum())


def _log_weights(scores: np.ndarray, chosen: Metric, power: float) -> np.ndarray:
    """Logarithms of unnormalised weights, so that no power of a small score underflows."""
    if power == 0:
        return np.zeros_like(scores)
    if chosen.name == "log_loss":
        return -power * scores
    positive = np.maximum(scores, 0.0)
    if not chosen.higher_is_better and not positive.all():
        return np.where(positive == 0, 0.0, -np.inf)
    with np.errstate(divide="ignore"):
        logs = np.log(positive)
    return np.asarray(power * logs if chosen.higher_is_better else -power * logs)


def _check(scores: np.ndarray, chosen: Metric) -> None:
    if not scores.size:
        raise InvalidWeights("There are no scores to make weights from.")
    bad = [str(i + 1) for i, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise InvalidWeights(
            f"The {chosen.name} of member {', '.join(bad)} is NaN or infinite, so it has no "
            "weight. Leave these members out, or give weights by hand."
        )
    if chosen.higher_is_better and not (scores > 0).any():
        raise InvalidWeights(
            f"No member has a {chosen.name} above zero, so all weights would be zero. "
            "Use another metric, or uniform weights."
        )
