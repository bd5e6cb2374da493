"""Losses over positions and vocabularies, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from alloykit.data.splits import IGNORED
from alloykit.errors import DataError
from alloykit.numerics import compute_dtype

CHUNK = 1 << 22
"""Numbers of one chunk of [row, vocabulary] that are in float32 at a time: 16 MiB."""

RowLoss = Callable[..., Tensor]


def scored_rows(
    shape: tuple[int, int],
    labels: Tensor | None,
    *,
    shift: bool = False,
    ignore_index: int = IGNORED,
) -> tuple[Tensor, Tensor | None]:
    """Which rows of the flattened ``[example, position]`` count, and the label of each.

    With ``shift`` the label of a position is the next token: labels are moved one to the left
    first and masked afterwards, so that the last position of each example never counts.

    Args:
        shape: Examples and positions.
        labels: ``[example, position]``, or None: every position counts.
        shift: Whether outputs predict the next token while labels are the tokens themselves.
        ignore_index: The label of positions that do not count.

    Shapes:
        -> [row], [row]

    Example:
        >>> scored_rows((1, 4), torch.tensor([[-100, -100, 7, 8]]), shift=True)
        (tensor([1, 2]), tensor([7, 8]))
    """
    examples, positions = shape
    if labels is None:
        rows = torch.arange(examples * positions).view(examples, positions)
        return (rows[:, :-1] if shift else rows).flatten(), None
    if tuple(labels.shape) != shape:
        raise DataError(
            f"Labels {list(labels.shape)} do not fit outputs of {examples} examples with "
            f"{positions} positions: one label per position is needed, -100 where none counts."
        )
    if shift:
        last = labels.new_full((examples, 1), ignore_index)
        labels = torch.cat([labels[:, 1:], last], dim=1)
    rows = (labels.flatten() != ignore_index).nonzero().flatten()
    return rows, labels.flatten()[rows]


def chunked_sum(
    loss: RowLoss, student: Tensor, rows: Tensor, *others: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The sum of a loss over some rows, with at most a chunk of them in float32 at a time.

    loss(student rows, *other rows) is called on ``chunk / vocabulary`` rows at a time, and once
    more for each chunk in the backward pass, which writes into one gradient of the student's
    shape and dtype. Beside the inputs and that gradient memory stays bounded by the chunk.

    Args:
        loss: Student rows ``[n, vocabulary]`` and the same rows of the others -> ``[n]``.
        student: ``[row, vocabulary]``, in any floating dtype; contiguous, or it is copied.
        rows: Positions of the rows that count.
        others: Tensors ``[row, ...]``, without gradients.
        chunk: Numbers of ``[row, vocabulary]`` at a time, at least 1; one row is the least.

    Shapes:
        -> [], float32 (float64 where the student's are)

    Example:
        >>> total = chunked_sum(lambda s: s.square().sum(1), torch.ones(3, 2), torch.tensor([0, 2]))
        >>> total
        tensor(4.)
    """
    size = max(1, chunk // max(1, student.shape[-1]))
    found: Tensor = _ChunkedSum.apply(student, loss, rows, size, *others)  # type: ignore[no-untyped-call]
    return found


class _ChunkedSum(torch.autograd.Function):
    """Keeps no intermediate result: the backward pass computes each chunk again."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, loss: RowLoss, rows: Tensor, size: int, *others: Tensor
    ) -> Tensor:
        ctx.loss, ctx.size = loss, size
        ctx.save_for_backward(student, rows, *others)
        total = student.new_zeros((), dtype=compute_dtype(student.dtype))
        for part, others_part, _ in _chunks(student, rows, size, others):
            total += loss(part, *others_part).sum()
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, rows, *others = ctx.saved_tensors
        found = torch.zeros_like(student)
        for part, others_part, place in _chunks(student, rows, ctx.size, others):
            with torch.enable_grad():
                part.requires_grad_()
                total = ctx.loss(part, *others_part).sum()
            (slope,) = torch.autograd.grad(total, part, gradients[0])
            found.index_copy_(0, place, slope.to(found.dtype))
        return (found, *(None for _ in range(3 + len(others))))


def _chunks(
    student: Tensor, rows: Tensor, size: int, others: Any
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    rows = rows.to(student.device)
    for start in range(0, len(rows), size):
        place = rows[start : start + size]
        part = student.detach()[place]
        yield part.to(compute_dtype(part.dtype)), [other[place] for other in others], place
