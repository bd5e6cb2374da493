"""Trimmed mean: the mean of the members without the extreme values, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.ordering import are_equal, from_sorted, in_order_with_weights
from alloykit.merging.ranges import require_number
from alloykit.numerics import weighted_mean
from alloykit.types import TensorGroup


def cut_at_each_end(count: int, trim: float) -> int:
    """How many of ``count`` members are left out at each end: trim·count, rounded down.

    But one of three or more where trim is not zero, since otherwise a few members would be
    averaged plainly, and never all.

    Example:
        >>> [cut_at_each_end(count, 0.2) for count in (2, 3, 5, 10)]
        [0, 1, 1, 2]
    """
    if not trim or count < 3:
        return 0
    # A product such as 0.2 · 10, a digit short of 2, is 2.
    return max(1, int(trim * count * (1.0 + 1e-12)))


@merge_method(paper="Yin et al., Byzantine-robust distributed learning, 2018, arXiv:1803.01498.")
def trimmed_mean(trim: float = 0.2) -> Callable[[TensorGroup], Tensor]:
    """Average every element without its largest and smallest values.

    merged = mean of the members that are neither among the k smallest nor among the k largest of
    that element, k = trim · n rounded down, but at least 1

    Use it when a few members may be broken or hostile: it uses more of the others than ``median``
    does.

    Args:
        trim: Fraction of the members left out at each end, at least 0 and less than 0.5. The
            default 0.2 is one at each end of up to nine members. 0 is the plain mean.

    Shapes:
        members [member, *shape] -> [*shape]

    Needs:
        One or more members; of fewer than three none is left out. With unequal weights k/n of
        the weight is left out at each end, and a member may be left out in part.

    Raises:
        InvalidParameter: trim outside [0, 0.5).

    Example:
        >>> import torch
        >>> tensors = tuple(torch.tensor([x]) for x in (1.0, 2.0, 3.0, 400.0))
        >>> group = TensorGroup("w", ("a", "b", "c", "d"), tensors, (0.25,) * 4)
        >>> trimmed_mean(trim=0.25).merge(group, None)
        tensor([2.5000])

    References:
        Yin, Chen, Kannan and Bartlett, Byzantine-robust distributed learning: towards optimal
        statistical rates, 2018, arXiv:1803.01498, definition 2. Differs in taking weights, and in
        leaving out at least one at each end of three or more.
    """
    require_number(
        "trimmed_mean", "trim", trim, low=0, high=0.5 - 2.0**-53,
        hint="It is the fraction left out at each end, less than a half.",
    )  # fmt: skip

    def merge(group: TensorGroup) -> Tensor:
        count = len(group.tensors)
        cut = min(cut_at_each_end(count, trim), (count - 1) // 2)
        if not cut:
            return weighted_mean(group.tensors, group.weights)
        if are_equal(group.weights):
            share = 1.0 / (count - 2 * cut)
            return from_sorted(
                group.tensors,
                lambda rows: weighted_mean(rows[cut : count - cut], (share,) * (count - 2 * cut)),
            )
        return _without_ends(*in_order_with_weights(group.tensors, group.weights), cut / count)

    return merge


def _without_ends(values: Tensor, weights: Tensor, part: float) -> Tensor:
    """The mean without that part of the weight at each end, for sorted values.

    By weight rather than by number, since of two equal values with different weights neither
    comes first.
    """
    before = torch.zeros_like(weights[0])
    total, below = torch.zeros_like(before), torch.zeros_like(before)
    for value, weight in zip(values, weights, strict=True):
        kept = (before + weight).clamp_(max=1.0 - part) - before.clamp(min=part)
        kept.clamp_(min=0.0)
        total += kept
        below += kept.mul_(values[0] - value)
        before += weight
    return values[0] - below.div_(total).to(values.dtype)
