"""Passthrough: one model as it is, or multiplied by a number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from alloykit.merging.contract import merge_method
from alloykit.merging.ranges import require_number
from alloykit.types import TensorGroup


@merge_method(linear=True, members=range(1, 2), paper="No paper: a copy.")
def passthrough(scale: float = 1.0) -> Callable[[TensorGroup], Tensor]:
    """Take one model's tensors as they are, or scaled.

    merged = scale · member

    Use it to write a checkpoint in another dtype or in other shards, or, with a scale by name, to
    set some tensors of it to zero.

    Args:
        scale: What the tensors are multiplied by, any finite number. The default 1 copies.

    Shapes:
        members [1, *shape] -> [*shape]

    Needs:
        Exactly one member.

    Raises:
        InvalidParameter: scale is not a finite number.

    Example:
        >>> import torch
        >>> group = TensorGroup("w", ("only",), (torch.ones(2),), (1.0,))
        >>> passthrough(scale=0.5).merge(group, None)
        tensor([0.5000, 0.5000])

    References:
        The name is mergekit's. Nothing differs.
    """
    require_number("passthrough", "scale", scale)

    def merge(group: TensorGroup) -> Tensor:
        return group.tensors[0].clone() if scale == 1.0 else group.tensors[0] * scale

    return merge
