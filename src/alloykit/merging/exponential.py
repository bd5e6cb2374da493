"""Exponential merging: ordered checkpoints averaged by recency."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.ranges import require_number
from alloykit.numerics import normalised, weighted_mean
from alloykit.types import TensorGroup


def recency_weights(count: int, decay: float, *, running: bool = False) -> tuple[float, ...]:
    """Weights of ``count`` checkpoints, oldest first, that fall by ``decay`` for each step back.

    wᵢ = decay^(n−1−i) · (1 − decay) / (1 − decayⁿ) for i = 0 … n−1; 1/n each when decay is 1

    They sum to one. The running form, "average ← decay · average + (1 − decay) · newest" from the
    oldest on, has the same ratios except for the oldest checkpoint, which weighs decay^(n−1):
    with few checkpoints more than all others together.

    Args:
        count: Number of checkpoints, at least 1.
        decay: Ratio of one weight to the next newer one, in [0, 1]. 0 keeps the newest alone.
        running: The weights of the running form.

    Raises:
        InvalidParameter: decay outside [0, 1].

    Example:
        >>> [round(w, 4) for w in recency_weights(3, 0.5)]
        [0.1429, 0.2857, 0.5714]
        >>> recency_weights(3, 0.5, running=True)
        (0.25, 0.25, 0.5)
    """
    require_number(
        "exponential",
        "decay",
        decay,
        low=0,
        high=1,
        hint="It is the ratio of one checkpoint's weight to the next newer one's; 1 is the mean.",
    )
    powers = [decay ** (count - 1 - index) for index in range(count)]
    if running:
        powers[1:] = [(1.0 - decay) * power for power in powers[1:]]
    return normalised(powers, count)


@merge_method(
    linear=True, ordered=True, paper="Hunter, The exponentially weighted moving average, 1986."
)
def exponential(decay: float = 0.9, running: bool = False) -> Passes:
    """Average ordered checkpoints of one run by recency: the most recent weighs most.

    merged = Σ wᵢ · memberᵢ, wᵢ = decay^(n−1−i) · (1 − decay) / (1 − decayⁿ), oldest i = 0

    Use it when the members are checkpoints of one run, given oldest first, and no data is at hand
    to choose the weights. Weights by hand multiply the recency weights.

    Args:
        decay: Ratio of one checkpoint's weight to the next newer one's, in [0, 1]. The default
            0.9 spans about ten checkpoints.
        running: Whether to give what an exponential moving average over the files would give that
            started with the oldest: that one weighs decay^(n−1), all others (1 − decay) times
            the power.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members, oldest first.

    Raises:
        InvalidParameter: decay outside [0, 1].
        InvalidWeights: Weights by hand and the decay leave no checkpoint.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("old", "new"), (torch.zeros(1), torch.ones(1)), (0.5, 0.5))
        >>> exponential(decay=0.25).merge(group, None)
        tensor([0.8000])

    References:
        Hunter, The exponentially weighted moving average, Journal of Quality Technology, 1986.
        Differs from the running form (torch.optim.swa_utils), which ``running`` gives, in the
        oldest checkpoint's weight; a live average is ``alloykit.ExponentialMovingAverage``.
    """
    recency_weights(1, decay)

    def factors(weights: Sequence[float], _: None) -> tuple[float, ...]:
        recency = recency_weights(len(weights), decay, running=running)
        both = [w * own for w, own in zip(weights, recency, strict=True)]
        return normalised(both, len(both))

    def merge(group: TensorGroup, _: None) -> Tensor:
        return weighted_mean(group.tensors, factors(group.weights, None), coarse=group.coarse)

    return Passes(merge=merge, factors=factors)
