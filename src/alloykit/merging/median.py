"""Median: the middle value of the members, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.ordering import are_equal, from_sorted, in_order_with_weights
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup

HALF = 1e-6
"""How far from a half a sum of weights may be that is a half but for rounding."""


@merge_method(paper="Yin et al., Byzantine-robust distributed learning, 2018, arXiv:1803.01498.")
def median() -> Callable[[TensorGroup], Tensor]:
    """Take the middle value of every element: less than half of the members cannot spoil it.

    merged = the value with half of the weight on either side; between two, their mean

    Use it when some members may be broken or hostile and it is not known which. With two members
    it is the mean. ``geometric_median`` looks at whole tensors, and keeps what belongs together.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members; three before it differs from the mean.

    Example:
        >>> tensors = tuple(torch.tensor([x]) for x in (1.0, 2.0, 300.0))
        >>> group = TensorGroup("w", ("a", "b", "c"), tensors, (1 / 3,) * 3)
        >>> median().merge(group, None)
        tensor([2.])

    References:
        Yin, Chen, Kannan and Bartlett, Byzantine-robust distributed learning: towards optimal
        statistical rates, 2018, arXiv:1803.01498, definition 1. Differs in taking weights, and
        the mean of the two in the middle of an even number, as NumPy does.
    """

    def merge(group: TensorGroup) -> Tensor:
        if are_equal(group.weights):
            low, high = (len(group.tensors) - 1) // 2, len(group.tensors) // 2
            return from_sorted(group.tensors, lambda rows: _between(rows[low], rows[high]))
        return _between(*_weighted_middle(*in_order_with_weights(group.tensors, group.weights)))

    return merge


def _between(low: Tensor, high: Tensor) -> Tensor:
    return weighted_mean((low, high), (0.5, 0.5))


def _weighted_middle(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The last value with less than half of the weight before it, and the first with half."""
    reached = weights.cumsum(0)
    last = len(values) - 1
    low = (reached < 0.5 - HALF).sum(0, keepdim=True).clamp(max=last)
    high = (reached <= 0.5 + HALF).sum(0, keepdim=True).clamp(max=last)
    return torch.gather(values, 0, low)[0], torch.gather(values, 0, high)[0]
