"""The inner loops of merges that are sums, over many blocks in one call.

Python's threads take turns at everything but the arithmetic itself. These loops are compiled by
torch, run without that lock, and so leave the cores to each other. They do the same operations in
the same order as the plain ones: the bits are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, List, Optional  # noqa: UP035

import torch
from torch import Tensor

SAFE_SUM = 1e37
"""A sum within this says that no summand is NaN or infinite, or rounds to infinity in bfloat16."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by torch; itself where that is not offered."""
    try:
        with warnings.catch_warnings():
            # Its successor, torch.compile, needs a C compiler on the user's machine.
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted: Callable[..., Any] = torch.jit.script(function)
            return scripted
    except Exception:
        return function


# torch reads these annotations itself, and knows the older names of the types only.
def _weighted_sum(
    raws: List[Tensor],  # noqa: UP006
    factors: List[float],  # noqa: UP006
    out: Tensor,
    tile: int,
) -> bool:
    for start in range(0, out.numel(), tile):
        stop = min(start + tile, out.numel())
        total = raws[0][start:stop].to(torch.float32).mul_(factors[0])
        for i in range(1, len(raws)):
            total.add_(raws[i][start:stop].to(torch.float32), alpha=factors[i])
        out[start:stop].copy_(total)
        seen = float(total.sum())
        if not (seen > -1e37 and seen < 1e37):
            return False
    return True


def _products(
    raws: List[Tensor],  # noqa: UP006
    base: Optional[Tensor],  # noqa: UP045
    tile: int,
    small: int,
    least: float,
    most: float,
) -> List[float]:  # noqa: UP006
    count = len(raws)
    sums = [0.0 for _ in range(count * count)]
    numel = raws[0].numel()
    for start in range(0, numel, tile):
        stop = min(start + tile, numel)
        vectors: List[Tensor] = []  # noqa: UP006
        for raw in raws:
            vector = raw[start:stop].to(torch.float32)
            if base is not None:
                vector = vector - base[start:stop].to(torch.float32)
            vectors.append(vector)
        squares = [float(torch.dot(vector, vector)) for vector in vectors]
        wide = stop - start <= small or min(squares) < least or max(squares) > most
        if wide:
            vectors = [vector.double() for vector in vectors]
            squares = [float(torch.dot(vector, vector)) for vector in vectors]
        for i in range(count):
            sums[i * count + i] += squares[i]
            for j in range(i + 1, count):
                one = float(torch.dot(vectors[i], vectors[j]))
                sums[i * count + j] += one
                sums[j * count + i] += one
    return sums


weighted_sum = compiled(_weighted_sum)
"""``(raws, factors, out, tile) -> whether all sums are finite``: Σ factorᵢ·rawᵢ in float32, block
by block, rounded into ``out``."""

products = compiled(_products)
"""``(raws, base, tile, small, least, most) -> [member * member]``: inner products of the members,
less the base, in float32 by blocks and summed in float64; blocks of at most ``small`` elements, or
with squared lengths outside ``least`` to ``most``, are multiplied in float64."""
