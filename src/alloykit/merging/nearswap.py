"""NearSwap: take over a model's numbers where they are near the base's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.gram import base_of
from alloykit.merging.ranges import require_number
from alloykit.types import TensorGroup


@merge_method(
    needs=frozenset({"base"}),
    members=range(1, 2),
    paper="No paper: alchemonaut, QuartetAnemoi-70B-t0.0001.",
)
def nearswap(t: float = 1e-4) -> Callable[[TensorGroup], Tensor]:
    """Move every number of the base towards the member's, by no more than t.

    merged = base + clamp(member − base, −t, t)

    Use it to let another model colour a base where both are alike, without a large change
    anywhere: numbers that differ by less than t become the member's, all others move by t.

    Args:
        t: The largest move, at least 0, in the unit of the tensors. The default 1e-4 is that of
            the model for which the method was made; weights of large language models are about
            0.02.

    Shapes:
        members [1, *shape], base [*shape] -> [*shape]

    Needs:
        base. Exactly one member.

    Raises:
        InvalidParameter: t is negative or not finite.

    Example:
        >>> import torch
        >>> tensors = (torch.tensor([1.0, 0.25]),)
        >>> group = TensorGroup("w", ("other",), tensors, (1.0,), base=torch.zeros(2))
        >>> nearswap(t=0.5).merge(group, None)
        tensor([0.5000, 0.2500])

    References:
        alchemonaut, QuartetAnemoi-70B-t0.0001, huggingface.co, as in mergekit. Their weight
        min(1, t / |difference|) times the difference is the clamped difference. Differs from
        mergekit for t below 1e-6, where it takes 1e-6 for a smaller difference: by less than t.
    """
    require_number("nearswap", "t", t, low=0)

    def merge(group: TensorGroup) -> Tensor:
        base = base_of("nearswap", group)
        if not t:
            return base.clone()
        return torch.minimum(torch.maximum(group.tensors[0], base - t), base + t)

    return merge
