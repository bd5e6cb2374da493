"""Exponential merging: ordered checkpoints averaged by recency."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from alloykit.errors import InvalidParameter
from alloykit.merging.contract import merge_method
from alloykit.numerics import normalised, weighted_mean
from alloykit.types import TensorGroup


def recency_weights(count: int, decay: float) -> tuple[float, ...]:
    """Weights of ``count`` checkpoints, oldest first, that fall by ``decay`` for each step back.

    wᵢ = decay^(n−1−i) · (1 − decay) / (1 − decayⁿ) for i = 0 … n−1; 1/n each when decay is 1

    They sum to one. The recursion "average ← decay · average + (1 − decay) · newest" gives the
    same ratios except for the oldest checkpoint, which that recursion weighs decay^(n−1) instead:
    with few checkpoints more than all others together.

    Args:
        count: Number of checkpoints, at least 1.
        decay: Ratio of one weight to the next newer one, in [0, 1]. 0 keeps the newest alone.

    Raises:
        InvalidParameter: decay outside [0, 1].

    Example:
        >>> [round(w, 4) for w in recency_weights(3, 0.5)]
        [0.1429, 0.2857, 0.5714]
    """
    if not 0.0 <= decay <= 1.0 or math.isnan(decay):
        raise InvalidParameter(
            f"The 'decay' parameter of exponential must be a number in [0, 1]. Got {decay}. "
            "(It is the ratio of one checkpoint's weight to the next newer one's; 1 is the mean.)"
        )
    return normalised([decay ** (count - 1 - index) for index in range(count)], count)


@merge_method(linear=True, ordered=True, paper="Hunter, The exponentially weighted moving average, 1986.")
def exponential(decay: float = 0.9) -> Callable[[TensorGroup], Tensor]:
    """Average ordered checkpoints of one run by recency: the most recent weighs most.

    merged = Σ wᵢ · memberᵢ, wᵢ = decay^(n−1−i) · (1 − decay) / (1 − decayⁿ), oldest i = 0

    Use it when the members are checkpoints of one run, given oldest first, and no data is at hand
    to choose the weights. Weights by hand multiply the recency weights.

    Args:
        decay: Ratio of one checkpoint's weight to the next newer one's, in [0, 1]. The default
            0.9 spans about ten checkpoints.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members, oldest first.

    Raises:
        InvalidParameter: decay outside [0, 1].

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("old", "new"), (torch.zeros(1), torch.ones(1)), (0.5, 0.5))
        >>> exponential(decay=0.25).merge(group, None)
        tensor([0.8000])

    References:
        Hunter, The exponentially weighted moving average, Journal of Quality Technology, 1986.
        Differs from the running form (torch.optim.swa_utils) in the oldest checkpoint's weight,
        see ``recency_weights``; a live average is ``alloykit.ExponentialMovingAverage``.
    """
    recency_weights(1, decay)

    def merge(group: TensorGroup) -> Tensor:
        recency = recency_weights(len(group.tensors), decay)
        both = [w * r for w, r in zip(group.weights, recency, strict=True)]
        return weighted_mean(group.tensors, normalised(both, len(both)))

    return merge
