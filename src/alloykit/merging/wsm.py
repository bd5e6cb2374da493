"""WSM: checkpoints of a run at a constant learning rate, weighed as if the rate had decayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from alloykit.merging.contract import Passes, merge_method
from alloykit.merging.ranges import require_choice
from alloykit.numerics import normalised, weighted_mean
from alloykit.types import TensorGroup

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2.0,
    "inverse_sqrt": lambda done: 1.0 - math.sqrt(done),
}
"""Part of the decay done -> the learning rate that is left, as a fraction."""


def decay_weights(count: int, decay: str) -> tuple[float, ...]:
    """Weights of ``count`` checkpoints, oldest first, that stand for a decay of the learning rate.

    wᵢ = f(i / n) − f((i+1) / n) for i = 0 … n−1, where f falls from 1 to 0

    A checkpoint is the oldest one plus the updates since. Averaged with these weights, the
    updates between checkpoint i−1 and checkpoint i count f(i / n) times.

    Args:
        count: Number of checkpoints, at least 1.
        decay: "linear" (1 − x, which is the plain mean), "cosine" ((1 + cos πx) / 2) or
            "inverse_sqrt" (1 − √x).

    Example:
        >>> [round(weight, 4) for weight in decay_weights(4, "cosine")]
        [0.1464, 0.3536, 0.3536, 0.1464]
    """
    left = [DECAYS[decay](index / count) for index in range(count)] + [0.0]
    return normalised([now - then for now, then in pairwise(left)], count)


@merge_method(linear=True, ordered=True, paper="Tian et al., WSM, 2025, arXiv:2507.17634.")
def wsm(decay: str = "cosine") -> Passes:
    """Average checkpoints of a constant learning rate as if it had decayed (WSM).

    merged = Σ wᵢ · memberᵢ, wᵢ = f(i/n) − f((i+1)/n), oldest i = 0, f the decay from 1 to 0

    Use it when a run at a constant learning rate is to be finished without a decay phase: take
    checkpoints at equal distances over the time that the decay would have taken. How long that
    window is matters more than the shape of the decay.

    Args:
        decay: Shape of the decay f over the window: "linear" (1 − x) is the plain mean, "cosine"
            ((1 + cos πx) / 2), the default, weighs the middle most, "inverse_sqrt" (1 − √x) the
            oldest.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members, oldest first, at equal distances. Weights by hand multiply these.

    Raises:
        InvalidParameter: An unknown decay.
        InvalidWeights: Weights by hand leave none.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([0.0]), torch.tensor([4.0]))
        >>> group = TensorGroup("w", ("old", "new"), tensors, (0.5, 0.5))
        >>> wsm("inverse_sqrt").merge(group, None)
        tensor([1.1716])

    References:
        Tian et al., WSM: Decay-free learning rate schedule via checkpoint merging for LLM
        pre-training, 2025, arXiv:2507.17634: the weights are the decay's differences. It is a decay
        as if the updates' directions had been the same at the lower rate.
    """
    require_choice("wsm", "decay", decay, tuple(DECAYS))

    def factors(weights: Sequence[float], _: None) -> tuple[float, ...]:
        both = [w * own for w, own in zip(weights, decay_weights(len(weights), decay), strict=True)]
        return normalised(both, len(both))

    def merge(group: TensorGroup, _: None) -> Tensor:
        return weighted_mean(group.tensors, factors(group.weights, None), coarse=group.coarse)

    return Passes(merge=merge, factors=factors)
