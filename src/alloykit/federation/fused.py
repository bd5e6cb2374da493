"""The inner loops of sums over clients that lie in memory, compiled by torch.

They do the same operations in the same order as the plain loops in ``values``: the bits are the
same. Between them and the plain ones lies the time that Python takes for a call.
"""

from __future__ import annotations

from typing import List  # noqa: UP035

import torch
from torch import Tensor

from alloykit.execution.fused import compiled


# torch reads these annotations itself, and knows the older names of the types only.
def _sum_of_deltas(
    raws: List[Tensor],  # noqa: UP006
    own: Tensor,
    factors: List[float],  # noqa: UP006
    out: Tensor,
    tile: int,
    measured: bool,
) -> List[float]:  # noqa: UP006
    squares = [0.0 for _ in raws]
    numel = own.numel()
    room = torch.empty(min(tile, numel), dtype=out.dtype)
    total = torch.empty(min(tile, numel), dtype=out.dtype)
    for start in range(0, numel, tile):
        stop = min(start + tile, numel)
        base = own[start:stop]
        change, summed = room[: stop - start], total[: stop - start]
        summed.zero_()
        for i in range(len(raws)):
            if measured or factors[i] != 0.0:
                torch.sub(raws[i][start:stop], base, out=change)
                if measured:
                    squares[i] += float(torch.dot(change, change))
                summed.sub_(change, alpha=factors[i])
        torch.sub(base, summed, out=out[start:stop])
    return squares


def _running_mean(
    raws: List[Tensor],  # noqa: UP006
    steps: List[float],  # noqa: UP006
    out: Tensor,
    tile: int,
) -> None:
    for start in range(0, out.numel(), tile):
        stop = min(start + tile, out.numel())
        mean = out[start:stop]
        mean.copy_(raws[0][start:stop])
        for i in range(1, len(raws)):
            mean.lerp_(raws[i][start:stop].to(mean.dtype), steps[i])


sum_of_deltas = compiled(_sum_of_deltas)
"""``(raws, own, factors, out, tile, measured) -> squares``: own + Σ factorᵢ·(rawᵢ - own) into
``out``, tile by tile, and the squared length of every difference where they are measured."""

running_mean = compiled(_running_mean)
"""``(raws, steps, out, tile)``: the mean of the first, moved by each of the others by its step."""
