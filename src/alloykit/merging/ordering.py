"""Members put in order, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PIECE = 1 << 15
"""Elements that are sorted at a time, so that all rows stay in the processor's cache."""


def from_sorted(tensors: Sequence[Tensor], take: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """What ``take`` makes of the members' values sorted for every element, smallest first.

    Neighbours are compared and exchanged until all are in order. Up to some twenty members that
    is several times as fast as a sort along the first dimension.

    Shapes:
        members [member, *shape] -> [*shape]

    Example:
        >>> from_sorted([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])], lambda rows: rows[0])
        tensor([2., 1.])
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    starts = range(0, max(1, flat[0].numel()), PIECE)
    pieces = ([tensor[start : start + PIECE] for tensor in flat] for start in starts)
    return torch.cat([_from_sorted(piece, take) for piece in pieces]).reshape(tensors[0].shape)


def _from_sorted(tensors: Sequence[Tensor], take: Callable[[list[Tensor]], Tensor]) -> Tensor:
    result = take(_in_order(tensors))
    if int(torch.count_nonzero(result)) == result.numel():
        return result
    # Which of two zeros of unlike sign is the smaller one is the processor's choice, and may
    # differ from one place in a tensor to the next; integers tell them apart.
    return take([_value(row) for row in _in_order([_rank(tensor) for tensor in tensors])])


def _in_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    rows = list(tensors)
    for round_ in range(len(rows)):
        for i in range(round_ % 2, len(rows) - 1, 2):
            low, high = rows[i], rows[i + 1]
            rows[i], rows[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return rows


def in_order_with_weights(
    tensors: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The members' values sorted for every element, and the weight, float64, that each has.

    Shapes:
        members [member, *shape] -> values [member, *shape], weights [member, *shape]
    """
    ranks, order = torch.stack([_rank(tensor) for tensor in tensors]).sort(dim=0, stable=True)
    shares = torch.tensor(weights, dtype=torch.float64, device=ranks.device)
    return _value(ranks), shares[order]


def are_equal(weights: Sequence[float]) -> bool:
    """Whether all weights are the same, but for their last digits."""
    return max(weights) - min(weights) <= 1e-12 * max(weights)


def _rank(tensor: Tensor) -> Tensor:
    """Integers in the order of the numbers, with a place of its own for either zero."""
    integer = torch.int64 if tensor.dtype == torch.float64 else torch.int32
    return _negatives_turned(tensor.contiguous().view(integer))


def _value(rank: Tensor) -> Tensor:
    return _negatives_turned(rank).view(
        torch.float64 if rank.dtype == torch.int64 else torch.float32
    )


def _negatives_turned(bits: Tensor) -> Tensor:
    """Bits of negative numbers count up with their size; turned round they count down.

    Its own inverse.
    """
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)
