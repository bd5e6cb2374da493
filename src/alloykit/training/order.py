"""Which examples make which step: the order of an epoch, its batches, a process's share of them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A seed below 2⁶³ that depends on all parts.

    Torch's generator on the CPU looks at 32 bits alone, so neighbouring numbers will not do.
    """
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The positions 0 to ``count`` - 1 as that epoch sees them; it depends on seed and epoch.

    Shapes:
        -> [example], int64
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def steps_of(order: Tensor, batch_size: int, accumulate: int = 1) -> list[list[Tensor]]:
    """The batches of each step: slices of the order, ``accumulate`` of them a step.

    A last batch of one example joins the batch before it, because BatchNorm takes no batch of one.

    Example:
        >>> [[len(batch) for batch in step] for step in steps_of(torch.arange(9), 2, 3)]
        [[2, 2, 2], [3]]
    """
    batches = list(torch.split(order, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


def share(rows: Tensor, process: int, processes: int) -> Tensor:
    """The rows of a batch that one of several processes takes; sizes differ by at most one.

    Example:
        >>> [share(torch.arange(5), i, 3).tolist() for i in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    return rows if processes == 1 else torch.tensor_split(rows, processes)[process]
