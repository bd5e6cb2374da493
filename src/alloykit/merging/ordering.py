"""Members put in order, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

PIECE, SORTED_PIECE = 1 << 15, 1 << 12
"""Elements put in order at a time, so that all rows stay in the processor's cache: by comparing
neighbours, and by sorting."""

COMPARED = 20
"""Members up to which comparing neighbours is as fast as sorting; its cost grows with the square
of their number."""

InOrder = Callable[[Sequence[Tensor]], list[Tensor]]
"""[member] tensors of one length -> as many, sorted for every element, smallest first."""


def from_sorted(tensors: Sequence[Tensor], take: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """What ``take`` makes of the members' values sorted for every element, smallest first.

    Up to twenty members neighbours are compared and exchanged until all are in order; more are
    sorted. Both give the same bits.

    Shapes:
        members [member, *shape] -> [*shape]

    Example:
        >>> from_sorted([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])], lambda rows: rows[0])
        tensor([2., 1.])
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    few = len(flat) <= COMPARED
    size, in_order = (PIECE, _compared) if few else (SORTED_PIECE, _sorted)
    starts = range(0, max(1, flat[0].numel()), size)
    pieces = ([tensor[start : start + size] for tensor in flat] for start in starts)
    found = [_from_sorted(piece, take, in_order) for piece in pieces]
    return torch.cat(found).reshape(tensors[0].shape)


def _from_sorted(
    tensors: Sequence[Tensor], take: Callable[[list[Tensor]], Tensor], in_order: InOrder
) -> Tensor:
    result = take(in_order(tensors))
    if int(torch.count_nonzero(result)) == result.numel():
        return result
    # Which of two zeros of unlike sign is the smaller one is the processor's choice, and may
    # differ from one place in a tensor to the next; integers tell them apart.
    return take([_value(row) for row in in_order([_rank(tensor) for tensor in tensors])])


def _compared(tensors: Sequence[Tensor]) -> list[Tensor]:
    rows = list(tensors)
    for round_ in range(len(rows)):
        for i in range(round_ % 2, len(rows) - 1, 2):
            low, high = rows[i], rows[i + 1]
            rows[i], rows[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return rows


def _sorted(tensors: Sequence[Tensor]) -> list[Tensor]:
    if not tensors[0].is_cpu:
        return list(torch.stack(list(tensors), dim=-1).sort(dim=-1).values.unbind(-1))
    # NumPy's sort of short rows is several times as fast as torch's: it uses the processor's
    # vectors. It also fills the columns faster.
    arrays = [tensor.numpy() for tensor in tensors]
    block = np.empty((len(arrays[0]), len(arrays)), arrays[0].dtype)
    for column, array in enumerate(arrays):
        block[:, column] = array
    block.sort(axis=-1)
    return list(torch.from_numpy(block).unbind(-1))


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
